"""The root of all mfdiag exceptions. The command line catches it in one place and exits with code 2."""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable, Sequence

__all__ = [
    "NETWORK_ERRORS",
    "InputError",
    "MfdiagError",
    "abbreviated",
    "did_you_mean",
    "first_line",
    "is_out_of_memory",
    "machine_error",
    "plain_validation",
    "printable",
]

_MANY = 20  # names that an error with a close match does not list
_MIN_SIMILARITY = 0.5  # below it a suggestion shares too few letters with the name to be a likely typo


NETWORK_ERRORS = (RuntimeError, TypeError, ValueError, LookupError, AttributeError, AssertionError)
"""What a network raises where it does not support how it is called, as in a transformation of torch.func."""


class MfdiagError(Exception):
    """Root of every error that mfdiag raises on purpose. Its text is written for the user."""


class InputError(MfdiagError):
    """Bad input. The text says what was expected, what came, and what to do."""


def did_you_mean(kind: str, name: str, known: Iterable[str]) -> InputError:
    """Builds the error for an unknown name: the closest known names, and all of them unless these are many.

    Args:
        kind: What the name stands for, such as "data set".
        name: The unknown name.
        known: All valid names.

    Returns:
        The error, for the caller to raise.
    """
    names = sorted(known)
    closest = difflib.get_close_matches(name, names, n=2, cutoff=_MIN_SIMILARITY)
    hint = f" Did you mean {' or '.join(map(repr, closest))}?" if closest else ""
    many = closest and len(names) > _MANY
    known_names = f"{len(names)} names are known" if many else f"Known: {', '.join(names)}"
    return InputError(f"Unknown {kind} {name!r}.{hint} {known_names}.")


def abbreviated(names: Sequence[str], count: int = 3, separator: str = ", ") -> str:
    """Shorten a list.

    Args:
        names: Its entries.
        count: How many to show.
        separator: What stands between them.

    Returns:
        The first `count` names, followed by dots if there are more.
    """
    return separator.join([*names[:count], *(["..."] if len(names) > count else [])])


_LONGEST = 400  # characters of a message of another library


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or the name of its class if it has none; only the start of a long one."""
    line = (str(error).splitlines() or [type(error).__name__])[0]
    return line if isinstance(error, InputError) or len(line) <= _LONGEST else f"{line[:_LONGEST].rstrip()} ..."


_NO_MEMORY = (
    *("not enough memory", "allocate memory", "bad_alloc", "out of memory", "Unable to allocate"),
    *("failed to map segment", "can't start new thread"),  # of a library that is loaded late; of the system
)
_NO_FILES = "Too many open files"
_FULL = "No space left on device"


def machine_error(error: BaseException | None) -> MemoryError | OSError | None:
    """The error of the machine that is behind an error: no memory, no disk space, no files; None if there is none.

    Libraries raise it as a RuntimeError, whose text depends on the device, or pass it on as the cause of their own.
    """
    while error is not None:
        if isinstance(error, MemoryError | OSError):
            return error
        text = str(error) if isinstance(error, RuntimeError | ImportError) else ""
        if any(words in text for words in _NO_MEMORY) or type(error).__name__ == "OutOfMemoryError":
            return MemoryError(text)
        for words, number in ((_NO_FILES, errno.EMFILE), (_FULL, errno.ENOSPC)):
            if words in text:
                return OSError(number, words)
        error = error.__cause__
    return None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory is exhausted."""
    return isinstance(machine_error(error), MemoryError)


_PLAIN_WORDS = {
    "Input should": "It should",
    "a valid integer": "a whole number",
    "a valid boolean": "True or False",
    "'str' instances are not allowed as a Sequence value": "It should be a list",
    "an instance of Sequence": "a list",
    "a valid tuple": "a list",
    "an instance of dtype": "a torch.dtype",
    "an instance of Module": "a torch.nn.Module",
}


def plain_validation(message: str) -> str:
    """The text of a pydantic error without its prefix, its parser's words and its final period."""
    problem = message.removeprefix("Value error, ").partition(", unable to parse")[0].removesuffix(".")
    for words, plain in _PLAIN_WORDS.items():
        problem = problem.replace(words, plain)
    return problem


def printable(text: str) -> str:
    """`text` with control characters replaced: names in a file may hold some that change the terminal."""
    return "".join(letter if letter.isprintable() or letter == "\n" else "\N{REPLACEMENT CHARACTER}" for letter in text)
