"""`mfdiag inspect`, `report` and `train`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml

from mfdiag.models.checkpoint import bundled, load_model
from mfdiag.storage import sha256_of

Run = Callable[..., Any]
ROOT = Path(__file__).parents[2]


def test_inspect(cli: Run) -> None:
    result = cli("inspect", bundled())
    assert result.code == 0 and result.err == ""
    for expected in (
        "mlp(dim=2, hidden=128, depth=3)",
        "eight_gaussians",
        "20,000",
        "raw",
        "ema",
        sha256_of(bundled()),
    ):
        assert expected in result.out
    found = json.loads(cli("inspect", bundled(), "--format", "json").out)
    assert found["description"]["step"] == 20_000 and {s["key"] for s in found["weights"]} == {"raw", "ema"}


def test_inspect_proposes_a_card(cli: Run, tmp_path: Path) -> None:
    path = tmp_path / "step.pt"
    state = {"layers.0.weight": torch.ones(4, 2), "evil\x1b[2J": torch.ones(1)}
    torch.save({"net": state, "ema": state, "steps": 1200, "args": argparse.Namespace(time_mu=-0.4)}, path)
    shown = cli("inspect", path)
    assert shown.code == 0 and "\x1b" not in shown.out
    for expected in (
        "step        1,200",
        "tensors of net, ema",
        "layers.*.weight [4, 2]",
        "args.time_mu=-0.4",
        "raw: net",
    ):
        assert expected in shown.out
    card = cli("inspect", path, "--card").out
    assert yaml.safe_load(card)["weights"] == {"raw": "net", "ema": "ema"}
    assert json.loads(cli("inspect", path, "--format", "json").out)["proposal"]["text"] == card
    refused = cli("inspect", bundled(), "--card")
    assert refused.code == 2 and "describes or contains its network" in refused.err


def test_report_writes_a_page_of_the_users_own(cli: Run, tmp_path: Path) -> None:
    """Of a folder without tables of mfdiag; errors of the code are one sentence."""
    code = tmp_path / "pages.py"
    once = f"open({str(tmp_path / 'runs')!r}, 'a').write('run ')\n"
    code.write_text(once + "def write(folder):\n    (folder / 'README.md').write_text('mine')\n")
    for name in ("own", "other"):
        (tmp_path / name).mkdir()
    assert cli("report", tmp_path / "own", tmp_path / "other", "--page", f"{code}:write").code == 0
    assert (tmp_path / "runs").read_text() == "run ", "for both folders"
    result = cli("report", tmp_path / "own", "--page", f"{code}:write")
    assert (result.code, (tmp_path / "own" / "README.md").read_text()) == (0, "mine")
    assert result.out == f"page of {code}:write: {tmp_path / 'own'}\n"
    failed = cli("report", tmp_path / "none", "--page", f"{code}:write")
    assert failed.code == 2 and failed.out == "" and "FileNotFoundError" in failed.err and failed.err.count("\n") == 1


def test_report_writes_nothing_where_the_page_cannot_be_called(cli: Run, tmp_path: Path) -> None:
    """The folder's table is not readable either, and the page is refused before it is looked at."""
    (tmp_path / "pages.py").write_text("NUMBER = 3\n\n\ndef without():\n    pass\n")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "sweep.parquet").write_bytes(b"not a table")
    for page in ("no.py:write", "pages.py:nothing", "pages.py:NUMBER", "pages.py:without"):
        failed = cli("report", tmp_path / "out", "--page", f"{tmp_path}/{page}")
        assert failed.code == 2 and failed.out == "" and failed.err.count("\n") == 1, failed.err
        assert page.partition(":")[0] in failed.err


def test_report_says_what_tables_show_and_draws_them_again(cli: Run, save: Run, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for table in ("sweep", "variance", "coefficient"):
        assert cli(table, save(), "--samples", "300", "--bins", "2,2", "--out", out, "--quiet").code == 0
    drawn = {path.name: path.read_bytes() for path in (out / "figures").glob("*.svg")}
    for path in (out / "figures").iterdir():
        path.unlink()
    result = cli("report", out)
    assert result.code == 0 and result.err == ""
    subject, *sentences = result.out.splitlines()[:4]
    assert subject == f"{tmp_path / 'model.safetensors'}, step 100"
    assert all(sentence.startswith("- ") and sentence.endswith(".") for sentence in sentences)
    tables = ", ".join(f"{out / name}.parquet" for name in ("coefficient", "sweep", "variance", "samples"))
    assert result.out.splitlines()[4:] == [
        f"tables: {tables}",
        f"figures: {out / 'figures'}",
        f"report: {out / 'report.html'}",
    ]
    assert {path.name: path.read_bytes() for path in (out / "figures").glob("*.svg")} == drawn


def test_train_as_the_bundled_checkpoint_was(cli: Run, tmp_path: Path) -> None:
    """A few steps of the committed specification, interrupted by nothing, then the same folder again."""
    text = (ROOT / "sweeps" / "bundled.yaml").read_text()
    assert "steps: 20000" in text
    (tmp_path / "short.yaml").write_text(text.replace("steps: 20000", "steps: 3"))
    out = tmp_path / "model"
    result = cli("train", tmp_path / "short.yaml", "--out", out)
    assert (result.code, result.out, result.err) == (0, f"{out / 'model.safetensors'}\n", "")
    description = load_model(out / "model.safetensors").description
    expected = load_model(bundled()).description
    assert description is not None and expected is not None and description.step == 3
    # fields younger than the bundled file have the values that change nothing
    loss = expected.specification["loss"] | {"estimator": None, "proxy": "ema", "beta_by": None}
    changed = {"step": 3, "specification": expected.specification | {"steps": 3, "loss": loss, "keep_every": 0}}
    assert description == expected.model_copy(update=changed)
    before = (out / "model.safetensors").read_bytes()
    assert cli("train", tmp_path / "short.yaml", "--out", out, "--quiet").code == 0
    assert cli("train", tmp_path / "short.yaml", "--out", out, "--overwrite").code == 0
    assert (out / "model.safetensors").read_bytes() == before
