"""Coverage of the 95 % intervals of every table over independent runs.

    python benchmarks/coverage.py run DIR --problem mixture_no_posterior --samples 1024 --replications 400
    python benchmarks/coverage.py report DIR

Each problem is a network, trained by a plain loop, whose tables are measured with many seeds. The truth is a run of the
same problem with far more samples; rows whose truth is not precise are left out. Each run is a file of its own, so that
a stopped `run` resumes.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import nn

import mfdiag
from mfdiag.flow.data.datasets import Data, FiniteData
from mfdiag.measures import find_table
from mfdiag.measures.run.api import prepare_subject
from mfdiag.measures.run.measure_subject import measure_subject
from mfdiag.models.networks.mlp import MLP

LEVELS = (256, 1024, 4096, 16384)
KEYS = ("estimator", "quantity", "space", "form", "role", "kappa_kind", "beta", "gamma", "batch_size")
_TRUTH_SEED = 10**6
_STEPS, _BATCH = 600, 256  # of the training
_LABELS_DROPPED = 0.1
_PRECISE = 0.2  # of the runs' spread


class Problem(NamedTuple):
    """A model, its data, the options of `mfdiag.measure`, its tables, the samples of its truth, and its first seed.

    Problems of the same seed share their times and their noise, so that an odd set of seeds would show in all of them.
    """

    model: Callable[[], nn.Module]
    data: Callable[[], Data]
    options: dict[str, Any]
    tables: tuple[str, ...] = ("sweep", "variance", "coefficient")
    truth: int = 2**17
    first: int = 0


class LinearNetwork(nn.Module):
    """u as a linear map of x, r, t and 1: all of its gradients are products of these and the residual."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.map = nn.Linear(dim + 2, dim)

    def forward(self, x: torch.Tensor, r: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """u(x, r, t)."""
        return self.map(torch.cat([x, r[:, None], t[:, None]], 1))


def _mlp(dim: int, classes: int = 0) -> Callable[[], nn.Module]:
    return lambda: MLP(dim, hidden=32, depth=3, num_classes=classes)


def _trained(untrained: Callable[[], nn.Module], data: Callable[[], Data]) -> Callable[[], nn.Module]:
    """A network after some steps of MeanFlow's loss on samples of the data; labels are dropped now and then."""

    @cache
    def build() -> nn.Module:
        torch.manual_seed(0)
        network, points = untrained(), data()
        optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
        for step in range(_STEPS):
            rng = np.random.default_rng(step)
            x0, labels = points.sample(rng.random((_BATCH, points.width)))
            x0 = torch.as_tensor(x0, dtype=torch.float32)
            x1 = torch.randn_like(x0)
            times = torch.sigmoid(torch.randn(2, _BATCH) - 0.4).sort(0).values
            r, t = torch.where(torch.rand(_BATCH) < 0.75, times[0], times[1]), times[1]
            condition = ()
            if labels is not None:
                dropped = torch.rand(_BATCH) < _LABELS_DROPPED
                condition = (torch.where(dropped, points.num_classes, torch.as_tensor(labels)),)
            x, v = (1 - t[:, None]) * x0 + t[:, None] * x1, x1 - x0
            u, derivative = torch.func.jvp(
                lambda x, r, t, condition=condition: network(x, r, t, *condition),
                (x, r, t),
                (v, torch.zeros_like(r), torch.ones_like(t)),
            )
            target = v - (t - r)[:, None] * derivative
            loss = (u - target.detach()).square().sum(1).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return network

    return build


@cache
def _student_t() -> Data:
    return FiniteData("student_t3", np.random.default_rng(0).standard_t(3, (200_000, 2)).astype(np.float32))


@cache
def _two_classes() -> Data:
    """64 points around two centers, few enough for an exact posterior."""
    labels = np.arange(64) % 2
    points = 0.4 * np.random.default_rng(0).standard_normal((64, 2)) + np.array([[1.5, 0], [-1, 1]])[labels]
    return FiniteData("two_classes", points.astype(np.float32), labels)


def _stored(spec: str) -> Callable[[], Data]:
    return cache(lambda: mfdiag.load_data(spec))


def _problem(network: Callable[[], nn.Module], data: Callable[[], Data], **options: Any) -> Problem:
    return Problem(_trained(network, data), data, options)


_MIXTURE, _GAUSSIAN, _PLANE = (_stored(x) for x in ("eight_gaussians", "gaussian:16,0.5,0.7", "gaussian:2,0.5,0.7"))
_OF_PLANE, _OF_CLASSES = _mlp(2), _mlp(2, 2)
PROBLEMS = {
    "mixture": _problem(_OF_PLANE, _MIXTURE),
    "mixture_no_posterior": _problem(_OF_PLANE, _MIXTURE, posterior="none"),
    "student_t3": _problem(_OF_PLANE, _student_t, posterior="none")._replace(truth=2**18),
    "linear": _problem(lambda: LinearNetwork(2), _PLANE)._replace(truth=2**18),
    "linear_no_posterior": _problem(lambda: LinearNetwork(2), _PLANE, posterior="none"),
    "gaussian_16d": _problem(_mlp(16), _GAUSSIAN)._replace(truth=2**18),
    "gaussian_16d_no_posterior": _problem(_mlp(16), _GAUSSIAN, posterior="none"),
    "adaptive": _problem(_OF_PLANE, _MIXTURE, weighting="adaptive:0.5,0.01")._replace(tables=("sweep", "variance")),
    "two_classes": _problem(_OF_CLASSES, _two_classes),
    "two_classes_no_posterior": _problem(_OF_CLASSES, _two_classes, posterior="none"),
    "guidance": _problem(_OF_CLASSES, _two_classes, guidance="meanflow:2,0.3,0.1,0.8,0.1"),
}
PROBLEMS = {name: problem._replace(first=10_000 * (1 + k)) for k, (name, problem) in enumerate(PROBLEMS.items())}


def _measure(problem: Problem, samples: int, seed: int) -> pd.DataFrame:
    """The tables of one run, as `mfdiag.measure` makes them, without its check of the convention, which is known."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        subject, request = prepare_subject(
            problem.model(),
            problem.data(),
            samples=samples,
            seed=seed,
            by_layer=False,
            beta=(0.0, 0.25, 0.5, 1.0),
            **problem.options,
        )
        tables: dict[str, pd.DataFrame] = {}
        for table in map(find_table, problem.tables):
            tables |= measure_subject(subject, table, replace(request, estimators=table.default_estimators))
    frames = [tables[name].assign(table=name) for name in problem.tables]
    rows = pd.concat([frame.dropna(axis=1, how="all") for frame in frames], ignore_index=True)
    kept = ["table", *(key for key in KEYS if key in rows), "value", "std_error", "ci_low", "ci_high", "status"]
    return rows[kept]


def run(folder: Path, names: list[str], levels: list[int], replications: int) -> None:
    """Measures what is not in `folder` yet."""
    torch.set_num_threads(1)
    for name in names:
        problem = PROBLEMS[name]
        jobs = [(problem.truth, _TRUTH_SEED), *((n, problem.first + k) for n in levels for k in range(replications))]
        for samples, seed in jobs:
            path = folder / name / str(samples) / f"{seed}.parquet"
            if path.exists():
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            rows = _measure(problem, samples, seed)
            partial = path.with_suffix(".part")
            rows.to_parquet(partial)
            partial.replace(path)
        print(f"{name}: done", flush=True)


def _runs(folder: Path) -> Iterator[tuple[int, pd.DataFrame]]:
    for level in sorted((path for path in folder.iterdir() if path.name.isdigit()), key=lambda path: int(path.name)):
        frames = [pd.read_parquet(path) for path in sorted(level.glob("*.parquet"))]
        if frames:
            yield int(level.name), pd.concat(frames, ignore_index=True)


def _text_keys(frame: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """Keys as text, "-" for null, so that they can be joined."""
    text = {key: frame[key].map(lambda value: "-" if pd.isna(value) else f"{value}") for key in keys}
    return frame.assign(**text)


def coverage(folder: Path) -> pd.DataFrame:
    """One row for each problem, level and row of a table: coverage among ok rows and all rows, and the width.

    Returns:
        Columns problem, samples, the keys, `ok` (share of runs with status ok), `covers_ok`, `covers_all`, `runs`, and
        `width`: the median width over that of the interval that the spread of the runs would give.
    """
    results = []
    for problem in sorted(path for path in folder.iterdir() if path.name in PROBLEMS):
        levels = dict(_runs(problem))
        truth = levels.pop(PROBLEMS[problem.name].truth)
        keys = [key for key in ("table", *KEYS) if key in truth]
        truth = _text_keys(truth, keys)[[*keys, "value", "std_error"]]
        for samples, runs in levels.items():
            joined = _text_keys(runs, keys).merge(truth, on=keys, suffixes=("", "_true"))
            covered = (joined["ci_low"] <= joined["value_true"]) & (joined["value_true"] <= joined["ci_high"])
            joined = joined.assign(
                covered=covered, width=joined["ci_high"] - joined["ci_low"], ok=joined["status"] == "ok"
            )
            for key, group in joined.groupby(keys, dropna=False, sort=False):
                spread = float(group["value"].std())
                if not (np.isfinite(spread) and spread > 0) or not group["std_error_true"].iloc[0] <= _PRECISE * spread:
                    continue
                ok = group[group["ok"]]
                results.append(
                    {
                        "problem": problem.name,
                        "samples": samples,
                        **dict(zip(keys, key, strict=True)),
                        "runs": len(group),
                        "ok": len(ok) / len(group),
                        "covers_ok": ok["covered"].mean(),
                        "covers_all": group["covered"].mean(),
                        "width": float(group["width"].median()) / (2 * 1.96 * spread),
                    }
                )
    return pd.DataFrame(results)


def report(folder: Path) -> str:
    """A Markdown table: for each problem and quantity, the lowest and highest coverage among ok rows by samples."""
    table = coverage(folder)
    table = table[table["ok"] * table["runs"] >= 100]
    lines = ["| problem | table | quantity | samples | rows | runs | covers, % | median width |", "| --- " * 8 + "|"]
    groups = table.groupby(["problem", "table", "quantity", "samples"], sort=False)
    for (problem, name, quantity, samples), group in groups:
        low, high = 100 * group["covers_ok"].min(), 100 * group["covers_ok"].max()
        covers = f"{low:.1f}" if len(group) == 1 else f"{low:.1f} to {high:.1f}"
        runs = int((group["ok"] * group["runs"]).median())
        lines.append(
            f"| {problem} | {name} | {quantity} | {samples:,} | {len(group)} | {runs} | {covers} "
            f"| {group['width'].median():.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("action", choices=("run", "report"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--problem", action="append", choices=PROBLEMS)
    parser.add_argument("--samples", action="append", type=int)
    parser.add_argument("--replications", type=int, default=400)
    options = parser.parse_args()
    if options.action == "run":
        run(options.folder, options.problem or list(PROBLEMS), options.samples or list(LEVELS), options.replications)
    else:
        print(report(options.folder))


if __name__ == "__main__":
    main()
