"""The table that `mfdiag report` derives from those of a grid of models."""

from __future__ import annotations

from mfdiag.tables.columns import GRADIENT2, table_of
from mfdiag.tables.fields import Column, Quantity

__all__ = ["GRID"]

GRID = table_of(
    "grid",
    "report",
    "A grid of models by the coefficient they were trained with, from the other tables of the folder: means over "
    "training seeds with Student's t intervals. n_samples counts models, or data sets where dataset is all.",
    (
        Column("beta", "float64", "Coefficient of the tangent; null if the row is about all of them.", True),
        Column("metric", "string", "Metric of sample quality; null if there is none.", nullable=True),
        Column("nfe", "int64", "Number of steps from noise to sample; null if there is none.", True),
        Column("weights", "string", "Weights that were sampled from; null if there are none.", True),
        Column("batch_size", "int64", "The n of the optimum, in samples; null where n does not enter.", True),
    ),
    Quantity("variance", "tr Cov G at beta", GRADIENT2, "Of models trained at beta, measured at this beta."),
    Quantity(
        "variance_ratio",
        "variance at 0 / variance at beta",
        "1",
        "Factor by which training at beta lowers the gradient variance, paired by seed.",
    ),
    Quantity("variance_at_0", "tr Cov G at beta", GRADIENT2, "Of models trained at 0, measured at beta."),
    Quantity("quality", "metric", "that of the metric", "Sample quality of models trained at beta."),
    Quantity("quality_ratio", "metric at beta / metric at 0", "1", "Paired by seed."),
    Quantity(
        "best_beta",
        "argmin over beta of quality",
        "1",
        "Trained beta of least distance; the interval spans the betas that do not differ from it in a paired t test.",
    ),
    Quantity("optimum", "beta*_n", "1", "Batch-aware optimum of the models trained at beta = 0."),
    Quantity(
        "prediction_error",
        "|optimum - best_beta|",
        "1",
        "The optimum is first clipped to the range of trained betas; dataset all is the mean over data sets.",
    ),
)
