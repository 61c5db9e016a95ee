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
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import nn

import mfdiag
from mfdiag.models.networks.mlp import MLP

LEVELS = (256, 1024, 4096, 16384)
KEYS = ("estimator", "quantity", "space", "form", "role", "kappa_kind", "beta", "gamma", "batch_size")
_TRUTH_SEED = 10**6
_STEPS, _BATCH = 600, 256  # of the training
_EIGHT = "eight_gaussians"
_PRECISE = 0.2  # of the runs' spread


class Problem(NamedTuple):
    """A model, its data, the options of `mfdiag.measure`, its tables, and the samples of its truth."""

    model: Callable[[], nn.Module]
    data: Callable[[], Any]
    options: dict[str, Any]
    tables: tuple[str, ...] = ("sweep", "variance", "coefficient")
    truth: int = 2**17


def _trained(spec: str, dim: int, classes: int = 0) -> Callable[[], nn.Module]:
    """An MLP after some steps of MeanFlow's loss on samples of the data set."""

    @cache
    def build() -> nn.Module:
        torch.manual_seed(0)
        network = MLP(dim, hidden=32, depth=3, num_classes=classes)
        optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
        data = mfdiag.load_data(spec) if spec else None  # without one, Student's t
        for step in range(_STEPS):
            rng = np.random.default_rng(step)
            points = _student_t()[rng.integers(0, 200_000, _BATCH)] if data is None else None
            x0, labels = (points, None) if data is None else data.sample(rng.random((_BATCH, data.width)))
            x0, y = torch.as_tensor(x0, dtype=torch.float32), None if labels is None else torch.as_tensor(labels)
            x1 = torch.randn_like(x0)
            times = torch.sigmoid(torch.randn(2, _BATCH) - 0.4).sort(0).values
            r, t = torch.where(torch.rand(_BATCH) < 0.75, times[0], times[1]), times[1]
            x, v = (1 - t[:, None]) * x0 + t[:, None] * x1, x1 - x0
            u, derivative = torch.func.jvp(
                lambda x, r, t, y=y: network(x, r, t, y), (x, r, t), (v, torch.zeros_like(r), torch.ones_like(t))
            )
            target = v - (t - r)[:, None] * derivative
            loss = (u - target.detach()).square().sum(1).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return network

    return build


def _student_t() -> np.ndarray:
    return np.random.default_rng(0).standard_t(3, (200_000, 2)).astype(np.float32)


def _data(spec: str) -> Callable[[], Any]:
    return lambda: spec


PROBLEMS = {
    "mixture": Problem(_trained(_EIGHT, 2), _data(_EIGHT), {}),
    "mixture_no_posterior": Problem(_trained(_EIGHT, 2), _data(_EIGHT), {"posterior": "none"}),
    "student_t3": Problem(_trained("", 2), _student_t, {"posterior": "none"}),
    "gaussian_16d": Problem(_trained("gaussian:16,0.5,0.7", 16), _data("gaussian:16,0.5,0.7"), {}),
    "adaptive": Problem(_trained(_EIGHT, 2), _data(_EIGHT), {"weighting": "adaptive:0.5,0.01"}, ("sweep", "variance")),
}


def _measure(problem: Problem, samples: int, seed: int) -> pd.DataFrame:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tables = mfdiag.measure(
            problem.model(),
            problem.data(),
            tables=problem.tables,
            samples=samples,
            seed=seed,
            by_layer=False,
            beta=(0.0, 0.25, 0.5, 1.0),
            **problem.options,
        )
    frames = [tables[name].assign(table=name) for name in problem.tables]
    rows = pd.concat([frame.dropna(axis=1, how="all") for frame in frames], ignore_index=True)
    kept = ["table", *(key for key in KEYS if key in rows), "value", "std_error", "ci_low", "ci_high", "status"]
    return rows[kept]


def run(folder: Path, names: list[str], levels: list[int], replications: int) -> None:
    """Measures what is not in `folder` yet."""
    torch.set_num_threads(1)
    for name in names:
        problem = PROBLEMS[name]
        jobs = [(problem.truth, _TRUTH_SEED), *((n, seed) for n in levels for seed in range(replications))]
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
