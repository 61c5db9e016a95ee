from __future__ import annotations

import hashlib
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from mfdiag.errors import InputError
from mfdiag.tables import manifest, write_manifest
from mfdiag.tables.store import MANIFEST, read_json

STARTED = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def entry(outputs: list[Path]) -> dict[str, object]:
    return manifest(
        ["mfdiag", "sweep", "a.pt"],
        {"beta": [0.0, 1.0]},
        seeds=[0, 1],
        inputs=[("a.pt", "ab")],
        started=STARTED,
        finished=STARTED + timedelta(seconds=90),
        outputs=outputs,
    )


def test_an_entry_says_what_was_run_where_and_what_came_out(tmp_path: Path) -> None:
    written = tmp_path / "sweep.parquet"
    written.write_bytes(b"rows")
    made = entry([written])
    assert made["outputs"] == {"sweep.parquet": hashlib.sha256(b"rows").hexdigest()}
    assert made["inputs"] == [{"path": "a.pt", "sha256": "ab"}]
    assert made["seconds"] == 90 and made["started"] == "2026-01-02T03:04:05+00:00"
    assert {"mfdiag", "python", "torch", "numpy", "pandas"} <= set(made["versions"])  # type: ignore[call-overload]
    assert {"platform", "cpu", "cores", "memory_bytes"} <= set(made["hardware"])  # type: ignore[call-overload]


def test_three_commands_keep_three_entries_and_a_repeat_replaces_its_own(tmp_path: Path) -> None:
    for name in ("sweep", "variance", "coefficient"):
        write_manifest(tmp_path, name, entry([]))
    write_manifest(tmp_path, "sweep", entry([]) | {"seeds": [7]})
    stored = read_json(tmp_path / MANIFEST)
    assert list(stored) == ["sweep", "variance", "coefficient"]
    assert stored["sweep"]["seeds"] == [7] and stored["variance"]["seeds"] == [0, 1]


def test_a_manifest_that_is_no_object_is_refused(tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_text("[]")
    with pytest.raises(InputError, match="keyed by command"):
        write_manifest(tmp_path, "sweep", entry([]))


def test_an_output_that_is_missing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Cannot read"):
        entry([tmp_path / "none.parquet"])


def test_neither_tables_nor_figures_import_torch() -> None:
    code = "import sys, mfdiag.tables, mfdiag.figures; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
