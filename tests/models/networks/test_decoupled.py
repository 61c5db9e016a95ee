"""Decoupled DiT: which blocks see which time, and the velocity head."""

from __future__ import annotations

import copy

import pytest
import torch

from mfdiag.errors import InputError
from mfdiag.models.networks.decoupled import DecoupledDiT


def small(**changes: object) -> DecoupledDiT:
    torch.manual_seed(0)
    return DecoupledDiT(2, size=4, width=8, depth=3, heads=2, decoder_depth=1, **changes)  # type: ignore[arg-type]


def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    return torch.randn(3, 2, 4, 4), torch.rand(3) / 2, 0.5 + torch.rand(3) / 2


def test_the_encoder_sees_t_alone_and_the_decoder_r_alone() -> None:
    model, (x, r, t) = small(), inputs()
    seen: list[list[torch.Tensor]] = []
    for block in model.blocks:
        block.register_forward_hook(lambda module, args, out: seen[-1].append(args[1]))
    for times in ((r, t), (r / 2, t), (r, t / 2)):
        seen.append([])
        model(x, *times)
    first, other_r, other_t = seen
    for k in range(3):
        assert torch.equal(first[k], other_r[k]) == (k < 2)
        assert torch.equal(first[k], other_t[k]) == (k == 2)


def test_at_r_equal_t_all_blocks_see_the_same() -> None:
    model, (x, _, t) = small(), inputs()
    seen: list[torch.Tensor] = []
    for block in model.blocks:
        block.register_forward_hook(lambda module, args, out: seen.append(args[1]))
    model(x, t, t)
    assert all(torch.equal(condition, seen[0]) for condition in seen)


def test_the_velocity_head_reads_the_encoder() -> None:
    model, (x, r, t) = small(velocity_head=True, num_classes=2), inputs()
    y = torch.tensor([0, 1, 0])
    v = model.velocity(x, t, t, y)
    assert v.shape == x.shape and not torch.allclose(v, model.velocity(x, t, t / 2, y))
    assert not torch.allclose(v, model.velocity(x, t, t, 1 - y))
    before = model(x, r, t, y)
    with torch.no_grad():
        for p in [*model.velocity_head.parameters(), *model.velocity_modulation.parameters()]:  # type: ignore[union-attr]
            p += 1
    assert torch.equal(model(x, r, t, y), before), "u does not use the head"
    assert not torch.allclose(model.velocity(x, t, t, y), v)
    with torch.no_grad():
        for p in model.blocks[-1].parameters():
            p += 1
    changed = model.velocity(x, t, t, y)
    assert not torch.allclose(model(x, r, t, y), before)
    torch.testing.assert_close(copy.deepcopy(model).velocity(x, t, t, y), changed)


def test_without_the_head_there_is_no_velocity() -> None:
    assert not hasattr(small(), "velocity") and hasattr(small(velocity_head=True), "velocity")


@pytest.mark.parametrize("decoder_depth", [0, 3])
def test_a_decoder_of_all_blocks_or_none_is_refused(decoder_depth: int) -> None:
    with pytest.raises(InputError, match="fewer than depth=3 blocks"):
        DecoupledDiT(2, size=4, width=8, depth=3, heads=2, decoder_depth=decoder_depth)
