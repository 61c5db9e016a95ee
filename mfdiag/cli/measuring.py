"""What the measuring commands share: options become a request, progress and notes go to stderr, results to stdout."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from mfdiag.cli.device import checked_device, launcher_of
from mfdiag.cli.options import Options
from mfdiag.cli.printing import PlainConsole, print_outcome
from mfdiag.cli.progress import progress_on
from mfdiag.errors import InputError
from mfdiag.flow.specs import parse_grid
from mfdiag.flow.weighting import parse_weighting
from mfdiag.gradients.sample_pass import PassSettings
from mfdiag.measures.parts.summary import Summarize
from mfdiag.measures.run.choice import card_record, code_record, objective_of
from mfdiag.measures.run.job import Job
from mfdiag.measures.run.request import Progress, Request
from mfdiag.measures.run.result_folder import Mode, Outcome
from mfdiag.measures.run.runner import TableJob, run
from mfdiag.measures.run.subject import SubjectOptions
from mfdiag.measures.run.table import MeasuredTable
from mfdiag.models.checkpoint import bundled
from mfdiag.world import joined_world

__all__ = ["Session", "measure_table", "parse_chunk", "session"]

_RECORDED = (
    "model",
    "weights",
    "source",
    "coupling",
    "path",
    "prediction",
    "guidance",
)  # decide the numbers, but are no columns of the tables


def measure_table(table: MeasuredTable, options: Options) -> None:
    """Measure a table under the options, write it and its figures, and print it."""
    with session(options) as work:
        options = _with_card_objective(table, options, work.say)
        job = TableJob(
            table,
            work.checkpoints,
            SubjectOptions.of(options),
            _request(table, options),
            recorded={name: getattr(options, name) for name in _RECORDED}
            | card_record(options.model)
            | code_record(options.model, options.data),
            progress=work.progress,
            say=work.say,
        )
        outcome = work.run(job)
    work.show(table.name, outcome, table.summary)


@dataclass(frozen=True)
class Session:
    """What a measuring command works with: checkpoints, progress and notes on stderr, results on stdout.

    Attributes:
        options: The shared options.
        checkpoints: What to measure; the bundled checkpoint if the user gave none.
        mode: What to do with earlier results in the folder.
        progress: Receives (label, done, total).
        say: Receives one-line notes; each is printed once.
        warn: Receives what makes results doubtful; it is printed even under --quiet.
        console: Stderr.
        silent: Whether another process prints the results.
    """

    options: Options
    checkpoints: list[Path]
    mode: Mode
    progress: Progress
    say: Callable[[str], None]
    warn: Callable[[str], None]
    console: Console
    silent: bool = False

    def run(self, job: Job[Any]) -> Outcome:
        """Run a job into the folder of the results."""
        options = self.options
        return run(
            job,
            options.out,
            self.mode,
            say=self.say,
            warn=self.warn,
            strict=options.strict,
            launcher=launcher_of(options),
        )

    def show(self, name: str, outcome: Outcome, summarize: Summarize | None) -> None:
        """Print the main table, save the figures and say where everything is.

        Args:
            name: Name of the main table.
            outcome: What was measured.
            summarize: Makes the summaries of one model; None shows one line per row.
        """
        from mfdiag.figures import save_figures

        if self.silent:
            return
        print_outcome(name, outcome.frames, summarize, self.options.format, self.say)
        self.console.print(f"tables: {', '.join(map(str, outcome.tables))}", markup=False)
        figures = save_figures(outcome.frames, self.options.out)
        if figures:
            self.console.print(f"figures: {figures[0].parent}", markup=False)


@contextmanager
def session(options: Options) -> Iterator[Session]:
    """Open the session of a command. Raises InputError for --resume and --overwrite together."""
    if options.resume and options.overwrite:
        raise InputError("--resume keeps earlier results and --overwrite replaces them: pass one of the two.")
    with joined_world(options.device) as world:
        yield from _session(options, silent=world.rank > 0)


def _session(options: Options, silent: bool) -> Iterator[Session]:
    console = PlainConsole(stderr=True, quiet=options.quiet or silent, highlight=False, soft_wrap=True)
    notes: set[str] = set()

    def say(text: str) -> None:
        if text not in notes:
            notes.add(text)
            console.print(f"note: {text}", markup=False)

    def warn(text: str) -> None:
        loud = PlainConsole(stderr=True, quiet=silent, highlight=False, soft_wrap=True)
        loud.print(f"WARNING: {text}", markup=False, style="bold red")

    checkpoints = options.checkpoints
    if not checkpoints:
        checkpoints = [bundled()]
        say("no checkpoint given: measuring the bundled one (MLP, eight_gaussians, MeanFlow's original loss).")
    mode: Mode = "resume" if options.resume else "overwrite" if options.overwrite else "new"
    with progress_on(console) as progress:
        yield Session(options, checkpoints, mode, progress, say, warn, console, silent)


def _with_card_objective(table: MeasuredTable, options: Options, say: Callable[[str], None]) -> Options:
    """The options, with the objective of the model card for those that the user did not pass."""
    objective = objective_of(options.model, table, say if options.estimator is None else lambda note: None)
    defaults = {name: value for name, value in objective.items() if getattr(options, name) is None}
    if defaults:
        shown = (
            f"--{name} {' '.join(value) if isinstance(value, list) else value}" for name, value in defaults.items()
        )
        say(f"as {options.model} says the model was trained: {', '.join(shown)}.")
    return replace(options, **defaults)


def _request(table: MeasuredTable, options: Options) -> Request:
    return Request(
        betas=parse_grid("--beta", options.beta),
        gammas=parse_grid("--gamma", options.gamma),
        batch_sizes=options.batch_size or Request.batch_sizes,
        estimators=options.estimator or table.default_estimators,
        weighting=parse_weighting(options.weighting or "none"),
        by_layer=(options.by or table.default_by) == "layer",
        seed=options.seed,
        posterior=options.posterior,
        extras=options.extra or (),
        floor=options.floor,
        settings=PassSettings(
            samples=options.samples,
            bins=table.bins(options.by) if options.bins is None else _parse_bins(options.bins),
            chunk=parse_chunk(options.chunk),
            engine=options.engine,
            dtype=getattr(torch, options.dtype),
            device=checked_device(options.device, options.launcher),
            derivative=options.derivative or "auto",
        ),
    )


def _parse_bins(text: str) -> tuple[int, int] | None:
    if text == "none":
        return None
    try:
        r_bins, t_bins = (int(part) for part in text.split(","))
        if not (1 <= r_bins <= 100 and 1 <= t_bins <= 100):
            raise ValueError
    except ValueError:
        raise InputError(f"--bins takes two whole numbers from 1 to 100, as in 5,5, or none; got {text!r}.") from None
    return r_bins, t_bins


def parse_chunk(text: str) -> int | None:
    """The value of --chunk, None for auto. Raises InputError for anything but auto and whole numbers of at least 1."""
    if text == "auto":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise InputError(f"--chunk takes auto or a whole number of at least 1; got {text!r}.")
    return int(text)
