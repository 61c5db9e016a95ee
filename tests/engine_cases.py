"""Networks, inputs and cotangents as a run hands them to an engine."""

from __future__ import annotations

import pytest
import torch
from helpers import randomised
from networks import CLASSES, Network
from torch import Tensor, nn

from mfdiag.fields.inputs import Inputs

SAMPLES, GROUPS, SIZE = 12, 2, 2
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}
DTYPES = pytest.mark.parametrize("dtype", list(TOLERANCE), ids=["float32", "float64"])


def prepared(network: Network, dtype: torch.dtype) -> tuple[nn.Module, Inputs, Tensor]:
    """A module as a run hands it to an engine, inputs and cotangents [C, n, *shape]."""
    torch.manual_seed(0)
    module = randomised(network.build()).to(dtype).eval().requires_grad_(False)
    x = torch.randn(SAMPLES, *network.shape, dtype=dtype)
    r, t = torch.rand(2, SAMPLES, dtype=dtype).sort(dim=0).values
    inputs = (x, r, t, torch.arange(SAMPLES) % CLASSES)
    return module, inputs, torch.randn(GROUPS * SIZE, SAMPLES, *network.shape, dtype=dtype)
