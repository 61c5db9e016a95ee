"""Files written by torch.save in torch's zip and legacy formats, read without running any code in them."""

from __future__ import annotations

import io
import logging
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mfdiag.errors import InputError, first_line
from mfdiag.models.formats.archives import checked_records, damaged_file
from mfdiag.models.formats.conversion import Conversion, conversion_of, torchscript_conversion
from mfdiag.models.formats.pickles import PickleContent, read_pickle, value_stand_ins

__all__ = ["read_torch"]

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of a file in the legacy format


def read_torch(path: Path, container: str, *, load: bool) -> Mapping[Any, Any]:
    """Read the outermost mapping of a file that torch wrote.

    Args:
        path: The file.
        container: Its format: "torch zip", "torch legacy" or "TorchScript".
        load: Whether to load tensors, memory-mapped from a zip. Without it, each tensor is a `TensorHeader`, and torch
            is not imported.

    Returns:
        The mapping from names to tensors, plain values and further mappings.

    Raises:
        InputError: If the file is damaged, or holds TorchScript code, a pickled object that is neither a tensor nor a
            plain value, or no mapping.
    """
    if container == "TorchScript":
        raise _refused(path, "TorchScript code", torchscript_conversion(path))
    pickled, plain = PickleContent(), False
    try:
        if container == "torch zip":
            _read_zip(path, pickled)
        else:
            plain = _read_legacy(path, pickled)
    except InputError:
        raise
    except Exception as error:  # damaged bytes raise almost anything: struct.error, AttributeError, IndexError, ...
        if not pickled.unknown:
            raise damaged_file(path, container, first_line(error).rstrip(".")) from error
    if pickled.unknown or plain:
        example = f" ({pickled.unknown[0]})" if pickled.unknown else ""
        raise _refused(path, f"pickled Python objects{example}", conversion_of(path, pickled, plain=plain))
    if pickled.parts:
        raise InputError(
            f"Expected whole tensors, but {path} holds one process's part of distributed tensors ({pickled.parts[0]}); "
            "gather them on all processes with get_model_state_dict(model, options=StateDictOptions("
            "full_state_dict=True)) of torch.distributed.checkpoint.state_dict, save the result with torch.save on one "
            "process, and pass that file."
        )
    tree = _loaded(path, container, distributed=pickled.distributed) if load else pickled.tree
    if not isinstance(tree, Mapping):
        kind = "Tensor" if type(tree).__name__ == "TensorHeader" else type(tree).__name__
        raise InputError(
            f"Expected a mapping of names to tensors, but {path} holds one {kind}; save model.state_dict() instead."
        )
    return tree


def _read_zip(path: Path, pickled: PickleContent) -> None:
    with zipfile.ZipFile(path) as archive:
        records = checked_records(archive, path)
        read_pickle(io.BytesIO(archive.read(records["data.pkl"])), pickled)
    for key, size in pickled.storages.items():
        if records[f"data/{key}"].file_size < size:
            raise damaged_file(path, "torch zip", f"storage {key} should have {size:,} bytes")


def _read_legacy(path: Path, pickled: PickleContent) -> bool:
    """Fill `pickled`; True if pickle itself wrote the file, rather than torch.save."""
    with path.open("rb") as file:
        if read_pickle(file, pickled).tree != _LEGACY_MAGIC:
            return True
        for _ in ("protocol version", "system", "content"):
            read_pickle(file, pickled)
        keys = read_pickle(file).tree
        size = 8 * len(keys) + sum(pickled.storages[key] for key in keys)  # 8 bytes before each storage are its length
        if path.stat().st_size - file.tell() < size:
            raise damaged_file(path, "torch legacy", f"its storages should have {size:,} bytes")
    return False


def _loaded(path: Path, container: str, *, distributed: bool) -> Any:
    import torch

    allowed: list[Any] = [(stand_in, name) for name, stand_in in value_stand_ins().items()]
    try:
        if distributed:
            import torch.distributed.tensor  # torch then loads DTensor and its parts with weights_only

            logging.getLogger("torch.distributed.device_mesh").setLevel(logging.ERROR)  # it has no processes here
        with torch.serialization.safe_globals(allowed):
            tree = torch.load(path, map_location="cpu", weights_only=True, mmap=container == "torch zip")
    except Exception as error:
        raise damaged_file(path, container, first_line(error).rstrip(".")) from error
    return _local(tree) if distributed else tree


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
