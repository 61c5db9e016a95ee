"""`mfdiag list`."""

from __future__ import annotations

import sys
from typing import Annotated, Literal, get_args

import typer

__all__ = ["KINDS", "command", "found"]

Kind = Literal["estimators", "datasets", "models", "times", "metrics"]
KINDS: tuple[Kind, ...] = get_args(Kind)


def command(kind: Annotated[Kind, typer.Argument(help="What to list.")]) -> None:
    """What there is: names usable on the command line, a line each.

    Example: mfdiag list estimators
    """
    entries = found(kind)
    width = max(map(len, entries))
    for name, text in entries.items():
        sys.stdout.write(f"{name:<{width}}  {text}\n")


def found(kind: Kind) -> dict[str, str]:
    """Name -> one line about it."""
    if kind == "estimators":
        from mfdiag.estimators import estimators

        return {name: f"{e.title} ({e.paper})" for name, e in estimators().items()}
    if kind == "datasets":
        from mfdiag.flow.datasets import DATASETS

        return DATASETS
    if kind == "models":
        from mfdiag.models.registry import MODELS

        return {name: text for name, (_, text) in MODELS.items()}
    if kind == "times":
        from mfdiag.flow.times import TIMES

        return TIMES
    from mfdiag.tables.schema import TABLES

    return {
        f"{table.name}.{quantity.name}": quantity.doc
        for table in TABLES.values()
        for quantity in table.quantities.values()
    }
