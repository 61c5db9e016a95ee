"""Whether an estimate says anything."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

__all__ = ["is_measurable"]

_ORDERS_OF_MAGNITUDE = 100  # from this ratio of its ends on, an interval says nothing


def is_measurable(row: pd.Series | Mapping[Any, Any], no_effect: float | None = None) -> bool:
    """Whether the estimate says anything.

    It does not if it is negative where it cannot be, or if its interval has an infinite end, spans two orders of
    magnitude, or holds `no_effect`, such as 1 for a ratio. A row without an interval counts as measurable.
    """
    low, high = row["ci_low"], row["ci_high"]
    if row["status"] == "negative_estimate":
        return False
    if pd.isna(low) and pd.isna(high):
        return True
    if not np.isfinite([low, high]).all() or (low > 0 and high >= _ORDERS_OF_MAGNITUDE * low):
        return False
    return no_effect is None or not low <= no_effect <= high
