"""Progress of long work on stderr: a bar on a terminal, a line every half minute on a pipe."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

__all__ = ["progress_on"]

_SECONDS = 30.0  # between two lines on a pipe


@contextmanager
def progress_on(console: Console) -> Iterator[Callable[[str, int, int], None]]:
    """A function (label, done, total) that reports progress on the console, unless that is quiet."""
    if console.quiet or not console.is_terminal:
        yield _Lines(console)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=None)
        yield lambda label, done, total: bar.update(task, description=label, completed=done, total=total)


class _Lines:
    """Writes a line at most every half minute: label, samples done, elapsed and remaining time."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.started = self.written = time.monotonic()
        self.label, self.first = "", 0

    def __call__(self, label: str, done: int, total: int) -> None:
        now = time.monotonic()
        if label != self.label:
            self.label, self.first, self.started = label, done, now
        if now - self.written < _SECONDS:
            return
        self.written = now
        elapsed = now - self.started
        left = elapsed * (total - done) / (done - self.first) if done > self.first else None
        remaining = "" if left is None else f", about {_clock(left)} left"
        self.console.print(f"{label}: {done:,} of {total:,} after {_clock(elapsed)}{remaining}", markup=False)


def _clock(seconds: float) -> str:
    """Minutes and seconds, or hours, minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
