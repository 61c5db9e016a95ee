"""Every table by name. Checks, Arrow schemas and docs are made from this.

The schema of a measured table is in the file that measures it, in mfdiag/measures/. This module finds these
files by their folder, as plugins, and imports none of them by name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache

from mfdiag.errors import did_you_mean
from mfdiag.plugins import files_of, installed
from mfdiag.tables.columns import COMMON, MEASURED, STATUSES
from mfdiag.tables.doctor import DOCTOR
from mfdiag.tables.fields import Table
from mfdiag.tables.grid import GRID
from mfdiag.tables.identify import IDENTIFY

__all__ = ["COMMON", "GROUP", "MEASURED", "STATUSES", "TABLES", "table"]

GROUP = "mfdiag.tables"
"""Entry point group by which other packages add tables."""


@cache
def _discovered() -> dict[str, Table]:
    measured = [schema for plugin in files_of("mfdiag.measures", "TABLE") for schema in _schemas(plugin)]
    tables = {schema.name: schema for schema in (*measured, DOCTOR, GRID, IDENTIFY)}
    others = installed(GROUP, object, frozenset(tables))
    return tables | {schema.name: schema for plugin in others for schema in _schemas(plugin)}


def _schemas(plugin: object) -> tuple[Table, ...]:
    """The schemas of a measured table, or the schema itself."""
    return (plugin,) if isinstance(plugin, Table) else getattr(plugin, "schemas", ())


class _Tables(Mapping[str, Table]):
    """Name -> schema, discovered when it is first asked for."""

    def __getitem__(self, name: str) -> Table:
        return _discovered()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(_discovered())

    def __len__(self) -> int:
        return len(_discovered())


TABLES: Mapping[str, Table] = _Tables()


def table(name: str) -> Table:
    """The schema of the table called `name`; InputError, with near names, for an unknown one."""
    if name not in TABLES:
        raise did_you_mean("table", name, TABLES)
    return TABLES[name]
