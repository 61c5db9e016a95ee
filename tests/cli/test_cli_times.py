"""`mfdiag times` from end to end: what it writes is measured and trained with."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mfdiag.storage import sha256_of
from mfdiag.tables import read_table

Run = Callable[..., Any]
QUICK = ("--samples", "640", "--bins", "2,2", "--quiet")


def test_times_then_variance_then_training(cli: Run, checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "times"
    result = cli("times", checkpoint, "--samples", "640", "--bins", "2,2", "--floor", "0.2", "--out", out)
    assert result.code == 0, result.err
    assert result.out.startswith(f"times of {checkpoint}, step 100\n") and "measured_gain" in result.out
    density = out / f"times-{tmp_path.name}.yaml"  # the folder's name, since the file is called model
    assert f"train or measure with the new density: density:{density}." in result.err
    names = {"times.parquet", density.name}
    assert {path.name for path in out.iterdir()} == {*names, "manifest.json", "figures"}
    assert {path.stem for path in (out / "figures").iterdir()} == {"time_density"}
    entry = json.loads((out / "manifest.json").read_text())["times"]
    assert entry["outputs"] == {name: sha256_of(out / name) for name in names}
    assert entry["specification"]["floor"] == 0.2 and entry["specification"]["estimators"] == ["meanflow"]
    again = cli("times", checkpoint, "--samples", "640", "--bins", "2,2", "--floor", "0.2", "--out", out, "--resume")
    assert again.code == 0 and "measured already" in again.err
    assert cli("times", checkpoint, *QUICK, "--floor", "0.3", "--out", out, "--resume").code == 2

    spec = f"density:{density}"
    options = ("--samples", "640", "--seed", "1", "--by", "none", "--times", spec, "--out", tmp_path / "direct")
    assert cli("variance", checkpoint, *options, "--estimator", "meanflow").code == 0
    direct = read_table("variance", tmp_path / "direct")
    assert set(direct["times"]) == {spec}
    direct = direct[(direct["quantity"] == "variance") & direct["t_low"].isna()]["value"].iloc[0]
    found = read_table("times", out).set_index("quantity")["value"]
    assert direct == pytest.approx(found["weighted_variance"], rel=1e-5)

    (out / "spec.yaml").write_text(
        f"data: gaussian:2,0,1\nmodel: {{name: mlp, arguments: {{dim: 2, hidden: 8, depth: 1}}}}\n"
        f"times: density:{density.name}\nbatch_size: 16\nsteps: 4\n"
    )
    trained = cli("train", out / "spec.yaml", "--out", tmp_path / "model")
    assert trained.code == 0, trained.err
    model = trained.out.strip()
    refused = cli("times", model, *QUICK, "--out", tmp_path / "refused")
    assert refused.code == 2 and "Pass the sampler it was made for: --times uniform" in refused.err


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--bins", "none"), "pass --bins R,T"),
        (("--floor", "0"), "--floor must be above 0 and at most 1, got 0"),
        (("--estimator", "all"), "takes one --estimator"),
        (("--times", "density:absent.yaml"), "Expected a density of (r, t) that `mfdiag times` wrote at absent.yaml"),
    ],
)
def test_bad_input(options: tuple[str, str], expected: str, cli: Run, checkpoint: Path, tmp_path: Path) -> None:
    result = cli("times", checkpoint, *options, "--samples", "80", "--out", tmp_path / "out")
    assert result.code == 2 and expected in result.err and "Traceback" not in result.err
