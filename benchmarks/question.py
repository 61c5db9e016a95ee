"""Why does the coefficient of least gradient error not give the best samples? Measures of trained grids.

    python benchmarks/question.py measure GRID OUT.parquet [--final]
    python benchmarks/question.py optimum|bias|cells|predict|defects|losses GRID OUT.parquet

`measure` writes a row for each checkpoint of a grid that `mfdiag train` made, and each set of weights: distances to
the exact one-step map and to the data, velocity error, interval defect, and the squared error of u by t - r. `optimum`
writes the gradient's optimal coefficient and critical batch of the models trained at beta = 0, `bias` where their bias
at beta = 1 is, `cells` their optimal coefficient by cell of (r, t). `predict` writes what `mfdiag compare` says of
every method on the checkpoints that MeanFlow keeps early in training. `defects` writes the interval defect alone, for
data without an exact map. `losses` writes the loss over training. All resume.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

import mfdiag
from mfdiag.estimators import estimators
from mfdiag.flow.data.datasets import load_data
from mfdiag.flow.draw import Batch, Draws, posterior_of
from mfdiag.flow.times import parse_times
from mfdiag.measures.run.quality_api import Prepared
from mfdiag.models.checkpoint import LoadedModel
from mfdiag.models.description import Description
from mfdiag.quality.flow_map import exact_flow_map
from mfdiag.tables import read_table
from mfdiag.training.spec import BetaSpec
from mfdiag.training.trainable import is_trainable

GAPS = (0, 0.1, 0.25, 0.5, 0.75, 1)
"""Bins of t - r."""

POINTS = ("meanflow", "ema_tangent", "self_tangent", "distillation")
"""Points of the plane among the methods that are trained."""

BATCHES = (128, 12_800)
"""n of mse in `predict`: one batch of sweeps/family.yaml, and as many as its averaged weights see."""

_SAMPLES, _QUALITY, _SUBSAMPLE = 4096, 8192, 256
_GRADIENTS = 8192  # samples of gradients; twice as many where cells are measured
_DEFECTS = 1024  # samples of D_s for images
_EIGHTHS = (1, 3, 8)  # of training, at which models on the way are measured
_TIMES = "uniform:1"


class Truth(NamedTuple):
    """What models are compared with, on fixed samples.

    Attributes:
        noise: Points at t = 1 [n, d].
        ends: Where the exact flow takes them [n, d].
        x: Points of the path [n, d].
        r: Start times [n].
        s: Times in between [n].
        t: End times [n].
        v: Exact velocity at (x, t) [n, d].
        u: Exact average velocity [n, d].
    """

    noise: Tensor
    ends: Tensor
    x: Tensor
    r: Tensor
    s: Tensor
    t: Tensor
    v: Tensor
    u: Tensor


@cache
def truth_of(name: str) -> Truth:
    data = load_data(name)
    generator = torch.Generator().manual_seed(7)
    noise = torch.randn(_SAMPLES, *data.shape, generator=generator, dtype=torch.float64)
    ones = torch.ones(_SAMPLES, dtype=torch.float64)
    batch = Draws(data, parse_times(_TIMES), 7).batch(np.arange(_SAMPLES))
    s = batch.r + torch.rand(_SAMPLES, generator=generator) * (batch.t - batch.r)
    posterior = posterior_of(data)
    assert posterior is not None
    v = posterior(batch.x_t, batch.t, torch.full((_SAMPLES, posterior.width), 0.5)).mean
    gap = (batch.t - batch.r).clamp_min(1e-3)[:, None]  # a shorter interval has the velocity itself
    end = batch.t - gap[:, 0]
    u = (batch.x_t - exact_flow_map(data, batch.x_t, batch.t, end, steps=32)) / gap
    ends = exact_flow_map(data, noise, ones, 0 * ones, steps=32)
    return Truth(*(value.float() for value in (noise, ends, batch.x_t, batch.r, s, batch.t, v, u)))


@cache
def metrics_of(name: str, metric: str) -> Prepared:
    """A metric prepared for a data set, once."""
    return mfdiag.prepare_quality(name, metrics=[metric], samples=_QUALITY, subsample=_SUBSAMPLE)


def quality_of(module: nn.Module, data: str, metric: str) -> float:
    """A metric of one-step samples."""
    return float(metrics_of(data, metric).measure(module, nfe=[1])["value"].iloc[0])


def square(values: Tensor) -> Tensor:
    """Squared norms [n] of values [n, *shape]."""
    return values.flatten(1).square().sum(1)


@torch.no_grad()
def interval_defect(u: Callable[[Tensor, Tensor, Tensor], Tensor], x: Tensor, r: Tensor, s: Tensor, t: Tensor) -> float:
    """D_s (docs/theory.md#conventions): how far one step over [r, t] is from two steps, over [s, t] and [r, s].

    Args:
        u: The average velocity at (x, r, t).
        x: Points at t [n, *shape].
        r: Start times [n].
        s: Times in between [n].
        t: End times [n].

    Returns:
        The mean squared difference, in parts of the mean square.
    """
    gap, first, second = ((b - a).view(-1, *[1] * (x.ndim - 1)) for a, b in ((r, t), (s, t), (r, s)))
    half = first * u(x, s, t)
    both = half + second * u(x - half, r, s)
    return float(square(gap * u(x, r, t) - both).mean() / square(both).mean())


@torch.no_grad()
def numbers(module: nn.Module, truth: Truth) -> dict[str, float]:
    """What `measure` writes for one model u(x, r, t).

    Args:
        module: The model.
        truth: What it is compared with.

    Returns:
        `map_distance`, the root mean square distance to the exact one-step map; `velocity_error` D_v and
        `interval_defect` D_s (docs/theory.md#conventions); `error_GAP`, the mean of |u - exact|^2 in bins of t - r.
    """
    noise, ends, x, r, s, t, v, u = truth
    zero, one = torch.zeros(len(noise)), torch.ones(len(noise))
    error = square(noise - module(noise, zero, one) - ends)
    velocity = square(module(x, t, t) - v).mean() / square(v).mean()
    of_u = square(module(x, r, t) - u)
    values = {
        "map_distance": float(error.mean().sqrt()),
        "velocity_error": float(velocity),
        "interval_defect": interval_defect(module, x, r, s, t),
    }
    for low, high in pairwise(GAPS):
        inside = (t - r >= low) & (t - r < high)
        values[f"error_{low:g}_{high:g}"] = float(of_u[inside].mean())
    return values


@cache
def intervals_of(name: str) -> tuple[Batch, Tensor]:
    """Points of the path of a data set, and times s between r and t."""
    batch = Draws(load_data(name), parse_times(_TIMES), 7, conditional=True).batch(np.arange(_DEFECTS))
    generator = torch.Generator().manual_seed(7)
    return batch, batch.r + torch.rand(_DEFECTS, generator=generator) * (batch.t - batch.r)


def defects(grid: Path, out: Path) -> None:
    """Write D_s of averaged and raw weights, for the finished models."""
    rows = _resumed(out)
    for name, loaded, settings in _remaining(grid, rows):
        if settings["step"] < settings["steps"]:
            continue
        batch, s = intervals_of(str(settings["data"]))
        for weights in ("ema", "raw"):
            module = mfdiag.load_model(loaded.path, weights=weights).module
            labels = batch.labels if getattr(module, "num_classes", 0) else None

            def u(x: Tensor, r: Tensor, t: Tensor, module: nn.Module = module, labels: Any = labels) -> Tensor:
                return module(x, r, t, labels)  # type: ignore[no-any-return]

            defect = interval_defect(u, batch.x_t.float(), *(time.float() for time in (batch.r, s, batch.t)))
            kept = {key: settings[key] for key in ("beta", "seed", "step")}
            rows.append({"file": name, **kept, "weights": weights, "interval_defect": defect})
        _write(rows, out)


def settings_of(description: Description) -> dict[str, Any]:
    """The columns that say how a model was trained."""
    spec = description.specification
    loss = spec["loss"]
    rule = loss.get("beta_by") or {}
    default = BetaSpec().model_dump(mode="json")
    changed = {name: value for name, value in rule.items() if value != default[name]}
    return {
        "data": spec["data"],
        "batch_size": spec["batch_size"],
        "learning_rate": spec["learning_rate"],
        "ema_decay": spec["ema_decay"],
        "times": re.sub(r"density:.*/", "density:", spec["times"]),  # a path on this machine
        "steps": spec["steps"],
        "beta": loss["beta"],
        "gamma": loss["gamma"],
        "proxy": loss.get("proxy", "ema"),
        "beta_by": json.dumps(changed) if changed else "",
        "estimator": loss.get("estimator") or "",
        "seed": spec["seed"],
        "step": description.step,
    }


def checkpoints(grid: Path) -> Iterator[Path]:
    """Every finished model of a grid, and its earlier checkpoints."""
    yield from sorted(grid.rglob("model.safetensors"))


def _eighths(settings: dict[str, Any]) -> float:
    """Completed eighths of training."""
    return 8 * float(settings["step"]) / float(settings["steps"])


def _write(rows: list[dict[str, Any]], out: Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).to_parquet(out, index=False)


def _resumed(out: Path) -> list[dict[str, Any]]:
    if not out.exists():
        return []
    return [{str(name): value for name, value in row.items()} for row in pd.read_parquet(out).to_dict("records")]


def _remaining(grid: Path, rows: list[dict[str, Any]]) -> Iterator[tuple[str, LoadedModel, dict[str, Any]]]:
    """Name, model and settings of every checkpoint of a grid that has no row yet."""
    done = {row["file"] for row in rows}
    for path in checkpoints(grid):
        name = str(path.relative_to(grid).parent)
        if name not in done:
            loaded = mfdiag.load_model(path)
            assert loaded.description is not None
            yield name, loaded, settings_of(loaded.description)


def measure(grid: Path, out: Path, *, final: bool) -> None:
    """Write a row for each set of weights of finished models, and unless `final`, for averaged weights on the way."""
    rows = _resumed(out)
    done = {row["file"] for row in rows}
    for path in checkpoints(grid):
        name = str(path.relative_to(grid).parent)
        if name in done:
            continue
        for weights in ("ema", "raw"):
            loaded = mfdiag.load_model(path, weights=weights)
            assert loaded.description is not None
            settings = settings_of(loaded.description)
            if settings["step"] < settings["steps"] and (
                final or weights == "raw" or _eighths(settings) not in _EIGHTHS
            ):
                break
            data, values = str(settings["data"]), {}
            if is_exact := data.startswith("mixture"):
                values = numbers(loaded.module, truth_of(data))
            if is_exact or weights == "ema":
                values["energy_distance"] = quality_of(loaded.module, data, "energy_distance")
            if is_exact and settings["step"] == settings["steps"] and weights == "ema":
                values["sliced_wasserstein"] = quality_of(loaded.module, data, "sliced_wasserstein")
            rows.append({"file": name, **settings, "weights": weights, **values})
        if len(rows) % 100 == 0:
            _write(rows, out)
    _write(rows, out)


def bias(grid: Path, out: Path) -> None:
    """Write bias2 of e at beta = 1 by cell of (r, t), for the finished models trained at beta = 0."""
    rows = _resumed(out)
    for name, loaded, settings in _remaining(grid, rows):
        if settings["beta"] != 0 or settings["batch_size"] != 512 or settings["step"] < settings["steps"]:
            continue
        options: dict[str, Any] = {"bins": (4, 4), "by_layer": False, "samples": 2 * _GRADIENTS, "beta": [1.0]}
        frame = mfdiag.measure(loaded, tables=["sweep"], proxy="ema", posterior="exact", **options)["sweep"]
        frame = frame[(frame["quantity"] == "bias2") & (frame["space"] == "output") & (frame["beta"] == 1)]
        columns = ["r_low", "t_low", "value", "ci_low", "ci_high", "status"]
        rows += [{"file": name, "seed": settings["seed"], **row} for row in frame[columns].to_dict("records")]
    _write(rows, out)


def cells(grid: Path, out: Path) -> None:
    """Write beta*_0 and beta*_n of the gradient by cell of (r, t), for the finished models trained at beta = 0.

    n is the number of samples that the averaged weights see.
    """
    rows = _resumed(out)
    for name, loaded, settings in _remaining(grid, rows):
        if settings["beta"] != 0 or settings["estimator"] or settings["step"] < settings["steps"]:
            continue
        horizon = round(settings["batch_size"] / (1 - settings["ema_decay"]))
        options: dict[str, Any] = {"bins": (4, 4), "by_layer": False, "samples": _GRADIENTS, "batch_sizes": (horizon,)}
        frame = mfdiag.measure(loaded, tables=["coefficient"], proxy="ema", posterior="exact", **options)["coefficient"]
        frame = frame[(frame["role"] == "tangent") & (frame["form"] == "gradient") & (frame["quantity"] == "optimum")]
        frame = frame[frame["r_low"].notna()]
        columns = ["r_low", "t_low", "value", "ci_low", "ci_high", "status"]
        kept = {key: settings[key] for key in ("data", "batch_size", "seed")}
        parts = [(0, frame[frame["batch_size"].isna()]), (horizon, frame[frame["batch_size"].notna()])]
        rows += [{"file": name, **kept, "n": n, **row} for n, part in parts for row in part[columns].to_dict("records")]
    _write(rows, out)


def optimum(grid: Path, out: Path) -> None:
    """Write beta*_0 and n0 of the gradient, and bias2 of the proxy, for the models trained at beta = 0."""
    rows = _resumed(out)
    for name, loaded, settings in _remaining(grid, rows):
        if settings["beta"] != 0 or settings["estimator"] or _eighths(settings) not in _EIGHTHS:
            continue
        table = mfdiag.measure(
            loaded, tables=["coefficient"], proxy="ema", posterior="exact", bins=None, samples=_GRADIENTS
        )
        frame = table["coefficient"]
        frame = frame[(frame["role"] == "tangent") & (frame["form"] == "gradient") & (frame["layer"] == "all")]
        first = frame[frame["batch_size"].isna()]
        row: dict[str, Any] = {"file": name, **settings}
        for quantity in ("optimum", "critical_batch"):
            [found] = first[first["quantity"] == quantity].to_dict("records")
            row |= {quantity: found["value"], f"{quantity}_low": found["ci_low"], f"{quantity}_high": found["ci_high"]}
        rows.append(row)
        _write(rows, out)


def predict(grid: Path, out: Path) -> None:
    """Write variance, bias2, cost and mse of each trainable method on MeanFlow's checkpoints at 20 % of training."""
    rows = _resumed(out)
    names = [name for name in estimators() if is_trainable(name)] + list(POINTS)
    for name, loaded, settings in _remaining(grid, rows):
        is_meanflow = settings["beta"] == 0 and settings["gamma"] == 0 and not settings["estimator"]
        if not is_meanflow or settings["step"] != settings["steps"] // 5:
            continue
        options: dict[str, Any] = {"bins": None, "by_layer": False, "samples": _GRADIENTS // 4, "batch_sizes": BATCHES}
        frame = mfdiag.measure(loaded, tables=["compare"], estimators=names, **options)["compare"]
        frame = frame[(frame["layer"] == "all") & frame["quantity"].isin(["variance", "bias2", "cost", "mse"])]
        columns = ["estimator", "quantity", "batch_size", "value", "ci_low", "ci_high", "status"]
        kept = {key: settings[key] for key in ("data", "seed", "step", "steps")}
        rows += [{"file": name, **kept, **row} for row in frame[columns].to_dict("records")]
        _write(rows, out)


def losses(grid: Path, out: Path) -> None:
    """Write the loss of every finished model, from the log of its training."""
    log = read_table("training", grid).query("quantity == 'loss'").set_index("cell")
    rows = _resumed(out)
    for name, _, settings in _remaining(grid, rows):
        if settings["step"] == settings["steps"]:
            rows += [{"file": name, **row} for row in log.loc[name, ["step", "value"]].to_dict("records")]
    _write(rows, out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = {"optimum": optimum, "bias": bias, "cells": cells, "predict": predict}
    commands |= {"defects": defects, "losses": losses}
    parser.add_argument("command", choices=["measure", *commands])
    parser.add_argument("grid", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--final", action="store_true", help="finished models alone (measure)")
    arguments = parser.parse_args()
    if arguments.command == "measure":
        measure(arguments.grid, arguments.out, final=arguments.final)
    else:
        commands[arguments.command](arguments.grid, arguments.out)


if __name__ == "__main__":
    main()
