"""Which rows of a tidy table a figure, a sentence or a summary is about."""

from __future__ import annotations

import pandas as pd

__all__ = ["by_time", "midpoint", "of_quantity", "over_all_times", "overall"]

_BIN_EDGES = ("r_low", "r_high", "t_low", "t_high")


def of_quantity(frame: pd.DataFrame, *quantities: str) -> pd.DataFrame:
    """Rows that hold one of the quantities and a finite value."""
    return frame[frame["quantity"].isin(quantities) & frame["value"].abs().lt(float("inf"))]


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
