"""Files written by torch.export.save: the weights of a network, and the network itself as a list of ATen operators.

torch.export.load may unpickle objects, evaluate symbolic sizes as Python and load compiled code from the file. This
reader treats the file's JSON as data.
"""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mfdiag.errors import InputError
from mfdiag.models.formats.archives import checked_records, damaged_file
from mfdiag.models.formats.pickles import TensorHeader

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["DTYPES", "Program", "read_exported"]

# number in torch._export.serde.schema.ScalarType -> dtype
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
    """An exported network: its operators, inputs and outputs as in the file's JSON, and its constant tensors."""

    path: Path
    graph: dict[str, Any]
    signature: dict[str, Any]
    constants: dict[str, Any]

    @property
    def inputs(self) -> dict[str, list[int | None]]:
        """Name of each input of the network -> its shape; None stands for a dynamic length."""
        specs = self.signature["input_specs"][self._first_user_input :]
        names = [spec["user_input"]["arg"]["as_tensor"]["name"] for spec in specs]
        values = self.graph["tensor_values"]
        return {name: [length.get("as_int") for length in values[name]["sizes"]] for name in names}

    @property
    def has_form_of_u(self) -> bool:
        """Whether it takes three or four inputs with a batch of any length, and returns one value, as u(x, r, t, y)."""
        shapes = list(self.inputs.values())
        fits = len(shapes) in (3, 4) and all(shape and shape[0] is None for shape in shapes)
        return fits and [*map(list, self.signature["output_specs"])] == [["user_output"]]

    @property
    def _first_user_input(self) -> int:
        """Index of the first input that the caller passes; parameters, buffers and constants come before it."""
        return next(i for i, spec in enumerate(self.signature["input_specs"]) if "user_input" in spec)


def read_exported(path: Path, *, load: bool) -> tuple[dict[str, Any], Program]:
    """Read the weights and the program of a file that torch.export.save wrote.

    The weights are tensors with `load`, and else one `TensorHeader` each. Raises InputError if the file is damaged,
    was written by torch before 2.9, or holds more than one program or pickled objects.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            records = checked_records(archive, path)
            models = [name for name in records if name.startswith("models/") and name.endswith(".json")]
            if len(models) != 1:
                raise InputError(
                    f"Expected one program in {path}, but it has {len(models)}; write one file per network with "
                    "torch.export.save of torch 2.9 or later."
                )
            module = json.loads(archive.read(records[models[0]]))["graph_module"]
            name = Path(models[0]).stem
            weights, constants = (
                _payload(archive, records, f"data/{kind}/", f"{name}_{kind}_config.json", path, load)
                for kind in ("weights", "constants")
            )
        return weights, Program(path, module["graph"], module["signature"], constants)
    except InputError:
        raise
    except Exception as error:  # JSON of another form raises KeyError, TypeError, AttributeError, ...
        raise damaged_file(path, "torch.export", f"{type(error).__name__}: {error}") from error


def _payload(
    archive: zipfile.ZipFile, records: dict[str, zipfile.ZipInfo], folder: str, config: str, path: Path, load: bool
) -> dict[str, Any]:
    """The tensors, or headers, that a JSON record `config` lists."""
    tensors: dict[str, Any] = {}
    raw: dict[str, bytearray] = {}
    for name, payload in json.loads(archive.read(records[folder + config]))["config"].items():
        if payload["use_pickle"] or payload["tensor_meta"] is None:
            raise InputError(
                f"Expected plain tensors in {path}, but {name} is a pickled object; mfdiag runs no code from a file. "
                "Save model.state_dict() with torch.save and pass that file."
            )
        meta, record = payload["tensor_meta"], payload["path_name"]
        shape, stride = ([length["as_int"] for length in meta[key]] for key in ("sizes", "strides"))
        dtype = DTYPES[meta["dtype"]]
        if load and record not in raw:
            raw[record] = bytearray(archive.read(records[folder + record]))
        strided = (shape, stride, meta["storage_offset"]["as_int"])
        tensors[name] = _tensor(raw[record], dtype, *strided) if load else TensorHeader(tuple(shape), dtype)
    return tensors


def _tensor(raw: bytearray, dtype: str, shape: list[int], stride: list[int], offset: int) -> Tensor:
    import torch

    kind = getattr(torch, dtype)
    # frombuffer refuses empty buffers
    flat = torch.frombuffer(raw, dtype=kind) if raw else torch.empty(0, dtype=kind)
    return flat.as_strided(shape, stride, offset)
