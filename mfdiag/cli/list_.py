"""`mfdiag list`."""

from __future__ import annotations

import sys
from typing import Annotated, Literal, get_args

import typer

__all__ = ["KINDS", "command", "descriptions"]

Kind = Literal[
    "estimators",
    "datasets",
    "sources",
    "couplings",
    "paths",
    "times",
    "models",
    "cards",
    "predictions",
    "guidances",
    "metrics",
]
KINDS: tuple[Kind, ...] = get_args(Kind)


def command(kind: Annotated[Kind, typer.Argument(help="What to list.")]) -> None:
    """List available names for the options of the other commands, one line each.

    Example: mfdiag list estimators
    """
    entries = descriptions(kind)
    width = max(map(len, entries))
    for name, text in entries.items():
        sys.stdout.write(f"{name:<{width}}  {text}\n")


def descriptions(kind: Kind) -> dict[str, str]:
    """Name -> one line about it."""
    if kind == "estimators":
        from mfdiag.estimators import estimators

        return {name: f"{e.title} ({e.paper})" for name, e in estimators().items()}
    if kind == "datasets":
        from mfdiag.flow.data.datasets import DATASETS

        return DATASETS
    if kind == "sources":
        from mfdiag.flow.sources import SOURCES

        return SOURCES
    if kind == "couplings":
        from mfdiag.flow.couplings import COUPLINGS

        return COUPLINGS
    if kind == "paths":
        from mfdiag.flow.paths import PATHS

        return PATHS
    if kind == "models":
        from mfdiag.models.networks.registry import MODELS

        return {name: text for name, (_, text) in MODELS.items()}
    if kind == "cards":
        from mfdiag.models.cards.card_files import load_card, shipped_cards

        return {name: load_card(name).about for name in shipped_cards()}
    if kind == "guidances":
        from mfdiag.flow.guidance import GUIDANCES

        return GUIDANCES
    if kind == "predictions":
        from mfdiag.models.networks.registry import PREDICTIONS

        return PREDICTIONS
    if kind == "times":
        from mfdiag.flow.times import TIMES

        return TIMES
    from mfdiag.quality.metrics import metrics

    return {name: f"{m.title} ({m.paper}): {m.formula}" for name, m in metrics().items()}
