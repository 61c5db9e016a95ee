"""Cells of a grid on Ray: each is a task of its own, which Ray starts again where its worker dies.

Workers read and write the files that the driver names, so all machines of a cluster need them at the same paths.
"""

from __future__ import annotations

import logging
import os
import pickle
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import Any, NamedTuple

from mfdiag.errors import InputError, MfdiagError, abbreviated, first_line

__all__ = ["Cell", "RayLauncher", "Task", "failed_cells"]

_RETRIES = 3  # of a cell whose worker or machine dies; errors of its own are not retried
_CELLS_IN_ERROR = 3
_LABEL = "cells on Ray"


class Cell(NamedTuple):
    """A cell that ended: its number, its result or the reason why it has none, its time and its machine."""

    number: int
    result: Any
    failure: str | None
    seconds: float
    machine: str


class Task(NamedTuple):
    """What a worker runs.

    Attributes:
        label: What notes call the cell.
        function: Takes `say` and the arguments, and returns the result.
        arguments: Its further arguments; function, arguments and result must be picklable.
    """

    label: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...]


@dataclass(frozen=True)
class RayLauncher:
    """Runs cells on a Ray cluster.

    Attributes:
        address: A running cluster, as `ray.init` takes it, such as "auto"; None starts one on this machine.
        fail_fast: Whether the first cell that fails stops the run; otherwise the others are completed.
    """

    address: str | None = None
    fail_fast: bool = False

    def run(
        self,
        tasks: Sequence[Task],
        device: str,
        *,
        say: Callable[[str], None],
        progress: Callable[[str, int, int], None] | None = None,
    ) -> Iterator[Cell]:
        """Run tasks, as many at once as the cluster has CPUs, or GPUs.

        Args:
            tasks: The cells.
            device: "cpu" or "cuda"; with "cuda" each cell has a GPU of its own.
            say: Receives the notes of the cells, and the time of each.
            progress: Receives (label, cells done, all cells).

        Yields:
            The cells, as they end.

        Raises:
            InputError: There is no Ray or no such cluster, or a cell fails under `fail_fast`.
        """
        if device not in ("cpu", "cuda"):
            raise InputError(f"--launcher ray gives each cell a device: pass --device cpu or cuda, not {device}.")
        report = progress or (lambda *_: None)
        with redirect_stdout(sys.stderr):  # Ray prints what happens to workers on stdout, which is for results
            ray = _connected(self.address)
            remote = ray.remote(_run_task).options(num_cpus=1, num_gpus=int(device == "cuda"), max_retries=_RETRIES)
            place = os.getcwd(), sys.path  # noqa: PTH109 - text for another machine
            try:
                waiting = {remote.remote(pickle.dumps(task), *place): number for number, task in enumerate(tasks)}
                report(_LABEL, 0, len(tasks))
                while waiting:
                    (ended, *_), _ = ray.wait(list(waiting))
                    number = waiting.pop(ended)
                    yield self._ended(ray, ended, number, tasks[number].label, say)
                    report(_LABEL, len(tasks) - len(waiting), len(tasks))
            finally:
                ray.shutdown()  # ends what is still running

    def _ended(self, ray: Any, ended: Any, number: int, label: str, say: Callable[[str], None]) -> Cell:
        """The cell whose task has ended."""
        try:
            result, notes, seconds, machine = ray.get(ended)
        except ray.exceptions.RayError as error:
            failure = _reason(error)
            if self.fail_fast:
                raise InputError(f"{label} failed: {failure}. The others were stopped.") from None
            say(f"{label} failed: {failure}.")
            return Cell(number, None, failure, 0.0, "")
        for note in notes:
            say(note)
        say(f"{label} took {seconds:.1f} s on {machine}.")
        return Cell(number, result, None, seconds, machine)


def failed_cells(failures: Sequence[tuple[str, str]], cells: int) -> InputError:
    """The error of a run some of whose cells failed.

    Args:
        failures: (label, reason) of these cells.
        cells: The number of all cells.

    Returns:
        The error, for the caller to raise.
    """
    listed = abbreviated([f"{label}: {reason}" for label, reason in failures], _CELLS_IN_ERROR, "; ")
    return InputError(
        f"{len(failures)} of {cells} cells failed: {listed}. The others are finished and saved: correct these, "
        "then resume."
    )


def _connected(address: str | None) -> Any:
    """The module ray, connected to a cluster."""
    try:
        import ray
    except ModuleNotFoundError:
        raise InputError("--launcher ray needs Ray: run `pip install 'mfdiag[ray]'`.") from None
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # a coming default, of which Ray warns
    try:
        dashboard = None if address else False
        ray.init(address, include_dashboard=dashboard, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise InputError(
            f"Expected a running Ray cluster at --address {address}, but cannot connect ({first_line(error)}). Start "
            "one with `ray start --head`, or leave --address out for one on this machine."
        ) from error
    return ray


def _run_task(pickled: bytes, folder: str, path: Sequence[str]) -> tuple[Any, list[str], float, str]:
    """Runs a task in a worker, in the folder and with the modules of the driver."""
    os.chdir(folder)
    sys.path += [entry for entry in path if entry not in sys.path]
    task: Task = pickle.loads(pickled)
    notes: list[str] = []
    start = time.monotonic()
    result = task.function(notes.append, *task.arguments)
    return result, notes, time.monotonic() - start, platform.node()


def _reason(error: Exception) -> str:
    """Why a cell failed, without a period."""
    cause = getattr(error, "cause", None) or error
    if isinstance(cause, MfdiagError):
        return str(cause).removesuffix(".")
    return f"{type(cause).__name__}: {first_line(cause).removesuffix('.')}"
