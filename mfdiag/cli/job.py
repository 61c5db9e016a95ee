"""What the measuring commands share: options to a request, progress on stderr, results on stdout."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from rich.console import Console

from mfdiag.cli.device import checked_device
from mfdiag.cli.options import Options
from mfdiag.cli.progress import progress_on
from mfdiag.cli.summary import summary, worst
from mfdiag.errors import InputError
from mfdiag.flow.specs import parse_grid
from mfdiag.flow.weighting import parse_weighting
from mfdiag.gradients.sample_pass import PassSettings
from mfdiag.measures.chosen import default_estimators
from mfdiag.measures.job import Mode, Outcome, run_job
from mfdiag.measures.objective import card_record, objective_of
from mfdiag.measures.request import Progress, Request
from mfdiag.measures.subject import load_subject
from mfdiag.models.checkpoint import bundled

__all__ = ["chunk_of", "present", "run"]


Work = Callable[[list[Path], Mode, Progress, Callable[[str], None]], Outcome]
"""(checkpoints, what to do with earlier results, progress, notes) -> what was measured."""


def run(table: str, typed: Options, **more: Any) -> None:
    """Measure `table` as the options say, write it, and print it; `more` are fields of the request itself."""

    def work(checkpoints: list[Path], mode: Mode, progress: Progress, say: Callable[[str], None]) -> Outcome:
        options = _as_trained(table, typed, say)
        return run_job(
            table,
            checkpoints,
            lambda path: load_subject(
                path,
                model=options.model,
                data=options.data,
                weights=options.weights,
                proxy=options.proxy,
                times=options.times,
                source=options.source,
                coupling=options.coupling,
                path=options.path,
                prediction=options.prediction,
                guidance=options.guidance,
                say=say,
            ),
            replace(_request(table, options), **more),
            options.out,
            mode,
            options={
                name: getattr(options, name)
                for name in ("model", "weights", "source", "coupling", "path", "prediction", "guidance")
            }
            | card_record(options.model),
            progress=progress,
            say=say,
        )

    present(table, typed, work)


def _as_trained(table: str, options: Options, say: Callable[[str], None]) -> Options:
    """The options, with what a model card says of the objective where none was given."""
    told = objective_of(options.model, table)
    taken = {name: value for name, value in told.items() if getattr(options, name) is None}
    if taken:
        shown = (f"--{name} {' '.join(value) if isinstance(value, list) else value}" for name, value in taken.items())
        say(f"as {options.model} says the model was trained: {', '.join(shown)}.")
    return replace(options, **taken)


def present(table: str, options: Options, work: Work) -> None:
    """Do the work of a command on the checkpoints of `options`, with progress and notes, and print its `table`."""
    if options.resume and options.overwrite:
        raise InputError("--resume keeps earlier results and --overwrite replaces them: pass one of the two.")
    console = Console(stderr=True, quiet=options.quiet, highlight=False, soft_wrap=True)
    said: set[str] = set()

    def say(text: str) -> None:
        if text not in said:
            said.add(text)
            console.print(f"note: {text}", markup=False)

    checkpoints = options.checkpoints
    if not checkpoints:
        checkpoints = [bundled()]
        say("no checkpoint named: measuring the bundled one (MLP, eight_gaussians, MeanFlow's original loss).")
    mode: Mode = "resume" if options.resume else "overwrite" if options.overwrite else "new"
    with progress_on(console) as progress, _memory_errors():
        outcome = work(checkpoints, mode, progress, say)
    frame = outcome.frames[table]
    if options.format == "csv":
        frame.to_csv(sys.stdout, index=False)
    elif options.format == "json":
        sys.stdout.write(_json(frame) + "\n")
    elif not _print(table, outcome.frames):
        say("no row is over all times, so there is no summary: see the figures, or --format csv.")
    console.print(f"tables: {', '.join(map(str, outcome.tables))}", markup=False)
    if outcome.figures:
        console.print(f"figures: {outcome.figures[0].parent}", markup=False)


@contextmanager
def _memory_errors() -> Iterator[None]:
    """torch reports that memory ran out as a RuntimeError, in words that depend on the device."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError) or "not enough memory" in str(error):
            raise MemoryError from error
        raise


def _json(frame: pd.DataFrame) -> str:
    """All rows with all digits (pandas' own to_json rounds small numbers to zero); NaN and infinity become null."""
    plain = frame.astype(object).where(frame.notna() & ~frame.isin([np.inf, -np.inf]), None)
    return json.dumps(plain.to_dict("records"), indent=1, ensure_ascii=False, allow_nan=False)


def _print(table: str, frames: Mapping[str, pd.DataFrame]) -> bool:
    """Prints the summary; False where there is none."""
    console = Console(file=sys.stdout, width=1000, soft_wrap=True)  # nothing is cut where the terminal is narrow
    parts = list(summary(table, frames[table]))
    if parts and "samples" in frames:
        parts.append(worst(frames["samples"]))
    for part in parts:
        console.print(part)
    return bool(parts)


def _request(table: str, options: Options) -> Request:
    by = options.by or ("layer" if table in ("variance", "compare") else "none")
    bins = None
    if options.bins is not None:
        bins = _bins(options.bins)
    elif by == "time":
        bins = (1, 10)
    elif table == "compare" and options.by != "none":
        bins = (1, 5)
    elif table != "sweep" and options.by != "none":
        bins = (5, 5)
    defaults = Request()
    chosen = options.estimator or default_estimators(table)
    return Request(
        betas=parse_grid("--beta", options.beta),
        gammas=parse_grid("--gamma", options.gamma),
        batch_sizes=options.batch_size or defaults.batch_sizes,
        estimators=chosen,
        weighting=parse_weighting(options.weighting or "none"),
        by_layer=by == "layer",
        seed=options.seed,
        posterior=options.posterior,  # type: ignore[arg-type]
        extras=options.extra or (),
        settings=PassSettings(
            samples=options.samples,
            bins=bins,
            chunk=chunk_of(options.chunk),
            engine=options.engine,  # type: ignore[arg-type]
            dtype=getattr(torch, options.dtype),
            device=checked_device(options.device),
            derivative=options.derivative or "auto",
        ),
    )


def _bins(text: str) -> tuple[int, int] | None:
    if text == "none":
        return None
    try:
        r_bins, t_bins = (int(part) for part in text.split(","))
        if not (1 <= r_bins <= 100 and 1 <= t_bins <= 100):
            raise ValueError
    except ValueError:
        raise InputError(f"--bins takes two whole numbers from 1 to 100, as in 5,5, or none; got {text!r}.") from None
    return r_bins, t_bins


def chunk_of(text: str) -> int | None:
    """The value of --chunk, None for auto. Raises InputError for anything but auto and whole numbers of at least 1."""
    if text == "auto":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise InputError(f"--chunk takes auto or a whole number of at least 1; got {text!r}.")
    return int(text)
