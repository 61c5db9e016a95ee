"""The user's own code, named FILE.py:name or pkg.module:name: the only code from outside that mfdiag ever runs."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from mfdiag.errors import InputError

__all__ = ["call_user", "find_user", "is_user_code"]


def is_user_code(spec: str) -> bool:
    """Whether `spec` has the form FILE.py:name or pkg.module:name, and so cannot be a registered name."""
    place, colon, name = spec.rpartition(":")
    return bool(colon) and name.isidentifier() and (place.endswith(".py") or "." in place)


def find_user(spec: str, option: str) -> Any:
    """What `FILE.py:name` or `pkg.module:name` names.

    Modules beside FILE.py, or in the working directory, can be imported by it; `option` names it in errors. Raises
    InputError if the file, module or attribute is missing, or if the code raises.
    """
    place, colon, attribute = spec.rpartition(":")
    if not (colon and place and attribute):
        raise InputError(f"Expected {option} as FILE.py:factory or pkg.module:factory, but got {spec!r}.")
    with _importable(Path(place).resolve().parent if place.endswith(".py") else Path.cwd()):
        module = _import(place, option)
    if not hasattr(module, attribute):
        names = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
        known = ", ".join(names[:8]) or "nothing callable"
        raise InputError(f"Expected {attribute!r} in {place}, but it defines {known}; name one that exists.")
    return getattr(module, attribute)


def call_user(spec: str, option: str, arguments: Mapping[str, Any] | None = None) -> Any:
    """What the callable that `find_user` finds returns for these keyword arguments; InputError if it raises."""
    factory = find_user(spec, option)
    with _importable(Path(spec.rpartition(":")[0]).resolve().parent if ".py:" in spec else Path.cwd()):
        try:
            return factory(**arguments or {})
        except Exception as error:
            called = f"with {', '.join(arguments)}" if arguments else "without arguments"
            raise InputError(
                f"Expected {spec} to return something for {option} when called {called}, but it raised "
                f"{type(error).__name__}: {error}; correct the {'arguments' if arguments else 'factory'}."
            ) from error


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    before = list(sys.path)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path[:] = before


def _import(place: str, option: str) -> ModuleType:
    path = Path(place)
    if place.endswith(".py") and not path.is_file():
        raise InputError(f"Expected {option} to name a Python file, but {path} does not exist; check the path.")
    try:
        if not place.endswith(".py"):
            return importlib.import_module(place)
        name = f"mfdiag_user_{path.stem}"
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # dataclasses and pickling look their module up by name
        spec.loader.exec_module(module)
        return module
    except Exception as error:
        raise InputError(
            f"Importing {place} for {option} failed with {type(error).__name__}: {error}; correct the code or the path."
        ) from error
