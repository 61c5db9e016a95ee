"""Draws every figure that a set of tables has the data for, and saves it as SVG and PNG."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from mfdiag.figures import (
    batch_optimum,
    beta_map,
    bias_variance,
    compare,
    concentration,
    grid,
    grid_optimum,
    layers,
    loss_by_time,
    plane,
    quality,
    time_density,
    training_course,
    velocity_field,
)
from mfdiag.figures.style import save
from mfdiag.storage import atomic_write

__all__ = ["FIGURES", "FigureKind", "save_figures"]


@dataclass(frozen=True)
class FigureKind:
    """One figure: the table it is drawn from, the rows it needs, and how it is drawn."""

    table: str
    rows: Callable[[pd.DataFrame], pd.DataFrame]
    draw: Callable[[pd.DataFrame], Figure]


FIGURES = {
    "bias_variance": FigureKind("sweep", bias_variance.rows, bias_variance.draw),
    "plane": FigureKind("sweep", plane.rows, plane.draw),
    "beta_map": FigureKind("coefficient", beta_map.rows, beta_map.draw),
    "batch_optimum": FigureKind("coefficient", batch_optimum.rows, batch_optimum.draw),
    "layers": FigureKind("variance", layers.rows, layers.draw),
    "loss_by_time": FigureKind("variance", loss_by_time.rows, loss_by_time.draw),
    "velocity_field": FigureKind("variance", velocity_field.rows, velocity_field.draw),
    "concentration": FigureKind("samples", concentration.rows, concentration.draw),
    "compare": FigureKind("compare", compare.rows, compare.draw),
    "time_density": FigureKind("times", time_density.rows, time_density.draw),
    "quality": FigureKind("quality", quality.rows, quality.draw),
    "training_course": FigureKind("training", training_course.rows, training_course.draw),
    "grid_variance": FigureKind("grid", grid.variance_rows, grid.draw_variance),
    "grid_quality": FigureKind("grid", grid.quality_rows, grid.draw_quality),
    "grid_optimum": FigureKind("grid", grid_optimum.rows, grid_optimum.draw),
}


def save_figures(tables: dict[str, pd.DataFrame], out: Path) -> list[Path]:
    """Saves each figure the tables have rows for as `out/figures/NAME.svg` and `.png` (160 dpi), each atomically.

    `tables` maps table names to tidy frames; a figure that one of them no longer has rows for is removed.
    Returns the paths written, in the order of FIGURES. The same tables give the same SVG. Raises InputError where the
    folder cannot be written.
    """
    written = []
    for name, kind in FIGURES.items():
        if kind.table not in tables:
            continue
        paths = {suffix: out / "figures" / f"{name}.{suffix}" for suffix in ("svg", "png")}
        if kind.rows(tables[kind.table]).empty:
            for path in paths.values():
                path.unlink(missing_ok=True)  # of an earlier table
            continue
        figure = kind.draw(tables[kind.table])
        for suffix, path in paths.items():
            with atomic_write(path) as temporary:
                save(figure, temporary, suffix)
            written.append(path)
    return written
