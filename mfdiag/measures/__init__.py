"""The tables that commands measure: one file each, found by name. Importing it does not import torch.

Other packages add theirs by an entry point of the group `mfdiag.tables` that refers to a `MeasuredTable`; each becomes
a command of its name.
"""

from __future__ import annotations

from mfdiag.errors import did_you_mean
from mfdiag.measures.run.table import MeasuredTable
from mfdiag.plugins import files_of, installed
from mfdiag.tables.schema import GROUP

__all__ = ["MeasuredTable", "find_table", "measured_tables"]


def measured_tables() -> dict[str, MeasuredTable]:
    """Name -> measured table: those of this package, then those of other packages.

    Raises InputError for an entry point that cannot be loaded, is no `MeasuredTable`, or uses a name twice.
    """
    own = {table.name: table for table in files_of(__name__, "TABLE") if isinstance(table, MeasuredTable)}
    return own | {table.name: table for table in installed(GROUP, MeasuredTable, frozenset(own))}


def find_table(name: str) -> MeasuredTable:
    """The measured table called `name`; InputError with 'did you mean' for an unknown name."""
    known = measured_tables()
    if name not in known:
        raise did_you_mean("table", name, known)
    return known[name]
