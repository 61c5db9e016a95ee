"""Schemas, the atomic Parquet store and provenance: the tidy tables every command writes."""

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
