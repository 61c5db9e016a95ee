"""Counterparts of the tables and figures of arXiv 2605.09235, from the tables `grid` of several folders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from mfdiag.errors import InputError
from mfdiag.figures import figures
from mfdiag.numbers import with_interval
from mfdiag.reporting.documents import render
from mfdiag.reporting.rows import TextTable
from mfdiag.storage import atomic_write
from mfdiag.tables.store import read_table, table_path

__all__ = ["paper_tables", "write_paper"]

_FIGURES = {
    "grid_variance": "Gradient variance against β",
    "grid_quality": "Sample quality against β",
    "grid_optimum": "Predicted and best β",
    "training_course": "Course of training",
}
_METRIC = "sliced_wasserstein"


def write_paper(folders: Sequence[Path], out: Path) -> list[Path]:
    """Writes `out/paper.md` and `out/paper.tex`: the paper's tables and figures, from measured grids.

    Args:
        folders: Folders of tables, in which `mfdiag report` has drawn the figures.
        out: A folder above them.

    Returns:
        The paths of the two documents.

    Raises:
        InputError: No folder holds a table `grid`, or a file cannot be written.
    """
    grids = {
        str(folder.relative_to(out)): read_table("grid", folder)
        for folder in folders
        if table_path("grid", folder).exists()
    }
    if not grids:
        raise InputError(
            f"--preset paper expects grids of models below {out}, got none: run `mfdiag train`, then `mfdiag sweep` "
            "and `mfdiag quality` on its models."
        )
    drawn = [
        (folder, _FIGURES[name], f"{folder}/figures/{name}")
        for name in figures()
        for folder in grids
        if name in _FIGURES and (out / folder / "figures" / f"{name}.svg").exists()
    ]
    written = []
    for kind in ("md", "tex"):
        with atomic_write(out / f"paper.{kind}") as temporary:
            temporary.write_text(
                render(f"paper.{kind}.j2", tables=paper_tables(grids), figures=drawn), encoding="utf-8"
            )
        written.append(out / f"paper.{kind}")
    return written


def paper_tables(grids: Mapping[str, pd.DataFrame]) -> list[TextTable]:
    """The tables by data set, a column for each grid.

    Args:
        grids: Table `grid` by name of its folder.

    Returns:
        Variance ratios, sample quality at both ends of beta with its ratio, and errors of the predicted beta.
    """
    made = [
        _by_dataset(
            "Gradient variance",
            "The variance at beta = 0 over that at the largest beta; each model at the beta of its training.",
            {name: _at_largest_beta(grid, "variance_ratio") for name, grid in grids.items()},
        )
    ]
    for weights in sorted({str(name) for grid in grids.values() for name in grid["weights"].dropna()}):
        chosen = {name: _one_step(grid, weights) for name, grid in grids.items()}
        made += [
            _by_dataset(
                f"Sample quality, {weights} weights",
                "One-step sliced Wasserstein-1 at beta = 0 and at the largest beta.",
                {name: _ends(grid) for name, grid in chosen.items()},
            ),
            _by_dataset(
                f"Change of sample quality, {weights} weights",
                "One-step sliced Wasserstein-1 at the largest beta over that at 0, paired by seed.",
                {name: _at_largest_beta(grid, "quality_ratio") for name, grid in chosen.items()},
            ),
            _by_dataset(
                f"Error of the predicted beta, {weights} weights",
                "Distance from the beta predicted for a batch of n to the beta of best samples, mean over data sets.",
                {name: _prediction_errors(grid) for name, grid in chosen.items()},
                key="n",
            ),
        ]
    return [table for table in made if table.rows]


def _by_dataset(title: str, note: str, cells: Mapping[str, Mapping[str, str]], key: str = "data set") -> TextTable:
    """A row for each key of the columns, in the order in which they have it, `all` last."""
    names = list(dict.fromkeys(name for column in cells.values() for name in column))
    names.sort(key=lambda name: name == "all")
    filled = {name: column for name, column in cells.items() if column}
    rows = [[name, *(column.get(name, "") for column in filled.values())] for name in names]
    return TextTable(title, title, note, [key, *filled], rows, 1)


def _one_step(grid: pd.DataFrame, weights: str) -> pd.DataFrame:
    rows = grid[(grid["metric"] == _METRIC) & (grid["weights"] == weights)]
    return rows[rows["nfe"] == rows["nfe"].min()]


def _at_largest_beta(grid: pd.DataFrame, quantity: str) -> dict[str, str]:
    rows = grid[grid["quantity"] == quantity]
    rows = rows[rows["beta"] == rows["beta"].max()]
    return {str(row["dataset"]): _text(row) for row in rows.to_dict("records")}


def _ends(grid: pd.DataFrame) -> dict[str, str]:
    rows = grid[grid["quantity"] == "quality"].sort_values("beta")
    return {
        str(name): f"{part['value'].iloc[0]:.4f} to {part['value'].iloc[-1]:.4f}"
        for name, part in rows.groupby("dataset", sort=False)
    }


def _prediction_errors(grid: pd.DataFrame) -> dict[str, str]:
    rows = grid[(grid["quantity"] == "prediction_error") & (grid["dataset"] == "all")].sort_values("batch_size")
    return {f"{int(row['batch_size']):,}": _text(row) for row in rows.to_dict("records")}


def _text(row: Mapping) -> str:
    return with_interval(row["value"], row["ci_low"], row["ci_high"])
