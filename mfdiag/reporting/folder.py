"""Reports on a folder of tables: derives table `grid`, draws the figures and writes the page."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pandas as pd

from mfdiag.figures import save_figures
from mfdiag.reporting.documents import write_document
from mfdiag.reporting.findings import statements
from mfdiag.reporting.grid_table import TRAINING, grid_table
from mfdiag.reporting.page import write_page
from mfdiag.reporting.sentences import Answers
from mfdiag.storage import remove_orphans
from mfdiag.tables.schema import TABLES
from mfdiag.tables.store import read_table, table_path, write_table

__all__ = ["FolderReport", "report_folder", "tables_below"]


class FolderReport(NamedTuple):
    """What the tables show, and the files of the folder."""

    answers: list[Answers]
    tables: list[Path]
    figures: list[Path]
    document: Path


def tables_below(folder: Path) -> list[Path]:
    """`folder` if it holds tables, else those below it that do, in order of name."""
    candidates = [folder] if _names(folder) else sorted({path.parent for path in folder.rglob("*.parquet")})
    return [path for path in candidates if _names(path)]


def report_folder(folder: Path, kind: str = "html") -> FolderReport:
    """Derives table `grid` where the folder holds a grid of models, draws every figure and writes the report.

    Args:
        folder: Folder of tables.
        kind: "html", "md" or "tex".

    Returns:
        What the tables show, and the files.

    Raises:
        InputError: A table, the manifest or doctor.json is not valid, or a file cannot be written.
    """
    remove_orphans(folder, folder / "figures")
    tables: dict[str, pd.DataFrame] = {name: read_table(name, folder) for name in _names(folder) if name != "grid"}
    if TRAINING in tables:
        derived = grid_table(tables)
        if len(derived):
            write_table("grid", derived, folder)
            tables = {TRAINING: tables[TRAINING], "grid": derived}  # single models would be too many to read
    figures = save_figures(tables, folder)
    document = write_page(tables, figures, folder) if kind == "html" else write_document(tables, figures, folder, kind)
    return FolderReport(statements(tables), [table_path(name, folder) for name in tables], figures, document)


def _names(folder: Path) -> list[str]:
    return [name for name in TABLES if table_path(name, folder).exists()]
