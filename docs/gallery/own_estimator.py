"""Compare your own estimator with MeanFlow.

An estimator is a residual: a function of the network, the velocities and their derivatives at a batch. This one scales
MeanFlow's total derivative by `damping`. Damping lowers the variance of the gradient and adds a bias; the table
`compare` holds both, measured on the same samples as MeanFlow. The command line takes the file without changes:
`mfdiag compare --estimator own_estimator.py:ESTIMATOR`.
"""

import sys
from functools import partial
from importlib.resources import files
from pathlib import Path

from mfdiag import Estimator


def residual(fields, damping):
    return fields.u + damping * fields.gap * fields.jvp_v_c - fields.v_c  # jvp_v_c is du/dx v_c + du/dt


def damped(text):
    """The estimator for the argument after its name, as in own_estimator.py:ESTIMATOR:0.5."""
    damping = float(text or 0.5)
    return Estimator(
        name=f"damped:{damping}",
        title="MeanFlow with a damped derivative",
        paper="",
        formula="u + damping (t-r) [du/dx v_c + du/dt] - v_c",
        residual=partial(residual, damping=damping),
        parse=damped,
    )


ESTIMATOR = damped("")

if __name__ == "__main__":
    import matplotlib.pyplot as plt

    import mfdiag

    dampings = [0, 0.25, 0.5, 0.75, 1]
    names = [f"{__file__}:ESTIMATOR:{damping}" for damping in dampings]
    checkpoint = mfdiag.load_model(files("mfdiag") / "data" / "eight_gaussians.safetensors")
    tables = mfdiag.measure(checkpoint.module, "eight_gaussians", tables=["compare"], estimators=names, samples=2048)
    table = tables["compare"].query("layer == 'all' and t_low.isna()")
    rows = table[table["estimator"].str.startswith("damped")]
    figure, axes = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
    for ax, quantity in zip(axes, ["variance", "bias2"], strict=True):
        part = rows[rows["quantity"] == quantity]
        ax.plot(dampings, part["value"], marker="o")
        ax.fill_between(dampings, part["ci_low"], part["ci_high"], alpha=0.2)
        ax.set(xlabel="damping (1 is MeanFlow)", title=quantity)
    figure.savefig(sys.argv[1] if sys.argv[1:] else Path(__file__).with_suffix(".png"))
