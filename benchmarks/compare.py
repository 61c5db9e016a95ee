"""The price of comparing K estimators, in passes of `mfdiag variance` on the same samples.

python benchmarks/compare.py [mlp] [dit]
"""

from __future__ import annotations

import copy
import statistics
import sys
from collections.abc import Callable

import torch
from engines import images, seconds, show, toy

import mfdiag
from mfdiag.estimators import estimators

REPEATS = 3


def teacher_of(module: torch.nn.Module) -> torch.nn.Module:
    """A network like the measured one, to stand for a teacher and for its EMA weights."""
    return copy.deepcopy(module)


def measured(table: str, module: torch.nn.Module, data: object, samples: int, names: list[str]) -> Callable[[], object]:
    def run() -> object:
        return mfdiag.measure(
            module,
            data,
            tables=[table],
            times="uniform",
            samples=samples,
            bins=(1, 5),
            estimators=names,
            proxy="teacher",
            proxy_model=teacher_of(module),
        )

    return run


def price(name: str, module: torch.nn.Module, data: object, samples: int) -> list[tuple[str, ...]]:
    """Rows for all estimators and for the cotangents among them."""
    known = estimators()
    everything = [e.name for e in known.values() if not e.template and not set(e.needs.networks) & {"ema", "head"}]
    cotangents = [e for e in everything if known[e].residual is not None]
    rows = []
    for what, names in (("cotangents", cotangents), ("all", everything)):
        variance = measured("variance", module, data, samples, ["meanflow", "teacher_tangent"])
        comparison = measured("compare", module, data, samples, names)
        variance(), comparison()
        ratios = [
            b / a for _ in range(REPEATS) for a, b in zip(seconds(variance, 1), seconds(comparison, 1), strict=True)
        ]
        k = len(names)
        rows.append(
            (
                f"{name}, K = {k} ({what}): compare / variance",
                f"{statistics.median(ratios):.1f}",
                f"{1.5 + 0.5 * k:.1f}",
            )
        )
    return rows


def main() -> None:
    chosen = sys.argv[1:] or ["mlp", "mlp_posterior", "dit"]
    rows: list[tuple[str, ...]] = []
    if "mlp" in chosen:
        rows += price("MLP, 4,096 samples", *toy(), 4096)
    if "mlp_posterior" in chosen:
        rows += price("MLP, 4,096 samples, with posterior", toy()[0], mfdiag.load_data("eight_gaussians"), 4096)
    if "dit" in chosen:
        rows += price("DiT 4.3M, 128 samples", *images(), 128)
    show(rows, "at most")


if __name__ == "__main__":
    main()
