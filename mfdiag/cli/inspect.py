"""`mfdiag inspect`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from mfdiag.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console

    from mfdiag.models.inspection import Inspection

__all__ = ["command"]

_LINES = 40


def command(
    checkpoint: Annotated[Path, typer.Argument(help="A saved model.")],
    card: Annotated[bool, typer.Option("--card", help="The proposed model card alone.")] = False,
    format: Annotated[Literal["table", "json"], typer.Option(help="A summary, or everything.")] = "table",
) -> None:
    """What is in a checkpoint: weights, shapes, description, and a model card for it. Nothing in the file is run.

    Example: mfdiag inspect model.safetensors
    """
    from rich.console import Console

    from mfdiag.models.inspection import inspect_checkpoint

    found = inspect_checkpoint(checkpoint)
    if card:
        if found.proposal is None:
            why = "describes or holds its network" if found.weights else "holds no weights"
            raise InputError(f"Expected a file that a model card can be for, but {found.path} {why}: pass no --card.")
        sys.stdout.write(_printable(found.proposal.text))
    elif format == "json":
        sys.stdout.write(found.model_dump_json(indent=1) + "\n")
    else:
        _summary(found, Console(file=sys.stdout, highlight=False, soft_wrap=True, markup=False))


def _summary(found: Inspection, console: Console) -> None:
    from rich.table import Table

    console.print(f"{found.path}: {found.container}, {found.size_bytes:,} bytes, sha256 {found.sha256}")
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
            console.print(f"  {name:<12}{value}")
    elif found.step is not None:
        console.print(f"  step        {found.step:,}")
    weights = Table(title="weights", title_justify="left")
    for name in ("--weights", "tensors", "parameters", "dtypes"):
        weights.add_column(name, justify="right" if name in ("tensors", "parameters") else "left")
    for entry in found.weights:
        dtypes = ", ".join(f"{count} {dtype}" for dtype, count in entry.dtypes.items())
        weights.add_row(_printable(entry.key) or "raw", f"{entry.tensors:,}", f"{entry.parameters:,}", dtypes)
    console.print(weights)
    if found.description is None:
        for layout in found.layouts:
            console.print(f"tensors of {_printable(', '.join(key or 'raw' for key in layout.weights))}")
            for name, shape, count in layout.tensors[:_LINES]:
                console.print(f"  {_printable(name)} {shape}" + (f" x {count}" if count > 1 else ""))
            if len(layout.tensors) > _LINES:
                console.print(f"  and {len(layout.tensors) - _LINES} more; --format json has all")
    for other in found.entries:
        values = ", ".join(f"{k}={v}" if k else str(v) for k, v in other.values.items())
        console.print(_printable(f"  {other.name}: {other.type} {values}"))
    for note in found.notes:
        console.print(f"note: {_printable(note)}")
    if found.proposal is not None:
        _card(found, console)


def _card(found: Inspection, console: Console) -> None:
    proposal = found.proposal
    assert proposal is not None
    if proposal.recognised:
        console.print(f"card: this looks like {proposal.about}")
    else:
        console.print("card: it looks like none of the shipped ones")
    if not proposal.differs:
        console.print(f"  use it with --model {proposal.recognised}")
        return
    fill = ", fill in what is not in the file" if proposal.unknown else ""
    console.print(
        f"  save these lines with mfdiag inspect {found.path} --card > my.yaml{fill}, and pass --model my.yaml\n"
    )
    for line in _printable(proposal.text).splitlines():
        console.print(f"    {line}")


def _printable(text: str) -> str:
    """`text` without the control characters that a file's names may hold to steer the terminal."""
    return "".join(letter if letter.isprintable() or letter == "\n" else "\N{REPLACEMENT CHARACTER}" for letter in text)
