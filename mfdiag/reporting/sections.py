"""The sections of a report: a question each, with statements, figures and their rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from mfdiag.figures import FigureSpec, figures
from mfdiag.reporting.drawings import Drawing, read_drawing
from mfdiag.reporting.rows import TextTable, measured_rows
from mfdiag.reporting.sentences import QUESTIONS, Answers

__all__ = ["PageFigure", "Section", "command_of", "sections"]

_HEADINGS = {
    "noise": "Is it noisy?",
    "where": "Where?",
    "remedies": "What helps?",
    "cost": "What does it cost?",
    "samples": "How good are the samples?",
    "": "What else was measured?",
}
_MEASURED_BY = {
    "noise": ("variance",),
    "where": ("variance",),
    "remedies": ("coefficient", "compare", "times"),
    "cost": ("sweep", "coefficient"),
    "samples": ("quality",),
}
_COMMANDS = {"samples": "variance", "training": "train", "grid": "report"}  # of tables with another name
_MOST_SUBJECTS = 4  # whose statements are repeated; the others are in the table of checkpoints
_MOST_ROWS = 300  # of a figure


class PageFigure(NamedTuple):
    """A figure with its rows and the command that measured them."""

    spec: FigureSpec
    drawing: Drawing
    rows: TextTable
    command: str


class Section(NamedTuple):
    """A question with its answers. Without any, `commands` would give them."""

    name: str
    heading: str
    answers: list[tuple[str, list[str]]]
    figures: list[PageFigure]
    commands: tuple[str, ...]


def command_of(table: str) -> str:
    """The command of `mfdiag` that writes a table."""
    return _COMMANDS.get(table, table)


def sections(
    tables: Mapping[str, pd.DataFrame], answers: Sequence[Answers], drawings: Mapping[str, Path]
) -> list[Section]:
    """A section for each question; the last one, for what answers none, only if there is something.

    Args:
        tables: Tidy frames by name.
        answers: What they show.
        drawings: SVG file of each figure by name.

    Returns:
        The sections in the order of the questions.
    """
    made = []
    for question in (*QUESTIONS, ""):
        specs = [spec for name, spec in figures().items() if name in drawings and spec.question == question]
        shown = [_figure(spec, tables[spec.table], answers, drawings[spec.name]) for spec in specs]
        stated = _answers(answers, question)
        if question or shown:
            missing = () if stated or shown else _MEASURED_BY.get(question, ())
            made.append(Section(question or "others", _HEADINGS[question], stated, shown, missing))
    return made


def _answers(answers: Sequence[Answers], question: str) -> list[tuple[str, list[str]]]:
    """(subject, texts) of the subjects that have an answer; of many, the last one of each data set."""
    texts = [(subject, [one.text for one in stated if one.question == question]) for subject, stated, _ in answers]
    shown = [(subject, of_subject) for subject, of_subject in texts if of_subject]
    if len(shown) > _MOST_SUBJECTS:
        datasets = {subject: dataset for subject, _, dataset in answers}
        shown = list({datasets[subject]: (subject, of_subject) for subject, of_subject in shown}.values())
    return shown[-_MOST_SUBJECTS:]


def _figure(spec: FigureSpec, table: pd.DataFrame, answers: Sequence[Answers], path: Path) -> PageFigure:
    rows = spec.rows(table)
    if spec.table == "samples":
        rows = rows.sort_values("value", ascending=False)
    shown = measured_rows(f"rows-{spec.name}", f"Rows of this figure, from {spec.table}.parquet", rows, _MOST_ROWS)
    stated = [one.text for _, of_subject, _ in answers[-1:] for one in of_subject if spec.name in one.figures]
    alternative = " ".join([f"{spec.says[0].upper()}{spec.says[1:]}.", *stated])
    return PageFigure(spec, read_drawing(path, alternative), shown, command_of(spec.table))
