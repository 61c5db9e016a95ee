"""A report as Markdown or LaTeX: the contents of the page, for a repository or a paper."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from mfdiag._version import __version__
from mfdiag.reporting.page import contents, environment
from mfdiag.reporting.rows import TextTable
from mfdiag.storage import atomic_write
from mfdiag.tables.docs import markdown_table

__all__ = ["as_booktabs", "as_markdown", "escape_tex", "render", "write_document"]

_MOST_ROWS = 60  # of a table; a document is read, not searched
_TEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "%": r"\%",
    "&": r"\&",
    "#": r"\#",
    "$": r"\$",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
}


def write_document(tables: Mapping[str, pd.DataFrame], figures: Sequence[Path], out: Path, kind: str) -> Path:
    """Writes `out/report.md` or `out/report.tex`, which refer to the figures beside them.

    Args:
        tables: Tidy frames by name.
        figures: Files of figures.
        out: Folder of the tables, which may hold a manifest, and the verdict of `mfdiag doctor`.
        kind: "md" or "tex".

    Returns:
        The path of the document.

    Raises:
        InputError: The document cannot be written, or the manifest or the verdict is not valid.
    """
    context = contents(tables, figures, out)
    verdict = [context["verdict"].verdict] if context["verdict"] else context["headline"]
    path = out / f"report.{kind}"
    with atomic_write(path) as temporary:
        text = render(f"report.{kind}.j2", **context | {"verdict": verdict}, version=__version__)
        temporary.write_text(text, encoding="utf-8")
    return path


def render(template: str, **context: Any) -> str:
    """A template of this folder as text, without empty lines in a row."""
    made = environment().overlay(autoescape=False)
    made.filters["tex"] = escape_tex
    text = made.get_template(template).render(**context, grid=as_markdown, booktabs=as_booktabs)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def as_markdown(table: TextTable) -> str:
    """The table in Markdown, of at most sixty rows."""
    return markdown_table(tuple(table.columns), [tuple(row) for row in table.rows[:_MOST_ROWS]]) + _left_out(table)


def as_booktabs(table: TextTable) -> str:
    """The table in LaTeX with the rules of booktabs, of at most sixty rows."""
    numbers = "".join("l" if name in ("status", "quantity") else "r" for name in table.columns[table.keys :])
    lines = [
        r"\begin{center}\footnotesize\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
        rf"\begin{{tabular}}{{{'l' * table.keys}{numbers}}}",
        r"\toprule",
        " & ".join(map(escape_tex, table.columns)) + r" \\",
        r"\midrule",
        *(" & ".join(map(escape_tex, row)) + r" \\" for row in table.rows[:_MOST_ROWS]),
        r"\bottomrule",
        r"\end{tabular}}\end{center}",
    ]
    return "\n".join(lines) + escape_tex(_left_out(table))


def escape_tex(text: Any) -> str:
    """The text with the letters that mean something to LaTeX escaped."""
    return "".join(_TEX.get(letter, letter) for letter in str(text))


def _left_out(table: TextTable) -> str:
    more = len(table.rows) - _MOST_ROWS
    return f"\n\n{more:,} more rows: see the table." if more > 0 else ""
