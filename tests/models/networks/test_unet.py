"""U-Nets: any size, levels and blocks, and which positions an output depends on."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mfdiag.errors import InputError
from mfdiag.models.networks.unet import UNet, UNet1d


@pytest.mark.parametrize("shape", [(8, 8), (7, 5), (1, 3)])
@pytest.mark.parametrize("multipliers", [(1,), (1, 2), (2, 1, 3)])
def test_images_of_any_size_keep_their_shape(shape: tuple[int, int], multipliers: tuple[int, ...]) -> None:
    x = torch.randn(2, 3, *shape)
    assert UNet(3, width=8, multipliers=multipliers, blocks=2)(x, torch.zeros(2), torch.ones(2)).shape == x.shape


@pytest.mark.parametrize("length", [1, 9, 16])
def test_sequences_of_any_length_keep_their_shape(length: int) -> None:
    x = torch.randn(2, 3, length)
    assert UNet1d(3, width=8)(x, torch.zeros(2), torch.ones(2)).shape == x.shape


@pytest.mark.parametrize("attention", [True, False])
def test_attention_alone_reaches_everywhere(attention: bool) -> None:
    """A far change arrives through the middle's attention, and without it not."""
    torch.manual_seed(0)
    model = UNet1d(1, width=8).double().eval()
    for module in model.modules():
        if isinstance(module, nn.GroupNorm):
            module.forward = lambda x: x  # type: ignore[method-assign]  # norms mix positions too
    if not attention:
        model.middle.forward = lambda x: x  # type: ignore[method-assign]
    x, time = torch.randn(1, 1, 128, dtype=torch.float64), torch.full((1,), 0.5, dtype=torch.float64)
    moved = x.clone()
    moved[..., 0] += 1
    change = (model(moved, 0 * time, time) - model(x, 0 * time, time)).abs()[0, 0]
    assert change[0] > 0 and (change[-1] > 0) == attention


@pytest.mark.parametrize("arguments", [{"width": 0}, {"multipliers": ()}, {"blocks": 0}, {"width": 5, "heads": 3}])
def test_impossible_sizes_are_refused(arguments: dict) -> None:
    with pytest.raises(InputError, match="correct the model's arguments"):
        UNet(**arguments)
