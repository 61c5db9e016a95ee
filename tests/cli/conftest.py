"""The command line as a user meets it: arguments in; exit code, stdout and stderr out."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import Result, Run


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs `mfdiag` with these arguments in this process."""
    from mfdiag.cli import main

    def run(*arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["mfdiag", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main()
        return Result(int(end.value.code or 0), *capsys.readouterr())

    return run


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    """Writes a small described checkpoint of two-dimensional Gaussian data: save(name, step, seed) -> path."""
    import torch

    from mfdiag.models.checkpoint import save_checkpoint
    from mfdiag.models.description import Architecture, Description
    from mfdiag.models.networks.mlp import MLP

    def write(name: str = "model", step: int = 100, seed: int = 0) -> Path:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = MLP(2, hidden=8, depth=1)
        description = Description(
            architecture=Architecture(name="mlp", arguments={"dim": 2, "hidden": 8, "depth": 1}),
            times="uniform",
            data="gaussian:2,0,1",
            step=step,
            seed=seed,
        )
        path = tmp_path / f"{name}.safetensors"
        ema = {key: value * 0.9 for key, value in model.state_dict().items()}
        save_checkpoint(path, model, ema, description)
        return path

    return write


@pytest.fixture
def checkpoint(save: Callable[..., Path]) -> Path:
    """One such checkpoint."""
    return save()
