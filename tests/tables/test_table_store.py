from __future__ import annotations

import errno
import mmap
import os
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mfdiag.errors import InputError
from mfdiag.tables import check_writable, read_table, write_json_atomic, write_table
from mfdiag.tables.store import MANIFEST, read_json


def test_round_trip_keeps_nulls_and_integers(variance: pd.DataFrame, tmp_path: Path) -> None:
    path = write_table("variance", variance, tmp_path / "new" / "folder")
    assert path == tmp_path / "new" / "folder" / "variance.parquet"
    frame = read_table("variance", path.parent)
    assert str(frame["step"].dtype) == "Int64" and frame["step"].tolist() == [12_000, pd.NA, 12_000]
    assert frame["t_low"].isna().tolist() == [True, True, False]
    assert frame["proxy"].isna().all() and frame["checkpoint_sha256"].isna().tolist() == [False, True, False]
    assert frame["value"].tolist() == [2.0, 2.0, 2.0]
    write_table("variance", frame, str(tmp_path))  # a string is a folder too
    pd.testing.assert_frame_equal(read_table("variance", str(tmp_path)), frame)


def test_integers_beyond_float_precision_survive(variance: pd.DataFrame, tmp_path: Path) -> None:
    big = 2**53 + 1
    frame = variance.assign(step=pd.array([big, None, big], dtype="Int64"))
    write_table("variance", frame, tmp_path)
    assert read_table("variance", tmp_path)["step"][0] == big


def test_stored_file_describes_itself(variance: pd.DataFrame, tmp_path: Path) -> None:
    schema = pq.read_schema(write_table("variance", variance, tmp_path))
    assert schema.metadata[b"mfdiag.table"] == b"variance"
    assert b"95 %" in schema.field("ci_low").metadata[b"doc"]


@pytest.mark.parametrize("failing", ["write", "replace"])
def test_a_failure_in_the_middle_leaves_the_old_file(
    failing: str, variance: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_table("variance", variance, tmp_path)
    before = path.read_bytes()

    def half_written(stored: pa.Table, where: Path, **_: Any) -> None:
        where.write_bytes(b"PAR1 half")
        raise KeyboardInterrupt

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    if failing == "write":
        monkeypatch.setattr(pq, "write_table", half_written)
    else:
        monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(KeyboardInterrupt if failing == "write" else InputError):
        write_table("variance", variance.assign(value=3.0), tmp_path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["variance.parquet"]  # noqa: PTH208 - hidden leftovers count


def test_an_invalid_frame_touches_nothing(variance: pd.DataFrame, tmp_path: Path) -> None:
    with pytest.raises(InputError):
        write_table("variance", variance.assign(status="fine"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_missing_table_says_which_command_makes_it(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Run `mfdiag variance --out"):
        read_table("samples", tmp_path)


def test_a_corrupt_file_is_bad_input(variance: pd.DataFrame, tmp_path: Path) -> None:
    path = write_table("variance", variance, tmp_path)
    for content in (b"", b"not parquet at all", path.read_bytes()[:-20]):
        path.write_bytes(content)
        with pytest.raises(InputError, match="not a readable Parquet file"):
            read_table("variance", tmp_path)


@pytest.mark.parametrize(
    "error", [OSError(errno.EMFILE, "Too many open files"), MemoryError()], ids=["files", "memory"]
)
def test_a_whole_file_that_the_machine_cannot_read_is_not_called_corrupt(
    error: Exception, variance: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_table("variance", variance, tmp_path)

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(pq, "ParquetFile", fail)
    with pytest.raises(type(error)):
        read_table("variance", tmp_path)


def test_too_little_memory_is_noticed_before_arrow_ends_the_process(
    variance: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_table("variance", variance, tmp_path)

    def exhausted(*_: object) -> None:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(mmap, "mmap", exhausted)
    with pytest.raises(MemoryError):
        write_table("variance", variance, tmp_path)
    with pytest.raises(MemoryError):
        read_table("variance", tmp_path)


def test_another_schema_is_bad_input(variance: pd.DataFrame, tmp_path: Path) -> None:
    path = write_table("variance", variance, tmp_path)
    stored = pq.read_table(path)
    pq.write_table(stored.drop_columns(["layer"]), path)
    with pytest.raises(InputError, match="missing columns"):
        read_table("variance", tmp_path)
    layer = stored.schema.get_field_index("value")
    pq.write_table(stored.set_column(layer, "value", pa.array(["a", "b", "c"])), path)
    with pytest.raises(InputError, match="stored types"):
        read_table("variance", tmp_path)


def test_check_writable_modes(variance: pd.DataFrame, tmp_path: Path) -> None:
    out = tmp_path / "a" / "b"
    check_writable(out, ["variance", "samples"], "new")
    assert list(tmp_path.iterdir()) == [], "nothing is left of the trial"
    write_table("variance", variance, out)
    check_writable(out, ["sweep"], "new")
    check_writable(out, ["variance"], "overwrite")
    check_writable(out, ["variance"], "resume")
    with pytest.raises(InputError, match=r"variance\.parquet: pass --overwrite.*--resume.*another --out"):
        check_writable(out, ["variance", "samples"], "new")


def test_check_writable_refuses_a_file_and_a_broken_manifest(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InputError, match="Cannot write to the folder"):
            check_writable(out, ["sweep"], "new")
    (tmp_path / MANIFEST).write_text("{")
    with pytest.raises(InputError, match="not a readable JSON file"):
        check_writable(tmp_path, ["sweep"], "new")


def test_json_is_atomic_and_plain(tmp_path: Path) -> None:
    path = write_json_atomic({"path": tmp_path, "β": 0.5}, tmp_path / "x.json")
    assert read_json(path) == {"path": str(tmp_path), "β": 0.5}
    with pytest.raises(TypeError, match="object has no JSON form"):
        write_json_atomic({"bad": object()}, path)
    assert read_json(path)["β"] == 0.5
