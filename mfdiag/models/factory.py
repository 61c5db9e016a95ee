"""Networks made by the user's own code, the only code that loading a checkpoint ever runs."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from mfdiag.errors import InputError

if TYPE_CHECKING:
    from torch import nn

__all__ = ["call_factory"]


def call_factory(factory: str) -> nn.Module:
    """The network returned by `FILE.py:factory` or `pkg.module:factory`, called without arguments.

    Modules beside FILE.py, or in the working directory, can be imported by it. Raises InputError if the file, module or
    attribute is missing, if the code raises, or if something other than a torch.nn.Module is returned.
    """
    from torch import nn

    place, colon, attribute = factory.rpartition(":")
    if not (colon and place and attribute):
        raise InputError(f"Expected --model as FILE.py:factory or pkg.module:factory, but got {factory!r}.")
    with _importable(Path(place).resolve().parent if place.endswith(".py") else Path.cwd()):
        module = _import(place)
        if not hasattr(module, attribute):
            names = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
            known = ", ".join(names[:8]) or "nothing callable"
            raise InputError(f"Expected {attribute!r} in {place}, but it defines {known}; name one that exists.")
        try:
            model = getattr(module, attribute)()
        except Exception as error:
            raise InputError(
                f"Expected {factory} to return a network when called without arguments, but it raised "
                f"{type(error).__name__}: {error}; correct the factory."
            ) from error
    if not isinstance(model, nn.Module):
        raise InputError(
            f"Expected {factory} to return a torch.nn.Module, but it returned {type(model).__name__}; "
            "return the network itself."
        )
    return model


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    before = list(sys.path)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path[:] = before


def _import(place: str) -> ModuleType:
    path = Path(place)
    if place.endswith(".py") and not path.is_file():
        raise InputError(f"Expected --model to name a Python file, but {path} does not exist; check the path.")
    try:
        if not place.endswith(".py"):
            return importlib.import_module(place)
        name = f"mfdiag_model_{path.stem}"
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # dataclasses and pickling look their module up by name
        spec.loader.exec_module(module)
        return module
    except Exception as error:
        raise InputError(
            f"Importing {place} for --model failed with {type(error).__name__}: {error}; correct the code or the path."
        ) from error
