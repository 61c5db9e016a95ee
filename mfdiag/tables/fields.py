"""The types a table is described with: columns, quantities, statuses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

__all__ = ["Column", "Quantity", "Status", "Table"]


@dataclass(frozen=True)
class Column:
    """One column; `choices` lists the only values allowed, `nullable` says whether a row may leave it out.

    `later` marks a nullable column that tables of earlier versions lack: it is read from them as null.
    """

    name: str
    dtype: Literal["string", "int64", "float64"]
    doc: str
    nullable: bool = False
    choices: tuple[str, ...] = ()
    later: bool = False


@dataclass(frozen=True)
class Quantity:
    """One value of the column `quantity`: its formula in the notation of docs/theory.md, its unit, its meaning.

    `kind` decides the status of its rows: `nonnegative` cannot be below zero in truth, although an unbiased estimate
    can; `coefficient` is expected in [0, 1]; `cosine` is a ratio over roots of estimated squared norms, which has no
    interval where one of these is negative.
    """

    name: str
    formula: str
    unit: str
    doc: str
    kind: Literal["plain", "nonnegative", "coefficient", "cosine"] = "plain"


@dataclass(frozen=True)
class Status:
    """One value of the column `status`: why a number should not be trusted, and what to do about it."""

    name: str
    cause: str
    remedy: str


@dataclass(frozen=True)
class Table:
    """One table: the command that writes it, all its columns in stored order, its key columns, its quantities."""

    name: str
    command: str
    doc: str
    columns: tuple[Column, ...]
    keys: tuple[Column, ...]
    quantities: Mapping[str, Quantity]
