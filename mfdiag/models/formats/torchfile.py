"""Files written by torch.save in torch's zip and legacy formats, read without running any code in them."""

from __future__ import annotations

import io
import logging
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

from mfdiag.errors import InputError, first_line, is_out_of_memory
from mfdiag.models.formats.archives import checked_records, damaged_file
from mfdiag.models.formats.conversion import Conversion, conversion_of, torchscript_conversion
from mfdiag.models.formats.pickles import PickleContent, number_in, read_pickle, value_stand_ins

__all__ = ["read_torch", "read_torch_bytes", "torch_format"]

_NUMBER_BYTES = 8  # of the longest number
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of a file in the legacy format


def read_torch(
    path: Path, container: str, *, load: bool, ignored: tuple[str, ...] = (), parts: bool = False
) -> Mapping[Any, Any]:
    """Read the outermost mapping of a file that torch wrote.

    Args:
        path: The file.
        container: Its format: "torch zip", "torch legacy" or "TorchScript".
        load: Whether to load tensors, memory-mapped from a zip. Without it, each tensor is a `TensorHeader`, and torch
            is not imported.
        ignored: Modules whose objects are left unread instead of refused.
        parts: Whether to read the parts of distributed tensors, as the tensors of this process or as `PartHeader`s.

    Returns:
        The mapping from names to tensors, plain values and further mappings.

    Raises:
        InputError: If the file is damaged, or holds TorchScript code, a pickled object that is neither a tensor nor a
            plain value, or no mapping.
    """
    if container == "TorchScript":
        raise _refused(path, "TorchScript code", torchscript_conversion(path))
    pickled, plain = _pickle_content(_Source(path), container, ignored)
    if pickled.unknown or plain:
        example = f" ({pickled.unknown[0]})" if pickled.unknown else ""
        raise _refused(path, f"pickled Python objects{example}", conversion_of(path, pickled, plain=plain))
    if pickled.parts and not parts:
        raise InputError(
            f"Expected whole tensors, but {path} holds one process's part of distributed tensors ({pickled.parts[0]}); "
            "put the files of all processes into a folder, named by their rank (model_rank0.pt, ...), and pass it. Or "
            "gather them on all processes with get_model_state_dict(model, options=StateDictOptions("
            "full_state_dict=True)) of torch.distributed.checkpoint.state_dict, save the result with torch.save on one "
            "process, and pass that file."
        )
    tree = _loaded(_Source(path), container, pickled) if load else pickled.tree
    tree = _local(tree) if load and pickled.distributed else tree
    if not isinstance(tree, Mapping):
        kind = "Tensor" if type(tree).__name__ == "TensorHeader" else type(tree).__name__
        raise InputError(
            f"Expected a mapping of names to tensors, but {path} holds one {kind}; save model.state_dict() instead."
        )
    return tree


def torch_format(path: Path) -> str:
    """The format of a file that torch.save wrote, from its first bytes."""
    with path.open("rb") as file:
        return "torch zip" if file.read(2) == b"PK" else "torch legacy"


def read_torch_bytes(raw: bytes, path: Path, *, load: bool) -> Any:
    """Read any value of a file of torch.save that lies inside another file.

    Args:
        raw: The bytes of the inner file.
        path: The outer file, for errors.
        load: Whether to load tensors. Without it, each is a `TensorHeader`.

    Returns:
        The value; without `load`, an `UnknownObject` stands for an object that is neither a tensor nor a plain value.

    Raises:
        InputError: If the bytes are damaged, or if `load` and they hold such an object.
    """
    container = "torch zip" if raw.startswith(b"PK") else "torch legacy"
    pickled, plain = _pickle_content(_Source(path, raw), container, ())
    if not load:
        return pickled.tree
    if pickled.unknown or plain:
        raise _refused(path, f"pickled Python objects ({', '.join(pickled.unknown[:1])})", None)
    return _loaded(_Source(path, raw), container, pickled)


class _Source(NamedTuple):
    """A file of torch.save: a whole file, or bytes inside the file `path`."""

    path: Path
    raw: bytes | None = None

    def open(self) -> IO[bytes]:
        return self.path.open("rb") if self.raw is None else io.BytesIO(self.raw)

    @property
    def size(self) -> int:
        return self.path.stat().st_size if self.raw is None else len(self.raw)


def _pickle_content(source: _Source, container: str, ignored: tuple[str, ...]) -> tuple[PickleContent, bool]:
    """What the pickle holds, and whether pickle itself wrote the file. Raises InputError if it is damaged."""
    pickled, plain = PickleContent(ignored=ignored), False
    try:
        if container == "torch zip":
            _read_zip(source, pickled)
        else:
            plain = _read_legacy(source, pickled)
    except InputError:
        raise
    except Exception as error:  # damaged bytes raise almost anything: struct.error, AttributeError, IndexError, ...
        if not pickled.unknown:
            raise damaged_file(source.path, container, first_line(error).rstrip(".")) from error
    return pickled, plain


def _read_zip(source: _Source, pickled: PickleContent) -> None:
    with source.open() as file, zipfile.ZipFile(file) as archive:
        records = checked_records(archive, source.path, source.size)
        read_pickle(io.BytesIO(archive.read(records["data.pkl"])), pickled)
        for key, size in pickled.storages.items():
            if records[f"data/{key}"].file_size < size:
                raise damaged_file(source.path, "torch zip", f"storage {key} should have {size:,} bytes")
        for header, key, start in pickled.numbers:
            with archive.open(records[f"data/{key}"]) as storage:
                storage.seek(start)
                object.__setattr__(header, "value", number_in(storage.read(_NUMBER_BYTES), header.dtype))


def _read_legacy(source: _Source, pickled: PickleContent) -> bool:
    """Fill `pickled`; True if pickle itself wrote the file, rather than torch.save."""
    with source.open() as file:
        if read_pickle(file, pickled).tree != _LEGACY_MAGIC:
            return True
        for _ in ("protocol version", "system", "content"):
            read_pickle(file, pickled)
        keys = read_pickle(file).tree
        size = 8 * len(keys) + sum(pickled.storages[key] for key in keys)  # 8 bytes before each storage are its length
        if source.size - file.tell() < size:
            raise damaged_file(source.path, "torch legacy", f"its storages should have {size:,} bytes")
    return False


def _loaded(source: _Source, container: str, pickled: PickleContent) -> Any:
    import torch

    stand_ins = value_stand_ins() | pickled.stand_ins
    allowed: list[Any] = [(stand_in, name) for name, stand_in in stand_ins.items()]
    file: Any = source.path if source.raw is None else source.open()
    try:
        if pickled.distributed:
            import torch.distributed.tensor  # torch then loads DTensor and its parts with weights_only

            logging.getLogger("torch.distributed.device_mesh").setLevel(logging.ERROR)  # it has no processes here
        with torch.serialization.safe_globals(allowed):
            mmap = container == "torch zip" and source.raw is None
            return torch.load(file, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise damaged_file(source.path, container, first_line(error).rstrip(".")) from error


def _local(value: Any) -> Any:
    """`value` with the local tensors of its DTensors, which are all of them."""
    if isinstance(value, Mapping):
        return {name: _local(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_local(item) for item in value]
    return getattr(value, "_local_tensor", value)


def _refused(path: Path, content: str, conversion: Conversion | None) -> InputError:
    problem = f"Expected tensors and plain values, but {path} holds {content}; mfdiag runs no code from a file. "
    if conversion is None:
        return InputError(f"{problem}Save model.state_dict() with torch.save and pass that file.")
    code = "".join(f"\n    {line}" for line in conversion.lines)
    return InputError(
        f"{problem}Run these two lines of Python where its code can be imported, and pass {conversion.target}.{code}"
    )
