"""The registry builds every architecture, names its arguments in errors, and does not import torch to be listed."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch

from mfdiag.errors import InputError
from mfdiag.models.networks.registry import MODELS, build_model

ARGUMENTS: dict[str, dict[str, Any]] = {
    "mlp": {"dim": 2},
    "dit": {"channels": 1, "size": 4, "width": 8, "depth": 1, "heads": 1},
    "decoupled_dit": {"channels": 1, "size": 4, "width": 8, "depth": 2, "heads": 1, "decoder_depth": 1},
    "unet": {"channels": 1, "width": 8},
    "unet1d": {"channels": 1, "width": 8},
    "gaussian": {"mean": [0.0, 1.0], "std": 0.5, "shape": [2]},
}


@pytest.mark.parametrize("name", MODELS)
def test_builds(name: str) -> None:
    assert isinstance(build_model(name, ARGUMENTS[name]), torch.nn.Module)


def test_unknown_name_and_arguments() -> None:
    with pytest.raises(InputError, match="Did you mean 'mlp'"):
        build_model("mpl", {})
    with pytest.raises(InputError, match=r"unexpected keyword argument 'widht'.*takes dim, hidden, depth, num_classes"):
        build_model("mlp", {"dim": 2, "widht": 3})


def test_listing_does_not_import_torch() -> None:
    modules = "mfdiag.models.networks.registry, mfdiag.models.checkpoint, mfdiag.models.inspection"
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_building_does_not_import_the_compiler_of_torch() -> None:
    code = (
        "import sys; from mfdiag.models.networks.registry import build_model; "
        f"build_model('dit', {ARGUMENTS['dit']}); sys.exit('torch._dynamo' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
