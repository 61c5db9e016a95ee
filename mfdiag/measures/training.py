"""`mfdiag train`: trains every cell of a grid and records its course, gradient statistics included."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mfdiag.errors import MfdiagError
from mfdiag.measures.run.job import Job
from mfdiag.tables.columns import GRADIENT2, table_of
from mfdiag.tables.fields import Column, Quantity

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn

    from mfdiag.flow.draw import Draws
    from mfdiag.gradients.pass_checkpoint import PassCheckpoint
    from mfdiag.measures.run.ray_launcher import RayLauncher
    from mfdiag.measures.run.request import Progress
    from mfdiag.training.grid import GridCell
    from mfdiag.training.saved import LogEntry
    from mfdiag.training.spec import TrainSpec
    from mfdiag.training.trainer import TrainedCell, TrainOptions

__all__ = ["TABLE", "TrainJob"]

_COPIED = ("value", "std_error", "ci_low", "ci_high", "n_samples", "status")

TABLE = table_of(
    "training",
    "train",
    "Each model of a grid over its training; beta and gamma are those it is trained with, and estimator is the method "
    "where it is trained with another one; the checkpoint and its hash are those of the finished model.",
    (
        Column("cell", "string", "Name of the model in the grid, which is its folder."),
        Column("beta", "float64", "Coefficient of the tangent in the training loss."),
        Column("gamma", "float64", "Coefficient of the target in the training loss."),
        Column("anchor", "float64", "Coefficient lambda of the flow-matching anchor; 0 without."),
    ),
    Quantity("loss", "mean of the loss", "loss", "Mean over the steps since the previous row, anchor included."),
    Quantity(
        "grad_norm",
        "mean of |mean_i G_i|",
        "loss/parameter",
        "Norm of the batch gradient, mean over the steps since the previous row.",
    ),
    Quantity(
        "variance",
        "tr Cov G at (beta, gamma)",
        GRADIENT2,
        "Variance of the per-sample gradient at this step, at the model's own coefficients or of its estimator.",
    ),
    Quantity(
        "optimum",
        "-S_0b / S_bb",
        "1",
        "Tangent coefficient of least gradient variance at this step.",
    ),
    Quantity("steps", "steps", "steps", "Optimizer steps taken; one row per model, at its last step."),
)


class TrainJob(Job["Sequence[GridCell]"]):
    """Trains a grid and records its course; the grid is one subject, as its cells train together.

    Args:
        cells: The models of the grid.
        out: Folder of the results; each cell has a folder of its own below.
        options: Device, compilation, whether to resume.
        specification: What the cells were made from, for the manifest.
        progress: Receives (label, steps done, steps in all).
        say: Receives one-line notes.
        launcher: Trains each cell in another process; None trains here, cells of one shape together.
    """

    command = "train"
    tables = ("training",)
    identity_columns = ()
    replaces = False  # rows of other grids' cells stay

    def __init__(
        self,
        cells: Sequence[GridCell],
        out: Path,
        options: TrainOptions,
        *,
        specification: Mapping[str, Any],
        progress: Progress | None = None,
        say: Callable[[str], None],
        launcher: RayLauncher | None = None,
    ) -> None:
        self.cells, self.out, self.options, self.progress, self.say = cells, out, options, progress, say
        self.launcher, self.failures = launcher, list[tuple[str, str]]()
        self.specification = specification
        self.seeds = sorted({cell.spec.seed for cell in cells})
        self.device = options.device
        self.trained: list[TrainedCell] = []

    def subjects(self) -> Sequence[Sequence[GridCell]]:
        """The grid."""
        return [self.cells]

    def identity(self, subject: Sequence[GridCell]) -> tuple[str, ...]:
        """The names of the cells."""
        return tuple(cell.name for cell in subject)

    def label(self, subject: Sequence[GridCell]) -> str:
        """The folder."""
        return str(self.out)

    def measure(self, subject: Sequence[GridCell], checkpoint: PassCheckpoint) -> Mapping[str, pd.DataFrame]:
        """Train the cells, which keep and resume states of their own; rows of earlier grids' cells stay."""
        import pandas as pd

        from mfdiag.tables.check import conform
        from mfdiag.training.trainer import train

        if self.launcher is None:
            self.trained = train(
                subject, self.out, self.options, measure=_statistics, progress=self.progress, say=self.say
            )
        else:
            self.trained = self._train_on_ray(self.launcher, subject)
        frame = pd.DataFrame([row for item in self.trained for row in _rows(item, self.out)])
        return {"training": conform("training", pd.concat([_other_cells(self.out, subject), frame], ignore_index=True))}

    def _train_on_ray(self, launcher: RayLauncher, cells: Sequence[GridCell]) -> list[TrainedCell]:
        """The cells that could be trained, in order; `failures` has the others."""
        from dataclasses import replace

        from mfdiag.measures.run.ray_launcher import Task, failed_cells
        from mfdiag.training.trainer import prepare_folder

        prepare_folder(cells, self.out, self.options, say=self.say)
        options = replace(self.options, resume=True)  # a cell whose worker dies resumes
        tasks = [Task(cell.name or str(self.out), _train_cell, (cell, self.out, options)) for cell in cells]
        trained = {}
        for item in launcher.run(tasks, self.device, say=self.say, progress=self.progress):
            if item.failure is None:
                trained[item.number] = item.result
            else:
                self.failures.append((tasks[item.number].label, item.failure))
        if not trained:
            raise failed_cells(self.failures, len(cells))
        return [trained[k] for k in sorted(trained)]

    def require_trained(self) -> None:
        """InputError where cells failed on Ray."""
        from mfdiag.measures.run.ray_launcher import failed_cells

        if self.failures:
            raise failed_cells(self.failures, len(self.cells))

    def require_finite(self) -> None:
        """MfdiagError where the weights of a trained model are not finite."""
        lost = [item.cell.name or str(self.out) for item in self.trained if item.checkpoint is None]
        if lost:
            raise MfdiagError(
                f"Training diverged: the weights of {len(lost)} of {len(self.trained)} models are not finite "
                f"({', '.join(lost[:3])}{', ...' if len(lost) > 3 else ''}); lower the learning rate, clip the "
                "gradient, or weigh samples adaptively. The others are finished."
            )


def _train_cell(say: Callable[[str], None], cell: GridCell, out: Path, options: TrainOptions) -> TrainedCell:
    """Train one cell of a grid."""
    from mfdiag.training.trainer import train

    (trained,) = train([cell], out, options, measure=_statistics, say=say)
    return trained


def _statistics(spec: TrainSpec, draws: Draws, module: nn.Module, ema: nn.Module) -> list[LogEntry]:
    """Gradient variance of the model's own loss and, on the plane, the coefficient of least variance, at this step."""
    from mfdiag.flow.weighting import parse_weighting
    from mfdiag.gradients.sample_pass import PassSettings
    from mfdiag.measures.coefficient import TABLE as COEFFICIENT
    from mfdiag.measures.compare import TABLE as COMPARE
    from mfdiag.measures.run.measure_subject import measure_subject
    from mfdiag.measures.run.request import Request
    from mfdiag.measures.run.subject import Subject
    from mfdiag.measures.sweep import TABLE as SWEEP
    from mfdiag.training.saved import LogEntry

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
        networks={"ema": ema},
    )
    request = Request(
        estimators=[spec.loss.estimator or "meanflow"],
        betas=[spec.loss.beta],
        gammas=[spec.loss.gamma],
        weighting=parse_weighting(spec.loss.weighting),
        by_layer=False,
        seed=spec.seed,
        posterior="none",  # neither quantity needs it
        settings=PassSettings(samples=spec.measure_samples),
    )
    if spec.loss.estimator is not None:
        compared = measure_subject(subject, COMPARE, request)["compare"]
        whole = compared["layer"].eq("all") & compared["t_low"].isna()
        selected = [("variance", compared[(compared["quantity"] == "variance") & whole])]
    else:
        sweep = measure_subject(subject, SWEEP, request)["sweep"]
        selected = [("variance", sweep[(sweep["quantity"] == "variance") & (sweep["space"] == "gradient")])]
    if spec.loss.estimator is None and not request.weighting.p:
        optima = measure_subject(subject, COEFFICIENT, request)["coefficient"]
        optima = optima[(optima["quantity"] == "optimum") & (optima["form"] == "gradient")]
        selected.append(("optimum", optima[(optima["role"] == "tangent") & optima["batch_size"].isna()]))
    return [
        LogEntry(0, quantity, *row.values())
        for quantity, rows in selected
        for row in rows[list(_COPIED)].to_dict("records")  # plain numbers, as they are saved
    ]


def _other_cells(out: Path, cells: Sequence[GridCell]) -> pd.DataFrame:
    """Rows of earlier grids' cells in the folder's table."""
    import pandas as pd

    from mfdiag.tables.store import read_table, table_path

    if not table_path("training", out).exists():
        return pd.DataFrame()
    earlier = read_table("training", out)
    return earlier[~earlier["cell"].isin([cell.name for cell in cells])]


def _rows(trained: TrainedCell, out: Path) -> list[dict[str, Any]]:
    from mfdiag.storage import sha256_of
    from mfdiag.training.saved import CHECKPOINT, number_entry

    cell, spec = trained.cell, trained.cell.spec
    last = max((entry.step for entry in trained.log), default=spec.steps)
    log = [*trained.log, number_entry(last, "steps", last, last * spec.batch_size)]
    common = {
        "run": out.name,
        "checkpoint": str(Path(cell.name) / CHECKPOINT),
        "checkpoint_sha256": sha256_of(trained.checkpoint) if trained.checkpoint else None,
        "dataset": spec.data,
        "estimator": spec.loss.estimator,
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
