"""The user's own code, passed as FILE.py:name or pkg.module:name. mfdiag runs no other code from outside."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any

from mfdiag.errors import InputError
from mfdiag.inputs import note_read
from mfdiag.storage import is_file

__all__ = ["call_loaded", "call_user_factory", "code_file", "code_sha256", "is_user_code", "load_user_object"]

_NAMES_IN_ERROR = 8  # a longer list would hide the message


def is_user_code(spec: str) -> bool:
    """Whether `spec` has the form FILE.py:name or pkg.module:name, so that it cannot be a built-in name."""
    location, colon, name = spec.rpartition(":")
    return bool(colon) and name.isidentifier() and (location.endswith(".py") or "." in location)


def code_file(spec: str | None) -> Path | None:
    """The file that FILE.py:name or pkg.module:name names; None for anything else, or without a file."""
    if spec is None or not is_user_code(spec):
        return None
    location = spec.rpartition(":")[0]
    path = Path(location)
    if not location.endswith(".py"):
        with _importable(Path.cwd()), suppress(ImportError, ValueError):
            module = importlib.util.find_spec(location)
            path = Path(module.origin) if module is not None and module.origin is not None else path
    return path if is_file(path) else None


def code_sha256(spec: str | None) -> str | None:
    """SHA-256 of `code_file`, or None."""
    path = code_file(spec)
    if path is None:
        return None
    with suppress(OSError):  # no file can have such a name, or it cannot be read: loading it says so
        return hashlib.sha256(path.read_bytes()).hexdigest()
    return None


def load_user_object(spec: str, option: str) -> Any:
    """Imports the object that `FILE.py:name` or `pkg.module:name` refers to.

    The code can import modules beside FILE.py, or in the working directory. `option` is the command-line option that
    error messages mention. Raises InputError if the file, module or attribute is missing, or if the import fails.
    """
    location, colon, attribute = spec.rpartition(":")
    if not (colon and location and attribute):
        raise InputError(
            f"Expected {option} as FILE.py:factory or pkg.module:factory, but got {spec!r}. Add a colon and the name "
            "of the function."
        )
    with _importable(Path(location).resolve().parent if location.endswith(".py") else Path.cwd()):
        module = _import(location, option)
    if not hasattr(module, attribute):
        names = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
        known = ", ".join(names[:_NAMES_IN_ERROR]) or "no function or class"
        raise InputError(
            f"Expected {location} to define {attribute!r}, but it defines {known}. Use a name that exists."
        )
    return getattr(module, attribute)


def call_user_factory(spec: str, option: str, arguments: Mapping[str, Any] | None = None) -> Any:
    """Calls the callable that `spec` refers to and returns what it returns.

    Args:
        spec: FILE.py:name or pkg.module:name.
        option: The command-line option that error messages mention.
        arguments: Keyword arguments of the call; none by default.

    Returns:
        Whatever the callable returns.

    Raises:
        InputError: The object cannot be loaded, or the call raises.
    """
    return call_loaded(load_user_object(spec, option), spec, option, arguments)


def call_loaded(factory: Callable[..., Any], spec: str, option: str, arguments: Mapping[str, Any] | None = None) -> Any:
    """The same for an object that was loaded before.

    Args:
        factory: What `load_user_object` returned.
        spec: FILE.py:name or pkg.module:name, for error messages.
        option: The command-line option that error messages mention.
        arguments: Keyword arguments of the call; none by default.

    Returns:
        Whatever the callable returns.

    Raises:
        InputError: The call raises.
    """
    with _importable(Path(spec.rpartition(":")[0]).resolve().parent if ".py:" in spec else Path.cwd()):
        try:
            return factory(**arguments or {})
        except ModuleNotFoundError as error:
            raise _missing(error, spec, option) from error
        except (Exception, SystemExit) as error:
            call = f"with {', '.join(arguments)}" if arguments else "without arguments"
            raise InputError(
                f"Expected {spec} to build a value for {option} when called {call}, but it raised {_reason(error)}. "
                f"Correct the {'arguments' if arguments else 'factory'}."
            ) from error


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    path_before = list(sys.path)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path[:] = path_before


def _import(location: str, option: str) -> ModuleType:
    path = Path(location)
    own_file = is_file(path)
    if location.endswith(".py") and not own_file:
        raise InputError(f"Expected a Python file for {option}, but {path} does not exist. Check the path.")
    if own_file:
        note_read(path, kind="code")
    try:
        module = _execute(path, location)
    except ModuleNotFoundError as error:
        raise _missing(error, location, option) from error
    except (Exception, SystemExit) as error:
        raise InputError(
            f"Importing {location} for {option} failed with {_reason(error)}. Correct the code or the path."
        ) from error
    _note_modules(module, path if own_file else None)
    return module


def _reason(error: BaseException) -> str:
    """The class of an error, and its message if it has one."""
    return f"{type(error).__name__}: {error}".removesuffix(": ")


def _missing(error: ModuleNotFoundError, spec: str, option: str) -> InputError:
    return InputError(
        f"Expected to import what {spec} for {option} needs, but there is no module {error.name or error}. Install it, "
        "or put the folder that contains it on PYTHONPATH."
    )


def _execute(path: Path, location: str) -> ModuleType:
    """Runs the file, or imports the module."""
    if not location.endswith(".py"):
        return importlib.import_module(location)
    name = f"mfdiag_user_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look up their module by name
    spec.loader.exec_module(module)
    return module


def _note_modules(module: ModuleType, path: Path | None) -> None:
    """Records the files of the user's own modules: the module, unless its `path` is recorded, and those beside it."""
    if _is_own(module):
        return
    own = Path(path or getattr(module, "__file__", None) or "").resolve()
    folder = own.parents[0 if path is not None else min(module.__name__.count("."), len(own.parents) - 1)]
    for other in list(sys.modules.values()):
        file = getattr(other, "__file__", None)
        if not isinstance(file, str) or _is_own(other):
            continue
        beside = file.startswith(f"{folder}{os.sep}") and "site-packages" not in file
        if beside and (path is None or Path(file).resolve() != own):
            note_read(Path(file), kind="code")


def _is_own(module: ModuleType) -> bool:
    """Whether a module is one of mfdiag, whose version is recorded."""
    return module.__name__.partition(".")[0] == __package__
