"""Figures of the tables: one file each, found by name. Importing this package imports neither matplotlib nor scipy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from mfdiag.figures._base import FigureSpec
from mfdiag.figures._style import GRAY, LINES, save
from mfdiag.figures._svg import CAPTION, LEGEND, TITLE
from mfdiag.plugins import files_of
from mfdiag.storage import atomic_write
from mfdiag.tables.schema import TABLES

__all__ = ["CAPTION", "GRAY", "LEGEND", "LINES", "TITLE", "FigureSpec", "drawable", "figures", "save_figures"]


def figures() -> dict[str, FigureSpec]:
    """Name -> figure, one for each public file of this package, in the order of their tables."""
    specs: list[FigureSpec] = list(files_of(__name__, "FIGURE"))
    tables = list(TABLES)
    return {spec.name: spec for spec in sorted(specs, key=lambda spec: (tables.index(spec.table), spec.name))}


def drawable(tables: Mapping[str, pd.DataFrame]) -> list[FigureSpec]:
    """The figures that `tables` (tidy frames by name) have rows for."""
    return [spec for spec in figures().values() if spec.table in tables and not spec.rows(tables[spec.table]).empty]


def save_figures(
    tables: Mapping[str, pd.DataFrame], out: Path, kinds: Sequence[str] = ("svg", "pdf", "png")
) -> list[Path]:
    """Writes each figure that the tables have rows for to `out/figures/NAME.svg`, `.pdf` and `.png` (160 dpi).

    Args:
        tables: Tidy frames by name.
        out: Folder of the tables.
        kinds: Formats: "svg", "pdf", "png". The same tables give the same SVG and PDF.

    Returns:
        The paths in the order of `figures`. A figure that its table no longer has rows for is removed.

    Raises:
        InputError: The folder cannot be written.
    """
    drawn = drawable(tables)
    written: list[Path] = []
    for spec in figures().values():
        paths = {suffix: out / "figures" / f"{spec.name}.{suffix}" for suffix in kinds}
        if spec in drawn:
            _save(spec, tables[spec.table], paths)
            written += paths.values()
        elif spec.table in tables:
            for path in paths.values():
                path.unlink(missing_ok=True)  # drawn from an earlier table
    return written


def _save(spec: FigureSpec, table: pd.DataFrame, paths: Mapping[str, Path]) -> None:
    figure = spec.draw(table)
    for suffix, path in paths.items():
        with atomic_write(path) as temporary:
            save(figure, temporary, suffix)
