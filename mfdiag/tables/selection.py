"""Rows of a tidy table: by quantity, over everything, or by bin of time."""

from __future__ import annotations

import pandas as pd

__all__ = ["by_time", "midpoint", "of_quantity", "over_all_times", "overall"]

_BIN_EDGES = ("r_low", "r_high", "t_low", "t_high")


def of_quantity(frame: pd.DataFrame, *quantities: str) -> pd.DataFrame:
    """Rows with one of the quantities and a finite value."""
    return frame[frame["quantity"].isin(quantities) & frame["value"].abs().lt(float("inf"))]


def overall(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows of the whole network over all times."""
    rows = over_all_times(frame)
    return rows[rows["layer"] == "all"] if "layer" in rows else rows


def over_all_times(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows with null bins, of the whole network or of single layers."""
    return frame[frame[[edge for edge in _BIN_EDGES if edge in frame]].isna().all(axis=1)]


def by_time(frame: pd.DataFrame, *times: str) -> pd.DataFrame:
    """Rows of the whole network that are binned in exactly the given times ("r", "t")."""
    binned = [edge for edge in _BIN_EDGES if edge[0] in times]
    null = [edge for edge in _BIN_EDGES if edge[0] not in times]
    return frame[(frame["layer"] == "all") & frame[binned].notna().all(axis=1) & frame[null].isna().all(axis=1)]


def midpoint(frame: pd.DataFrame, time: str) -> pd.Series:
    """Center of each row's bin of `time` ("r" or "t")."""
    return (frame[f"{time}_low"] + frame[f"{time}_high"]) / 2
