"""Data sets of the user's own code: `FILE.py:factory[:key=value,...]`, whose items are read once, in order."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mfdiag.errors import InputError, did_you_mean, first_line, is_out_of_memory
from mfdiag.flow.data.condition_arrays import select_conditions
from mfdiag.flow.data.file_sources import ARCHIVES
from mfdiag.flow.data.files import (
    READERS,
    ArrayRoles,
    StoredArrays,
    array_names,
    as_numpy,
    validated_labels,
    validated_points,
)
from mfdiag.usercode import call_user_factory, code_sha256

__all__ = ["USER_KEYS", "Advance", "UserSpec", "is_user_data", "parse_user_data", "read_items", "read_user_data"]

USER_KEYS = {
    "limit": "the number of items to read",
    "scale": "a number",
    "mean": "numbers separated by /, one for all channels or one for each",
    "std": "numbers separated by /, one for all channels or one for each",
    "labels": "none",
    "samples": "the name of the samples in items that are dictionaries",
    "conditions": "names in items that are dictionaries, separated by /, or none",
}
_MOST_BYTES = 2**32  # that are read without a limit
_MOST_ITEMS = 2**22  # likewise, where the number of items is not known
_READ_TWICE = 4  # items

Advance = Callable[[int, int], None]
"""(items read, items in all, or 0 if that is not known)."""


class UserSpec(NamedTuple):
    """`FILE.py:factory` or `pkg.module:factory`, and the keys after it."""

    code: str
    options: dict[str, str]


def is_user_data(spec: str) -> bool:
    """Whether a specification of data names code, and not a built-in data set or a file."""
    match = re.fullmatch(r"([^:]+):([A-Za-z_]\w*)(:.*)?", spec)
    if match is None or Path(match[1]).suffix.lower() in (*READERS, *ARCHIVES, ".json"):
        return False
    return match[1].endswith(".py") or bool(re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+", match[1]))


def parse_user_data(spec: str) -> UserSpec:
    """Code and keys of a specification. Raises InputError for an unknown or repeated key, or an invalid value."""
    place, name, *text = spec.split(":", 2)
    options: dict[str, str] = {}
    for piece in text[0].split(",") if text and text[0] else []:
        key, _, value = (part.strip() for part in piece.partition("="))
        if key not in USER_KEYS:
            raise did_you_mean("key of a data set by code", key, USER_KEYS)
        if key in options or not value or (key == "labels" and value != "none"):
            raise InputError(f"Bad {spec!r}: expected {key}= once, as {USER_KEYS[key]}, got {piece!r}.")
        options[key] = value
    if "limit" in options and not (options["limit"].isdecimal() and int(options["limit"])):
        raise InputError(f"Bad {spec!r}: limit must be a whole number of at least 1, got {options['limit']!r}.")
    return UserSpec(f"{place}:{name}", options)


def read_user_data(spec: str, needed: Sequence[str] = (), advance: Advance | None = None) -> StoredArrays:
    """Samples, labels and conditions of a data set that the user's code makes.

    The factory is called twice, and the first items of both results are compared, so that a data set in random order
    or with random items is not measured. The latest result serves further checkpoints of the same run.

    Args:
        spec: The specification.
        needed: Names of the conditions that the network takes.
        advance: Receives progress.

    Returns:
        What the items hold; `beside` are the conditions.

    Raises:
        InputError: The code fails, or its items are random, or are no samples of one shape.
    """
    code = parse_user_data(spec).code
    key = (spec, tuple(needed), Path.cwd(), code_sha256(code))
    if key not in _latest:
        arrays = _read_by_code(spec, needed, advance)
        _latest.clear()
        _latest[key] = arrays
    return _latest[key]


_latest: dict[Any, StoredArrays] = {}


def _read_by_code(spec: str, needed: Sequence[str], advance: Advance | None) -> StoredArrays:
    """As `read_user_data`."""
    code, options = parse_user_data(spec)
    roles = ArrayRoles.of(options, () if "conditions" in options else needed)
    limit = int(options["limit"]) if "limit" in options else None
    first = _first_items(call_user_factory(code, "--data"), code, limit, roles)
    source = call_user_factory(code, "--data")
    second = _first_items(source, code, limit, roles)
    if not _equal(first, second):
        raise InputError(
            f"Expected {code} to make the same items in the same order each time, but two calls gave different first "
            "items: it shuffles or draws random numbers. Seed it, and switch off shuffling and augmentation."
        )
    if isinstance(source, Iterator):  # its first items are gone
        source = call_user_factory(code, "--data")
    arrays = read_items(source, code, roles, limit, advance)
    return arrays._replace(labels=None) if options.get("labels") == "none" else arrays


def read_items(
    source: Any,
    name: str,
    roles: ArrayRoles = ArrayRoles(),
    limit: int | None = None,
    advance: Advance | None = None,
) -> StoredArrays:
    """Samples, labels and conditions of a data set in memory.

    Args:
        source: An array or tensor [N, ...], a tuple of them (samples, labels), a mapping of them by name; or a
            torch.utils.data.Dataset or another iterable of items, which are samples, (sample, label), or mappings with
            a sample, a label and conditions by name.
        name: What errors call it.
        roles: Which name of a mapping is what, where names do not tell.
        limit: The number of items to read; None reads all.
        advance: Receives progress.

    Returns:
        What the items hold; `beside` are the conditions.

    Raises:
        InputError: Items are no samples of one shape.
    """
    if type(source).__name__ == "DataLoader":
        raise InputError(f"Expected single items from {name}, but it makes a DataLoader. Return its dataset instead.")
    whole = _whole_arrays(source, name)
    arrays = _collected(source, name, roles, limit, advance) if whole is None else whole
    arrays = {key: values[:limit] for key, values in arrays.items()} if whole is not None else arrays
    location = Path(name)
    data, label = array_names(location, arrays.keys(), roles)
    points = validated_points(as_numpy(arrays[data]), location)
    if label is not None and as_numpy(arrays[label]).size != len(points):
        raise InputError(
            f"Expected one class number for each of {len(points):,} samples of {name}, but {label} has the shape "
            f"{list(as_numpy(arrays[label]).shape)}. Return (sample, {{NAME: values}}) with the name of the network's "
            "parameter for arrays that are no labels."
        )
    labels = None if label is None else validated_labels(as_numpy(arrays[label]), len(points), location)
    beside = {key: values for key, values in arrays.items() if key not in (data, label)}
    return StoredArrays(
        points, labels, select_conditions(beside, roles.conditions, roles.needed, len(points), location)
    )


def _whole_arrays(source: Any, name: str) -> dict[str, Any] | None:
    """The arrays of a source that holds them whole, by name; None for a source of items."""
    if _is_array(source):
        return {"x": source}
    if isinstance(source, tuple) and source and all(map(_is_array, source)):
        return dict(_named_parts(source, name))
    if isinstance(source, Mapping):
        arrays = _flat(source, name)
        return {key: values if _is_array(values) else np.asanyarray(values) for key, values in arrays.items()}
    return None


def _is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray) or (hasattr(value, "detach") and hasattr(value, "numpy"))


def _named_parts(item: Sequence[Any], name: str) -> Iterator[tuple[str, Any]]:
    """The parts of (sample,), (sample, label) or (sample, conditions) by name."""
    if len(item) > 2:
        raise InputError(
            f"Expected (sample, label) from {name}, but it makes {len(item)} parts. Return a dictionary with a name "
            "for each, such as {'x': ..., 'obs': ...}."
        )
    yield "x", item[0]
    if len(item) == 2:
        if isinstance(item[1], Mapping):
            yield from _flat(item[1], name).items()
        else:
            yield "y", item[1]


def _flat(mapping: Mapping[Any, Any], name: str) -> dict[str, Any]:
    """The entries of nested mappings under names with dots, such as obs.state."""
    flat: dict[str, Any] = {}
    for key, value in mapping.items():
        if isinstance(value, Mapping):
            flat |= {f"{key}.{inner}": entry for inner, entry in _flat(value, name).items()}
        else:
            flat[str(key)] = value
    return flat


def _parts(item: Any, name: str, roles: ArrayRoles) -> dict[str, np.ndarray]:
    """An item as arrays by name. What is no number is left out if the conditions are selected by name."""
    if hasattr(item, "_asdict"):
        item = item._asdict()
    if isinstance(item, Mapping):
        parts = _flat(item, name)
    else:
        parts = dict(_named_parts(item, name)) if isinstance(item, tuple | list) else {"x": item}
    arrays = {}
    for key, value in parts.items():
        array = as_numpy(value) if hasattr(value, "detach") else np.asarray(value)
        if array.dtype.kind in "biuf":
            arrays[key] = array
        elif roles.conditions is None or key in roles.apart:
            raise InputError(
                f"Expected numbers in {key!r} of the items of {name}, but got a {type(value).__name__}. Convert it to "
                "a tensor in the data set, or select others with conditions=NAME/NAME, or none."
            )
    return arrays


def _items(source: Any, name: str, limit: int | None) -> tuple[Iterator[Any], int]:
    """The items in order, and their number (0 if it is not known)."""
    try:
        count = len(source)
    except (TypeError, NotImplementedError):
        count = 0
    iterable = any(base.__name__ == "IterableDataset" for base in type(source).__mro__)
    if count and hasattr(source, "__getitem__") and not iterable:
        count = min(count, limit or count)
        return (source[i] for i in range(count)), count
    if not isinstance(source, Iterable) and not hasattr(source, "__getitem__"):
        raise InputError(
            f"Expected a data set from {name}, but it makes a {type(source).__name__}. Return a torch Dataset, an "
            "iterable of items, or tensors."
        )
    return islice(iter(source), limit), limit if limit and not count else count


def _first_items(source: Any, name: str, limit: int | None, roles: ArrayRoles) -> list[dict[str, np.ndarray]]:
    """The first items, and for a data set with a length also the last; whole arrays count as one item."""
    whole = _whole_arrays(source, name)
    if whole is not None:
        return [{key: as_numpy(values)[:_READ_TWICE] for key, values in whole.items()}]
    with _errors_of(name):
        items, count = _items(source, name, limit)
        first = [_parts(item, name, roles) for item in islice(items, _READ_TWICE)]
        if count > _READ_TWICE and not isinstance(items, islice):  # read by number
            first += [_parts(source[i], name, roles) for i in (count // 2, count - 1)]
    return first


def _collected(
    source: Any, name: str, roles: ArrayRoles, limit: int | None, advance: Advance | None
) -> dict[str, np.ndarray]:
    """The items' arrays by name, [N, ...] each."""
    columns: dict[str, list[np.ndarray]] = {}
    read, size = 0, 0
    with _errors_of(name):
        items, count = _items(source, name, limit)
        for item in items:
            parts = _parts(item, name, roles)
            if not read:
                columns = {key: [] for key in parts}
            for key in parts.keys() ^ columns.keys():
                raise InputError(f"Expected {key!r} in all items of {name} or in none, but item {read} differs.")
            for key, array in parts.items():
                _require_alike(key, array, columns[key], name)
                columns[key].append(array)
                size += array.nbytes
            read += 1
            if limit is None and (size > _MOST_BYTES or (not count and read >= _MOST_ITEMS)):
                raise InputError(
                    f"Expected {name} to end, but it has made {read:,} items ({size / 2**30:.1f} GiB). Add "
                    "limit=NUMBER to --data, or write arrays to disk and pass their path."
                )
            if advance is not None:
                advance(read, count)
    if not read:
        raise InputError(f"Expected items from {name}, but it makes none.")
    return {key: np.stack(arrays) for key, arrays in columns.items()}


def _require_alike(key: str, array: np.ndarray, column: Sequence[np.ndarray], name: str) -> None:
    """InputError if an item has another shape or kind of numbers than the first one."""
    if column and (array.shape, array.dtype.kind) != (column[0].shape, column[0].dtype.kind):
        raise InputError(
            f"Expected items of one shape and type from {name}, but {key!r} is {array.dtype} {list(array.shape)} in "
            f"item {len(column)} and {column[0].dtype} {list(column[0].shape)} in item 0. Pad them to one length and "
            "add a mask."
        )


class _errors_of:
    """Turns what the user's data set raises into InputError."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        passes = error is None or isinstance(error, InputError) or is_out_of_memory(error)
        if isinstance(error, Exception | SystemExit) and not passes:
            raise InputError(
                f"Reading items of {self.name} failed with {type(error).__name__}: {first_line(error)}. Correct the "
                "data set."
            ) from error


def _equal(first: Sequence[Mapping[str, np.ndarray]], second: Sequence[Mapping[str, np.ndarray]]) -> bool:
    """Whether two lists of items are the same, bit by bit."""
    if [item.keys() for item in first] != [item.keys() for item in second]:
        return False
    pairs = [(a[key], b[key]) for a, b in zip(first, second, strict=True) for key in a]
    return all(a.dtype == b.dtype and np.array_equal(a, b, equal_nan=a.dtype.kind == "f") for a, b in pairs)
