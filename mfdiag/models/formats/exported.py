"""Files written by torch.export.save: a network's weights, and the network itself as a list of ATen operators.

torch.export.load would unpickle objects, evaluate symbolic sizes as Python and load compiled code from the file. Here
its JSON is read as data.
"""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mfdiag.errors import InputError
from mfdiag.models.formats.archives import damaged, records
from mfdiag.models.formats.pickles import Header

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["DTYPES", "Program", "read_exported"]

# the numbers of torch._export.serde.schema.ScalarType
DTYPES = {
    **dict(enumerate(("uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64"), start=1)),
    **dict(enumerate(("complex32", "complex64", "complex128", "bool", "bfloat16"), start=9)),
    28: "uint16",
    29: "float8_e4m3fn",
    30: "float8_e5m2",
    31: "float8_e4m3fnuz",
    32: "float8_e5m2fnuz",
    34: "uint32",
    35: "uint64",
}


@dataclass(frozen=True)
class Program:
    """An exported network: its operators, inputs and outputs as in the file's JSON, and the constants it uses."""

    path: Path
    graph: dict[str, Any]
    signature: dict[str, Any]
    constants: dict[str, Any]

    @property
    def inputs(self) -> dict[str, list[int | None]]:
        """The shape of each input of the network by its name; None for a length that is free."""
        names = [spec["user_input"]["arg"]["as_tensor"]["name"] for spec in self.signature["input_specs"][self._own :]]
        values = self.graph["tensor_values"]
        return {name: [length.get("as_int") for length in values[name]["sizes"]] for name in names}

    @property
    def _own(self) -> int:
        """How many inputs come before the first of the user's: parameters, buffers, constants."""
        return next(i for i, spec in enumerate(self.signature["input_specs"]) if "user_input" in spec)


def read_exported(path: Path, *, load: bool) -> tuple[dict[str, Any], Program]:
    """The weights in a file of torch.export.save, as tensors with `load` and else a `Header` each, and its program.

    Raises InputError if it is damaged, of torch before 2.9, holds more than one program, or objects that would have to
    be unpickled.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            named = records(archive, path)
            models = [name for name in named if name.startswith("models/") and name.endswith(".json")]
            if len(models) != 1:
                raise InputError(
                    f"Expected one program in {path}, but it has {len(models)}; write one file for each network with "
                    "torch.export.save of torch 2.9 or later."
                )
            module = json.loads(archive.read(named[models[0]]))["graph_module"]
            name = Path(models[0]).stem
            weights, constants = (
                _payload(archive, named, f"data/{kind}/", f"{name}_{config}_config.json", path, load)
                for kind, config in (("weights", "weights"), ("constants", "constants"))
            )
        return weights, Program(path, module["graph"], module["signature"], constants)
    except InputError:
        raise
    except Exception as error:  # JSON of another form raises KeyError, TypeError, AttributeError, ...
        raise damaged(path, "torch.export", f"{type(error).__name__}: {error}") from error


def _payload(
    archive: zipfile.ZipFile, named: dict[str, zipfile.ZipInfo], folder: str, config: str, path: Path, load: bool
) -> dict[str, Any]:
    found: dict[str, Any] = {}
    raw: dict[str, bytearray] = {}
    for name, payload in json.loads(archive.read(named[folder + config]))["config"].items():
        if payload["use_pickle"] or payload["tensor_meta"] is None:
            raise InputError(
                f"Expected plain tensors in {path}, but {name} is a pickled object; mfdiag runs no code from a file: "
                "save model.state_dict() with torch.save and pass that file."
            )
        meta, record = payload["tensor_meta"], payload["path_name"]
        shape, stride = ([length["as_int"] for length in meta[key]] for key in ("sizes", "strides"))
        dtype = DTYPES[meta["dtype"]]
        if load and record not in raw:
            raw[record] = bytearray(archive.read(named[folder + record]))
        strided = (shape, stride, meta["storage_offset"]["as_int"])
        found[name] = _tensor(raw[record], dtype, *strided) if load else Header(tuple(shape), dtype)
    return found


def _tensor(raw: bytearray, dtype: str, shape: list[int], stride: list[int], offset: int) -> Tensor:
    import torch

    kind = getattr(torch, dtype)
    # frombuffer refuses empty buffers
    flat = torch.frombuffer(raw, dtype=kind) if raw else torch.empty(0, dtype=kind)
    return flat.as_strided(shape, stride, offset)
