"""Factored gradients against the same gradients multiplied out by hand."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mfdiag.gradients.factors import Dense, Factors, Fold, Mixed, NoGradient, Outer, PulledBack, gram_of

SMALL = st.integers(1, 5)


def check(factors: Factors, gradients: torch.Tensor, groups: int) -> None:
    """All that a `Factors` gives, against gradients [C, n, P]."""
    cotangents, n, _ = gradients.shape
    split = gradients.view(groups, cotangents // groups, n, -1)
    close = {"rtol": 1e-9, "atol": 1e-9}
    torch.testing.assert_close(factors.gram(groups), torch.einsum("gknp,glnp->ngkl", split, split), **close)
    for start, stop in ((0, n), (n // 2, n), (0, 1)):
        torch.testing.assert_close(factors.dense(start, stop), gradients[:, start:stop], **close)
        torch.testing.assert_close(factors.total(start, stop), gradients[:, start:stop].sum(1), **close)
    for bounds in ([(k, k + 1) for k in range(n)], [(0, n)], [(0, 1), (1, n)] if n > 1 else [(0, 1)]):
        expected = torch.stack([gradients[:, start:stop].sum(1) for start, stop in bounds])
        torch.testing.assert_close(factors.totals(bounds), expected, **close)
        gram, totals = factors.gram_and_totals(groups, bounds)
        torch.testing.assert_close(gram, factors.gram(groups), **close)
        torch.testing.assert_close(totals, expected, **close)


@settings(max_examples=60, deadline=None)
@given(
    groups=st.integers(1, 3),
    k=st.integers(1, 3),
    n=SMALL,
    tokens=SMALL,
    p=SMALL,
    q=SMALL,
    inputs_first=st.booleans(),
    seed=st.integers(0, 99),
)
@example(groups=2, k=2, n=3, tokens=40, p=2, q=3, inputs_first=False, seed=0)  # multiplied out
@example(groups=2, k=2, n=3, tokens=40, p=2, q=3, inputs_first=True, seed=0)
@example(groups=1, k=2, n=4, tokens=40, p=9, q=8, inputs_first=False, seed=0)  # multiplied out once for both
@example(groups=2, k=2, n=3, tokens=2, p=40, q=30, inputs_first=False, seed=0)  # token pairs
@example(groups=2, k=2, n=3, tokens=2, p=40, q=30, inputs_first=True, seed=0)
@example(groups=3, k=5, n=2, tokens=1, p=6, q=4, inputs_first=False, seed=0)
def test_every_form_equals_the_gradients_multiplied_out(
    groups: int, k: int, n: int, tokens: int, p: int, q: int, inputs_first: bool, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(n, tokens, p, dtype=torch.float64, generator=generator)
    g = torch.randn(groups * k, n, tokens, q, dtype=torch.float64, generator=generator)
    gradients = torch.einsum("ntp,cntq->cnpq" if inputs_first else "ntp,cntq->cnqp", a, g).flatten(2)
    outer, dense = Outer(a, g, inputs_first), Dense(gradients)
    check(outer, gradients, groups)
    check(dense, gradients, groups)
    check(Mixed((outer, dense), n, p * q * 8), 2 * gradients, groups)


def test_large_gradients_are_multiplied_out_a_few_samples_at_a_time() -> None:
    gradients = torch.randn(2, 9, 30, dtype=torch.float64)
    mixed = Mixed((Dense(gradients),), 9, sample_bytes=25 << 20)
    check(mixed, gradients, 1)
    bounds = [(2, 3), (3, 7), (7, 8)]  # not all samples, and runs across slices
    torch.testing.assert_close(mixed.gram_and_totals(1, bounds)[1], mixed.totals(bounds))


@pytest.mark.parametrize("inputs_first", [False, True])
def test_sums_grow_in_place(inputs_first: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(5, 3, 4, dtype=torch.float64, generator=generator)
    g = torch.randn(2, 5, 3, 6, dtype=torch.float64, generator=generator)
    outer = Outer(a, g, inputs_first)
    sums = outer.total(0, 2)
    outer.add_total(sums, 2, 5)
    torch.testing.assert_close(sums, outer.dense(0, 5).sum(1))


@pytest.mark.parametrize("inputs_first", [False, True])
@pytest.mark.parametrize("sizes", [(2, 3), (8, 12), (9, 30)])
def test_folding_is_linear_and_keeps_what_fits(sizes: tuple[int, int], inputs_first: bool) -> None:
    """Folded factors are the fold of the gradient: exact below the width, each side of a matrix on its own above it."""
    generator = torch.Generator().manual_seed(0)
    q, p = sizes
    a, g = torch.randn(4, 6, p, dtype=torch.float64), torch.randn(2, 4, 6, q, dtype=torch.float64)
    outer = Outer(a, g, inputs_first)
    rows, columns = (p, q) if inputs_first else (q, p)
    left, right = Fold(rows, 4, generator), Fold(columns, 4, generator)
    actual = outer.folded(left, right).dense(0, 4)
    shaped = outer.dense(0, 4).unflatten(2, (rows, columns))
    expected = left(right(shaped).transpose(-1, -2)).transpose(-1, -2)
    torch.testing.assert_close(actual, expected.flatten(2))
    if max(sizes) <= 4:
        assert torch.equal(actual, outer.dense(0, 4))


@pytest.mark.parametrize("inputs_first", [False, True])
@pytest.mark.parametrize("flat", [False, True])
def test_a_gradient_folds_alike_in_every_form(inputs_first: bool, flat: bool) -> None:
    """A pass may meet a parameter in several forms: its sketches add up only if they do not depend on the form."""
    generator = torch.Generator().manual_seed(0)
    a, g = torch.randn(4, 6, 9, dtype=torch.float64), torch.randn(2, 4, 6, 14, dtype=torch.float64)
    outer = Outer(a, g, inputs_first)
    rows, columns = (1, 126) if flat else (9, 14) if inputs_first else (14, 9)
    left, right = Fold(rows, 4, generator), Fold(columns, 8, generator)
    dense = Dense(outer.dense(0, 4))
    expected = dense.folded(left, right).dense(0, 4)
    halves = Outer(a[:, :2], g[:, :, :2], inputs_first), Dense(Outer(a[:, 2:], g[:, :, 2:], inputs_first).dense(0, 4))
    for form in (outer, Mixed(halves, 4, 8 * 126), PulledBack(outer, lambda x: x, 4, 8 * 126)):
        torch.testing.assert_close(form.folded(left, right).dense(0, 4), expected)
    nothing = NoGradient(2, 4, 126, a)
    assert nothing.folded(left, right).dense(0, 4).shape == expected.shape


@pytest.mark.parametrize("size", [7, 8, 12, 29])
def test_folding_by_a_product_is_folding_by_segments(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(2, 3, size, dtype=torch.float64)
    product = Fold(size, 8, torch.Generator().manual_seed(0))
    monkeypatch.setattr("mfdiag.gradients.factors._MATRIX_ENTRIES", 0)
    segments = Fold(size, 8, torch.Generator().manual_seed(0))
    assert product.matrix is not None and segments.matrix is None
    torch.testing.assert_close(product(x), segments(x))


def test_folded_inner_products_are_unbiased() -> None:
    x, y = torch.randn(2, 50, dtype=torch.float64)
    folds = [Fold(50, 8, torch.Generator().manual_seed(seed)) for seed in range(4000)]
    products = torch.stack([fold(x) @ fold(y) for fold in folds])
    assert abs(products.mean() - x @ y) <= 4 * products.std() / len(folds) ** 0.5


def test_a_parameter_without_elements_has_a_gram_matrix_of_zeros() -> None:
    assert torch.equal(gram_of(torch.zeros(4, 3, 0), 2), torch.zeros(3, 2, 2, 2, dtype=torch.float64))
    assert Fold(0, 8, torch.Generator())(torch.zeros(3, 0)).shape == (3, 0)
