"""What a measured table is: one file in measures/ says everything about it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from mfdiag.estimators import DEFAULT_ESTIMATORS
from mfdiag.tables.fields import Table

if TYPE_CHECKING:  # table files stay importable without torch and pandas, so that --help is instant
    from pathlib import Path

    import pandas as pd

    from mfdiag.gradients.sample_pass import PassResult
    from mfdiag.measures.parts.summary import Summarize
    from mfdiag.measures.run.measurement import Measurement

__all__ = ["By", "MeasuredTable"]

By = Literal["layer", "time", "none"]

_TIME_BINS = (1, 10)  # of r and t for --by time: t alone, in steps of 0.1


@dataclass(frozen=True)
class MeasuredTable:
    """A table that a command of the same name measures, for each checkpoint, from passes over samples.

    Attributes:
        schema: Name, meaning, key columns and quantities.
        plan: What one pass measures for this subject and request. Not called where `measure` is given.
        rows: From the pass to frames, by table name.
        measure: The whole measurement, for a table that needs several passes. None runs `plan`, one pass and `rows`.
        summary: Makes what the terminal shows, from the rows of one model over the whole network and all times; None
            shows one line per row.
        also: Schemas of further tables that `rows` fills.
        options: The command-line options it takes besides those of every measuring command, see cli/options.py.
        default_estimators: Estimators that are measured if none are requested.
        default_by: Breakdown of the results if none is requested.
        default_bins: Bins of r and t if none are requested; None for no bins.
        one_estimator: Whether the table is about a single estimator.
        measures_losses: Whether estimators given by a loss can be measured.
        objective: The parts of a model card's objective that decide the numbers: "estimator", "weighting".
        extras: Quantities that cost further passes, measured only on request.
        files: Writes further files from the table's rows into a folder; returns their paths and a note about them.
    """

    schema: Table
    plan: Callable[[Measurement], Any] | None = None
    rows: Callable[[Measurement, Any, PassResult], Mapping[str, pd.DataFrame]] | None = None
    measure: Callable[[Measurement], Mapping[str, pd.DataFrame]] | None = None
    summary: Summarize | None = None
    also: tuple[Table, ...] = ()
    options: tuple[str, ...] = ()
    default_estimators: tuple[str, ...] = DEFAULT_ESTIMATORS
    default_by: By = "none"
    default_bins: tuple[int, int] | None = None
    one_estimator: bool = False
    measures_losses: bool = False
    objective: tuple[str, ...] = ("estimator", "weighting")
    extras: tuple[str, ...] = ()
    files: Callable[[pd.DataFrame, Path], tuple[list[Path], str]] | None = None

    @property
    def name(self) -> str:
        """Name of the table, of its file and of its command."""
        return self.schema.name

    @property
    def schemas(self) -> tuple[Table, ...]:
        """Schemas of all tables it writes, its own first."""
        return (self.schema, *self.also)

    def bins(self, by: By | None) -> tuple[int, int] | None:
        """Bins of r and t for a requested breakdown, where none are requested themselves."""
        if by == "time" or (by is None and self.default_by == "time"):
            return _TIME_BINS
        return None if by == "none" else self.default_bins
