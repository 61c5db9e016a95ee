"""The adaptive weight 1 / (|e|^2 + eps)^p."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mfdiag.errors import InputError
from mfdiag.flow.weighting import Reduction, Weighting, parse_weighting


def test_none_leaves_the_residual_alone() -> None:
    e = torch.randn(3, 2)
    assert parse_weighting("none")(e) is e and parse_weighting("none").name == "none"


@given(p=st.floats(0.1, 3), eps=st.floats(1e-6, 1), seed=st.integers(0, 99))
def test_each_sample_by_its_own_norm(p: float, eps: float, seed: int) -> None:
    e = torch.randn(4, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    weighted_residuals = Weighting(p, eps)(e)
    for one, weighted in zip(e, weighted_residuals, strict=True):
        square = sum(float(x) ** 2 for x in one.flatten())
        torch.testing.assert_close(weighted, one / (square + eps) ** p)


LITERAL = {
    "adaptive:0.7,0.01": lambda e: e.square().sum(),
    "adaptive:0.7,0.01,mean": lambda e: e.square().mean(),
    "adaptive:0.7,0.01,square": lambda e: e.square().sum() ** 2,
}
"""Specification -> L of one residual, as loss code writes it."""


@pytest.mark.parametrize("spec", LITERAL)
@given(seed=st.integers(0, 99))
def test_the_gradient_is_that_of_the_literal_loss(spec: str, seed: int) -> None:
    """Of u = e + target under L / sg(L + eps)^p, by plain autograd, sample by sample; and the loss is its value."""
    e = torch.randn(4, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    weighting = parse_weighting(spec)
    losses = weighting.loss(e.flatten(1).square().sum(1), 6)
    gradients = 2 * weighting(e)
    for one, loss, gradient in zip(e, losses, gradients, strict=True):
        u = one.clone().requires_grad_()
        literal = LITERAL[spec](u)
        literal = literal / (literal.detach() + 0.01) ** 0.7
        torch.testing.assert_close(loss, literal.detach())
        torch.testing.assert_close(gradient, torch.autograd.grad(literal, u)[0])


@pytest.mark.parametrize("reduction", ["sum", "mean", "square"])
def test_the_loss_is_differentiable_and_its_weight_is_not(reduction: Reduction) -> None:
    weighting = Weighting(0.5, 0.1, reduction)
    e = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(weighting.loss(e.square().sum(1), 4).sum(), e)
    torch.testing.assert_close(gradient, 2 * weighting(e.detach()))


@given(p=st.floats(1e-3, 10), eps=st.floats(1e-9, 10), reduction=st.sampled_from(["sum", "mean", "square"]))
def test_names_are_read_back(p: float, eps: float, reduction: Reduction) -> None:
    weighting = Weighting(p, eps, reduction)
    assert parse_weighting(weighting.name) == weighting


def test_p_one_half_without_eps_normalises() -> None:
    e = torch.randn(5, 4, dtype=torch.float64)
    torch.testing.assert_close(Weighting(0.5, 1e-18)(e).norm(dim=1), torch.ones(5, dtype=torch.float64))


@pytest.mark.parametrize(
    ("spec", "p", "eps", "name"),
    [
        ("adaptive", 1, 1e-3, "adaptive:1,0.001"),
        ("adaptive:0.5", 0.5, 1e-3, "adaptive:0.5,0.001"),
        ("adaptive:eps=0.1,p=2", 2, 0.1, "adaptive:2,0.1"),
        ("adaptive:0", 0, 1e-3, "none"),
        ("adaptive:1,0.01,sum", 1, 0.01, "adaptive:1,0.01"),
        ("adaptive:2,mean", 2, 1e-3, "adaptive:2,0.001,mean"),
        ("adaptive:1,1e-5,square", 1, 1e-5, "adaptive:1,1e-05,square"),
    ],
)
def test_specifications(spec: str, p: float, eps: float, name: str) -> None:
    weighting = parse_weighting(spec)
    assert (weighting.p, weighting.eps, weighting.name) == (p, eps, name)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("adaptiv", "Did you mean 'adaptive'"),
        ("none:1", "none takes no arguments"),
        ("adaptive:-1", "p must be in"),
        ("adaptive:11", "p must be in"),
        ("adaptive:1,0", "eps above 0"),
        ("adaptive:1,nan", "eps must be a finite number"),
        ("adaptive:1,1,1", "expected adaptive:"),
        ("adaptive:1,1,median", "expected adaptive:"),
        ("adaptive:0,1,mean", "p = 0 is no weighting"),
        ("adaptive:q=1", "unknown argument 'q'"),
    ],
)
def test_bad_specifications(spec: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_weighting(spec)
