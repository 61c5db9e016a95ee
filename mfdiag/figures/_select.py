"""Which models and settings of a table a figure shows, and how it labels them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from mfdiag.errors import InputError
from mfdiag.storage import run_folder

__all__ = ["Selection", "nonempty", "select", "shortened"]

_LONGEST = 48  # letters of a name in a label
# In the order in which they are tried as labels.
_SETTINGS = ("dataset", "step", "checkpoint", "run", "estimator", "proxy", "weighting", "times", "seed")


@dataclass(frozen=True)
class Selection:
    """Rows of each model and setting shown, under a label that distinguishes it from the others.

    `context` says what they have in common, `note` which were left out ("" for none).
    """

    items: list[tuple[str, pd.DataFrame]]
    context: str
    note: str


def shortened(name: str) -> str:
    """The name, or its end if it is too long for a label."""
    return name if len(name) <= _LONGEST else f"…{name[1 - _LONGEST :]}"


def nonempty(rows: pd.DataFrame) -> pd.DataFrame:
    """Returns `rows`. Raises InputError where there are none."""
    if rows.empty:
        raise InputError(
            "Expected a table with the quantities and bins of this figure, got one with no rows to draw; measure them, "
            "or draw another figure."
        )
    return rows


def select(rows: pd.DataFrame, *, within: Sequence[str] = (), limit: int = 4) -> Selection:
    """Splits rows by model and setting, in the order of training steps.

    Args:
        rows: Tidy rows of one table.
        within: Settings that are compared within one part, such as "estimator".
        limit: The most parts to keep. Above it only the last checkpoint of each run and setting is kept, and if those
            are still too many, only the last of all.

    Returns:
        The parts with their labels.

    Raises:
        InputError: There are no rows.
    """
    nonempty(rows)
    settings = [name for name in _SETTINGS if name not in within]
    parts = [part for _, part in rows.groupby(settings, dropna=False, sort=False)]
    parts.sort(key=lambda part: -1 if pd.isna(part["step"].iloc[0]) else int(part["step"].iloc[0]))
    shown = parts
    if len(shown) > limit:
        fixed = [name for name in settings if name not in ("checkpoint", "step")]
        shown = list({tuple(part[fixed].iloc[0].astype(str)): part for part in parts}.values())
    if len(shown) > limit:
        shown = shown[-1:]
    last = "last" if len(shown) == 1 else f"last {len(shown)}"
    note = "" if len(shown) == len(parts) else f"Showing the {last} of {len(parts)} models and settings"
    heads = pd.concat([part[settings].iloc[:1] for part in shown])
    everything = pd.concat(shown)
    same = [name for name in _SETTINGS if name not in ("run", "times") and everything[name].nunique(dropna=False) == 1]
    if "step" in same and pd.notna(everything["step"].iloc[0]):
        same = [name for name in same if name != "checkpoint"]  # the step identifies it
    return Selection(list(zip(_labels(heads), shown, strict=True)), _phrases(everything.iloc[0], same), note)


def _labels(heads: pd.DataFrame) -> list[str]:
    """Shortest labels that distinguish the rows: a setting is added only if it separates more of them."""
    settings: list[str] = []
    count = 1
    for name in heads.columns:
        separated = len(heads[[*settings, name]].astype(str).drop_duplicates())
        if separated > count:
            settings, count = [*settings, name], separated
    return [_phrases(row, settings) for _, row in heads.iterrows()]


def _phrases(row: pd.Series, settings: Iterable[str]) -> str:
    return ", ".join(_phrase(name, row[name]) for name in settings if pd.notna(row[name]))


def _phrase(setting: str, value: object) -> str:
    if setting == "step":
        return f"step {int(str(value)):,}"
    if setting in ("dataset", "checkpoint"):
        path = Path(str(value))
        run = run_folder(path).name
        return shortened(run if path.stem == "model" and run else path.stem)
    return str(value) if setting in ("run", "estimator") else f"{setting} {value}"
