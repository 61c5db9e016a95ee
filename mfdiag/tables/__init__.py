"""The tidy tables that commands write: schemas, checks, the atomic Parquet store, provenance.

Importing this package imports neither pandas nor pyarrow: descriptions of tables stay light.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mfdiag.tables.provenance import manifest, write_manifest
    from mfdiag.tables.schema import STATUSES, TABLES
    from mfdiag.tables.store import check_writable, read_table, write_json_atomic, write_table

__all__ = [
    "STATUSES",
    "TABLES",
    "check_writable",
    "manifest",
    "read_table",
    "write_json_atomic",
    "write_manifest",
    "write_table",
]

_LAZY = {
    "STATUSES": "mfdiag.tables.schema",
    "TABLES": "mfdiag.tables.schema",
    "check_writable": "mfdiag.tables.store",
    "manifest": "mfdiag.tables.provenance",
    "read_table": "mfdiag.tables.store",
    "write_json_atomic": "mfdiag.tables.store",
    "write_manifest": "mfdiag.tables.provenance",
    "write_table": "mfdiag.tables.store",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return __all__
