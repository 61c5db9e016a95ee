"""Plugins: one file of a package's folder each (estimators, tables, metrics, figures), or an entry point."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from functools import cache
from importlib.metadata import entry_points
from typing import Any, TypeVar

from mfdiag.errors import InputError

__all__ = ["files_of", "installed"]

T = TypeVar("T")


def files_of(package: str, attribute: str) -> Iterator[Any]:
    """The value of `attribute` in each public module of `package`, in alphabetical order.

    Modules that start with an underscore and subpackages hold no plugins.
    """
    path = importlib.import_module(package).__path__
    for name in sorted(m.name for m in pkgutil.iter_modules(path) if not m.ispkg and not m.name.startswith("_")):
        yield getattr(importlib.import_module(f"{package}.{name}"), attribute)


@cache
def installed(group: str, kind: type[T], taken: frozenset[str]) -> tuple[T, ...]:
    """Plugins that other packages register under the entry point group `group`.

    Args:
        group: Name of the group, such as mfdiag.estimators.
        kind: Type that each entry point must refer to; its instances have a `name`.
        taken: Names that are already used.

    Returns:
        The plugins, by name of their entry point.

    Raises:
        InputError: An entry point cannot be loaded, is of another type, or uses a name twice.
    """
    plugins: dict[str, T] = {}
    for entry in sorted(entry_points(group=group), key=lambda entry: entry.name):
        place = f"The entry point {entry.name} = {entry.value} of {group}"
        try:
            plugin = entry.load()
        except Exception as error:  # whatever the other package raises
            raise InputError(
                f"{place} cannot be loaded: {type(error).__name__}: {error}; correct or uninstall its package."
            ) from error
        name = getattr(plugin, "name", None)
        if not isinstance(plugin, kind) or name in taken | plugins.keys():
            article = "an" if kind.__name__[0] in "AEIOU" else "a"
            actual = f"the name {name!r} again" if isinstance(plugin, kind) else type(plugin).__name__
            raise InputError(
                f"{place} must name {article} {kind.__name__} with a new name, but gives {actual}; correct or "
                "uninstall its package."
            )
        plugins[str(name)] = plugin
    return tuple(plugins.values())
