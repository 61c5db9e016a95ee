"""Files written by torch.save, in torch's zip and legacy formats, read without running anything in them."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mfdiag.errors import InputError
from mfdiag.models.formats.archives import damaged, records
from mfdiag.models.formats.conversion import conversion, torchscript_conversion
from mfdiag.models.formats.pickles import Pickled, read_pickle, stand_ins

__all__ = ["read_torch"]

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C


def read_torch(path: Path, container: str, *, load: bool) -> Mapping[Any, Any]:
    """The outermost mapping of a "torch zip", "torch legacy" or "TorchScript" file.

    Its tensors are a `Header` each, for which torch is not imported, or with `load` tensors, memory-mapped from a zip.
    Raises InputError if the file holds pickled objects other than tensors and plain values, or is damaged.
    """
    if container == "TorchScript":
        raise _refused(path, "TorchScript code", torchscript_conversion(path))
    pickled, plain = Pickled(), False
    try:
        if container == "torch zip":
            _read_zip(path, pickled)
        else:
            plain = _read_legacy(path, pickled)
    except InputError:
        raise
    except Exception as error:  # damaged bytes raise almost anything: struct.error, AttributeError, IndexError, ...
        if not pickled.unknown:
            raise damaged(path, container, _words(error)) from error
    if pickled.unknown or plain:
        named = f" ({pickled.unknown[0]})" if pickled.unknown else ""
        raise _refused(path, f"pickled Python objects{named}", conversion(path, pickled, plain=plain))
    tree = _loaded(path, container) if load else pickled.tree
    if not isinstance(tree, Mapping):
        kind = "Tensor" if type(tree).__name__ == "Header" else type(tree).__name__
        raise InputError(
            f"Expected a mapping of names to tensors, but {path} holds one {kind}; save model.state_dict() instead."
        )
    return tree


def _read_zip(path: Path, pickled: Pickled) -> None:
    with zipfile.ZipFile(path) as archive:
        named = records(archive, path)
        read_pickle(io.BytesIO(archive.read(named["data.pkl"])), pickled)
    for key, size in pickled.storages.items():
        if named[f"data/{key}"].file_size < size:
            raise damaged(path, "torch zip", f"storage {key} should have {size:,} bytes")


def _read_legacy(path: Path, pickled: Pickled) -> bool:
    """Fill `pickled`; whether the file was written by pickle itself, and not by torch.save."""
    with path.open("rb") as file:
        if read_pickle(file, pickled).tree != _LEGACY_MAGIC:
            return True
        for _ in ("protocol version", "system", "content"):
            read_pickle(file, pickled)
        keys = read_pickle(file).tree
        size = 8 * len(keys) + sum(pickled.storages[key] for key in keys)  # each storage with its length before it
        if path.stat().st_size - file.tell() < size:
            raise damaged(path, "torch legacy", f"its storages should have {size:,} bytes")
    return False


def _loaded(path: Path, container: str) -> Any:
    import torch

    allowed: list[Any] = [(found, name) for name, found in stand_ins().items()]
    try:
        with torch.serialization.safe_globals(allowed):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=container == "torch zip")
    except Exception as error:
        raise damaged(path, container, _words(error)) from error


def _words(error: Exception) -> str:
    return str(error).split("\n")[0].rstrip(".") or type(error).__name__


def _refused(path: Path, what: str, converted: tuple[Path, str, str] | None) -> InputError:
    found = f"Expected tensors and plain values, but {path} holds {what}; mfdiag runs no code from a file: "
    if converted is None:
        return InputError(f"{found}save model.state_dict() with torch.save and pass that file.")
    target, *lines = converted
    code = "".join(f"\n    {line}" for line in lines)
    return InputError(f"{found}run these two lines of Python where its code can be imported, and pass {target}.{code}")
