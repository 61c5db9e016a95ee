"""`mfdiag report`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["command"]


def command(folders: Annotated[list[Path], typer.Argument(help="Folders of tables.", metavar="DIR...")]) -> None:
    """Draw the figures of folders of tables again, from the tables alone.

    Example: mfdiag report results
    """
    from mfdiag.errors import InputError
    from mfdiag.figures.render import save_figures
    from mfdiag.tables.schema import TABLES
    from mfdiag.tables.store import read_table

    for folder in folders:
        present = [name for name in TABLES if (folder / f"{name}.parquet").exists()]
        if not present:
            raise InputError(f"{folder} holds no table: expected one of {', '.join(f'{t}.parquet' for t in TABLES)}.")
        for path in save_figures({name: read_table(name, folder) for name in present}, folder):
            sys.stdout.write(f"{path}\n")
