"""The estimators: one file each, found by name. Importing this package does not import torch.

Other packages add theirs by an entry point of the group `mfdiag.estimators` that names an `Estimator`; a file is named
as FILE.py:name.
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


def estimators() -> dict[str, Estimator]:
    """Name -> estimator: one for each public file of this package, then those of other packages.

    Raises InputError for an entry point that cannot be loaded, is no estimator, or takes a name that is taken.
    """
    names = sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))
    found = {e.name: e for e in (importlib.import_module(f"{__name__}.{name}").ESTIMATOR for name in names)}
    return found | {e.name: e for e in _installed(frozenset(found))}


@cache
def _installed(taken: frozenset[str]) -> tuple[Estimator, ...]:
    """The estimators of other packages."""
    found: dict[str, Estimator] = {}
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name):
        try:
            estimator = entry.load()
        except Exception as error:  # whatever the other package raises
            raise InputError(
                f"The entry point {entry.name} = {entry.value} of {GROUP} cannot be loaded: {type(error).__name__}: "
                f"{error}; correct or uninstall its package."
            ) from error
        if not isinstance(estimator, Estimator) or estimator.name in taken | found.keys():
            what = (
                f"the name {estimator.name!r} again" if isinstance(estimator, Estimator) else type(estimator).__name__
            )
            raise InputError(
                f"The entry point {entry.name} = {entry.value} of {GROUP} should name an Estimator of a new name, but "
                f"gives {what}; correct or uninstall its package."
            )
        found[estimator.name] = estimator
    return tuple(found.values())


def find_estimator(spec: str) -> Estimator:
    """The estimator named by `NAME`, `NAME:arguments`, `FILE.py:name` or `FILE.py:name:arguments`.

    Raises InputError with 'did you mean' for unknown names, and for a file that does not hold the estimator. The code
    of a file is run.
    """
    file, code, rest = spec.partition(".py:")
    if code:
        attribute, _, arguments = rest.partition(":")
        found = load_user_object(f"{file}.py:{attribute}", "--estimator")
        if not isinstance(found, Estimator):
            raise InputError(f"Expected {attribute!r} in {file}.py to be an Estimator, got {type(found).__name__}.")
    else:
        name, _, arguments = spec.partition(":")
        known = estimators()
        if name not in known:
            raise did_you_mean("estimator", name, known)
        found = known[name]
    if found.parse is not None and (arguments or found.template):
        return found.parse(arguments)
    if arguments:
        raise InputError(f"Estimator {found.name!r} takes no arguments; got {arguments!r}.")
    return found
