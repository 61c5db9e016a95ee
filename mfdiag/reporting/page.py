"""One self-contained HTML page for a folder of tables: verdict, questions with figures, values, and commands."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from mfdiag._version import __version__
from mfdiag.reporting.findings import headline, statements
from mfdiag.reporting.rows import TextTable, measured_rows
from mfdiag.reporting.sections import command_of, sections
from mfdiag.reporting.subjects import overview
from mfdiag.reporting.verdict import read_verdict
from mfdiag.storage import atomic_write
from mfdiag.tables.provenance import read_manifest
from mfdiag.tables.schema import STATUSES, TABLES
from mfdiag.tables.selection import overall

__all__ = ["contents", "environment", "write_page"]

_NOT_SHOWN = ("samples", "training")  # a row per sample or per step, far too many to read
_MOST_ROWS = 800  # of a table


def write_page(tables: Mapping[str, pd.DataFrame], figures: Sequence[Path], out: Path) -> Path:
    """Writes `out/report.html`, which needs no other file.

    Args:
        tables: Tidy frames by name.
        figures: Files of figures; those in SVG become part of the page.
        out: Folder of the tables, which may hold a manifest, and the verdict of `mfdiag doctor`.

    Returns:
        The path of the page.

    Raises:
        InputError: The page cannot be written, or the manifest or the verdict is not valid.
    """
    text = environment().get_template("page.html.j2").render(**contents(tables, figures, out), version=__version__)
    path = out / "report.html"
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def contents(tables: Mapping[str, pd.DataFrame], figures: Sequence[Path], out: Path) -> dict[str, Any]:
    """What a report says, by the names that its templates use.

    Args:
        tables: Tidy frames by name.
        figures: Files of figures; those in SVG are part of it.
        out: Folder of the tables, which may hold a manifest, and the verdict of `mfdiag doctor`.

    Returns:
        Verdict, sentences, sections, tables, doubts and runs.

    Raises:
        InputError: The manifest or the verdict is not valid.
    """
    manifest = read_manifest(out)
    answers = statements(tables)
    caution = sorted({status for frame in tables.values() for status in frame["status"]} - {"ok"})
    return {
        "folder": out.resolve().name,
        "datasets": sorted({str(name) for frame in tables.values() for name in frame["dataset"].unique()} - {"all"}),
        "verdict": read_verdict(out),
        "headline": headline(answers[-1].statements) if answers else [],
        "headline_of": answers[-1].subject if len(answers) > 1 else "",
        "subjects": overview(tables),
        "sections": sections(tables, answers, {path.stem: path for path in figures if path.suffix == ".svg"}),
        "tables": list(_values(tables)),
        "statuses": [STATUSES[name] for name in caution],
        "doubts": _doubts(manifest),
        "runs": dict(_runs(manifest)),
        "command_of": command_of,
    }


@cache
def environment() -> Environment:
    """Reads the templates of this folder; what is written into a page is escaped, `part` writes a file as it is."""
    made = Environment(
        loader=PackageLoader("mfdiag.reporting", "templates"),
        autoescape=lambda name: name is not None and ".html" in name,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    folder = files("mfdiag.reporting").joinpath("templates")
    made.globals["part"] = lambda name: Markup(folder.joinpath(name).read_text(encoding="utf-8"))
    return made


def _values(tables: Mapping[str, pd.DataFrame]) -> Iterator[TextTable]:
    """The rows over everything of each table that has some; maps over (r, t) have none."""
    for name, frame in tables.items():
        rows = overall(frame)
        if name not in _NOT_SHOWN and not rows.empty:
            table = measured_rows(f"table-{name}", name, rows, _MOST_ROWS)
            yield table._replace(note=" ".join(filter(None, (TABLES[name].doc, table.note))))


def _doubts(manifest: Mapping[str, Any]) -> list[str]:
    """What the manifest says against the conventions that checkpoints were read in, each sentence once."""
    stated = [doubt for entry in manifest.values() for doubt in entry["specification"].get("doubts", [])]
    return list(dict.fromkeys(doubt["text"] for doubt in stated))


def _runs(manifest: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, str]]]:
    """For each command of the manifest: its words, when and how long it ran, hardware and versions."""
    for name, entry in manifest.items():
        hardware, command = entry["hardware"], entry["command"]
        yield (
            name,
            {
                "command": " ".join(["mfdiag", *(json.dumps(a) if " " in a else a for a in command[1:])]),
                "finished": entry["finished"][:16].replace("T", " "),
                "seconds": f"{entry['seconds']:.1f}",
                "hardware": f"{hardware.get('cpu')}, {hardware.get('usable_cores')} cores",
                "versions": ", ".join(f"{package} {version}" for package, version in entry["versions"].items()),
            },
        )
