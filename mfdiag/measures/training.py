"""A grid's work: train every cell, measure its gradients on the way, and write the table of their course."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
from torch import nn

from mfdiag.errors import MfdiagError
from mfdiag.figures import save_figures
from mfdiag.flow.draw import Draws
from mfdiag.flow.weighting import parse_weighting
from mfdiag.gradients.sample_pass import PassSettings
from mfdiag.measures.job import device_name
from mfdiag.measures.measure import measure_subject
from mfdiag.measures.request import Progress, Request, Subject
from mfdiag.storage import sha256_of
from mfdiag.tables.check import conform
from mfdiag.tables.provenance import manifest, write_manifest
from mfdiag.tables.store import check_writable, read_table, table_path, write_table
from mfdiag.training.grid import Cell
from mfdiag.training.saved import CHECKPOINT, LogEntry, number_entry
from mfdiag.training.spec import TrainSpec
from mfdiag.training.trainer import TrainedCell, TrainOptions, train

__all__ = ["GridOutcome", "run_grid"]


@dataclass(frozen=True)
class GridOutcome:
    """What a grid left: its cells in order, and the table of their course."""

    cells: list[TrainedCell]
    table: Path
    frame: pd.DataFrame


def run_grid(
    cells: Sequence[Cell],
    out: Path,
    options: TrainOptions,
    *,
    specification: Mapping[str, Any],
    progress: Progress | None = None,
    say: Callable[[str], None],
) -> GridOutcome:
    """Trains `cells` into `out`: a checkpoint in each cell's folder, training.parquet, manifest.json, figures.

    `specification` is what the cells were made from, for the manifest. Rows of cells that an earlier grid left in the
    same folder stay in the table. Raises InputError as `train` does, and
    MfdiagError, after everything is written, if the weights of a model stopped being finite.
    """
    check_writable(out, [], "overwrite")
    started = datetime.now(UTC)
    trained = train(cells, out, options, measure=_statistics, progress=progress, say=say)
    frame = pd.DataFrame([row for item in trained for row in _rows(item, out)])
    frame = conform("training", pd.concat([_others(out, cells), frame], ignore_index=True))
    table = write_table("training", frame, out)
    entry = manifest(
        sys.argv,
        specification,
        seeds=sorted({cell.spec.seed for cell in cells}),
        inputs=[],
        started=started,
        finished=datetime.now(UTC),
        outputs=[table],
        device=device_name(options.device),
    )
    write_manifest(out, "train", entry)
    save_figures({"training": frame}, out)
    lost = [item.cell.name or str(out) for item in trained if item.checkpoint is None]
    if lost:
        raise MfdiagError(
            f"Training diverged: the weights of {len(lost)} of {len(trained)} models are not finite "
            f"({', '.join(lost[:3])}{', ...' if len(lost) > 3 else ''}); lower the learning rate, clip the gradient, "
            "or weigh samples adaptively. The others are finished."
        )
    return GridOutcome(trained, table, frame)


def _statistics(spec: TrainSpec, draws: Draws, module: nn.Module, ema: nn.Module) -> list[LogEntry]:
    """Gradient variance at the model's own coefficients, and the coefficient of least variance, as they are now."""
    subject = Subject(
        module,
        draws.data,
        draws.times,
        "ema",
        ema,
        "ema",
        conditional=bool(getattr(module, "num_classes", 0)),
        source=draws.source,
        coupling=draws.coupling,
        path=draws.path,
        prediction=spec.prediction,
    )
    request = Request(
        betas=[spec.loss.beta],
        gammas=[spec.loss.gamma],
        weighting=parse_weighting(spec.loss.weighting),
        by_layer=False,
        seed=spec.seed,
        posterior="none",  # neither quantity needs it
        settings=PassSettings(samples=spec.measure_samples),
    )
    sweep = measure_subject(subject, "sweep", request)["sweep"]
    kept = sweep[(sweep["quantity"] == "variance") & (sweep["space"] == "gradient")]
    found = [("variance", kept)]
    if not request.weighting.p:
        optima = measure_subject(subject, "coefficient", request)["coefficient"]
        optima = optima[(optima["quantity"] == "optimum") & (optima["form"] == "gradient")]
        found.append(("optimum", optima[(optima["role"] == "tangent") & optima["batch_size"].isna()]))
    return [
        LogEntry(0, quantity, *row.values())
        for quantity, rows in found
        for row in rows[list(_MEASURED)].to_dict("records")  # plain numbers, as they are saved
    ]


_MEASURED = ("value", "std_error", "ci_low", "ci_high", "n_samples", "status")


def _others(out: Path, cells: Sequence[Cell]) -> pd.DataFrame:
    if not table_path("training", out).exists():
        return pd.DataFrame()
    earlier = read_table("training", out)
    return earlier[~earlier["cell"].isin([cell.name for cell in cells])]


def _rows(trained: TrainedCell, out: Path) -> list[dict[str, Any]]:
    cell, spec = trained.cell, trained.cell.spec
    last = max((entry.step for entry in trained.log), default=spec.steps)
    log = [*trained.log, number_entry(last, "steps", last, last * spec.batch_size)]
    common = {
        "run": out.name,
        "checkpoint": str(Path(cell.name) / CHECKPOINT),
        "checkpoint_sha256": sha256_of(trained.checkpoint) if trained.checkpoint else None,
        "dataset": spec.data,
        "estimator": None,
        "proxy": "ema" if spec.loss.beta or spec.loss.gamma else None,
        "weighting": spec.loss.weighting,
        "times": spec.times,
        "seed": spec.seed,
        "cell": cell.name,
        "beta": spec.loss.beta,
        "gamma": spec.loss.gamma,
        "anchor": spec.loss.anchor.coefficient if spec.loss.anchor else 0.0,
    }
    return [common | entry._asdict() for entry in log]
