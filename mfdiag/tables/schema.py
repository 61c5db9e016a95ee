"""The one description of every table: columns, quantities and statuses. Checks, Arrow schemas and docs come from it."""

from __future__ import annotations

from mfdiag.errors import did_you_mean
from mfdiag.tables import gradients, models
from mfdiag.tables.columns import COMMON, MEASURED, STATUSES
from mfdiag.tables.fields import Table

__all__ = ["COMMON", "MEASURED", "STATUSES", "TABLES", "table"]

TABLES = {entry.name: entry for entry in (*gradients.TABLES, *models.TABLES)}


def table(name: str) -> Table:
    """The table called `name`. Raises InputError, with near names, for an unknown one."""
    if name not in TABLES:
        raise did_you_mean("table", name, TABLES)
    return TABLES[name]
