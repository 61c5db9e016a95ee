"""What made a result: command, specification, seeds, inputs, versions, hardware, and hashes of what was written."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from mfdiag._version import __version__
from mfdiag.errors import InputError
from mfdiag.locks import file_lock
from mfdiag.storage import sha256_of
from mfdiag.tables.store import MANIFEST, read_json, write_json_atomic
from mfdiag.world import current_world

__all__ = ["hardware", "manifest", "manifest_lock", "read_manifest", "versions", "write_manifest"]


def versions() -> dict[str, str | None]:
    """Versions of mfdiag, Python and the packages that numbers depend on, without importing them; None if absent."""
    by_package: dict[str, str | None] = {"mfdiag": __version__, "python": platform.python_version()}
    for package in ("torch", "numpy", "pandas", "scipy", "pyarrow"):
        try:
            by_package[package] = version(package)
        except PackageNotFoundError:
            by_package[package] = None
    return by_package


def hardware(device: str | None = None) -> dict[str, Any]:
    """The machine: platform, CPU model, logical cores in all and usable, memory in bytes (None where unknown).

    The caller passes `device`, the name of the accelerator that computed the numbers.
    """
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "platform": platform.platform(),
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "usable_cores": usable,
        "memory_bytes": _memory_bytes(),
        "device": device,
    }


def _cpu_model() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _memory_bytes() -> int | None:
    with suppress(AttributeError, ValueError, OSError):  # sysconf is not on every platform
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return None


def manifest(
    command: list[str],
    specification: Mapping[str, Any],
    *,
    seeds: Sequence[int],
    inputs: Sequence[tuple[str, str]],
    started: datetime,
    finished: datetime,
    outputs: Sequence[Path] = (),
    device: str | None = None,
) -> dict[str, Any]:
    """Describe one run for the manifest.

    Args:
        command: The argument vector as typed.
        specification: Every option that decides the numbers, defaults filled in.
        seeds: Seeds of the samples.
        inputs: Pairs (path, SHA-256) of what was read.
        started: When the run started, with time zone.
        finished: When it finished, with time zone.
        outputs: The files it wrote, which are hashed here.
        device: Name of the accelerator.

    Returns:
        An entry ready for JSON.

    Raises:
        InputError: An output cannot be read.
    """
    return {
        "command": ["mfdiag", *command[1:]],  # however it was started
        "specification": dict(specification),
        "seeds": list(seeds),
        "inputs": [{"path": str(path), "sha256": digest} for path, digest in inputs],
        "outputs": {path.name: sha256_of(path) for path in outputs},
        "started": started.isoformat(),
        "finished": finished.isoformat(),
        "seconds": (finished - started).total_seconds(),
        "processes": current_world().size,
        "versions": versions(),
        "hardware": hardware(device),
    }


def write_manifest(out: Path, name: str, entry: Mapping[str, Any]) -> Path:
    """Write one entry of `out/manifest.json`, atomically; other commands' entries stay.

    Args:
        out: Folder of the results.
        name: The command.
        entry: What `manifest` returns.

    Returns:
        Path of the manifest.

    Raises:
        InputError: The file there is not a JSON object, or cannot be written.
    """
    with file_lock(manifest_lock(out)):  # commands that write to one folder at once lose no entry
        return write_json_atomic(read_manifest(out) | {name: dict(entry)}, out / MANIFEST)


def manifest_lock(out: Path) -> Path:
    """The lock under which the manifest of a folder changes."""
    return out / f".{MANIFEST}.lock"


def read_manifest(out: Path) -> dict[str, dict[str, Any]]:
    """The entries of `out/manifest.json` by command; empty without the file.

    Raises InputError if it cannot be read, or is not what `write_manifest` writes.
    """
    path = out / MANIFEST
    if not path.exists():
        return {}
    entries = read_json(path)
    if not isinstance(entries, dict):
        raise InputError(f"{path} should be one JSON object keyed by command, but is a {type(entries).__name__}.")
    for command, entry in entries.items():
        if not _is_entry(entry):
            raise InputError(
                f"{path} should have the command, specification and inputs of a run under {command!r}, but has "
                "something else. Repair or delete it."
            )
    return {command: _EMPTY | entry for command, entry in entries.items()}


_EMPTY: dict[str, Any] = {  # what is read of an entry
    "command": [],
    "specification": {},
    "inputs": [],
    "hardware": {},
    "versions": {},
    "finished": "",
    "seconds": 0,
}


def _is_entry(entry: object) -> bool:
    """Whether what is read of an entry has the right types; further fields are not read."""
    if not isinstance(entry, dict):
        return False
    entry = _EMPTY | entry
    if any(not isinstance(entry[name], (int, float) if name == "seconds" else type(_EMPTY[name])) for name in _EMPTY):
        return False
    specification = entry["specification"]
    records = [entry["inputs"], *(specification.get(name, []) for name in ("subjects", "doubts"))]
    if not all(isinstance(part, list) and all(isinstance(item, dict) for item in part) for part in records):
        return False
    texts = [*entry["command"], *(doubt.get("text") for doubt in specification.get("doubts", []))]
    return all(isinstance(text, str) for text in texts)
