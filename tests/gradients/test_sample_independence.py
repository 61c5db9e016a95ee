"""Networks that are no function of each sample alone, and how they are named."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from networks import NETWORKS
from torch import Tensor, nn

from mfdiag.errors import InputError
from mfdiag.fields.inputs import Inputs
from mfdiag.gradients.engine import prepare_engine


class Part(nn.Module):
    """A layer inside the model, with a habit."""

    def __init__(self, habit: str) -> None:
        super().__init__()
        self.layer, self.habit = nn.Linear(8, 8), habit

    def forward(self, h: Tensor) -> Tensor:
        h = self.layer(h)
        if self.habit == "dropout":
            return F.dropout(h, 0.2, training=True)
        if self.habit == "noise":
            return h + 0.1 * torch.randn_like(h)
        if self.habit == "centred":
            return h - h.mean(0)
        if self.habit == "functional":
            return F.batch_norm(h[:, :, None], None, None, training=True)[:, :, 0]
        return h


class Model(nn.Module):
    def __init__(self, habit: str = "none", norm: nn.Module | None = None, drops: float = 0.0) -> None:
        super().__init__()
        self.first, self.part, self.last = nn.Linear(4, 8), Part(habit), nn.Linear(8, 2)
        self.norm, self.drops, self.labels = norm, drops, nn.Embedding(4, 8)

    def forward(self, x: Tensor, r: Tensor, t: Tensor, y: Tensor) -> Tensor:
        h = self.first(torch.cat([x, r[:, None], t[:, None]], 1))
        if self.drops:
            y = torch.where(torch.rand(len(y)) < self.drops, 3, y)
        h = self.part(h + self.labels(y))
        return self.last(h if self.norm is None else self.norm(h))


class Stubborn(Model):
    """A model whose eval mode is training mode."""

    def train(self, mode: bool = True) -> Stubborn:
        return super().train(True)  # type: ignore[return-value]


def inputs(shape: tuple[int, ...] = (2,)) -> Inputs:
    generator = torch.Generator().manual_seed(0)
    r, t = torch.rand(2, 2, generator=generator).sort(dim=0).values
    return torch.randn(2, *shape, generator=generator), r, t, torch.arange(2)


@pytest.mark.parametrize("kind", ["fast", "reference"])
@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: Model("dropout"), r"Equal calls .* first in part \(Part\): switch off its dropout"),
        (lambda: Model("noise"), r"Equal calls .* first in part \(Part\)"),
        (lambda: Model(drops=0.1), r"Equal calls .* first in labels|Equal calls .* first in Model"),
        (lambda: Model("centred"), r"mixes the samples of a batch, first in part \(Part\)"),
        (lambda: Model(norm=nn.BatchNorm1d(8, track_running_stats=False)), r"norm \(BatchNorm1d\) normalizes over the"),
        (lambda: Stubborn(norm=nn.BatchNorm1d(8)), r"norm \(BatchNorm1d\) normalizes over the batch even in eval mode"),
        (lambda: Model("functional"), "Expected more than 1 value per channel when training"),
    ],
)
def test_habits_are_refused_by_name(build: object, words: str, kind: str) -> None:
    torch.manual_seed(0)
    module = build().eval().requires_grad_(False)  # type: ignore[operator]
    with pytest.raises(InputError, match=words):
        prepare_engine(module, inputs(), kind, lambda note: None)  # type: ignore[arg-type]


class Shifted(Model):
    """A model whose output is shifted by what a batch has in common: gradients of its parameters do not show that."""

    def __init__(self, shift: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.shift = shift

    def forward(self, x: Tensor, r: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return super().forward(x, r, t, y) + self.shift(x, t)


@pytest.mark.parametrize("kind", ["fast", "reference"])
@pytest.mark.parametrize(
    "shift", [lambda x, t: t.mean(), lambda x, t: x - x.mean(0), lambda x, t: x.std(0), lambda x, t: x / x.abs().max()]
)
@pytest.mark.filterwarnings("ignore:std")
def test_outputs_that_depend_on_the_batch_are_refused(shift: Callable[[Tensor, Tensor], Tensor], kind: Any) -> None:
    module = Shifted(shift).eval().requires_grad_(False)
    with pytest.raises(InputError, match="differs in a batch of others: the model mixes the samples of a batch"):
        prepare_engine(module, inputs(), kind, lambda note: None)


def test_a_sample_at_a_tie_of_rounding_is_not_mixing() -> None:
    """Where rounding decides, the output of one sample may differ between batches, but not a step away."""
    x, *others = inputs()
    module = Shifted(lambda points, t: 1.0 * (points + 1e-7 * (len(points) == 1) > x[0, 0])).eval()
    prepare_engine(module.requires_grad_(False), (x, *others), "fast", lambda note: None)  # type: ignore[arg-type]


@pytest.mark.parametrize("norm", [nn.BatchNorm1d(8), nn.Dropout(0.5), None])
def test_eval_mode_is_enough_for_the_rest(norm: nn.Module | None) -> None:
    prepare_engine(Model(norm=norm).eval().requires_grad_(False), inputs(), "fast", lambda note: None)


def test_well_behaved_networks_pass() -> None:
    for name in ("dit", "unet", "folded_tokens", "tokens_first"):
        network = NETWORKS[name]
        prepare_engine(network.build().eval().requires_grad_(False), inputs(network.shape), "fast", lambda note: None)
