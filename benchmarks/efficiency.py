"""How many samples place the best beta within 0.02: by the closed form, by a grid, and by a run for each beta.

    python benchmarks/efficiency.py DIR [--samples 131072]

The gradients G_0 and G_b of the bundled checkpoint are measured once; their Gram matrices are kept in DIR and are the
population. In it the best beta is known, and the error of each method is known to first order (the delta method), which
draws from the population check. The samples that a method needs are those with which 95 % of its errors are below 0.02.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.stats import norm

from mfdiag.measures import find_table
from mfdiag.measures.parts.cells import moments_by_cell
from mfdiag.measures.run.measure_subject import measure_subject
from mfdiag.measures.run.request import Request
from mfdiag.measures.run.subject import SubjectOptions, subject_of
from mfdiag.models.checkpoint import bundled, load_model

WITHIN = 0.02
LEVEL = norm.ppf(0.975)  # 95 % of normal errors are below this many standard errors
STEP = 0.02  # of the grid, so that what lies within 0.02 is three points or two
BETAS = np.arange(-STEP, 2 + 2 * STEP, STEP)
BLOCKS = 64
RUNS, DRAWN = 1000, 400


class Population(NamedTuple):
    """Squared norms and products of each sample's G_0 and G_b, [N, 3], less the part of their means.

    Rows are |G_0|^2, <G_0, G_b>, |G_b|^2, from which the squares of the mean gradients are taken, so that a mean of
    rows is tr Cov.
    """

    rows: np.ndarray

    @property
    def moments(self) -> np.ndarray:
        """S_00, S_0b, S_bb."""
        return self.rows.mean(0)

    @property
    def optimum(self) -> float:
        """beta* = -S_0b / S_bb."""
        _, cross, variance = self.moments
        return float(-cross / variance)


def measured(folder: Path, samples: int) -> Population:
    """The population, measured unless `folder` has it."""
    path = folder / f"population_{samples}.npy"
    if not path.exists():
        torch.set_num_threads(1)
        folder.mkdir(parents=True, exist_ok=True)
        taken: list[np.ndarray] = []

        def take(measurement: Any, plan: Any, result: Any) -> dict[str, Any]:
            (_, _, moments), *_ = moments_by_cell(result, result.gradient)
            each = result.gradient.sample_gram[:, 0].numpy() - moments.M[0, 0]
            taken.append(np.stack([each[:, 0, 0], each[:, 0, 1], each[:, 1, 1]], 1))
            return {}

        loaded = load_model(bundled())
        subject = subject_of(loaded, loaded.path, SubjectOptions(), None, say=lambda note: None)
        request = Request(gammas=(0.0,), posterior="none", by_layer=False)
        request = replace(request, settings=replace(request.settings, samples=samples, bins=None))
        measure_subject(subject, replace(find_table("sweep"), rows=take), request)
        np.save(path, taken[0])
    return Population(np.load(path))


def closed_form(population: Population) -> float:
    """Samples for -S_0b / S_bb from one set of samples."""
    # its error is the mean of -(<G_0, G_b> + beta* |G_b|^2) / S_bb
    influence = (population.rows[:, 1] + population.optimum * population.rows[:, 2]) / population.moments[2]
    return float((LEVEL / WITHIN) ** 2 * influence.var())


def grid_of_the_same_samples(population: Population) -> float:
    """Samples for the least of the variances at the grid's betas, all from one set of samples.

    These variances lie on one parabola, so that the least is the grid point nearest to the closed form. Where the grid
    begins is drawn, as in `least_of_runs`.
    """
    rng, best = np.random.default_rng(0), population.optimum
    begin, noise = rng.uniform(0, STEP, 20 * RUNS), rng.standard_normal(20 * RUNS)
    error = noise * closed_form(population) ** 0.5 * WITHIN / LEVEL  # times n^-0.5
    return _bisected(lambda n: begin + STEP * np.round((best + error / n**0.5 - begin) / STEP) - best)


def _powers(betas: np.ndarray) -> np.ndarray:
    """Of the population's columns in the variance of the gradient at each beta, [..., 3]."""
    return np.stack([np.ones_like(betas), 2 * betas, betas**2], -1)


def _deviation(population: Population, betas: np.ndarray) -> np.ndarray:
    """Standard deviation of one sample's part in the variance at each beta."""
    powers = _powers(betas)
    return np.sqrt(np.einsum("...k,kl,...l->...", powers, np.cov(population.rows.T), powers))


def parabola_through_runs(population: Population) -> float:
    """Samples, of all betas together, for the lowest point of a parabola fitted to runs of their own for each beta."""
    # beta = -S_0b / S_bb of the fitted moments
    _, cross, square = population.moments
    slope = np.array([0, -1 / square, cross / square**2])
    return float(len(BETAS) * (LEVEL / WITHIN) ** 2 * (slope @ np.linalg.inv(_information(population)) @ slope))


def _information(population: Population) -> np.ndarray:
    """Inverse covariance of the moments fitted by least squares to runs of one sample each, weighed by their errors."""
    design = _powers(BETAS) / _deviation(population, BETAS)[:, None]
    return np.asarray(design.T @ design)


def least_of_runs(population: Population) -> float:
    """Samples, of all betas together, for the beta whose own run has the least variance."""
    rng = np.random.default_rng(0)
    betas = BETAS + rng.uniform(0, STEP, (RUNS, 1))
    noise = rng.standard_normal(betas.shape) * _deviation(population, betas)
    variance, rows = _powers(betas) @ population.moments, np.arange(RUNS)
    best = population.optimum
    return len(BETAS) * _bisected(lambda n: betas[rows, (variance + noise / n**0.5).argmin(1)] - best)


def _bisected(errors: Callable[[float], np.ndarray]) -> float:
    """The least n, between 1 and 10^12, for which 95 % of the errors are below 0.02."""
    low, high = 0.0, 12.0
    for _ in range(30):
        middle = (low + high) / 2
        enough = np.mean(np.abs(errors(10**middle)) <= WITHIN) >= 0.95
        low, high = (low, middle) if enough else (middle, high)
    return float(10**high)


METHODS: dict[str, tuple[Callable[[Population], float], int]] = {
    "closed form, one set of samples": (closed_form, 2),
    "grid, one set of samples": (grid_of_the_same_samples, len(BETAS)),
    "parabola through one run for each beta": (parabola_through_runs, 1),
    "least of one run for each beta": (least_of_runs, 1),
}
"""How a method counts its samples, and the gradients that it takes of each."""


def checked(population: Population, samples: int, betas: np.ndarray | None = None) -> float:
    """The share of errors below 0.02 in sets drawn from the population.

    Args:
        population: What is drawn from.
        samples: The size of a set.
        betas: Each with a set of its own, through whose variances a parabola is fitted; None for the closed form.
    """
    rng, hits = np.random.default_rng(1), 0
    for _ in range(DRAWN):
        if betas is None:
            drawn = Population(population.rows[rng.integers(len(population.rows), size=samples)])
        else:
            sets = population.rows[rng.integers(len(population.rows), size=(len(betas), samples))].mean(1)
            variance, weight = (sets * _powers(betas)).sum(1), 1 / _deviation(population, betas)
            fitted, *_ = np.linalg.lstsq(_powers(betas) * weight[:, None], variance * weight, rcond=None)
            drawn = Population(fitted[None])
        hits += abs(drawn.optimum - population.optimum) <= WITHIN
    return hits / DRAWN


def intervals(population: Population) -> dict[str, tuple[float, float, float, float]]:
    """Samples of each method, and how many times those of the closed form, with the factor's 95 % interval.

    The interval is a jackknife's over blocks of the population, on the logarithm.
    """
    parts = np.array_split(np.arange(len(population.rows)), BLOCKS)
    without = [Population(np.delete(population.rows, part, 0)) for part in parts]
    table = {}
    base, bases = closed_form(population), np.array([closed_form(rest) for rest in without])
    for name, (count, _) in METHODS.items():
        needed = count(population)
        factors = np.log(np.array([count(rest) for rest in without]) / bases)
        error = ((BLOCKS - 1) / BLOCKS * ((factors - factors.mean()) ** 2).sum()) ** 0.5
        factor = needed / base
        table[name] = needed, factor, factor * np.exp(-LEVEL * error), factor * np.exp(LEVEL * error)
    return table


def report(population: Population) -> str:
    """A Markdown table of the methods, and a line of what was checked."""
    lines = ["| method | samples | gradients | samples over the closed form's |", "| --- " * 4 + "|"]
    table = intervals(population)
    for name, (needed, factor, low, high) in table.items():
        numbers = f"| {_short(needed)} | {_short(needed * METHODS[name][1])} |"
        compared = "1" if factor == 1 else f"{_short(factor)} [{_short(low)}, {_short(high)}]"
        lines.append(f"| {name} {numbers} {compared} |")
    alone, _, runs, _ = (round(needed) for needed, *_ in table.values())
    share = checked(population, alone), checked(population, runs // len(BETAS), BETAS)
    lines += [
        "",
        f"beta* = {population.optimum:.3f}. Of {DRAWN} sets drawn from the population, {share[0]:.1%} of the closed "
        f"form's errors are below 0.02, and {share[1]:.1%} of the parabola's.",
    ]
    return "\n".join(lines)


def _short(number: float) -> str:
    """Three digits, without an exponent."""
    return f"{number:.3g}" if number < 100 else f"{float(f'{number:.3g}'):,.0f}"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--samples", type=int, default=2**17)
    options = parser.parse_args()
    print(report(measured(options.folder, options.samples)))


if __name__ == "__main__":
    main()
