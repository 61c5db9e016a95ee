"""The estimators: one file each, looked up by name. Importing this package does not import torch.

Other packages add their own by an entry point of the group `mfdiag.estimators` that names an `Estimator`. An estimator
in a file is passed as FILE.py:name.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from importlib.metadata import entry_points

from mfdiag.errors import InputError, did_you_mean
from mfdiag.estimators._base import Estimator, Needs
from mfdiag.usercode import load_user_object

__all__ = ["GROUP", "Estimator", "Needs", "estimators", "find_estimator"]

GROUP = "mfdiag.estimators"
"""Group of the entry points by which other packages add estimators."""


def estimators() -> dict[str, Estimator]:
    """Name -> estimator: one for each public file of this package, then those of other packages.

    Raises:
        InputError: An entry point cannot be loaded, is not an estimator, or has a name that is already in use.
    """
    names = sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))
    built_in = {e.name: e for e in (importlib.import_module(f"{__name__}.{name}").ESTIMATOR for name in names)}
    return built_in | {e.name: e for e in _installed(frozenset(built_in))}


@cache
def _installed(taken: frozenset[str]) -> tuple[Estimator, ...]:
    """The estimators of other packages; names in `taken` are not allowed."""
    installed: dict[str, Estimator] = {}
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name):
        where = f"The entry point {entry.name} = {entry.value} of {GROUP}"
        try:
            estimator = entry.load()
        except Exception as error:  # whatever the other package raises
            raise InputError(
                f"{where} cannot be loaded: {type(error).__name__}: {error}; correct or uninstall its package."
            ) from error
        if not isinstance(estimator, Estimator):
            actual = type(estimator).__name__
        elif estimator.name in taken | installed.keys():
            actual = f"the name {estimator.name!r} again"
        else:
            installed[estimator.name] = estimator
            continue
        raise InputError(
            f"{where} must name an Estimator with a new name, but gives {actual}; correct or uninstall its package."
        )
    return tuple(installed.values())


def find_estimator(spec: str) -> Estimator:
    """Look up `NAME`, `NAME:arguments`, `FILE.py:name` or `FILE.py:name:arguments`; the code of a file is executed.

    Raises:
        InputError: The name is unknown ('did you mean'), the file does not define the estimator, or the arguments are
            not accepted.
    """
    file, is_file, rest = spec.partition(".py:")
    if is_file:
        attribute, _, arguments = rest.partition(":")
        estimator = load_user_object(f"{file}.py:{attribute}", "--estimator")
        if not isinstance(estimator, Estimator):
            raise InputError(f"Expected {attribute!r} in {file}.py to be an Estimator, got {type(estimator).__name__}.")
    else:
        name, _, arguments = spec.partition(":")
        known = estimators()
        if name not in known:
            raise did_you_mean("estimator", name, known)
        estimator = known[name]
    if estimator.parse is not None and (arguments or estimator.template):
        return estimator.parse(arguments)
    if arguments:
        raise InputError(f"Estimator {estimator.name!r} takes no arguments; got {arguments!r}.")
    return estimator
