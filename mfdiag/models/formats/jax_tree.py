"""Trees of JAX parameters as sets of weights: nested mappings become tensors with dotted names."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mfdiag.errors import InputError
from mfdiag.models.formats.pickles import TensorHeader

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["JAX_EXTRA", "as_sets", "known_dtype", "tensor_of"]

JAX_EXTRA = "pip install 'mfdiag[jax]'"

_PARAMETERS = re.compile(r"(^|_)(params|parameters)(_|$)|^(target|batch_stats)$")
_VALUE = ".value"  # flax.nnx stores each variable as a mapping with this one entry
_MAX_DEPTH = 100  # modules are nested less deeply
_DTYPES = frozenset(
    {
        *("bool", "float16", "bfloat16", "float32", "float64", "complex64", "complex128"),
        *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)),
        *("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz"),
    }
)


def as_sets(tree: Any, path: Path) -> dict[str, Any]:
    """A tree of nested mappings as a checkpoint's outermost mapping, in which sets of weights are flat.

    Parameters are the mappings whose names say so (`params`, `ema_params`), wherever they are. Without such a name, a
    tree of arrays alone is one set. Optimizer states and the like stay as they are.

    Args:
        tree: Mappings down to tensors, `TensorHeader`s and plain values.
        path: The file, for errors.

    Returns:
        The mapping.

    Raises:
        InputError: If the tree is no mapping, or is nested too deeply.
    """
    if not isinstance(tree, Mapping):
        raise InputError(
            f"Expected a mapping of parameters in {path}, but it holds one {type(tree).__name__}; save a dictionary."
        )
    sets = _with_flat_sets(tree, path, 0)
    if sets is None:
        flat = dict(_leaves(tree, "", path, 0))
        is_bare = all(_is_array(value) for value in flat.values())
        return _without_value(flat) if is_bare else {str(name): value for name, value in tree.items()}
    return sets


def _with_flat_sets(tree: Mapping[Any, Any], path: Path, depth: int) -> dict[str, Any] | None:
    """The tree with its sets of parameters flat; None if it has none."""
    _check_depth(depth, path)
    result: dict[str, Any] = {}
    has_sets = False
    for name, value in tree.items():
        inner: Any = None
        if isinstance(value, Mapping):
            is_set = _PARAMETERS.search(str(name)) is not None
            inner = _without_value(dict(_leaves(value, "", path, depth))) if is_set else None
            inner = _with_flat_sets(value, path, depth + 1) if inner is None else inner
        has_sets = has_sets or inner is not None
        result[str(name)] = value if inner is None else inner
    return result if has_sets else None


def _leaves(tree: Mapping[Any, Any], place: str, path: Path, depth: int) -> Iterator[tuple[str, Any]]:
    """Dotted name and value of everything below a mapping; empty entries of modules without parameters are left out."""
    _check_depth(depth, path)
    for name, value in tree.items():
        dotted = f"{place}.{name}" if place else str(name)
        if isinstance(value, Mapping):
            yield from _leaves(value, dotted, path, depth + 1)
        elif value is not None:
            yield dotted, value


def _check_depth(depth: int, path: Path) -> None:
    if depth > _MAX_DEPTH:
        raise InputError(
            f"Expected at most {_MAX_DEPTH} levels of modules in {path}, but it has more; save the parameters alone."
        )


def _without_value(flat: dict[str, Any]) -> dict[str, Any]:
    if flat and all(name.endswith(_VALUE) for name in flat):
        return {name.removesuffix(_VALUE): value for name, value in flat.items()}
    return flat


def _is_array(value: Any) -> bool:
    return hasattr(value, "shape") and hasattr(value, "dtype")


def known_dtype(name: str, path: Path) -> str:
    """The name of a dtype that torch has too. Raises InputError for any other, such as one of Python objects."""
    if name not in _DTYPES:
        raise InputError(
            f"Expected arrays of numbers in {path}, but one has the dtype {name!r}; save it in another, as float32."
        )
    return name


def tensor_of(data: bytes, shape: tuple[int, ...], dtype: str, *, load: bool) -> Tensor | TensorHeader:
    """A tensor from its bytes.

    Args:
        data: The bytes of its numbers in row-major order, as many as it needs.
        shape: Its shape.
        dtype: The name of its dtype, as `known_dtype` returns it.
        load: Whether to make the tensor.

    Returns:
        The tensor, or its header without `load`.
    """
    if not load:
        return TensorHeader(shape, dtype)
    import torch

    kind = getattr(torch, dtype)
    if not data:
        return torch.empty(shape, dtype=kind)
    return torch.frombuffer(bytearray(data), dtype=kind).reshape(shape)
