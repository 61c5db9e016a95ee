"""A fixture for each table of figure_tables.py: the function that makes it."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd
import pytest
from figure_tables import TABLES


@pytest.fixture
def compare() -> Callable[..., pd.DataFrame]:
    return TABLES["compare"]


@pytest.fixture
def sweep() -> Callable[..., pd.DataFrame]:
    return TABLES["sweep"]


@pytest.fixture
def coefficient() -> Callable[..., pd.DataFrame]:
    return TABLES["coefficient"]


@pytest.fixture
def variance() -> Callable[..., pd.DataFrame]:
    return TABLES["variance"]


@pytest.fixture
def samples() -> Callable[..., pd.DataFrame]:
    return TABLES["samples"]


@pytest.fixture
def quality() -> Callable[..., pd.DataFrame]:
    return TABLES["quality"]


@pytest.fixture
def times() -> Callable[..., pd.DataFrame]:
    return TABLES["times"]


@pytest.fixture
def training() -> Callable[..., pd.DataFrame]:
    return TABLES["training"]


@pytest.fixture
def grid() -> Callable[..., pd.DataFrame]:
    return TABLES["grid"]
