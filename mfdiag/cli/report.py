"""`mfdiag report`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from mfdiag.reporting.folder import FolderReport

__all__ = ["command"]

Folders = Annotated[list[Path], typer.Argument(help="Folders of tables.", metavar="DIR...")]
Format = Annotated[
    Literal["html", "md", "tex"], typer.Option(help="One page, Markdown, or LaTeX with booktabs and PDF figures.")
]
Page = Annotated[
    str | None,
    typer.Option(
        help="Code that writes a page of its own from the tables of a folder, a function with the argument folder "
        "(it is run).",
        metavar="FILE.py:function|pkg.module:function",
    ),
]
Preset = Annotated[
    Literal["paper"] | None,
    typer.Option(help="paper: also one document with the counterparts of the paper's tables and figures."),
]


def command(folders: Folders, format: Format = "html", preset: Preset = None, page: Page = None) -> None:
    """Summarize folders of tables in sentences, draw their figures and write one page, report.html.

    It reads the tables alone, and doctor.json if the folder has one. For a folder without tables, it reports the
    folders inside. Figures are written as SVG, PDF and PNG. With --page, a folder may hold other tables, which your
    code reads.

    Example: mfdiag report results
    """
    from mfdiag.errors import InputError, printable
    from mfdiag.reporting.folder import report_folder, tables_below
    from mfdiag.reporting.paper import write_paper
    from mfdiag.tables.schema import TABLES
    from mfdiag.usercode import call_loaded

    write_own = None if page is None else _loaded_page(page)
    folders_below = {folder: tables_below(folder) for folder in folders}
    for folder, inside in folders_below.items():
        if not inside and page is None:
            raise InputError(
                f"{folder} holds no table: expected one of {', '.join(f'{t}.parquet' for t in TABLES)}. Pass --page "
                "FILE.py:function where code of yours reads others."
            )
    for folder in dict.fromkeys(folder for inside in folders_below.values() for folder in inside):
        print(printable("\n".join(_lines(report_folder(folder, format)))))
    if page is not None and write_own is not None:
        for folder in folders:
            call_loaded(write_own, page, "--page", {"folder": folder})
            print(printable(f"page of {page}: {folder}"))
    if preset == "paper":
        for folder, inside in folders_below.items():
            print(f"paper: {', '.join(map(str, write_paper(inside, folder)))}")


def _loaded_page(page: str) -> Callable[..., Any]:
    """The function that writes a page. Raises InputError where it cannot be called, before anything is written."""
    import inspect

    from mfdiag.errors import InputError
    from mfdiag.usercode import load_user_object

    write: Callable[..., Any] = load_user_object(page, "--page")
    try:
        inspect.signature(write).bind(folder=Path())
    except TypeError as error:
        raise InputError(
            f"Expected {page} to be a function with the argument folder, but calling it fails: {error}. Correct the "
            "function."
        ) from error
    except ValueError:  # a function of C shows no arguments
        pass
    return write


def _lines(report: FolderReport) -> list[str]:
    """The sentences that matter about the last subject, and where everything is."""
    from mfdiag.reporting.findings import headline

    lines = []
    if report.answers:
        subject, statements, _ = report.answers[-1]
        more = f" (and {len(report.answers) - 1} more in the report)" if len(report.answers) > 1 else ""
        lines = [f"{subject}{more}", *(f"- {sentence}" for sentence in headline(statements))]
    lines += [f"tables: {', '.join(map(str, report.tables))}"]
    if report.figures:
        lines.append(f"figures: {report.figures[0].parent}")
    return [*lines, f"report: {report.document}"]
