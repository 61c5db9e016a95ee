"""One self-contained HTML page for a folder of tables: sentences, figures, main values, and commands."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from mfdiag._version import __version__
from mfdiag.numbers import significant
from mfdiag.reporting.findings import findings
from mfdiag.storage import atomic_write
from mfdiag.tables.schema import STATUSES, TABLES
from mfdiag.tables.selection import overall
from mfdiag.tables.store import MANIFEST, read_json

__all__ = ["write_page"]

_NOT_SHOWN = ("samples", "training")  # a row per sample or per step, far too many to read
_CLOSED = "sweep"  # a row per beta, gamma and batch size: shown on demand
_KEYS = (
    "dataset",
    "checkpoint",
    "step",
    "estimator",
    "space",
    "form",
    "role",
    "kappa_kind",
    "beta",
    "gamma",
    "batch_size",
    "weights",
    "features",
    "nfe",
    "metric",
)


class _Table(NamedTuple):
    title: str
    doc: str
    columns: list[str]
    rows: list[list[str]]
    keys: int  # leading columns, which hold text
    open: bool  # shown at once, not on demand


def write_page(tables: Mapping[str, pd.DataFrame], figures: Sequence[Path], out: Path) -> Path:
    """Writes `out/report.html`, which needs no other file.

    Args:
        tables: Tidy frames by name.
        figures: Files of figures; those in SVG become part of the page.
        out: Folder of the tables, which may hold a manifest.

    Returns:
        The path of the page.

    Raises:
        InputError: The page cannot be written, or the manifest is not valid JSON.
    """
    manifest = read_json(out / MANIFEST) if (out / MANIFEST).exists() else {}
    environment = Environment(loader=PackageLoader("mfdiag.reporting", "."), autoescape=True, undefined=StrictUndefined)
    shown = [table for name, frame in tables.items() if (table := _table(name, frame)) is not None]
    caution = sorted({status for frame in tables.values() for status in frame["status"]} - {"ok"})
    datasets = sorted({str(name) for frame in tables.values() for name in frame["dataset"].unique()})
    text = environment.get_template("page.html.j2").render(
        title=f"{out.resolve().name}: {', '.join(datasets)}",
        findings=findings(tables),
        figures=[(path.stem, _inline(path)) for path in figures if path.suffix == ".svg"],
        tables=shown,
        statuses=[STATUSES[name] for name in caution],
        doubts=_doubts(manifest),
        runs=dict(_runs(manifest)),
        version=__version__,
    )
    path = out / "report.html"
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def _inline(path: Path) -> Markup:
    """The drawing without its XML head; the file's stem makes its identifiers unique within the page."""
    text = path.read_text(encoding="utf-8")
    text = text[text.index("<svg") :]
    for prefix in ('id="', 'href="#', "url(#"):
        text = text.replace(prefix, f"{prefix}{path.stem}-")
    return Markup(text)  # drawn by this project from numbers and escaped text


def _table(name: str, frame: pd.DataFrame) -> _Table | None:
    """The rows over everything; None where there are none, as in maps over (r, t)."""
    if name in _NOT_SHOWN:
        return None
    rows = overall(frame)
    if rows.empty:
        return None
    keys = [key for key in _KEYS if key in rows and rows[key].astype(str).nunique() > 1]
    cells = [
        [*(_text(row[key]) for key in keys), row["quantity"], *_interval(row), row["status"].replace("ok", "")]
        for row in rows.to_dict("records")
    ]
    columns = [*keys, "quantity", "value", "95 % low", "95 % high", "status"]
    return _Table(name, TABLES[name].doc, columns, cells, len(keys) + 1, name != _CLOSED)


def _interval(row: Mapping[Any, Any]) -> list[str]:
    return ["" if pd.isna(row[key]) else significant(row[key]) for key in ("value", "ci_low", "ci_high")]


def _text(value: Any) -> str:
    if pd.isna(value):
        return ""
    return f"{value:g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def _doubts(manifest: Mapping[str, Any]) -> list[str]:
    """What the manifest says against the conventions that checkpoints were read in, each sentence once."""
    doubts = [doubt for entry in manifest.values() for doubt in entry["specification"].get("doubts", [])]
    return list(dict.fromkeys(doubt["text"] for doubt in doubts))


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
                "hardware": f"{hardware['cpu']}, {hardware['usable_cores']} cores",
                "versions": ", ".join(f"{package} {version}" for package, version in entry["versions"].items()),
            },
        )
