"""What models are trained on: independent of blocks and of who trains beside."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from specs import spec_of

from mfdiag.flow.data.datasets import load_data
from mfdiag.training import draws
from mfdiag.training.draws import BatchFeed, BatchStream, SamplingKey
from mfdiag.training.loss import TrainBatch


def assert_same(actual: TrainBatch, expected: TrainBatch) -> None:
    for one, other in zip(actual, expected, strict=True):
        assert (one is None) == (other is None)
        assert one is None or other is None or torch.equal(one, other)


@pytest.mark.parametrize("data", ["gaussian:2,0,1", "mixture:3,2", "digits"])
def test_batches_do_not_depend_on_the_block(data: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spec, points = spec_of(data=data), load_data(data)
    usual = BatchFeed([spec], [points], "cpu")
    monkeypatch.setattr(draws, "_BLOCK_STEPS", 3)
    short = BatchFeed([spec], [points], "cpu")
    assert (usual.block_steps, short.block_steps) == (200, 3)
    for step in (0, 7, 2, 203):
        assert_same(usual.batch(step), short.batch(step))
    usual.close()
    short.close()


def test_each_model_gets_its_own_draws_and_equal_laws_share_them() -> None:
    specs = [spec_of(seed=1), spec_of(data="two_moons"), spec_of(), spec_of(loss={"anchor": spec_of().loss.anchor})]
    points = [load_data(spec.data) for spec in specs]
    feed = BatchFeed(specs, points, "cpu")
    together = feed.batch(5)
    for i, (spec, data) in enumerate(zip(specs, points, strict=True)):
        alone = BatchFeed([spec], [data], "cpu")
        assert_same(
            TrainBatch._make(None if values is None else values[i, None] for values in together), alone.batch(5)
        )
        alone.close()
    assert torch.equal(together.x_t[2], together.x_t[3]) and not torch.equal(together.x_t[0], together.x_t[2])
    assert torch.equal(together.t[1], together.t[2]), "times are common to data sets"
    feed.close()


def test_law_of_a_batch() -> None:
    anchor = {"lambda": 1, "delta_min": 0.002, "delta_max": 0.01}
    spec = spec_of(loss={"anchor": anchor})
    block = BatchStream(SamplingKey.of(spec), load_data(spec.data), 512).block(0)
    x_0 = block.x_t - block.t[:, None] * block.v_c
    torch.testing.assert_close(x_0.mean(0), torch.full((2,), 0.5), rtol=0, atol=4 * 0.3 / len(x_0) ** 0.5)
    x_1 = x_0 + block.v_c
    torch.testing.assert_close(x_1.var(0), torch.ones(2), rtol=0, atol=4 * (2 / len(x_1)) ** 0.5)
    assert block.delta is not None
    assert (block.delta <= block.t).all() and block.delta.max() <= 0.01
    assert (block.delta[block.t > 0.01] >= 0.002).all() and (block.r <= block.t).all()


def test_axes_reach_training() -> None:
    """On the trigonometric path with optimal-transport pairs: x_t and v_c are those of the measuring side's draws."""
    spec = spec_of(path="trigonometric", coupling="minibatch_ot:8", source="norm_aligned")
    stream = BatchStream(SamplingKey.of(spec), load_data(spec.data), 16)
    block = stream.block(0)
    drawn = stream.draws.batch(np.arange(len(block.t)))
    angle = drawn.t[:, None] * np.pi / 2
    torch.testing.assert_close(block.x_t, (angle.cos() * drawn.x0 + angle.sin() * drawn.x1).float())
    expected = np.pi / 2 * (angle.cos() * drawn.x1 - angle.sin() * drawn.x0)
    torch.testing.assert_close(block.v_c, expected.float(), rtol=1e-5, atol=1e-5)
    gibbs = BatchStream(SamplingKey.of(spec_of(coupling="gibbs:4")), load_data(spec.data), 16).block(0)
    assert gibbs.weight is not None and gibbs.weight.std() > 0
