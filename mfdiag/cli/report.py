"""`mfdiag report`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["command"]


def command(folders: Annotated[list[Path], typer.Argument(help="Folders of tables.", metavar="DIR...")]) -> None:
    """Summarize folders of tables in sentences, draw their figures and write one page, report.html.

    It reads the tables alone. For a folder without tables, it reports the folders inside.

    Example: mfdiag report results
    """
    from mfdiag.errors import InputError
    from mfdiag.reporting.folder import report_folder, tables_below
    from mfdiag.tables.schema import TABLES

    folders_below = {folder: tables_below(folder) for folder in folders}
    for folder, inside in folders_below.items():
        if not inside:
            raise InputError(f"{folder} holds no table: expected one of {', '.join(f'{t}.parquet' for t in TABLES)}.")
    for folder in dict.fromkeys(folder for inside in folders_below.values() for folder in inside):
        report = report_folder(folder)
        for subject, sentences in report.findings:
            sys.stdout.write("\n".join([subject, *(f"- {sentence}" for sentence in sentences)]) + "\n")
        for path in report.files:
            sys.stdout.write(f"{path}\n")
