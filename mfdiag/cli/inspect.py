"""`mfdiag inspect`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

__all__ = ["command"]


def command(
    checkpoint: Annotated[Path, typer.Argument(help="A saved model.")],
    format: Annotated[Literal["table", "json"], typer.Option(help="A summary, or everything.")] = "table",
) -> None:
    """What is in a checkpoint: weights, shapes, description. Nothing in the file is run.

    Example: mfdiag inspect model.safetensors
    """
    from rich.console import Console
    from rich.table import Table

    from mfdiag.models.inspect import inspect_checkpoint

    found = inspect_checkpoint(checkpoint)
    if format == "json":
        sys.stdout.write(found.model_dump_json(indent=1) + "\n")
        return
    console = Console(file=sys.stdout, highlight=False, soft_wrap=True)
    console.print(f"{found.path}: {found.container}, {found.size_bytes:,} bytes, sha256 {found.sha256}", markup=False)
    if found.description is not None:
        d = found.description
        arguments = ", ".join(f"{k}={v}" for k, v in d.architecture.arguments.items())
        for name, value in (
            ("network", f"{d.architecture.name}({arguments})"),
            ("prediction", d.prediction),
            ("data", d.data),
            ("source", d.source),
            ("coupling", d.coupling),
            ("path", d.path),
            ("times", d.times),
            ("step", f"{d.step:,}"),
            ("EMA decay", d.ema_decay),
            ("seed", d.seed),
        ):
            console.print(f"  {name:<12}{value}", markup=False)
    weights = Table(title="weights", title_justify="left")
    for name in ("--weights", "tensors", "parameters", "dtypes"):
        weights.add_column(name, justify="right" if name in ("tensors", "parameters") else "left")
    for entry in found.weights:
        dtypes = ", ".join(f"{count} {dtype}" for dtype, count in entry.dtypes.items())
        weights.add_row(entry.key or "raw", f"{entry.tensors:,}", f"{entry.parameters:,}", dtypes)
    console.print(weights)
    for other in found.entries:
        values = ", ".join(f"{k}={v}" if k else str(v) for k, v in other.values.items())
        console.print(f"  {other.name}: {other.type} {values}", markup=False)
    for note in found.notes:
        console.print(f"note: {note}", markup=False)
