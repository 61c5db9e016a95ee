"""--derivative and --guidance from the command line: networks without forward mode, and objectives as trained."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from command_line import Run

from mfdiag.flow.guidance import GUIDANCES
from mfdiag.tables.store import read_table

NETWORK = """
import numpy as np
import torch
from torch import nn


class Kernel(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.from_numpy(np.tanh(x.detach().numpy()))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        return g * (1 - torch.tanh(ctx.saved_tensors[0]) ** 2)


class Network(nn.Module):
    num_classes = 2

    def __init__(self, kernel):
        super().__init__()
        self.kernel = kernel
        self.labels = nn.Embedding(3, 4)
        self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x, r, t, y=None):
        y = torch.full(x.shape[:1], 2) if y is None else y
        h = self.first(torch.cat([x, r[:, None], 20 * t[:, None]], 1) + self.labels(y))
        return self.last(Kernel.apply(h) if self.kernel else torch.tanh(h))


def kernel():
    return Network(True)


def plain():
    return Network(False)
"""


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the code, weights and labelled data."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "network.py").write_text(NETWORK)
    scope: dict = {}
    exec(NETWORK, scope)
    torch.manual_seed(0)
    torch.save(scope["plain"]().state_dict(), tmp_path / "model.pt")
    generator = np.random.default_rng(0)
    np.savez(tmp_path / "data.npz", points=generator.standard_normal((40, 2)), labels=np.arange(40) % 2)
    return tmp_path


def command(table: str, factory: str, *more: object) -> list[object]:
    fixed = [
        "model.pt",
        "--model",
        f"network.py:{factory}",
        "--data",
        "data.npz",
        "--samples",
        64,
        "--times",
        "uniform",
    ]
    return [table, *fixed, "--by", "none", "--out", f"{table}-{factory}", "--overwrite", *more]


THROUGH = [f"--estimator={name}" for name in ("restricted_meanflow", "modular_meanflow", "terminal_velocity:0")]


@pytest.mark.parametrize(
    ("table", "engine", "more"),
    [("variance", "fast", []), ("compare", "fast", THROUGH), ("sweep", "reference", ["--beta", "0:1:0.5"])],
)
def test_a_network_without_forward_mode_is_measured_all_the_same(
    cli: Run, files: Path, table: str, engine: str, more: list[str]
) -> None:
    found = {}
    for factory in ("plain", "kernel"):
        result = cli(*command(table, factory, "--engine", engine, "--dtype", "float64", *more))
        assert result.code == 0, result.err
        assert ("central differences" in result.err) == (factory == "kernel")
        found[factory] = read_table(table, files / f"{table}-{factory}")
    assert set(found["plain"]["derivative"]) == {"jvp"}
    (name,) = set(found["kernel"]["derivative"])
    assert name.startswith("difference:") and 1e-7 < float(name.partition(":")[2]) < 1e-3
    pair = [frame[np.isfinite(frame["value"])] for frame in found.values()]
    spread = {"mixture_weight", "mixture_gain", "noise_scale"}  # ratios of numbers that may be near zero
    left, right = (frame[~frame["quantity"].isin(spread)] for frame in pair)
    np.testing.assert_allclose(right["value"], left["value"], rtol=1e-4, atol=1e-6)


def test_derivatives_as_asked_for(cli: Run, files: Path) -> None:
    result = cli(*command("sweep", "plain", "--derivative", "difference:0.005"))
    assert result.code == 0 and "central differences of step 0.005, relative error about" in result.err
    assert set(read_table("sweep", files / "sweep-plain")["derivative"]) == {"difference:0.005"}
    manifest = json.loads((files / "sweep-plain" / "manifest.json").read_text())
    assert manifest["sweep"]["specification"]["derivative"] == "difference:0.005"
    refused = cli(*command("sweep", "kernel", "--derivative", "jvp"))
    assert refused.code == 2 and "no forward-mode derivative" in refused.err
    unknown = cli(*command("sweep", "plain", "--derivative", "difference:2"))
    assert unknown.code == 2 and "at most 0.5" in unknown.err


def test_guidance_as_asked_for(cli: Run, files: Path) -> None:
    result = cli(*command("variance", "plain", "--guidance", "meanflow:2,0.5,0,0.75,0.1"))
    assert result.code == 0, result.err
    frame = read_table("variance", files / "variance-plain")
    assert {"guided_variance", "guidance_variance_ratio"} <= set(frame["quantity"])
    specification = json.loads((files / "variance-plain" / "manifest.json").read_text())["variance"]["specification"]
    assert specification["subjects"][0]["guidance"] == "meanflow:2,0.5,0,0.75,0.1"
    assert "guidance_variance_ratio" in result.out
    for spec, words in (("meanflow", "no value for omega"), ("improved:2", "velocity head"), ("x", "Unknown guidance")):
        refused = cli(*command("variance", "plain", "--guidance", spec))
        assert refused.code == 2 and words in refused.err


def test_guidances_are_listed(cli: Run) -> None:
    lines = cli("list", "guidances").out.splitlines()
    assert [line.split()[0] for line in lines] == list(GUIDANCES)


def test_a_table_of_an_earlier_version_reads_as_exact(cli: Run, files: Path) -> None:
    assert cli(*command("sweep", "plain")).code == 0
    path = files / "sweep-plain" / "sweep.parquet"
    pd.read_parquet(path).drop(columns="derivative").to_parquet(path)
    frame = read_table("sweep", path.parent)
    assert frame["derivative"].isna().all() and len(frame)
    assert cli("report", "sweep-plain").code == 0
