"""Mutated files and names, a few of those of benchmarks/hostile.py, and what no limit may let through."""

from __future__ import annotations

import contextlib
import csv
import importlib
import io
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from command_line import Run
from hypothesis import given, settings
from hypothesis import strategies as st

from mfdiag.errors import InputError
from mfdiag.flow.data.files import read_points
from mfdiag.models.networks.registry import Bounds, build_model
from mfdiag.tables.provenance import read_manifest
from mfdiag.tables.store import MANIFEST
from mfdiag.training.spec import TrainSpec
from mfdiag.yamlfile import read_yaml

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
ALL_FIGURES = "mfdiag.figures.save_figures"
importlib.import_module("mfdiag.reporting.folder")  # takes save_figures by name: not while a test replaces it


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The module of the benchmark, in a folder with the files that it mutates."""
    sys.path.insert(0, str(BENCHMARKS))
    before = Path.cwd()
    try:
        import hostile as module

        module.prepare(tmp_path_factory.mktemp("hostile") / "inside")
        code, said, *_ = module.run_one(f"sweep a.safetensors {module.QUICK} --out results".split())
        assert code == 0, said
        yield module
    finally:
        sys.path.remove(str(BENCHMARKS))
        os.chdir(before)


@pytest.mark.parametrize("kind", ["safetensors", "torch", "yaml", "data", "tables", "names"])
def test_mutations(kind: str, hostile: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ALL_FIGURES, lambda tables, out: [])
    for number in range(6):
        arguments = hostile.trial(kind, number, 1)
        code, said, seconds, grown = hostile.run_one(arguments)
        assert hostile.judged(code, said, seconds, grown) == [], (arguments, said)


TEXTS = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("[]{}&*!:-?|>%@`#,\n \x1b\x9b"), max_size=60)


@settings(max_examples=100)
@given(text=TEXTS)
def test_any_yaml_is_read_or_refused(text: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text(text, encoding="utf-8")
    with contextlib.suppress(InputError):
        assert isinstance(read_yaml(path, "a specification", TrainSpec)[1], dict)


LAUGHS = "".join(f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 10) if k else 'ha'}]\n" for k in range(30))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[" * 1000, "nested more than 40 deep"),
        ("{a: " * 1000, "nested more than 40 deep"),
        ("- " * 1000, "nested more than 40 deep"),
        (LAUGHS, "more than 50,000 entries, with aliases written out"),
        ("a: &x [*x]", "an alias stands within what it refers to"),
        ("a: &x {b: *x}", "an alias stands within what it refers to"),
        (f"a: {'9' * 5000}", "a number has more than 60 digits"),
        (f"a: 0x{'f' * 5000}", "a number has more than 60 digits"),
        (f"a: {'1:' * 3000}1", "a number has more than 60 digits"),
        (f"a: {10**30}", "is too large for a whole number"),
        ("a: !!int abc", "'abc' is no int"),
        ("a: !!float x", "'x' is no float"),
        ("a: !!bool maybe", "'maybe' is no bool"),
        ("a: !!timestamp x", "'x' is no timestamp"),
        ("a: 2001-99-99", "'2001-99-99' is no timestamp"),
        ("a: !!binary ////a", "is no binary|failed to decode"),
        ("a: !!python/object/apply:os.system [x]", "could not determine a constructor"),
        ("x" * 2**19, "524,288 bytes, more than 262,144"),
    ],
)
def test_limits_of_yaml(text: str, problem: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(InputError, match=problem):
        read_yaml(tmp_path / "a.yaml", "a specification", TrainSpec)


def test_aliases_that_expand_to_little_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("a: &x [1, 2]\nb: [*x, *x]\nc: &y {z: *x}\nd: {<<: *y, e: 1}\n")
    values = read_yaml(tmp_path / "a.yaml", "a specification", TrainSpec)[1]
    assert values == {"a": [1, 2], "b": [[1, 2], [1, 2]], "c": {"z": [1, 2]}, "d": {"z": [1, 2], "e": 1}}


FIELDS = st.sampled_from(["sweep", "specification", "inputs", "command", "doubts", "text", "seconds"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(FIELDS | st.text(max_size=3), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=100)
@given(content=JSON)
def test_any_manifest_is_read_or_refused(content: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    from mfdiag.reporting.page import _doubts, _runs

    folder = tmp_path_factory.getbasetemp()
    (folder / MANIFEST).write_text(json.dumps(content))
    with contextlib.suppress(InputError):
        manifest = read_manifest(folder)
        assert all(isinstance(entry["inputs"], list) for entry in manifest.values())
        _doubts(manifest), dict(_runs(manifest))


def test_what_expands_is_refused_before_it_takes_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mfdiag.flow.data.file_arrays._ALWAYS_FITS", 2**20)  # 1 GiB
    pd.DataFrame({"a": np.ones(10**6), "b": np.ones(10**6)}).to_parquet(tmp_path / "a.parquet")
    torch.save({"x": torch.ones(1, 1).expand(10**6, 10**6)}, tmp_path / "a.pt")
    np.savez_compressed(tmp_path / "a.npz", x=np.zeros((10**6, 1)))
    for suffix in ("parquet", "pt", "npz"):
        with pytest.raises(InputError, match=r"hold about its own size, but its .* bytes stand for"):
            read_points(tmp_path / f"a.{suffix}")


@pytest.mark.parametrize(
    "arguments", [{"depth": 10**6}, {"hidden": 10**7}, {"depth": 2**63}, {"dim": -1}, {"depth": "x"}, {"hidden": 1e308}]
)
def test_networks_that_no_file_holds_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"at most 6 tensors|cannot be built|dim=-1"):
        build_model("mlp", {"dim": 2, "hidden": 8, "depth": 1} | arguments, Bounds(6, 1000))


def test_a_network_is_built_as_without_the_check() -> None:
    torch.manual_seed(0)
    one = build_model("mlp", {"dim": 2})
    torch.manual_seed(0)
    from mfdiag.models.networks.mlp import MLP

    other = MLP(2)
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


HOSTILE_NAMES = ["=1+1.safetensors", "\x1b[31mred.safetensors", "\x9b2J.safetensors", "\u202egnp.safetensors", "@x.pt"]


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_names_change_no_terminal_and_no_spreadsheet(
    name: str, cli: Run, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ALL_FIGURES, lambda tables, out: [])
    Path(name).write_bytes(checkpoint.read_bytes())
    for format in ("csv", "json", "table"):
        result = cli(
            "sweep",
            name,
            "--samples",
            "64",
            "--bins",
            "none",
            "--beta",
            "0,1",
            "--format",
            format,
            "--out",
            f"out-{format}",
        )
        assert result.code == 0, result.err
        said = result.out + result.err
        assert all(letter.isprintable() or letter in "\n\r" for letter in said), repr(said[:300])
        if format == "csv":
            cells = [cell for row in csv.reader(io.StringIO(result.out)) for cell in row]
            text = [cell for cell in cells if cell and not _is_number(cell)]
            assert not [cell for cell in text if cell.startswith(("=", "+", "-", "@", "\t", "\r"))]
        if format == "json":
            assert json.loads(result.out)[0]["checkpoint"] == name
    assert pd.read_parquet("out-csv/sweep.parquet")["checkpoint"].iloc[0] == name
    report = cli("report", "out-csv")
    assert all(letter.isprintable() or letter == "\n" for letter in report.out + report.err)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def test_names_that_are_no_text(cli: Run) -> None:
    result = cli("inspect", "a\udcff.pt")
    assert result.code == 2 and "Expected arguments in UTF-8" in result.err


@pytest.mark.parametrize(
    "command",
    ["train PIPE --dry-run", *(f"sweep --data PIPE.{kind}" for kind in ("npy", "json", "tar", "zip")), "report ."],
)
def test_a_pipe_is_refused(command: str, cli: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("PIPE", "PIPE.npy", "PIPE.json", "PIPE.tar", "PIPE.zip", "sweep.parquet"):
        os.mkfifo(name)
    assert cli(*command.split(), *(("--out", "out") if "sweep" in command else ())).code == 2


@pytest.mark.parametrize("name", ["~no-such-user.npz", "~no-such-user/x.npz"])
@pytest.mark.parametrize("option", ["--data NAME", "--coupling pairs:NAME", "--times density:NAME"])
def test_a_home_that_nobody_has_is_a_name(name: str, option: str, cli: Run, tmp_path: Path) -> None:
    refused = cli("sweep", *option.replace("NAME", name).split(), "--samples", "64", "--out", tmp_path / "out")
    assert refused.code == 2 and name in refused.err.splitlines()[-1], refused.err


CODE_IN_SPECIFICATIONS = """\
data: code.py:run
data: code.part:run
source: code.py:run
path: code.py:run
coupling: reflow:a.pt@code.py:run,2
loss: {estimator: code.py:run}
loss: {estimator: code.part:run}
"""


@pytest.mark.parametrize("field", CODE_IN_SPECIFICATIONS.splitlines())
def test_a_specification_runs_no_code(field: str, cli: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("code.py", "part.py"):
        Path(name).write_text("import pathlib\npathlib.Path('canary').touch()\n")
    values = {"data": "data: gaussian:2,0,1", "times": "times: uniform", "steps": "steps: 3"}
    values |= {"model": "model: {name: mlp, arguments: {dim: 2}}", field.partition(":")[0]: field}
    Path("spec.yaml").write_text("\n".join(values.values()))
    assert cli("train", "spec.yaml", "--dry-run").code == 2
    assert not Path("canary").exists()
