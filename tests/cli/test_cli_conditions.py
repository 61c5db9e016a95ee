"""Conditions by name through the command line: data files, cards and networks of the user, to the tables."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from command_line import Run
from conditioned import CASES, arrays_of
from helpers import randomised, row

from mfdiag import load_model, measure
from mfdiag.flow.conditions import Conditions

HERE = Path(__file__).parents[1]
ROWS = 40
CARD = """
network: {factory: "conditioned:Policy"}
call:
  method: unet
  arguments: [x, t, r]
  conditions: {global_cond: {array: obs, encoder: encoder, fold: true}}
objective: {times: uniform}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for case in CASES:
        torch.manual_seed(0)
        torch.save(randomised(CASES[case].network()).state_dict(), f"{case}.pt")
        np.savez(f"{case}.npz", **arrays_of(case, ROWS))
    Path("nets.py").write_text((HERE / "conditioned.py").read_text(encoding="utf-8"), encoding="utf-8")
    Path("policy.yaml").write_text(CARD, encoding="utf-8")
    return tmp_path


def variance(cli: Run, case: str, *options: str, out: str = "out") -> pd.DataFrame:
    result = cli("variance", f"{case}.pt", *options, "--times", "uniform", "--samples", "64", "--bins", "none",
                 "--by", "layer", "--dtype", "float64", "--out", out)  # fmt: skip
    assert result.code == 0, result.err
    assert "of the data" in result.err or "policy.yaml" in result.err
    return pd.read_parquet(Path(out) / "variance.parquet")


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("form", ["npz", "code"])
def test_measured_without_a_card(cli: Run, folder: Path, case: str, form: str) -> None:
    Path("own.py").write_text(
        "import numpy as np\n"
        f"arrays = dict(np.load('{case}.npz'))\n"
        "def data():\n    return [{name: a[i] for name, a in arrays.items()} for i in range(len(arrays['x']))]\n",
        encoding="utf-8",
    )
    data = "own.py:data" if form == "code" else f"{case}.npz"
    name = CASES[case].network.__name__
    table = variance(cli, case, "--model", f"nets.py:{name}", "--data", data)
    model = CASES[case].network()
    model.load_state_dict(torch.load(f"{case}.pt", weights_only=True))
    arrays = arrays_of(case, ROWS)
    expected = measure(
        model, arrays.pop("x"), conditions=arrays, tables=["variance"], times="uniform", samples=64,
        dtype=torch.float64, bins=None,
    )["variance"]  # fmt: skip
    keys = {"layer": "all", "quantity": "variance", "estimator": "meanflow"}
    assert row(table, **keys)["value"] == pytest.approx(row(expected, **keys)["value"], rel=1e-12)
    specification = json.loads(Path("out/manifest.json").read_text())["variance"]["specification"]
    assert specification["subjects"][0]["conditions"] == list(arrays)
    assert ("data_code_sha256" in specification) == (form == "code")
    assert "of their own" in next(iter(specification["without_posterior"].values()))


@pytest.mark.parametrize("command", ["sweep", "coefficient", "compare", "quality"])
def test_other_tables(cli: Run, folder: Path, command: str) -> None:
    size = ("--samples", "64", *(("--subsample", "8") if command == "quality" else ("--times", "uniform")))
    result = cli(command, "text.pt", "--model", "nets.py:TextNetwork", "--data", "text.npz", "--out", "o", *size)
    assert result.code == 0, result.err


def test_the_times_of_least_variance_given_conditions(cli: Run, folder: Path) -> None:
    """Their variance is what a run with these times measures, and what the library gives."""
    model = ("text.pt", "--model", "nets.py:TextNetwork", "--data", "text.npz")
    result = cli("times", *model, "--times", "uniform", "--samples", "640", "--bins", "2,2", "--out", "times")
    assert result.code == 0, result.err
    table = pd.read_parquet("times/times.parquet").set_index("quantity")["value"]
    (density,) = Path("times").glob("times-*.yaml")
    direct = ("--samples", "640", "--seed", "1", "--by", "none", "--times", f"density:{density}", "--out", "direct")
    assert cli("variance", *model, *direct, "--estimator", "meanflow").code == 0
    measured = row(pd.read_parquet("direct/variance.parquet"), quantity="variance", t_low=None)["value"]
    assert measured == pytest.approx(table["weighted_variance"], rel=1e-5)
    arrays = arrays_of("text", ROWS)
    loaded = load_model("text.pt", model="nets.py:TextNetwork")
    own = measure(loaded, arrays.pop("x"), conditions=arrays, tables=["times"], times="uniform", samples=640,
                  bins=(2, 2), estimators=["meanflow"])["times"]  # fmt: skip
    np.testing.assert_allclose(own.set_index("quantity")["value"], table, rtol=1e-6)


def test_guidance_needs_a_null_value(cli: Run, folder: Path) -> None:
    options = ("--data", "policy.npz", "--guidance", "meanflow:2", "--samples", "32", "--times", "uniform")
    refused = cli("variance", "policy.pt", "--model", "nets.py:Policy", *options, "--out", "a")
    assert refused.code == 2 and "null: 0" in refused.err
    Path("null.yaml").write_text(CARD.replace("fold: true", "fold: true, null: 0.5"), encoding="utf-8")
    assert cli("variance", "policy.pt", "--model", "null.yaml", *options, "--out", "b").code == 0
    adapter = load_model("policy.pt", model="null.yaml").module
    obs = torch.as_tensor(arrays_of("policy", ROWS)["obs"][:3], dtype=torch.float32)
    x, r, t = torch.randn(3, 4, 2), torch.full((3,), 0.2), torch.full((3,), 0.7)
    dropped = torch.tensor([True, False, True])
    u = adapter(x, r, t, Conditions(None, {"obs": obs}, dropped))
    own, null = (adapter(x, r, t, Conditions(None, {"obs": values})) for values in (obs, torch.full_like(obs, 0.5)))
    torch.testing.assert_close(u, torch.where(dropped[:, None, None], null, own))


@pytest.mark.parametrize(
    ("model", "data", "problem"),
    [
        ("nets.py:Policy", "text.npz", "also needs obs"),
        ("policy.yaml", "spectrogram.npz", "Expected array 'obs' beside the samples"),
        ("policy.yaml", "extra.npz", "array heights beside its samples"),
        ("nets.py:Policy", "extra.npz", "array heights beside its samples"),
        ("nets.py:Policy", "short.npz", "one row of 'obs' for each of 40 samples"),
    ],
)
def test_conditions_that_do_not_fit_are_refused(cli: Run, folder: Path, model: str, data: str, problem: str) -> None:
    arrays = arrays_of("policy", ROWS)
    np.savez("extra.npz", **arrays, heights=np.ones(ROWS))
    np.savez("short.npz", **{**arrays, "obs": arrays["obs"][1:]})
    result = cli("variance", "policy.pt", "--model", model, "--data", data, "--samples", "8", "--out", "o")
    assert result.code == 2 and problem in result.err and "Traceback" not in result.err


def test_a_loaded_checkpoint_is_measured_as_by_the_command(cli: Run, folder: Path) -> None:
    table = variance(cli, "policy", "--model", "policy.yaml", "--data", "policy.npz")
    loaded = load_model("policy.pt", model="policy.yaml")
    own = measure(loaded, "policy.npz", tables=["variance"], samples=64, dtype=torch.float64, bins=None)["variance"]
    keys = {"layer": "encoder.0", "quantity": "variance", "estimator": "meanflow"}
    assert row(own, **keys)["value"] == row(table, **keys)["value"]


def test_a_card_with_an_encoder_measures_the_encoder_too(cli: Run, folder: Path) -> None:
    by_card = variance(cli, "policy", "--model", "policy.yaml", "--data", "policy.npz")
    by_name = variance(cli, "policy", "--model", "nets.py:Policy", "--data", "policy.npz", out="names")
    layers = set(by_card["layer"])
    assert {"encoder.0", "encoder.2", "time", "film"} <= layers == set(by_name["layer"])
    for layer in layers:
        keys = {"layer": layer, "quantity": "variance", "estimator": "meanflow"}
        assert row(by_card, **keys)["value"] == pytest.approx(row(by_name, **keys)["value"], rel=1e-10)
        assert row(by_card, **keys)["value"] > 0
