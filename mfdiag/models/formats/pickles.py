"""Pickles read without running anything in them: every class and function that a file names gets an inert stand-in.

Unpickling calls what the file names. Here a name never leads to an import: tensors become their headers, a short list
of plain containers become containers of our own, and any other name an `Opaque`, which only keeps what it is given.
"""

from __future__ import annotations

import _compat_pickle
import collections
import pathlib
import pickle
import re
from dataclasses import dataclass, field
from typing import IO, Any, NoReturn

__all__ = ["Header", "Opaque", "Pickled", "read_pickle", "stand_ins"]


@dataclass(frozen=True)
class Header:
    """A tensor without its values."""

    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class _Storage:
    dtype: str
    numel: int | None


class Opaque:
    """Stands for an object whose class, or for what a function returned whose name, is not on the list."""

    path = ""
    args: tuple[Any, ...]
    state: Any
    items_: dict[Any, Any]  # what a subclass of dict holds

    def __new__(cls, *args: Any, **_: Any) -> Opaque:
        kind = cls if isinstance(cls, type) else type(cls)  # dill makes classes by calling functions
        made = super().__new__(kind)
        made.__dict__.update(args=args, state={}, items_={})
        return made

    def __call__(self, *args: Any, **_: Any) -> Opaque:
        return type(self)(*args)

    def __setstate__(self, state: Any) -> None:
        self.__dict__["state"] = state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.items_[key] = value

    def append(self, value: Any) -> None:
        """Items of a list's subclass are not kept."""

    def extend(self, values: Any) -> None:
        """Items of a list's subclass are not kept."""


@dataclass
class Pickled:
    """What a pickle holds: `unknown` names of classes that are on no list, `storages` sizes in bytes by key."""

    tree: Any = None
    unknown: list[str] = field(default_factory=list)
    storages: dict[str, int] = field(default_factory=dict)


def read_pickle(file: IO[bytes], pickled: Pickled | None = None) -> Pickled:
    """The next pickle of `file`. Damaged bytes raise almost any exception; `pickled`, if given, is filled till then."""
    pickled = pickled or Pickled()
    pickled.tree = _Reader(file, pickled).load()
    return pickled


# The reader in Python, because the one in C allocates whatever index a file writes to its memo.
class _Reader(pickle._Unpickler):
    def __init__(self, file: IO[bytes], pickled: Pickled) -> None:
        super().__init__(file, encoding="utf-8")
        self._pickled = pickled
        self._known = stand_ins() | _torch_stand_ins()

    def find_class(self, module: str, name: str) -> Any:
        # torch.save writes protocol 2, which calls modules as Python 2 did
        module, name = _compat_pickle.NAME_MAPPING.get(
            (module, name), (_compat_pickle.IMPORT_MAPPING.get(module, module), name)
        )
        path = f"{module}.{name}"
        if path not in self._known:
            self._pickled.unknown.append(path)
            self._known[path] = type(name, (Opaque,), {"path": path})
        return self._known[path]

    def persistent_load(self, pid: Any) -> Any:
        if pid[0] == "module":  # the legacy format adds a class's source to its name
            return pid[1]
        _, dtype, key, _, numel = pid[:5]
        if numel < 0:
            raise pickle.UnpicklingError(f"a storage of {numel} numbers")
        self._pickled.storages[str(key)] = numel * _itemsize(dtype)
        return _Storage(dtype, numel)

    def get_extension(self, code: int) -> NoReturn:
        raise pickle.UnpicklingError(f"extension code {code}")


def stand_ins() -> dict[str, Any]:
    """New stand-ins for the classes beyond tensors that training scripts store and that only hold values, by name.

    They are new for each file, since a file can set attributes of the classes it names.
    """

    class Namespace:
        pass

    class Counter(collections.Counter[Any]):
        pass

    class Node:
        def __setstate__(self, state: dict[str, Any]) -> None:
            self.value = state["_val"]

    class DictConfig:
        def __setstate__(self, state: dict[str, Any]) -> None:
            content = state["_content"]
            if isinstance(content, dict):
                self.__dict__.update({str(key): getattr(value, "value", value) for key, value in content.items()})

    class Unused:
        def __setstate__(self, state: Any) -> None:
            pass

    class ndarray:
        def __setstate__(self, state: Any) -> None:
            pass

    class NumberType:
        def __init__(self, code: str, *_: Any) -> None:
            self.code, self.order = code, "="

        def __setstate__(self, state: tuple[Any, ...]) -> None:
            self.order = state[1].replace("|", "=")

    def path(*parts: str) -> pathlib.PurePosixPath:
        return pathlib.PurePosixPath(*parts)

    def array(*_: Any) -> ndarray:
        return ndarray()

    def number(kind: NumberType, raw: bytes | str) -> Any:
        import numpy as np

        if not re.fullmatch(r"[?bBhHiIlLqQefd]|[biuf][1248]", kind.code):
            return ndarray()
        raw = raw.encode("latin1") if isinstance(raw, str) else raw
        return np.frombuffer(raw, np.dtype(kind.order + kind.code))[0].item()

    builtins = (bool, bytes, bytearray, complex, dict, float, frozenset, int, list, set, str, tuple)
    flavours = ("", "Posix", "Windows", "Pure", "PurePosix", "PureWindows")
    return {
        **{f"builtins.{kind.__name__}": kind for kind in builtins},
        "omegaconf.dictconfig.DictConfig": DictConfig,
        "omegaconf.listconfig.ListConfig": type("ListConfig", (Unused,), {}),
        "omegaconf.base.ContainerMetadata": Unused,
        "omegaconf.base.Metadata": Unused,
        **{f"omegaconf.nodes.{kind}Node": Node for kind in ("Any", "Boolean", "Float", "Integer", "String")},
        "typing.Any": Unused,
        "argparse.Namespace": Namespace,
        "types.SimpleNamespace": type("SimpleNamespace", (Namespace,), {}),
        "collections.OrderedDict": collections.OrderedDict,
        "collections.defaultdict": collections.defaultdict,
        "collections.Counter": Counter,
        "_codecs.encode": lambda text, _="latin1": text.encode("latin1"),
        **{f"pathlib.{module}{flavour}Path": path for module in ("", "_local.") for flavour in flavours},
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


def _torch_stand_ins() -> dict[str, Any]:
    def tensor(storage: _Storage, offset: int, size: Any, stride: Any, *_: Any) -> Header:
        numbers = (offset, *size, *stride)
        last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
        fits = storage.numel is None or last < storage.numel or 0 in size
        if not (fits and all(type(number) is int and number >= 0 for number in numbers)):
            raise pickle.UnpicklingError(f"a tensor of shape {list(size)} that is not inside its storage")
        return Header(tuple(size), storage.dtype)

    def typed(storage: _Storage, offset: int, size: Any, stride: Any, *more: Any) -> Header:
        dtype = more[2]  # after requires_grad and hooks
        numel = None if storage.numel is None else storage.numel // _itemsize(dtype)
        return tensor(_Storage(dtype, numel), offset, size, stride)

    return {
        "torch._utils._rebuild_tensor": tensor,
        "torch._utils._rebuild_tensor_v2": tensor,
        "torch._utils._rebuild_tensor_v3": typed,
        "torch._utils._rebuild_parameter": lambda data, *_: data,
        "torch._utils._rebuild_parameter_with_state": lambda data, *_: data,
        "torch._tensor._rebuild_from_type_v2": lambda build, kind, arguments, state: build(*arguments),
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
