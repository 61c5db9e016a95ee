"""Distance between samples in few steps and in many, from the same noise: how well steps follow the model's flow."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mfdiag.quality.metrics._base import MANY_STEPS, Metric

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["METRIC"]


def distance(few: Tensor, many: Tensor) -> float:
    """E|x_few - x_many|^2 / E|x_many - E x_many|^2 of samples [m, d]."""
    spread = many.var(0, correction=0).sum()
    return float((few - many).square().sum(1).mean() / spread)


METRIC = Metric(
    name="many_step_distance",
    title=f"squared distance to the samples in {MANY_STEPS} steps from the same noise, in parts of their variance",
    paper="MeanFlow, arXiv 2505.13447, section 3: the steps of an average velocity agree",
    formula=f"E|x_n - x_{MANY_STEPS}|^2 / Var x_{MANY_STEPS}",
    best=0.0,
    stepwise=distance,
)
