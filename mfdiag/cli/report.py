"""`mfdiag report`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["command"]


def command(folders: Annotated[list[Path], typer.Argument(help="Folders of tables.", metavar="DIR...")]) -> None:
    """Say in sentences what folders of tables show, draw their figures again, and write one page, report.html.

    Everything comes from the tables alone.

    Example: mfdiag report results
    """
    from mfdiag.errors import InputError
    from mfdiag.figures.render import save_figures
    from mfdiag.reporting import findings, write_page
    from mfdiag.tables.schema import TABLES
    from mfdiag.tables.store import read_table, table_path

    found = {folder: [name for name in TABLES if table_path(name, folder).exists()] for folder in folders}
    for folder, names in found.items():
        if not names:
            raise InputError(f"{folder} holds no table: expected one of {', '.join(f'{t}.parquet' for t in TABLES)}.")
    for folder, names in found.items():
        tables = {name: read_table(name, folder) for name in names}
        for subject, sentences in findings(tables):
            sys.stdout.write("\n".join([subject, *(f"- {sentence}" for sentence in sentences)]) + "\n")
        figures = save_figures(tables, folder)
        page = write_page(tables, figures, folder)
        for path in (*(table_path(name, folder) for name in names), *figures, page):
            sys.stdout.write(f"{path}\n")
