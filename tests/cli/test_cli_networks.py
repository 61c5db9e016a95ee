"""Networks of the user's own code from the command line: how they run, and what is said where they fail."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import pytest
import torch
from command_line import Result, Run

from mfdiag.models.factory import call_factory

CODE = """
import warnings

import torch
from torch import Tensor, nn

@torch.compile
def activation(h):
    return torch.tanh(h)

@torch.jit.script
def scaled(h: Tensor, t: Tensor) -> Tensor:
    return h * (1 + t.unsqueeze(1))

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = torch.jit.script(nn.Linear(4, 8))
        self.body = torch.compile(nn.Sequential(nn.Linear(8, 8), nn.SiLU()))
        self.last = nn.Linear(8, 2)
        self.register_buffer("mask", torch.full((8, 8), -torch.inf).triu(1))

    @torch.compile(mode="max-autotune")
    def head(self, h):
        weights = (h[:, :, None] * h[:, None] + self.mask).softmax(-1)
        return self.last((weights @ h[:, :, None])[..., 0])

    def forward(self, x, r, t, y=None):
        h = self.first(torch.cat([x, r[:, None], t[:, None]], 1))
        return self.head(self.body(activation(scaled(h, t))))

def compiled():
    return torch.compile(Net())

def parallel():
    return nn.DataParallel(Net())

class Pair(Net):
    def forward(self, x, r, t, y=None):
        return {"aux": r, "u": super().forward(x, r, t)}

class Breaks(Net):
    def forward(self, x, r, t, y=None):
        return {"u": 1}["v"]

class Deprecated(Net):
    def forward(self, x, r, t, y=None):
        warnings.warn("an old name", FutureWarning)
        return super().forward(x, r, t)

class Late(Net):
    def forward(self, x, r, t, y=None):
        if len(x) > 16:
            return self.last(self.missing)
        return super().forward(x, r, t)
"""


@pytest.fixture
def checkpoint_file(tmp_path: Path) -> Path:
    (tmp_path / "net.py").write_text(CODE)
    torch.manual_seed(0)
    torch.save(call_factory(f"{tmp_path / 'net.py'}:Net").state_dict(), tmp_path / "net.pt")
    return tmp_path / "net.pt"


def run_sweep(cli: Run, file: Path, factory: str, *more: str) -> Result:
    model = f"{file.with_name('net.py')}:{factory}"
    options = [
        "--data",
        "eight_gaussians",
        "--times",
        "uniform",
        "--samples",
        "64",
        "--out",
        str(file.with_name("out")),
    ]
    return cli("sweep", str(file), "--model", model, *options, "--beta", "0,1", *more)


@pytest.mark.parametrize("factory", ["Net", "compiled", "parallel"])
def test_compiled_and_scripted_code_runs_eagerly_and_masks_may_be_infinite(
    cli: Run, checkpoint_file: Path, factory: str
) -> None:
    result = run_sweep(cli, checkpoint_file, factory)
    assert result.code == 0, result.err
    assert result.err.count("run eagerly") == 1


@pytest.mark.parametrize(
    ("factory", "expected"),
    [
        ("Pair", "but it returned a dict: pass --model a card with `output: {part: u}`"),
        ("Breaks", "KeyError: 'v', in Breaks"),
        ("Late", "AttributeError: 'Late' object has no attribute 'missing', in Late"),
    ],
)
def test_what_a_network_raises_is_one_sentence(cli: Run, checkpoint_file: Path, factory: str, expected: str) -> None:
    result = run_sweep(cli, checkpoint_file, factory)
    assert result.code == 2 and expected in result.err and "Traceback" not in result.err
    shown = run_sweep(cli, checkpoint_file, factory, "--debug")
    assert shown.code == 2 and "Traceback" in shown.err and shown.err.splitlines()[-1] == result.err.splitlines()[-1]


def test_warnings_of_libraries_are_for_debug(cli: Run, checkpoint_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "warnoptions", [])
    shown = []
    for more in ([], ["--overwrite", "--debug"]):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert run_sweep(cli, checkpoint_file, "Deprecated", *more).code == 0
        shown.append([str(warning.message) for warning in caught].count("an old name"))
    assert shown[0] == 0 < shown[1]
