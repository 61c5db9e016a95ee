"""Checks of frames and Arrow tables against the schema: the one definition of a valid table."""

from __future__ import annotations

import json
from collections.abc import Iterable

import numpy as np
import pandas as pd
import pyarrow as pa

from mfdiag.errors import InputError
from mfdiag.tables.fields import Column
from mfdiag.tables.schema import COMMON, STATUSES, table

__all__ = ["arrow_schema", "conform", "to_arrow", "to_pandas"]


def arrow_schema(name: str) -> pa.Schema:
    """Arrow schema of a table: each field carries its `doc`, the schema the meaning of its quantities and statuses."""
    entry = table(name)
    fields = [
        pa.field(column.name, getattr(pa, column.dtype)(), nullable=column.nullable, metadata={"doc": column.doc})
        for column in entry.columns
    ]
    quantities = {q.name: f"{q.formula} [{q.unit}]: {q.doc}" for q in entry.quantities.values()}
    statuses = {s.name: f"{s.cause} {s.remedy}" for s in STATUSES.values()}
    metadata = {
        "mfdiag.table": name,
        "mfdiag.doc": entry.doc,
        "mfdiag.quantities": json.dumps(quantities),
        "mfdiag.statuses": json.dumps(statuses),
    }
    return pa.schema(fields, metadata=metadata)


def _check_names(name: str, columns: Iterable[object]) -> None:
    names = [column.name for column in table(name).columns]
    missing = sorted({column.name for column in table(name).columns if not column.later} - set(columns))
    unknown = sorted(map(str, set(columns) - set(names)))
    if missing or unknown:
        raise InputError(
            f"Table {name!r}: missing columns {missing}, unknown columns {unknown}; "
            f"expected exactly {', '.join(names)}."
        )


def _check_rows(name: str, frame: pd.DataFrame) -> None:
    entry = table(name)
    allowed = {column.name: column.choices for column in entry.columns if column.choices}
    allowed |= {"quantity": tuple(entry.quantities), "status": tuple(STATUSES)}
    for column in entry.columns:
        nulls = int(frame[column.name].isna().sum())
        if nulls and not column.nullable:
            raise InputError(f"Table {name!r}: column {column.name!r} must not be null, but is in {nulls} rows.")
    for key, choices in allowed.items():
        if unexpected := set(frame[key].dropna().unique()) - set(choices):
            raise InputError(
                f"Table {name!r}: column {key!r} holds {sorted(unexpected)}; expected {', '.join(choices)}."
            )
    wrong = int((~np.isfinite(frame["value"]) & (frame["status"] == "ok")).sum())
    if wrong:
        raise InputError(f"Table {name!r}: {wrong} rows have status ok but no finite value; give them another status.")
    identity = [column.name for column in (*COMMON, *entry.keys)] + ["quantity"]
    repeated = frame.duplicated(identity)
    if repeated.any():
        row = frame.loc[repeated, identity].iloc[0].dropna().to_dict()
        raise InputError(f"Table {name!r}: {int(repeated.sum())} rows repeat the keys of an earlier row, first {row}.")


def _array(name: str, column: Column, values: pd.Series) -> pa.Array:
    dtype = getattr(pa, column.dtype)()
    if values.isna().all():  # an all-NaN column has no string or integer dtype to convert from
        return pa.nulls(len(values), dtype)
    try:
        return pa.array(values, type=dtype, from_pandas=True)
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise InputError(f"Table {name!r}: column {column.name!r} should be {column.dtype}: {error}.") from error


def to_arrow(name: str, frame: pd.DataFrame) -> pa.Table:
    """A tidy frame, in any column order, as an Arrow table with the columns in stored order.

    Raises InputError for a missing or unknown column, a wrong type, a null or a value that is not allowed, an unknown
    quantity or status, a value that is not finite under status ok, and for two rows with the same keys and quantity.
    """
    stored = _stored(name, frame)
    to_pandas(name, stored)
    return stored


def conform(name: str, frame: pd.DataFrame) -> pd.DataFrame:
    """A tidy frame, in any column order, with the columns and dtypes of its table. Raises InputError as `to_arrow`."""
    return to_pandas(name, _stored(name, frame))


def _stored(name: str, frame: pd.DataFrame) -> pa.Table:
    _check_names(name, frame.columns)
    frame = frame.reindex(columns=[column.name for column in table(name).columns])
    arrays = [_array(name, column, frame[column.name]) for column in table(name).columns]
    return pa.Table.from_arrays(arrays, schema=arrow_schema(name))


def to_pandas(name: str, stored: pa.Table) -> pd.DataFrame:
    """An Arrow table as a frame: integers as nullable Int64, null floats as NaN. Raises InputError as `to_arrow`."""
    _check_names(name, stored.schema.names)
    schema = arrow_schema(name)
    for field in schema:
        if field.name not in stored.schema.names:
            stored = stored.append_column(field, pa.nulls(len(stored), field.type))
    try:
        stored = stored.select(schema.names).cast(pa.schema([field.with_nullable(True) for field in schema]))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise InputError(f"Table {name!r}: the stored types are not those of the schema: {error}.") from error
    frame: pd.DataFrame = stored.to_pandas(types_mapper={pa.int64(): pd.Int64Dtype()}.get)
    _check_rows(name, frame)
    return frame
