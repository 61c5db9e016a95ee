"""What sentences about tables are made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pandas as pd

from mfdiag.figures.style import number

__all__ = ["Findings", "with_interval"]


class Findings(NamedTuple):
    """A model under one setting, or a data set of a grid, and what was found about it."""

    subject: str
    sentences: list[str]


def with_interval(row: pd.Series, write: Callable[[float], str] = number) -> str:
    """`1.15 [1.09, 1.22]`, and the status where it casts doubt on the number."""
    text = write(row["value"])
    if np.isfinite([row["ci_low"], row["ci_high"]]).any():
        text += f" [{write(row['ci_low'])}, {write(row['ci_high'])}]"
    return text if row["status"] in ("ok", "outside_unit_interval") else f"{text} ({row['status']})"
