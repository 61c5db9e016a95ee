"""Results of other people's models, for every figure: `python tests/odd_results.py OUT` makes a page of them.

The page is for the eyes; tests/figures/test_odd_results.py holds the figures to what can be checked.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from figure_tables import TABLES, coefficient_table, variance_table

from mfdiag.figures import figures, save_figures

__all__ = ["odd_results"]

_IMPOSSIBLE = (("samples", "negative"), ("times", "negative"), ("samples", "NaN in a third"))  # norms, shares
_ALIKE = ("training", "quality", "grid", "samples", "times")  # tables whose figures show neither
_NUMBERS = ["value", "std_error", "ci_low", "ci_high"]
Change = Callable[[pd.DataFrame], pd.DataFrame]


def scaled(factor: float) -> Change:
    return lambda frame: frame.assign(**{name: frame[name] * factor for name in _NUMBERS})


def negative(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(
        value=-frame["value"], ci_low=-frame["ci_high"], ci_high=-frame["ci_low"], status="negative_estimate"
    )


def one_in_three(value: float, *names: str) -> Change:
    """Every third row has this value in these columns, and a status."""

    def change(frame: pd.DataFrame) -> pd.DataFrame:
        frame = frame.reset_index(drop=True).copy()
        chosen = frame.index % 3 == 1
        frame.loc[chosen, list(names)] = value
        frame.loc[chosen, "status"] = "nonfinite"
        return frame

    return change


def spread(frame: pd.DataFrame) -> pd.DataFrame:
    """Values over twelve orders of magnitude, intervals of both signs."""
    factors = 10.0 ** np.random.default_rng(0).uniform(-6, 6, len(frame))
    value = frame["value"] * factors
    return frame.assign(value=value, ci_low=-value.abs(), ci_high=3 * value.abs(), status="heavy_tail")


def long_names(frame: pd.DataFrame) -> pd.DataFrame:
    name = "/a/very/long/path/to/2026-11-30_latents-xl2-guidance-4.0-logit-normal/checkpoint_0123456.safetensors"
    return frame.assign(checkpoint=name, dataset="imagenet_256_latents_with_a_long_name", step=None)


def _tables() -> Iterator[tuple[str, str, pd.DataFrame]]:
    """(case, table, rows): each table changed in each way, and tables of odd shapes."""
    changes: dict[str, Change] = {
        "huge": scaled(1e12),
        "tiny": scaled(1e-12),
        "negative": negative,
        "NaN in a third": one_in_three(np.nan, *_NUMBERS),
        "open intervals": one_in_three(np.inf, "ci_high"),
        "all magnitudes": spread,
        "long names": long_names,
    }
    for table, make in TABLES.items():
        for case, change in changes.items():
            if (table, case) not in _IMPOSSIBLE and not (table in _ALIKE and case in ("tiny", "open intervals")):
                yield case, table, change(make())
    for cells in (1, 2, 10, 20):
        yield f"{cells} x {cells} bins", "coefficient", coefficient_table(cells=cells)
    yield "100 layers", "variance", variance_table(layers=tuple(f"blocks.{k}.attn.qkv" for k in range(100)))
    yield "1 layer", "variance", variance_table(layers=("net",))
    for table in ("sweep", "variance", "coefficient", "quality", "compare", "times"):
        yield "40 checkpoints", table, TABLES[table](tuple(range(500, 20_500, 500)))


def odd_results() -> list[tuple[str, str, pd.DataFrame]]:
    """(case, figure, its table) for every figure that the odd tables have rows for."""
    return [
        (case, spec.name, frame)
        for case, table, frame in _tables()
        for spec in figures().values()
        if spec.table == table and not spec.rows(frame).empty
    ]


if __name__ == "__main__":
    out = Path(sys.argv[1])
    shown = ["<!doctype html><meta charset=utf-8><title>Odd results</title><style>img{max-width:100%}</style>"]
    for case, name, frame in odd_results():
        place = out / case.replace(" ", "_")
        save_figures({figures()[name].table: frame}, place, kinds=["png"])
        shown.append(f"<h2>{case}: {name}</h2><img src='{place.name}/figures/{name}.png' alt=''>")
    (out / "index.html").write_text("\n".join(shown), encoding="utf-8")
    print(out / "index.html")
