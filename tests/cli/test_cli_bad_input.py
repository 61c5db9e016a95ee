"""Bad input: exit code 2, one line on stderr that says what to do, and nothing written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mfdiag.models.checkpoint import bundled, save_checkpoint
from mfdiag.models.description import Architecture, Description
from mfdiag.models.networks.mlp import MLP

Run = Callable[..., Any]


@pytest.fixture
def refused(cli: Run, tmp_path: Path) -> Run:
    """Runs a measuring command that must be refused, and returns its one line."""

    def run(*arguments: object, out: Path | None = None) -> str:
        out = out or tmp_path / "out"
        before = sorted(tmp_path.rglob("*"))
        result = cli(*arguments, "--out", out)
        assert result.code == 2, result
        *notes, line = (text for text in result.err.splitlines() if not text.startswith("    "))  # lines of code
        assert all(note.startswith("note: ") for note in notes), result.err
        assert line.startswith("mfdiag: ") and line.endswith("."), line
        assert result.out == ""
        assert sorted(tmp_path.rglob("*")) == before, "nothing is left behind"
        return line.removeprefix("mfdiag: ")

    return run


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("sweep --data digits", "cannot be evaluated as u(x, r, t, labels) on samples of shape (1, 8, 8)"),
        ("sweep --data gaussian:3,0,1", "on samples of shape (3,)"),
        ("sweep --data gaussian:2,0", "expected gaussian:d,mean,std"),
        ("sweep --data no/such.npy", "No file at no/such.npy"),
        ("sweep --data eight_gausians", "Did you mean 'eight_gaussians'"),
        ("sweep --times unifrm", "Did you mean 'uniform'"),
        ("sweep --times uniform:2", "r_ne_t must be in [0, 1], got 2.0"),
        ("sweep --proxy exakt", "Did you mean 'exact'"),
        ("sweep --proxy teacher", "teacher=PATH"),
        ("sweep --proxy teacher=none.pt", "none.pt does not exist"),
        ("sweep --weighting adaptative:1", "Did you mean 'adaptive'"),
        ("sweep --weighting adaptive:1,0", "eps above 0"),
        ("sweep --weights teacher", "it has 'raw', 'ema'"),
        ("sweep --model nowhere.py:make", "nowhere.py does not exist"),
        ("variance --estimator meanfow", "Did you mean 'meanflow'"),
        ("variance --estimator plane:1", "as in plane:0.5,0"),
        ("variance --estimator plane:nan,0", "two finite numbers"),
        ("variance --estimator meanflow:1", "takes no arguments"),
        ("variance --extra semi_gradient", "Did you mean 'semi_gradient_gap'"),
        ("variance --extra semi_gradient_gap --estimator ema_tangent", "add --estimator meanflow"),
        ("coefficient --weighting adaptive:1", "Use `mfdiag sweep`"),
        ("sweep --beta 1:0:0.1", "a step of 0.1 does not lead from 1 to 0"),
        ("sweep --beta 0:1:0", "a step of 0 does not lead from 0 to 1"),
        ("sweep --beta a:b:c", "Bad --beta 'a:b:c': each value must be a finite number, got 'a'"),
        ("sweep --beta 0:1:0.3", "0.3 does not divide the range from 0 to 1"),
        ("sweep --beta 0:1", "Expected --beta as start:stop:step or a comma list"),
        ("sweep --beta nan", "got 'nan'"),
        ("sweep --beta 0,,1", "got ''"),
        ("sweep --beta 0:1:1e-9", "at most 10,001"),
        ("sweep --gamma inf", "got 'inf'"),
        ("sweep --batch-size 0", "--batch-size must be at least 1"),
        ("sweep --batch-size -4", "--batch-size must be at least 1"),
        ("coefficient --batch-size 99999999999999999999", "at most 2^62"),
        ("sweep --seed 99999999999999999999", "at most 2^62"),
        ("sweep --samples 1", "--samples must be at least 2"),
        ("sweep --samples -5", "--samples must be at least 2"),
        ("sweep --samples 1000000000000000", "Not enough memory"),
        ("sweep --chunk 0", "--chunk takes auto or a whole number"),
        ("sweep --chunk many", "--chunk takes auto or a whole number"),
        ("sweep --bins 5", "as in 5,5"),
        ("sweep --bins 0,5", "as in 5,5"),
        ("sweep --bins 1000,1000", "from 1 to 100"),
        ("sweep --device quantum", "--device 'quantum' cannot be used here"),
        ("sweep --device meta", "--device 'meta' cannot be used here"),
        ("sweep --resume --overwrite", "pass one of the two"),
    ],
)
def test_options(options: str, expected: str, refused: Run) -> None:
    line = refused(*options.split(), *(() if "--samples" in options else ("--samples", "64")))
    assert expected in line and len(line) < 400


@pytest.mark.parametrize("command", ["sweep", "inspect"])
@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("missing", "does not exist"),
        ("folder", "is a folder"),
        ("empty", "is empty"),
        ("text", "begins with b'hello'"),
        ("truncated", "truncated or damaged"),
        ("code", "runs no code from a file"),
    ],
)
def test_checkpoint_files(kind: str, expected: str, command: str, cli: Run, refused: Run, tmp_path: Path) -> None:
    path = tmp_path / kind
    if kind == "folder":
        path.mkdir()
    elif kind == "code":
        torch.save(MLP(2), path)
    elif kind != "missing":
        path.write_bytes({"empty": b"", "text": b"hello", "truncated": bundled().read_bytes()[:-100]}[kind])
    if command == "sweep":
        assert expected in refused("sweep", path)
        return
    result = cli("inspect", path)
    lines = 3 if kind == "code" else 1  # the sentence, and the two lines of Python that convert the file
    assert result.code == 2 and result.out == "" and expected in result.err and result.err.count("\n") == lines


def test_weights_that_are_not_finite(refused: Run, tmp_path: Path) -> None:
    from safetensors import safe_open

    with safe_open(bundled(), "pt") as file:
        metadata = file.metadata()
    for value, expected in (
        (float("nan"), "NaN or infinite values in 1 of"),
        (1e38, "NaN or infinit"),
    ):
        tensors = load_file(bundled())
        tensors["raw.layers.0.weight"][0, 0] = value
        if value == 1e38:
            tensors["raw.layers.2.weight"][:] = value
        save_file(tensors, tmp_path / "bad.safetensors", metadata=metadata)
        assert expected in refused("sweep", tmp_path / "bad.safetensors", "--samples", "64")


def test_a_bad_checkpoint_among_good_ones_is_found_first(refused: Run, checkpoint: Path) -> None:
    assert "does not exist" in refused("sweep", checkpoint, checkpoint.with_name("none.pt"))


def test_labels_the_network_does_not_have(refused: Run, tmp_path: Path) -> None:
    architecture = Architecture(name="mlp", arguments={"dim": 2, "hidden": 4, "depth": 1, "num_classes": 3})
    description = Description(architecture=architecture, times="uniform", data="digits", step=0, seed=0)
    path = tmp_path / "labelled.safetensors"
    save_checkpoint(path, MLP(2, hidden=4, depth=1, num_classes=3), None, description)
    assert "3 classes, but digits has labels of 10 classes" in refused("sweep", path)


def test_an_output_folder_that_cannot_be(refused: Run, checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        assert "give another --out" in refused("sweep", checkpoint, out=out)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "manifest.json").write_text("{")
    assert "not a readable JSON file" in refused("sweep", checkpoint, out=tmp_path / "broken")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["swep"], "Did you mean 'sweep'"),
        (["sweep", "--sampels", "3"], "--samples"),
        (["sweep", "--samples", "many"], "'--samples'"),
        (["sweep", "--seed", "-1"], "'--seed'"),
        (["sweep", "--format", "xml"], "'table', 'json', 'csv'"),
        (["sweep", "--engine", "magic"], "'auto', 'fast', 'reference'"),
        (["variance", "--beta", "0,1"], "No such option"),
        (["list", "estimator"], "'estimators'"),
        (["report"], "Missing argument"),
        (["inspect"], "Missing argument"),
    ],
)
def test_usage_errors(arguments: list[str], expected: str, cli: Run) -> None:
    result = cli(*arguments)
    assert result.code == 2 and result.out == ""
    assert expected in result.err and "Usage: mfdiag" in result.err and "Traceback" not in result.err


def test_report_and_train(cli: Run, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "sweep.parquet").write_text("no table")
    (tmp_path / "bad.yaml").write_text("data: eight_gaussians\nmodel: {name: mpl}\ntimes: uniform\nsteps: 1\n")
    for arguments, expected in (
        (["report", tmp_path / "empty"], "holds no table"),
        (["report", tmp_path / "none"], "holds no table"),
        (["report", tmp_path / "bad"], "not a readable Parquet file"),
        (["train", tmp_path / "none.yaml"], "Check the path"),
        (["train", tmp_path / "bad.yaml", "--out", tmp_path / "model"], "Did you mean 'mlp'"),
    ):
        result = cli(*arguments)
        assert result.code == 2 and result.out == "" and expected in result.err and result.err.count("\n") == 1
    assert not (tmp_path / "model").exists()


CODE = """
from torch import nn

class Net(nn.Module):
    def __init__(self, out=lambda u: u):
        super().__init__()
        self.layer, self.out = nn.Linear(2, 2), out

    def forward(self, x, r, t, labels=None):
        return self.out(self.layer(x))

def build(): return Net()
def pair(): return Net(lambda u: (u, u))
def narrow(): return Net(lambda u: u[:, :1])
def centered(): return Net(lambda u: u - u.mean(0))
def of_three(): return lambda a, b, c: a
def wordless():
    def fail(u): raise ValueError
    return Net(fail)
"""


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("sweep --model net.py:pair", "The model must return one tensor u(x, r, t), but it returned a tuple"),
        ("sweep --model net.py:narrow", "The model must return samples of shape (2,), but it returned shape (1,)"),
        ("variance --model net.py:centered", "do not sum to the batch gradient: the model mixes the samples"),
        ("sweep --model net.py:wordless", "on samples of shape (2,): ValueError, in Net. Check that --data fits"),
        ("quality --model net.py:pair", "The model must return one tensor u(x, r, t), but it returned a tuple"),
        ("quality --model net.py:narrow", "The model must return samples of shape (2,), but it returned shape (1,)"),
        ("quality --model net.py:build --features net.py:of_three", "rows of features, but it raised TypeError"),
        ("sweep --model net.py:build --source net.py:build", "called as module(z, labels)"),
        (
            "sweep --model net.py:build --proxy teacher=net.pt@net.py:pair",
            "The proxy's network must return one tensor u(x, r, t), but it returned a tuple",
        ),
        ("sweep --model net.py:build --coupling reflow:net.pt@net.py:narrow,2", "Expected the teacher of reflow"),
    ],
)
def test_user_code_that_does_not_fit_its_role(
    options: str, expected: str, refused: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.dont_write_bytecode", True)
    Path("net.py").write_text(CODE)
    torch.save({"layer.weight": torch.eye(2), "layer.bias": torch.zeros(2)}, "net.pt")
    command, *rest = options.split()
    size = () if command == "quality" else ("--samples", "64")
    assert expected in refused(command, "net.pt", *rest, "--data", "two_moons", *size)


def test_a_teacher_without_code(refused: Run, tmp_path: Path) -> None:
    torch.save({"layer.weight": torch.eye(2)}, tmp_path / "net.pt")
    line = refused("sweep", "--proxy", f"teacher={tmp_path / 'net.pt'}")
    assert "Expected a teacher that describes its network" in line and "net.pt@FILE.py:factory" in line


def test_weights_of_a_file_without_tensors(refused: Run, tmp_path: Path) -> None:
    torch.save({"steps": 3}, tmp_path / "none.pt")
    assert "but it holds no state dict. Pass another checkpoint." in refused("sweep", tmp_path / "none.pt")


def test_types_are_named_without_the_parsers_words(cli: Run) -> None:
    assert "Invalid value for '--samples': It should be a whole number." in cli("sweep", "--samples", "many").err
    assert "Invalid value for '--by': 'layers' is not one of" in cli("sweep", "--by", "layers").err


def test_resume_without_a_record_of_the_options(cli: Run, checkpoint: Path, tmp_path: Path) -> None:
    options = ("sweep", checkpoint, "--beta", "0,1", "--samples", "64", "--out", tmp_path / "out")
    assert cli(*options).code == 0
    (tmp_path / "out" / "manifest.json").unlink()
    result = cli(*options, "--resume")
    assert result.code == 2 and "does not record the options of the tables" in result.err


def test_ema_tangent_without_ema_weights_is_said(cli: Run, tmp_path: Path) -> None:
    description = Description(
        architecture=Architecture(name="mlp", arguments={"dim": 2, "hidden": 4, "depth": 1}),
        times="uniform",
        data="two_moons",
        step=0,
        seed=0,
    )
    save_checkpoint(tmp_path / "raw.safetensors", MLP(2, hidden=4, depth=1), None, description)
    result = cli("variance", tmp_path / "raw.safetensors", "--samples", "64", "--out", tmp_path / "out")
    assert result.code == 0
    assert "note: ema_tangent left out: the checkpoint has no EMA weights, so self_tangent is measured" in result.err


@pytest.mark.parametrize("option", ["", "--data", "--model", "--proxy"])
@pytest.mark.parametrize("name", ["x" * 300, "\udcff" * 3, "no:such,thing"])
def test_any_name_of_a_file(refused: Run, checkpoint: Path, tmp_path: Path, option: str, name: str) -> None:
    value = {"": name, "--data": name, "--model": f"{name}.py:build", "--proxy": f"teacher={name}"}[option]
    words = (value,) if not option else (checkpoint, option, value)
    text = refused("sweep", *words, "--samples", 8, "--out", tmp_path / "out")
    assert any(word in text for word in ("Expected", "Unknown", "No file"))
