"""Tidy tables as a measurement of eight Gaussians would give them, with numbers of a trained model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from mfdiag.flow.density import density_cells
from mfdiag.tables.check import to_arrow, to_pandas

Row = dict[str, Any]
S00, S0B, SBB, MBB = 700.0, -309.0, 300.0, 0.0018  # beta*_1 = 1.03, n0 = 1.7e5
# of (1, beta, gamma): e = (1 - beta) A v' - (1 - gamma) v' + rest, with the moments above at gamma = 0
S = np.array([[S00, S0B, -389.0], [S0B, SBB, 9.0], [-389.0, 9.0, 380.0]])
M = np.array([[MBB, -0.002], [-0.002, 0.01]])
WITHIN = 0.8
BINS: Row = dict.fromkeys(("r_low", "r_high", "t_low", "t_high"))


def common(step: int | None = 12_000, estimator: str | None = "meanflow", proxy: str | None = "ema") -> Row:
    return {
        "run": "eight_gaussians-mlp",
        "checkpoint": f"eight_gaussians/step_{step}.safetensors",
        "checkpoint_sha256": None,
        "step": step,
        "dataset": "eight_gaussians",
        "estimator": estimator,
        "proxy": proxy,
        "weighting": "none",
        "times": "uniform:0",
        "seed": 0,
    }


def measured(quantity: str, value: float, half_width: float, status: str = "ok") -> Row:
    return {
        "quantity": quantity,
        "value": value,
        "std_error": half_width / 1.96,
        "ci_low": value - half_width,
        "ci_high": value + half_width,
        "n_samples": 2048,
        "status": status,
    }


def tidy(name: str, rows: list[Row]) -> pd.DataFrame:
    return to_pandas(name, to_arrow(name, pd.DataFrame(rows)))


def sweep_table(
    steps: tuple[int | None, ...] = (12_000,),
    sizes: tuple[int, ...] = (256, 4096, 65_536, 1_000_000),
    noise: float = 0.0,
) -> pd.DataFrame:
    """Table `sweep` on beta = 0, 0.05, ..., 1 from the exact quadratics, plus rows a figure must leave out.

    At gamma = 0, and bias2, mse and optima at gamma = 0.5 and 1. With `noise`, bias2 is off by that much, the same way
    at every beta and gamma, as a plain estimate may be.
    """
    rows: list[Row] = []
    for step in steps:
        scale = 1.0 if step is None else 12_000 / max(step, 1)
        for beta in np.linspace(0, 1, 21):
            variance = scale * (S00 + 2 * beta * S0B + beta**2 * SBB)
            bias2 = beta**2 * MBB * scale + noise * beta**2
            width = 0.0012 * beta**2 + abs(noise) * 1.3 * beta**2
            key = {**common(step), "space": "gradient", "beta": beta, "gamma": 0.0, "layer": "all", **BINS}
            rows += [
                {**key, "batch_size": 1, **measured("variance", variance, 0.06 * variance)},
                {**key, "batch_size": 1, **measured("conditional_variance", WITHIN * variance, 0.07 * variance)},
                {**key, "batch_size": 1, **measured("bias2", bias2, width)},
                {**key, "batch_size": 1, "gamma": 1.0, **measured("variance", 1e-9, 0.0)},
                {**key, "batch_size": 1, "space": "output", **measured("variance", 1e9, 0.0)},
            ]
            rows += [
                {**key, "batch_size": n, **measured("mse", variance / n + bias2, 0.06 * variance / n + width)}
                for n in sizes
            ]
            for gamma in (0.5, 1.0):
                c = np.array([1, beta, gamma])
                bias2 = c[1:] @ M @ c[1:] * scale + noise * (beta**2 + gamma**2)
                there = {**key, "gamma": gamma}
                rows.append({**there, "batch_size": 1, **measured("bias2", bias2, 1e-4)})
                rows += [
                    {**there, "batch_size": n, **measured("mse", scale * (c @ S @ c) / n + bias2, 1e-4)} for n in sizes
                ]
        key |= {"beta": None, "gamma": None}
        for n in sorted({*sizes, *(10**k for k in range(7))}):
            optimum = -np.linalg.solve(S[1:, 1:] + n * M, S[1:, 0])
            for name, value in zip(("optimum_beta", "optimum_gamma"), optimum, strict=True):
                rows.append({**key, "batch_size": n, **measured(name, value, 0.05)})
    return tidy("sweep", rows)


def coefficient_table(steps: tuple[int, ...] = (12_000,), form: str = "matrix", cells: int = 5) -> pd.DataFrame:
    """Table `coefficient`: beta* over cells x cells bins of (r, t), beta*_n for six batch sizes, and n0."""
    rows: list[Row] = []
    edges = np.linspace(0, 1, cells + 1)
    for step in steps:
        key = {**common(step), "role": "tangent", "layer": "all", **BINS, "kappa_kind": None, "batch_size": None}
        for i in range(cells):
            for j in range(i, cells):
                bins = {"r_low": edges[i], "r_high": edges[i + 1], "t_low": edges[j], "t_high": edges[j + 1]}
                value = 1.15 - 1.3 * (edges[i] + 1 - edges[j + 1]) + 0.1 * step / 12_000
                status = "ok" if 0 <= value <= 1 else "outside_unit_interval"
                width = 0.08
                if i == j:
                    status, width = "degenerate_control", 1.4
                row = {**key, **bins, "form": form, **measured("optimum", value, width, status)}
                rows.append(row)
        overall = {**key, "form": "gradient"}
        critical = SBB / MBB * step / 12_000
        for n in (1, 256, 4096, 65_536, 262_144, 1_000_000):
            value = -S0B / SBB / (1 + n / critical)
            width = 0.03 + 0.2 * (n / critical) / (1 + n / critical) ** 2
            rows.append({**overall, "batch_size": n, **measured("optimum", value, width)})
        rows.append({**overall, **measured("critical_batch", critical, 0.45 * critical)})
    return tidy("coefficient", rows)


def variance_table(
    steps: tuple[int, ...] = (12_000,),
    layers: tuple[str, ...] = ("time.0", "time.2", "net.0", "net.2", "net.4", "net.6"),
) -> pd.DataFrame:
    """Table `variance`: variance by layer (largest last), loss variance for two tangents and the field's by t."""
    rows: list[Row] = []
    for step in steps:
        key = {**common(step), "layer": "all", **BINS}
        weights = np.linspace(0.3, 3, len(layers)) ** 2
        for layer, weight in zip(layers, weights, strict=True):
            value = 700 * weight / weights.sum()
            rows.append({**key, "layer": layer, **measured("variance", value, 0.12 * value)})
        rows.append({**key, **measured("variance", 700.0, 40.0)})
        rows += [{**key, **measured("top1_share", 0.3, 0.1)}, {**key, **measured("noise_scale", 9000.0, 1500.0)}]
        for k in range(10):
            bins = {"t_low": k / 10, "t_high": (k + 1) / 10}
            base = 0.4 + 0.5 * k / 10
            for estimator, proxy, value in (
                ("meanflow", None, base * np.exp(0.5 * k)),
                ("ema_tangent", "ema", base),
            ):
                row = {**common(step, estimator, proxy), "layer": "all", **BINS, **bins}
                rows.append({**row, **measured("loss_variance", value, 0.3 * value)})
            field = {**common(step, None), "layer": "all", **BINS, **bins}
            rows.append({**field, **measured("divergence", 2.0 - 0.5 * k, 0.2)})
            rows.append({**field, **measured("antisymmetric_share", 0.01 + 0.002 * k, 0.001)})
    return tidy("variance", rows)


def samples_table(steps: tuple[int, ...] = (12_000,), count: int = 1000) -> pd.DataFrame:
    """Table `samples`: log-normal squared gradient norms, heavier for MeanFlow than for two other estimators."""
    rows: list[Row] = []
    quantiles = (np.arange(count) + 0.5) / count
    normal = np.sort(np.random.default_rng(0).standard_normal(count))
    for step in steps:
        for estimator, proxy, spread in (
            ("meanflow", None, 1.6),
            ("ema_tangent", "ema", 1.0),
            ("alpha_flow", None, 1.3),
        ):
            for i, value in enumerate(np.exp(spread * normal)):
                row = {**common(step, estimator, proxy), "index": i, "r": quantiles[i] / 2, "t": quantiles[i]}
                absent = dict.fromkeys(("std_error", "ci_low", "ci_high"))
                rows.append({**row, "label": None, **measured("grad_norm2", value, 0.0), **absent})
    return tidy("samples", rows)


def compare_table(steps: tuple[int, ...] = (12_000,)) -> pd.DataFrame:
    """Table `compare`: four estimators, ratios to MeanFlow, three batch sizes, one negative MSE."""
    rows: list[Row] = []
    for step in steps:
        for name, ratio, bias in (
            ("meanflow", 1.0, 0.0),
            ("alpha_flow", 0.8, 1e-4),
            ("teacher", 0.01, 0.02),
            ("stable_velocity", 0.2, -0.001),
        ):
            key = {**common(step, name), "layer": "all", **BINS, "batch_size": None}
            for quantity in ("variance_ratio", "conditional_variance_ratio"):
                rows.append({**key, **measured(quantity, ratio, 0.1 * ratio)})
            for n in (1, 4096, 1_000_000):
                value = ratio + n * bias / 700
                status = "ok" if value > 0 else "negative_estimate"
                rows.append({**key, "batch_size": n, **measured("mse_ratio", value, 0.1 * abs(value), status)})
    return tidy("compare", rows)


def quality_table(steps: tuple[int, ...] = (12_000,), seeds: int = 0) -> pd.DataFrame:
    """Table `quality` at NFE 1, 2 and 4 with raw and EMA weights; with `seeds`, also rows of the mean over so many."""
    rows: list[Row] = []
    for step in steps:
        for weights, scale in (("raw", 1.0), ("ema", 0.6)):
            for k, nfe in enumerate((1, 2, 4)):
                for metric, base in (("sliced_wasserstein", 0.1), ("coverage", 0.9), ("wasserstein_2", 0.3)):
                    value = base * scale * (1 - 0.1 * k) * (1 + step / 1e5)
                    unused = dict.fromkeys(("weighting", "times", "features"))
                    key = {**common(step, None, None), **unused, "metric": metric, "nfe": nfe, "weights": weights}
                    rows.append({**key, **measured("value", value, 0.04 * base)})
                    if seeds:
                        group = {"checkpoint": f"seed={{0,{seeds}}}/step={step}", "run": "grid"}
                        rows.append({**key, **group, **measured("mean_over_seeds", 1.1 * value, 0.1 * base)})
    return tidy("quality", rows)


def times_table(steps: tuple[int, ...] = (12_000,)) -> pd.DataFrame:
    """Table `times` on 3 x 3 bins: the new density has twice the share in the first cell, less in the others."""
    rows: list[Row] = []
    cells = density_cells((3, 3))
    trained = np.full(len(cells), 1 / len(cells))
    drawn = np.where(np.arange(len(cells)) == 0, 2.0, 1 - 1 / (len(cells) - 1)) / len(cells)
    for step in steps:
        key = common(step)
        for c, bounds in enumerate(cells):
            place = {**key, "pairs": "apart" if c < 6 else "diagonal", **dict(zip(BINS, bounds, strict=True))}
            for name, value in (("trained_share", trained[c]), ("drawn_share", drawn[c]), ("second_moment", 9.0)):
                rows.append({**place, **measured(name, value, 0.001)})
        for name, value in (("predicted_gain", 1.3), ("unbounded_gain", 1.35), ("measured_gain", 1.25)):
            rows.append({**key, "pairs": "all", **BINS, **measured(name, value, 0.1)})
    return tidy("times", rows)


def training_table(steps: tuple[int, ...] = (1000, 2000), betas: tuple[float, ...] = (0.0, 0.5, 1.0)) -> pd.DataFrame:
    """Table `training`: two data sets, two seeds; the loss falls with beta and step."""
    rows: list[Row] = []
    for dataset in ("two_moons", "pinwheel"):
        for beta in betas:
            for seed in (0, 1):
                key = {
                    **common(None, None),
                    "dataset": dataset,
                    "seed": seed,
                    "beta": beta,
                    "gamma": 0.0,
                    "anchor": 0.5,
                }
                key |= {"anchor": 0.5, "cell": f"data={dataset},beta={beta:g},seed={seed}"}
                for step in steps:
                    loss = 6 - beta - step / 1e4 + 0.1 * seed
                    rows += [{**key, "step": step, **measured(name, loss, 0.1)} for name in ("loss", "grad_norm")]
    return tidy("training", rows)


def grid_rows(steps: tuple[int, ...] = ()) -> pd.DataFrame:
    """Table `grid` of two data sets, for the figures alone."""
    rows: list[Row] = []
    for dataset in ("two_moons", "pinwheel"):
        key = {**common(None, None), "dataset": dataset}
        key |= dict.fromkeys(("beta", "metric", "nfe", "weights", "batch_size"))
        for beta in (0.0, 0.5, 1.0):
            rows += [
                {**key, "beta": beta, **measured(name, scale * (2 - beta), 0.3)}
                for name, scale in (("variance", 90.0), ("variance_at_0", 100.0))
            ]
            for weights in ("raw", "ema"):
                place = {**key, "metric": "sliced_wasserstein", "nfe": 1, "weights": weights}
                rows.append({**place, "beta": beta, **measured("quality", 0.03 + 0.01 * beta, 0.002)})
        for weights in ("raw", "ema"):
            place = {**key, "metric": "sliced_wasserstein", "nfe": 1, "weights": weights}
            rows.append({**place, **measured("best_beta", 0.5, 0.5)})
        rows += [{**key, "batch_size": n, **measured("optimum", 1.3 / (1 + n / 5e5), 0.1)} for n in (1, 512_000)]
    return tidy("grid", rows)


TABLES = {
    "compare": compare_table,
    "sweep": sweep_table,
    "coefficient": coefficient_table,
    "variance": variance_table,
    "samples": samples_table,
    "quality": quality_table,
    "times": times_table,
    "training": training_table,
    "grid": grid_rows,
}
"""Name of a table -> what makes it, for training steps."""
