"""Quadratic forms over (1, beta, gamma): layouts, minimisers, and the coefficient's dependence on the batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import accumulated, one_cell
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mfdiag.coefficients.plane import (
    DEGENERATE,
    ColumnLayout,
    Quadratic,
    gradient_quadratic,
    is_degenerate,
    output_quadratic,
)
from mfdiag.coefficients.scalar import diagonal_optimum, isotropic_optimum
from mfdiag.gradients.intervals import jackknife


def quadratic(seed: int) -> Quadratic:
    """Two replicates of a random positive S, and a positive B that does not see the first entry."""
    rng = np.random.default_rng(seed)
    roots = rng.normal(size=(2, 2, 3, 3))
    b = np.pad(roots[1][:, 1:, 1:], ((0, 0), (1, 0), (1, 0)))
    return Quadratic(roots[0] @ roots[0].swapaxes(1, 2), b @ b.swapaxes(1, 2), None)


def mse(form: Quadratic, n: float, beta: np.ndarray, gamma: np.ndarray) -> np.ndarray:
    """Var/n + bias2, written out: [R, P]."""
    c = np.stack([np.ones_like(beta), beta, gamma], 1)
    assert form.B is not None
    values = [[x @ s @ x / n + x @ b @ x for x in c] for s, b in zip(form.S, form.B, strict=True)]
    return np.array(values)


@given(seed=st.integers(0, 10**6), beta=st.floats(-3, 3), gamma=st.floats(-3, 3))
def test_values_are_the_forms_written_out(seed: int, beta: float, gamma: float) -> None:
    form, point = quadratic(seed), (np.array([beta]), np.array([gamma]))
    assert form.B is not None
    actual = form.at(form.S, *point) / 7 + form.at(form.B, *point)
    np.testing.assert_allclose(actual, mse(form, 7, *point), rtol=1e-9)


@given(seed=st.integers(0, 10**6), n=st.floats(0.1, 1e6), k=st.sampled_from([1, 2]))
def test_a_larger_batch_shrinks_the_coefficient(seed: int, n: float, k: int) -> None:
    """docs/theory.md#batch-aware: beta*_n = beta*_0 / (1 + n / n0) with n0 = S_bb / M_bb, and the same for gamma."""
    form = quadratic(seed)
    assert form.B is not None
    n0 = form.S[:, k, k] / form.B[:, k, k]
    assume((form.B[:, k, k] > 1e-6).all())
    best = form.optimum(form.S, 0, (k,))[:, 0]
    np.testing.assert_allclose(best, -form.S[:, 0, k] / form.S[:, k, k], rtol=1e-12)
    np.testing.assert_allclose(form.optimum(form.S, n, (k,))[:, 0], best / (1 + n / n0), rtol=1e-9)
    halved = [Quadratic(form.S[r : r + 1], form.B[r : r + 1], None) for r in range(2)]
    for one, critical, whole in zip(halved, n0, best, strict=True):
        np.testing.assert_allclose(one.optimum(one.S, critical, (k,))[0, 0], whole / 2, rtol=1e-9)


@settings(max_examples=40)
@given(seed=st.integers(0, 10**6), n=st.sampled_from([1, 10, 1000]), k=st.sampled_from([1, 2]))
def test_the_optimum_minimises_the_error_of_a_batch(seed: int, n: int, k: int) -> None:
    form = quadratic(seed)
    for r, best in enumerate(form.optimum(form.S, n, (k,))[:, 0]):
        grid = best + np.linspace(-1, 1, 401)  # the optimum is its middle
        zeros = np.zeros_like(grid)
        values = mse(form, n, *((grid, zeros) if k == 1 else (zeros, grid)))[r]
        assert values.argmin() == 200


@given(seed=st.integers(0, 10**6), n=st.sampled_from([0.5, 1, 10, 1000]))
def test_the_optimum_of_the_plane_is_stationary_and_a_minimum(seed: int, n: float) -> None:
    form = quadratic(seed)
    assert form.B is not None
    curve = (form.S + n * form.B)[:, 1:, 1:]
    assume((np.linalg.cond(curve) < 1e6).all())
    best = form.optimum(form.S, n, (1, 2))
    slope = np.einsum("rkl,rl->rk", curve, best) + form.S[:, 1:, 0]
    np.testing.assert_allclose(slope, 0, atol=1e-8 * np.abs(curve).max() * (1 + np.abs(best).max()))
    for r, (beta, gamma) in enumerate(best):
        angle = np.linspace(0, 2 * np.pi, 24, endpoint=False)
        around = mse(form, n, beta + 0.1 * np.cos(angle), gamma + 0.1 * np.sin(angle))[r]
        assert (around > mse(form, n, np.array([beta]), np.array([gamma]))[r, 0]).all()


@settings(max_examples=20)
@given(seed=st.integers(0, 10**6), n=st.sampled_from([1, 100, 10**6]))
def test_the_optimum_of_the_plane_is_the_least_on_a_fine_grid(seed: int, n: int) -> None:
    form = quadratic(seed)
    assert form.B is not None
    best = form.optimum(form.S, n, (1, 2))[0]
    assume(np.abs(best).max() < 2.9)
    grid = np.linspace(-3, 3, 401)
    beta, gamma = (axis.ravel() for axis in np.meshgrid(grid, grid))
    one = Quadratic(form.S[:1], form.B[:1], None)
    values = (one.at(one.S, beta, gamma) / n + one.at(one.B, beta, gamma))[0]
    least = values.argmin()
    # the grid's least lies, in the metric of the error, no farther from the true one than the nearest grid point
    nearest = np.array([grid[np.abs(grid - x).argmin()] for x in best])
    curve = (form.S[0] / n + form.B[0])[1:, 1:]
    distance, bound = (np.array(c) - best for c in ((beta[least], gamma[least]), nearest))
    assert distance @ curve @ distance <= bound @ curve @ bound * (1 + 1e-6) + 1e-9 * np.abs(values).max()


@given(seed=st.integers(0, 10**6))
def test_the_least_bias_says_when_the_error_has_a_minimum(seed: int) -> None:
    form = quadratic(seed)
    rng = np.random.default_rng(seed)
    roots = rng.normal(size=(2, 3, 3))
    form = Quadratic(form.S, roots + roots.swapaxes(1, 2), None)  # symmetric, of any sign
    assert form.B is not None
    ratios = form.least_bias_ratio(form.S)
    for s, b, least in zip(form.S[:, 1:, 1:], form.B[:, 1:, 1:], ratios, strict=True):
        assume(np.linalg.cond(s) < 1e6)
        assert least == pytest.approx(np.linalg.eigvals(np.linalg.solve(s, b)).real.min(), rel=1e-6, abs=1e-9)
        if least < 0:
            below, above = (np.linalg.eigvalsh(s - share / least * b)[0] for share in (0.99, 1.01))
            assert below > 0 > above


@pytest.mark.parametrize("n", [1, 50])
def test_coverage_of_the_optimum_of_the_plane(n: int) -> None:
    """G_0 = -0.8 x - 0.5 y + z, G_b = x + mu_b, G_g = y + mu_g, with heavy-tailed x, y and z of unit variance."""
    repeats, samples, dim = 400, 512, 2
    rng = np.random.default_rng(6)
    x, y, z = (rng.normal(size=(repeats, samples, dim)) * rng.normal(size=(repeats, samples, dim)) for _ in range(3))
    mean = np.array([[0.3, 0.1], [-0.1, 0.3]])
    values = np.stack([-0.8 * x - 0.5 * y + z, x + mean[0], y + mean[1]], 1)  # [repeats, 3, samples, dim]
    moments = (
        accumulated(torch.as_tensor(values).flatten(0, 1), repeats, one_cell(samples)).moments[0]["w"].replicates()
    )
    truth = np.linalg.solve(dim * np.eye(2) + n * mean @ mean.T, dim * np.array([0.8, 0.5]))
    covered = []
    for group in range(repeats):
        form = gradient_quadratic(moments, ColumnLayout.of_plane(False), group)
        estimate = jackknife(form.optimum(form.S, n, (1, 2)), moments.count)
        covered.append((estimate.low <= truth) & (truth <= estimate.high))
    least = 0.90 - 2 * (0.9 * 0.1 / repeats) ** 0.5
    for share in np.mean(covered, axis=0):
        assert least <= share <= 0.985


def test_a_control_without_variance_has_no_coefficient() -> None:
    s = np.diag([1.0, 0.0, 2.0])[None]
    form = Quadratic(s, np.zeros_like(s), None)
    assert not np.isfinite(form.optimum(s, 0, (1,))).any()
    assert np.isnan(form.optimum(s, 1, (1, 2))).all()
    assert form.optimum(s, 1, (2,)) == 0


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("target", [True, False])
def test_layouts_give_variance_bias_and_noise_of_a_plane_of_gradients(known: bool, target: bool) -> None:
    """By hand: (beta A - gamma I) b + ((1 - beta) A - (1 - gamma) I) v' + m for fixed A, b, m and random v'."""
    rng = np.random.default_rng(0)
    n, d = 400, 3
    a, b, base = rng.normal(size=(d, d)), rng.normal(size=d), rng.normal(size=d)
    noise = rng.normal(size=(n, d))
    e_0, e_b, e_g = base + noise @ (a - np.eye(d)).T, (b - noise) @ a.T, noise - b
    still = np.ones((n, 1))
    parts = [e_0, e_b, e_g] if target else [e_0, e_b]
    if known:
        parts += [still * (a @ b), -still * b] if target else [still * base, still * (a @ b)]
    cotangents = torch.as_tensor(np.stack(parts))
    moments = accumulated(cotangents, 1, one_cell(n)).moments[0]["w"].replicates()
    layout = ColumnLayout.of_plane(known, target)
    gradient, output = gradient_quadratic(moments, layout), output_quadratic(moments, layout)
    for beta, gamma in [(0.0, 0.0), (1.0, 0.0), (0.3, 0.0), *([(0.0, 1.0), (0.4, -0.7), (1.0, 1.0)] if target else [])]:
        at = (np.array([beta]), np.array([gamma]))
        e = e_0 + beta * e_b + gamma * e_g
        for form in (gradient, output):
            np.testing.assert_allclose(form.at(form.S, *at)[0, 0], e.var(0, ddof=1).sum(), rtol=1e-9, atol=1e-12)
        assert gradient.B is not None
        bias = ((beta * a - gamma * np.eye(d)) @ b) if known else None
        if bias is not None:
            assert output.B is not None and gradient.W is not None and output.W is not None
            fluctuation = noise @ ((1 - beta) * a - (1 - gamma) * np.eye(d)).T
            truth = (fluctuation**2).sum(1).mean()
            for form in (gradient, output):
                assert form.B is not None and form.W is not None
                np.testing.assert_allclose(form.at(form.B, *at)[0, 0], bias @ bias, rtol=1e-9, atol=1e-12)
                np.testing.assert_allclose(form.at(form.W, *at)[0, 0], truth, rtol=1e-9, atol=1e-12)
        else:
            assert output.B is None and output.W is None and gradient.W is None
            shift = e - e_0
            pairs = (shift.sum(0) @ shift.sum(0) - (shift**2).sum()) / (n * (n - 1))
            np.testing.assert_allclose(gradient.at(gradient.B, *at)[0, 0], pairs, rtol=1e-9, atol=1e-9)


@given(kappa=st.floats(-5, 5), s2=st.floats(0.1, 5), b2=st.floats(0, 5), d=st.integers(1, 5))
def test_isotropic_form_minimises_its_error(kappa: float, s2: float, b2: float, d: int) -> None:
    assume(abs(kappa + 1) > 1e-2)
    s2d = s2 * d

    def error(beta: float) -> float:
        return beta**2 * (kappa + 1) ** 2 * b2 + s2d * ((1 - beta) * kappa - beta) ** 2

    best = float(isotropic_optimum(np.array(kappa), np.array(s2d), np.array(b2)))
    step = 0.01 * (1 + abs(best))
    assert error(best) <= min(error(best - step), error(best + step))
    # for J = kappa I the diagonal form is the same number
    j, a = kappa * np.ones(d), (kappa + 1) * np.ones(d)
    numerator, denominator = (a * j * s2).sum(), (a**2 * (s2 + b2 / d)).sum()
    assert float(diagonal_optimum(np.array(numerator), np.array(denominator))) == pytest.approx(best, rel=1e-9)


def test_the_isotropic_form_has_a_pole() -> None:
    assert not np.isfinite(isotropic_optimum(np.array([-1.0]), np.array([2.0]), np.array([0.0]))).any()


def test_nothing_to_control_has_no_optimum() -> None:
    zero, one = np.zeros(1), np.ones(1)
    assert np.isnan(isotropic_optimum(one, zero, zero)).all() and np.isnan(diagonal_optimum(zero, zero)).all()
    assert np.isinf(diagonal_optimum(one, zero)).all()


def test_a_control_is_constant_up_to_rounding() -> None:
    """By its variance on the full sample, in parts of that without control."""
    noise = np.stack([np.diag([4.0, 4.1 * DEGENERATE, 3.9 * DEGENERATE]), np.diag([1.0, 0, 1])])
    assert not is_degenerate(noise, 1) and is_degenerate(noise, 2)
    assert is_degenerate(np.diag([4.0, 4 * DEGENERATE, 0])[None], 1) and is_degenerate(np.zeros((1, 3, 3)), 1)


def test_without_a_known_bias_the_batch_does_not_matter() -> None:
    form = Quadratic(quadratic(3).S, None, None)
    for free in ((1,), (2,), (1, 2)):
        np.testing.assert_allclose(form.optimum(form.S, 50, free), form.optimum(form.S, 0, free))
    np.testing.assert_allclose(form.optimum(form.S, 50, (1,))[:, 0], -form.S[:, 0, 1] / form.S[:, 1, 1])


def test_which_pairs_of_controls_have_an_optimum() -> None:
    """Small numbers do; a second control that is the first one times a factor, up to rounding, does not."""
    form = quadratic(5)
    small = Quadratic(1e-9 * form.S, None, None)
    np.testing.assert_allclose(small.optimum(small.S, 0, (1, 2)), form.optimum(form.S, 0, (1, 2)))
    copy = np.array([[[1.0, 0.5, 0.5], [0.5, 1, 1e-3], [0.5, 1e-3, 1e-6 * (1 + 5e-13)]]])
    assert np.isnan(Quadratic(copy, None, None).optimum(copy, 0, (1, 2))).all()
    nothing = np.array([[[1.0, 0.5, 0], [0.5, 0, 0], [0, 0, 1]]])
    assert Quadratic(nothing, None, None).optimum(nothing, 0, (1,)) == -np.inf
