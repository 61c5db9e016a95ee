"""Which rows of a tidy table a figure shows, and what it calls them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from mfdiag.errors import InputError

__all__ = ["Selection", "by_time", "midpoint", "of_quantity", "over_all_times", "overall", "present", "select"]

# In the order in which they are tried as labels.
_SETTINGS = ("dataset", "step", "checkpoint", "run", "estimator", "proxy", "weighting", "times", "seed")
_BIN_EDGES = ("r_low", "r_high", "t_low", "t_high")


@dataclass(frozen=True)
class Selection:
    """Rows of the models and settings shown, each with the label that tells it from the others.

    `context` names what they have in common, `note` says which were left out ("" for none).
    """

    items: list[tuple[str, pd.DataFrame]]
    context: str
    note: str


def of_quantity(frame: pd.DataFrame, *quantities: str) -> pd.DataFrame:
    """Rows that hold one of the quantities and a finite value."""
    return frame[frame["quantity"].isin(quantities) & frame["value"].abs().lt(float("inf"))]


def present(frame: pd.DataFrame) -> pd.DataFrame:
    """`frame`. Raises InputError where it has no rows."""
    if frame.empty:
        raise InputError("There are no rows to draw: the table lacks the quantities or bins of this figure.")
    return frame


def overall(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows over the whole network and all times."""
    kept = over_all_times(frame)
    return kept[kept["layer"] == "all"] if "layer" in kept else kept


def over_all_times(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows with null bins, of the whole network or of single layers."""
    return frame[frame[[edge for edge in _BIN_EDGES if edge in frame]].isna().all(axis=1)]


def by_time(frame: pd.DataFrame, *times: str) -> pd.DataFrame:
    """Rows over the whole network, binned in exactly the named times ("r", "t")."""
    binned = [edge for edge in _BIN_EDGES if edge[0] in times]
    null = [edge for edge in _BIN_EDGES if edge[0] not in times]
    kept = (frame["layer"] == "all") & frame[binned].notna().all(axis=1) & frame[null].isna().all(axis=1)
    return frame[kept]


def midpoint(frame: pd.DataFrame, time: str) -> pd.Series:
    """Centre of each row's bin of `time`."""
    return (frame[f"{time}_low"] + frame[f"{time}_high"]) / 2


def select(frame: pd.DataFrame, *, within: Sequence[str] = (), limit: int = 4) -> Selection:
    """Splits rows into models and settings, by step, and keeps at most `limit`.

    `within` names settings compared inside one part rather than told apart. Above the limit only the last checkpoint
    of each run and setting is kept, and if those are still too many, only the last of all.
    Raises InputError where there are no rows.
    """
    present(frame)
    settings = [name for name in _SETTINGS if name not in within]
    parts = [rows for _, rows in frame.groupby(settings, dropna=False, sort=False)]
    parts.sort(key=lambda rows: -1 if pd.isna(rows["step"].iloc[0]) else int(rows["step"].iloc[0]))
    kept = parts
    if len(kept) > limit:
        fixed = [name for name in settings if name not in ("checkpoint", "step")]
        kept = list({tuple(rows[fixed].iloc[0].astype(str)): rows for rows in parts}.values())
    if len(kept) > limit:
        kept = kept[-1:]
    last = "last" if len(kept) == 1 else f"last {len(kept)}"
    note = "" if len(kept) == len(parts) else f"Showing the {last} of {len(parts)} models and settings"
    heads = pd.concat([rows[settings].iloc[:1] for rows in kept])
    labels = _labels(heads)
    everything = pd.concat(kept)
    same = [name for name in _SETTINGS if name not in ("run", "times") and everything[name].nunique(dropna=False) == 1]
    if "step" in same and pd.notna(everything["step"].iloc[0]):
        same = [name for name in same if name != "checkpoint"]  # the step says it shorter
    return Selection(list(zip(labels, kept, strict=True)), _join(everything.iloc[0], same), note)


def _labels(heads: pd.DataFrame) -> list[str]:
    """Shortest labels that tell the rows apart: a setting is added only if it separates more of them."""
    chosen: list[str] = []
    count = 1
    for name in heads.columns:
        more = len(heads[[*chosen, name]].astype(str).drop_duplicates())
        if more > count:
            chosen, count = [*chosen, name], more
    return [_join(row, chosen) for _, row in heads.iterrows()]


def _join(row: pd.Series, names: Iterable[str]) -> str:
    return ", ".join(_phrase(name, row[name]) for name in names if pd.notna(row[name]))


def _phrase(name: str, value: object) -> str:
    if name == "step":
        return f"step {int(str(value)):,}"
    if name in ("dataset", "checkpoint"):
        path = Path(str(value))
        return path.parent.name if path.stem == "model" and path.parent.name else path.stem  # a folder for each model
    return str(value) if name in ("run", "estimator") else f"{name} {value}"
