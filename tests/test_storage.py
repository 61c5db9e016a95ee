"""Files are replaced whole or not at all."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mfdiag.errors import InputError
from mfdiag.storage import atomic_write, run_folder, sha256_of


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))  # noqa: PTH208 - hidden leftovers count


def test_a_file_appears_with_its_folders(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "file"
    with atomic_write(path) as temporary:
        temporary.write_text("whole")
        assert temporary.parent == path.parent and not path.exists()
    assert path.read_text() == "whole" and names(path.parent) == ["file"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failure_in_the_middle_leaves_the_old_file(error: type[BaseException], tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(error), atomic_write(path) as temporary:
        temporary.write_text("half")
        raise error
    assert path.read_text() == "old" and names(tmp_path) == ["file"]


def test_two_writers_do_not_meet(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "file") as one, atomic_write(tmp_path / "file") as other:
        assert one != other
        one.write_text("one")
        other.write_text("other")
    assert (tmp_path / "file").read_text() == "one" and names(tmp_path) == ["file"]


def test_what_cannot_be_written_is_bad_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(InputError, match=r"Cannot write .* choose another folder"),
        atomic_write(tmp_path / "file" / "x"),
    ):
        pass
    with pytest.raises(InputError, match=r"Cannot write .*x"), atomic_write(tmp_path / "x"):
        pass  # nothing written

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(InputError, match="No space left on device"), atomic_write(tmp_path / "x") as temporary:
        temporary.write_text("")
    assert names(tmp_path) == ["file"]


def test_sha256(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"rows")
    assert sha256_of(tmp_path / "file") == hashlib.sha256(b"rows").hexdigest()
    with pytest.raises(InputError, match="Cannot read"):
        sha256_of(tmp_path / "none")


def test_needs_the_standard_library_alone() -> None:
    code = "import sys, mfdiag.storage; sys.exit(any(name in sys.modules for name in ('numpy', 'pandas', 'torch')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("checkpoint", "run"),
    [
        ("grid/beta=0/model.safetensors", "grid/beta=0"),
        ("grid/beta=0/step=500/model.safetensors", "grid/beta=0"),
        ("grid/step=500,seed=1/model.safetensors", "grid/step=500,seed=1"),
        ("step=500/model.pt", "step=500"),
        ("model.pt", "."),
    ],
)
def test_the_folder_of_a_run_has_those_of_earlier_checkpoints(checkpoint: str, run: str) -> None:
    assert run_folder(Path(checkpoint)) == Path(run)
