"""`mfdiag inspect`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from mfdiag.errors import InputError, printable

if TYPE_CHECKING:
    from rich.console import Console

    from mfdiag.models.cards.proposal import Proposal
    from mfdiag.models.description import Description
    from mfdiag.models.inspection import Inspection

__all__ = ["command"]

_MAX_LINES = 40  # of tensors that the summary lists for each layout


def command(
    checkpoint: Annotated[Path, typer.Argument(help="A saved model.")],
    card: Annotated[bool, typer.Option("--card", help="Print only the proposed model card.")] = False,
    format: Annotated[Literal["table", "json"], typer.Option(help="Print a summary, or everything.")] = "table",
) -> None:
    """Show what is in a checkpoint: weights, shapes, description, and a model card for it. No code in the file is run.

    Example: mfdiag inspect model.safetensors
    """
    from mfdiag.cli.printing import PlainConsole, json_for_terminals
    from mfdiag.models.inspection import inspect_checkpoint

    inspection = inspect_checkpoint(checkpoint)
    if card:
        if inspection.proposal is None:
            reason = "describes or contains its network" if inspection.weights else "holds no weights"
            raise InputError(
                f"Expected a file that needs a model card, but {inspection.path} {reason}. Leave out --card."
            )
        sys.stdout.write(printable(inspection.proposal.text))
    elif format == "json":
        sys.stdout.write(json_for_terminals(inspection.model_dump_json(indent=1)) + "\n")
    else:
        _print_summary(inspection, PlainConsole(file=sys.stdout, highlight=False, soft_wrap=True, markup=False))


def _print_summary(inspection: Inspection, console: Console) -> None:
    console.print(
        f"{inspection.path}: {inspection.container}, {inspection.size_bytes:,} bytes, sha256 {inspection.sha256}"
    )
    if inspection.description is not None:
        _print_description(inspection.description, console)
    elif inspection.step is not None:
        console.print(f"  step        {inspection.step:,}")
    _print_weights(inspection, console)
    for entry in inspection.entries:
        values = ", ".join(f"{k}={v}" if k else str(v) for k, v in entry.values.items())
        console.print(printable(f"  {entry.name}: {entry.type} {values}"))
    for note in inspection.notes:
        console.print(f"note: {printable(note)}")
    if inspection.proposal is not None:
        _print_proposal(inspection.proposal, inspection.path, console)


def _print_description(description: Description, console: Console) -> None:
    arguments = ", ".join(f"{name}={value}" for name, value in description.architecture.arguments.items())
    for name, value in (
        ("network", f"{description.architecture.name}({arguments})"),
        ("prediction", description.prediction),
        ("data", description.data),
        ("source", description.source),
        ("coupling", description.coupling),
        ("path", description.path),
        ("times", description.times),
        ("step", f"{description.step:,}"),
        ("EMA decay", description.ema_decay),
        ("seed", description.seed),
    ):
        console.print(f"  {name:<12}{value}")


def _print_weights(inspection: Inspection, console: Console) -> None:
    from rich.table import Table

    table = Table(title="weights", title_justify="left")
    for name in ("--weights", "tensors", "parameters", "dtypes"):
        table.add_column(name, justify="right" if name in ("tensors", "parameters") else "left")
    for weights in inspection.weights:
        dtypes = ", ".join(f"{count} {dtype}" for dtype, count in weights.dtypes.items())
        table.add_row(printable(weights.key) or "raw", f"{weights.tensors:,}", f"{weights.parameters:,}", dtypes)
    console.print(table)
    if inspection.description is not None:
        return
    for layout in inspection.layouts:
        console.print(f"tensors of {printable(', '.join(key or 'raw' for key in layout.weights))}")
        for name, shape, count in layout.tensors[:_MAX_LINES]:
            console.print(f"  {printable(name)} {shape}" + (f" x {count}" if count > 1 else ""))
        if len(layout.tensors) > _MAX_LINES:
            console.print(f"  and {len(layout.tensors) - _MAX_LINES} more; --format json lists all")


def _print_proposal(proposal: Proposal, path: Path, console: Console) -> None:
    if proposal.recognised:
        console.print(f"card: this looks like {proposal.about}")
    else:
        console.print("card: no shipped card fits this file")
    for candidate in proposal.candidates:
        console.print(f"  the tensors also fit {candidate}")
    if proposal.averages:
        others = printable(", ".join(proposal.averages[:_MAX_LINES]))
        console.print(f"  the card's weights.ema names one average; the file also has {others}")
    if proposal.unconfirmed:
        fields = ", ".join(f"{field} {value}" for field, value in proposal.unconfirmed.items())
        console.print(f"  not confirmed by the file, so check them: {fields}")
    if not proposal.differs:
        console.print(f"  pass --model {proposal.recognised}")
        return
    fill = ", fill in the fields that are not in the file" if proposal.unknown else ""
    console.print(f"  save these lines with mfdiag inspect {path} --card > my.yaml{fill}, and pass --model my.yaml\n")
    for line in printable(proposal.text).splitlines():
        console.print(f"    {line}")
