"""Pickles read without running any code in them: an inert stand-in replaces every class and function they name.

Unpickling calls what a file names. This reader imports none of it: tensors become headers, plain containers of a short
list become containers defined here, and anything else becomes an `UnknownObject`, which only stores its arguments.
"""

from __future__ import annotations

import _compat_pickle
import collections
import math
import pathlib
import pickle
import re
import struct
from dataclasses import dataclass, field
from typing import IO, Any, NoReturn

__all__ = [
    "PartHeader",
    "PickleContent",
    "Record",
    "TensorHeader",
    "UnknownObject",
    "number_in",
    "read_pickle",
    "value_stand_ins",
]


_MAX_NUMBERS = 1000  # tensors of shape () whose values are read: more are counters of layers, not of averages


@dataclass(frozen=True)
class TensorHeader:
    """Shape and dtype of a tensor whose values are not read, except the `value` of some tensors of shape ()."""

    shape: tuple[int, ...]
    dtype: str
    value: int | float | bool | None = field(default=None, compare=False)

    def item(self) -> int | float | bool | None:
        """As of a tensor; None if the number was not read."""
        return self.value


@dataclass(frozen=True)
class _Storage:
    dtype: str
    numel: int | None
    key: str = ""


@dataclass(frozen=True)
class PartHeader(TensorHeader):
    """Header of a distributed tensor of which a file holds a part; `shape` is that of the whole tensor.

    `local_shape` is the shape of the part, `coordinate` the place of its process on each axis of the mesh, `placements`
    the kind and tensor axis on each of them, and `processes` the number of all processes, or None.
    """

    local_shape: tuple[int, ...] = ()
    coordinate: tuple[int, ...] = ()
    placements: tuple[tuple[str, int | None], ...] = ()
    processes: int | None = None


class UnknownObject:
    """Replaces an object of a class that has no stand-in, or the result of a function that has none."""

    path = ""
    args: tuple[Any, ...]
    state: Any
    dict_items: dict[Any, Any]  # of an object whose class is a subclass of dict

    def __new__(cls, *args: Any, **_: Any) -> UnknownObject:
        kind = cls if isinstance(cls, type) else type(cls)  # dill makes classes by calling functions
        instance = super().__new__(kind)
        instance.__dict__.update(args=args, state={}, dict_items={})
        return instance

    def __call__(self, *args: Any, **_: Any) -> UnknownObject:
        return type(self)(*args)

    def __setstate__(self, state: Any) -> None:
        self.__dict__["state"] = state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.dict_items[key] = value

    def append(self, value: Any) -> None:
        """Ignore an item of a subclass of list."""

    def extend(self, values: Any) -> None:
        """Ignore the items of a subclass of list."""


class Record:
    """Replaces an object of a class that the caller knows to hold only values: `args` of its call, and attributes."""

    args: tuple[Any, ...]
    state: Any

    def __new__(cls, *args: Any, **_: Any) -> Record:
        instance = super().__new__(cls)
        instance.__dict__.update(args=args, state=None)
        return instance

    def __setstate__(self, state: Any) -> None:
        self.__dict__.update(state if isinstance(state, dict) else {"state": state})

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"no field {name}")


@dataclass
class PickleContent:
    """What a pickle holds: its value, the names that have no stand-in, and the bytes of each storage by its key.

    `records` are names of classes that become a `Record`. Names of the modules `ignored`, and below them, become
    objects that only store their arguments, without being listed in `unknown`; `stand_ins` are their classes.

    `numbers` are the tensors of shape (), with the key of their storage and the first byte in it.

    `parts` describes the distributed tensors of which the file holds only a part, and `distributed` says whether it
    holds any distributed tensor.
    """

    records: frozenset[str] = frozenset()
    ignored: tuple[str, ...] = ()
    stand_ins: dict[str, Any] = field(default_factory=dict)
    numbers: list[tuple[TensorHeader, str, int]] = field(default_factory=list)
    tree: Any = None
    unknown: list[str] = field(default_factory=list)
    storages: dict[str, int] = field(default_factory=dict)
    parts: list[str] = field(default_factory=list)
    distributed: bool = False


def read_pickle(file: IO[bytes], pickled: PickleContent | None = None) -> PickleContent:
    """Read the next pickle of `file` into `pickled`, or into a new object.

    Damaged bytes raise almost any exception; `pickled` then holds what was read before them.
    """
    pickled = pickled or PickleContent()
    pickled.tree = _Unpickler(file, pickled).load()
    return pickled


# The unpickler in Python, because the one in C allocates memory for any memo index that a file writes.
class _Unpickler(pickle._Unpickler):
    def __init__(self, file: IO[bytes], pickled: PickleContent) -> None:
        super().__init__(file, encoding="utf-8")
        self._pickled = pickled
        self._stand_ins = value_stand_ins() | _torch_stand_ins(pickled) | _distributed_stand_ins(pickled)
        self._stand_ins["builtins.getattr"] = self._enum_member

    def find_class(self, module: str, name: str) -> Any:
        # torch.save writes protocol 2, which calls modules as Python 2 did
        module, name = _compat_pickle.NAME_MAPPING.get(
            (module, name), (_compat_pickle.IMPORT_MAPPING.get(module, module), name)
        )
        path = f"{module}.{name}"
        if path not in self._stand_ins:
            self._stand_ins[path] = self._stand_in(path, name)
        return self._stand_ins[path]

    def _enum_member(self, owner: Any, name: Any = None, *rest: Any) -> Any:
        """A member of an enumeration, which some versions of Python pickle as getattr(class, name). Nothing is read."""
        if isinstance(owner, type) and issubclass(owner, Record | UnknownObject) and isinstance(name, str) and not rest:
            return owner(name)
        self._pickled.unknown.append("builtins.getattr")
        return UnknownObject(owner, name)

    def _stand_in(self, path: str, name: str) -> Any:
        if path in self._pickled.records:
            return type(name, (Record,), {})
        stand_in = type(name, (UnknownObject,), {"path": path})
        if path.startswith(tuple(f"{module}." for module in self._pickled.ignored)):
            self._pickled.stand_ins[path] = stand_in
        else:
            self._pickled.unknown.append(path)
        return stand_in

    def persistent_load(self, pid: Any) -> Any:
        if pid[0] == "module":  # the legacy format stores the source of a class beside its name
            return pid[1]
        _, dtype, key, _, numel = pid[:5]
        if numel < 0:
            raise pickle.UnpicklingError(f"a storage of {numel} numbers")
        self._pickled.storages[str(key)] = numel * _itemsize(dtype)
        return _Storage(dtype, numel, str(key))

    def get_extension(self, code: int) -> NoReturn:
        raise pickle.UnpicklingError(f"extension code {code}")


def value_stand_ins() -> dict[str, Any]:
    """Name -> stand-in, for classes other than tensors that training scripts store and that only hold values.

    Call it once per file: a file can set attributes of the classes it names, so stand-ins must not be shared.
    """
    return _python_stand_ins() | _omegaconf_stand_ins() | _numpy_stand_ins()


def _python_stand_ins() -> dict[str, Any]:
    class Namespace:
        pass

    class Counter(collections.Counter[Any]):
        pass

    def path(*parts: str) -> pathlib.PurePosixPath:
        return pathlib.PurePosixPath(*parts)

    builtins = (bool, bytes, bytearray, complex, dict, float, frozenset, int, list, set, str, tuple)
    flavours = ("", "Posix", "Windows", "Pure", "PurePosix", "PureWindows")
    return {
        **{f"builtins.{kind.__name__}": kind for kind in builtins},
        "argparse.Namespace": Namespace,
        "types.SimpleNamespace": type("SimpleNamespace", (Namespace,), {}),
        "collections.OrderedDict": collections.OrderedDict,
        "collections.defaultdict": collections.defaultdict,
        "collections.Counter": Counter,
        "_codecs.encode": lambda text, _="latin1": text.encode("latin1"),
        **{f"pathlib.{module}{flavour}Path": path for module in ("", "_local.") for flavour in flavours},
    }


def _omegaconf_stand_ins() -> dict[str, Any]:
    class Node:
        def __setstate__(self, state: dict[str, Any]) -> None:
            self.value = state["_val"]

    class DictConfig:
        def __setstate__(self, state: dict[str, Any]) -> None:
            content = state["_content"]
            if isinstance(content, dict):
                self.__dict__.update({str(key): getattr(value, "value", value) for key, value in content.items()})

    class Ignored:
        def __setstate__(self, state: Any) -> None:
            pass

    return {
        "omegaconf.dictconfig.DictConfig": DictConfig,
        "omegaconf.listconfig.ListConfig": type("ListConfig", (Ignored,), {}),
        "omegaconf.base.ContainerMetadata": Ignored,
        "omegaconf.base.Metadata": Ignored,
        **{f"omegaconf.nodes.{kind}Node": Node for kind in ("Any", "Boolean", "Float", "Integer", "String")},
        "typing.Any": Ignored,  # in the metadata of nodes
    }


def _numpy_stand_ins() -> dict[str, Any]:
    class ndarray:
        def __setstate__(self, state: Any) -> None:
            pass

    class NumberType:
        def __init__(self, code: str, *_: Any) -> None:
            self.code, self.order = code, "="

        def __setstate__(self, state: tuple[Any, ...]) -> None:
            self.order = state[1].replace("|", "=")

    def array(*_: Any) -> ndarray:
        return ndarray()

    def number(kind: NumberType, raw: bytes | str) -> Any:
        import numpy as np

        if not re.fullmatch(r"[?bBhHiIlLqQefd]|[biuf][1248]", kind.code):
            return ndarray()
        raw = raw.encode("latin1") if isinstance(raw, str) else raw
        return np.frombuffer(raw, np.dtype(kind.order + kind.code))[0].item()

    return {
        **{f"numpy.{core}.multiarray.scalar": number for core in ("core", "_core")},
        **{f"numpy.{core}.multiarray._reconstruct": array for core in ("core", "_core")},
        **{f"numpy.{core}.numeric._frombuffer": array for core in ("core", "_core")},
        "numpy.ndarray": ndarray,
        "numpy.dtype": NumberType,
    }


_STORAGES = {
    "Double": "float64",
    "Float": "float32",
    "Half": "float16",
    "BFloat16": "bfloat16",
    "Long": "int64",
    "Int": "int32",
    "Short": "int16",
    "Char": "int8",
    "Byte": "uint8",
    "Bool": "bool",
    "ComplexDouble": "complex128",
    "ComplexFloat": "complex64",
}
_DTYPES = (
    *_STORAGES.values(),
    *("uint16", "uint32", "uint64", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz"),
)


def _itemsize(dtype: str) -> int:
    bits = re.search(r"\d+", dtype)
    return int(bits.group()) // 8 if bits else 1


_FORMATS = {  # of a number in the bytes of a storage
    **{"int64": "<q", "int32": "<i", "int16": "<h", "int8": "<b", "uint8": "<B", "bool": "<?"},
    **{"float64": "<d", "float32": "<f", "float16": "<e"},
}


def number_in(raw: bytes, dtype: str) -> int | float | bool | None:
    """The first number in the bytes of a storage; None for a dtype that Python has not."""
    return struct.unpack_from(_FORMATS[dtype], raw)[0] if dtype in _FORMATS else None


def _torch_stand_ins(pickled: PickleContent) -> dict[str, Any]:
    def tensor(storage: _Storage, offset: int, size: Any, stride: Any, *_: Any) -> TensorHeader:
        numbers = (offset, *size, *stride)
        last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
        fits = storage.numel is None or last < storage.numel or 0 in size
        if not (fits and all(type(number) is int and number >= 0 for number in numbers)):
            raise pickle.UnpicklingError(f"a tensor of shape {list(size)} that is not inside its storage")
        header = TensorHeader(tuple(size), storage.dtype)
        if not size and storage.key and len(pickled.numbers) < _MAX_NUMBERS:
            pickled.numbers.append((header, storage.key, offset * _itemsize(storage.dtype)))
        return header

    def typed_tensor(storage: _Storage, offset: int, size: Any, stride: Any, *more: Any) -> TensorHeader:
        dtype = more[2]  # after requires_grad and hooks
        numel = None if storage.numel is None else storage.numel // _itemsize(dtype)
        return tensor(_Storage(dtype, numel), offset, size, stride)

    return {
        "torch._utils._rebuild_tensor": tensor,
        "torch._utils._rebuild_tensor_v2": tensor,
        "torch._utils._rebuild_tensor_v3": typed_tensor,
        "torch._utils._rebuild_parameter": lambda data, *_: data,
        "torch._utils._rebuild_parameter_with_state": lambda data, *_: data,
        "torch.Tensor": type("Tensor", (), {}),
        "torch.nn.parameter.Parameter": type("Parameter", (), {}),
        "torch.Size": tuple,
        "torch.device": lambda *place: ":".join(map(str, place)),
        "torch.serialization._get_layout": str,
        "torch.storage._load_from_bytes": lambda raw: _Storage("unknown", None),
        "torch.storage.UntypedStorage": "uint8",
        **{f"torch.{name}Storage": dtype for name, dtype in _STORAGES.items()},
        **{f"torch.{dtype}": dtype for dtype in _DTYPES},
    }


def _distributed_stand_ins(pickled: PickleContent) -> dict[str, Any]:
    """Stand-ins for a DTensor: its header is that of its local tensor, which must be all of it."""

    class Inert:
        state: Any = None

        def __setstate__(self, state: Any) -> None:
            self.state = state

    class Whole:
        def __init__(self, kind: Any, dtype: str, size: Any, *_: Any) -> None:
            self.size = tuple(size)

    def from_type(build: Any, kind: Any, arguments: Any, state: Any) -> Any:
        tensor = build(*arguments)
        if not isinstance(tensor, Whole):
            return tensor
        pickled.distributed = True
        parts = state if isinstance(state, tuple) else (state,)
        attributes = {name: value for part in parts if isinstance(part, dict) for name, value in part.items()}
        local = attributes.get("_local_tensor")
        if not isinstance(local, TensorHeader):
            raise pickle.UnpicklingError("a distributed tensor without its local tensor")
        if local.shape == tensor.size:
            return TensorHeader(tensor.size, local.dtype)
        pickled.parts.append(f"{list(local.shape)} of {list(tensor.size)}")
        return _part(tensor.size, local, attributes.get("_spec"))

    names = (
        "tensor.DTensor",
        *(f"tensor._dtensor_spec.{name}" for name in ("DTensorSpec", "TensorMeta", "ShardOrderEntry")),
        *(f"tensor.placement_types.{name}" for name in ("Shard", "_StridedShard", "Replicate", "Partial")),
        *("device_mesh.DeviceMesh", "_mesh_layout._MeshLayout", "_mesh_layout._FlatLayout"),
    )

    def inert(name: str) -> type:
        # accepts the arguments of tuples, such as TensorMeta
        return type(name, (Inert,), {"__new__": lambda cls, *_: object.__new__(cls)})

    return {
        "torch._tensor._rebuild_from_type_v2": from_type,
        "torch._utils._rebuild_wrapper_subclass": Whole,
        **{f"torch.distributed.{name}": inert(name.rpartition(".")[2]) for name in names},
    }


def _part(size: tuple[int, ...], local: TensorHeader, spec: Any) -> PartHeader:
    """The header of a part, from what torch pickles of its mesh; a version that pickles less leaves fields empty."""
    fields = _state_of(spec)
    mesh = _state_of(fields.get("mesh"))
    placements = tuple(
        (type(placement).__name__, _state_of(placement).get("dim")) for placement in fields.get("placements") or ()
    )
    ranks = mesh.get("_rank_map", mesh.get("_mesh", mesh.get("mesh")))
    processes = math.prod(ranks.shape) if isinstance(ranks, TensorHeader) else None
    coordinate = tuple(mesh.get("_coordinate_on_dim") or ())
    return PartHeader(size, local.dtype, None, local.shape, coordinate, placements, processes)


def _state_of(value: Any) -> dict[str, Any]:
    state = getattr(value, "state", None)
    return state if isinstance(state, dict) else {}
