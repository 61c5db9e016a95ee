"""Per-sample gradients of estimators by either engine, on draws common to all tests of this folder."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
from helpers import randomised
from torch import Tensor, nn

from mfdiag.derivatives.choice import forward_mode
from mfdiag.estimators import find_estimator
from mfdiag.fields.builder import FieldBuilder
from mfdiag.flow.data.datasets import FiniteData
from mfdiag.flow.draw import Draws
from mfdiag.flow.times import parse_times
from mfdiag.flow.weighting import Weighting
from mfdiag.gradients.engine import Engine, prepare_engine
from mfdiag.gradients.loss_engine import LossEngine
from mfdiag.gradients.sample_pass import evaluate_batch
from mfdiag.measures.parts.compare_plan import ComparePlan
from mfdiag.models.networks.mlp import MLP

CLASSES = 3
SAMPLES = 6


class Headed(MLP):
    """An MLP with a velocity head."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim, hidden=8, depth=2, num_classes=CLASSES)
        self.head = nn.Linear(dim + 1, dim)

    def velocity(self, x: Tensor, r: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        return self.head(torch.cat([x, t[:, None]], 1))


@cache
def draws(times: str = "uniform", shape: tuple[int, ...] = (3,), seed: int = 7) -> Draws:
    """Labelled points, and pairs (r, t)."""
    points = np.random.default_rng(0).standard_normal((40, *shape))
    data = FiniteData("points", points, np.arange(40) % CLASSES)
    return Draws(data, parse_times(times), seed)


@cache
def networks() -> tuple[Headed, nn.Module, nn.Module]:
    """The measured network, its average and a teacher."""
    torch.manual_seed(0)
    headed = [randomised(Headed(3), seed=k).double().eval().requires_grad_(False) for k in range(3)]
    return headed[0], headed[1], headed[2]


def gradients(
    specs: Sequence[str],
    module: nn.Module,
    draws: Draws,
    kind: str = "fast",
    others: dict[str, nn.Module] | None = None,
    weighting: Weighting | None = None,
    samples: int = SAMPLES,
) -> tuple[ComparePlan, Tensor]:
    """The plan of MeanFlow and `specs`, and the gradients [C, samples, P] of its group, multiplied out.

    Parameters come in the order of `module.parameters()`.
    """
    plan = ComparePlan(
        [find_estimator(spec) for spec in dict.fromkeys(["meanflow", *specs])],
        weighting or Weighting(),
        draws.posterior is not None,
    )
    others = others or {}
    guide = others.get("ema", module)
    proxy = "ema" if "ema" in others else "self"
    builder = FieldBuilder(module, guide, draws, plan.needs, proxy, lambda a: a.double(), others)  # type: ignore[arg-type]
    engine: Engine = prepare_engine(module, builder.inputs(draws.batch(np.arange(2))), kind, lambda _: None)  # type: ignore[arg-type]
    derivative = forward_mode(module)
    first_fields = evaluate_batch(builder, engine, derivative, draws.batch(np.arange(2)))[1]
    inputs, fields, graph = evaluate_batch(builder, engine, derivative, draws.batch(np.arange(samples)))
    losses = LossEngine(module, engine, plan.losses, first_fields, lambda note: None)
    factors = engine.factors(inputs, plan.cotangents(fields), graph)
    parts = {name: joined.dense(0, samples) for name, joined in losses.append_losses(factors, fields)}
    return plan, torch.cat([parts[name] for name, _ in module.named_parameters()], 2)
