"""Measure on your own data.

`mfdiag.measure` takes data as an array `[N, ...]`, or as an object that turns uniform random numbers into samples. Both
describe the same ring here. For an array mfdiag also knows the exact marginal velocity, so it splits off the
conditional variance: the noise of (x_0, x_1) at a fixed point x_t. For a distribution of your own it cannot know this,
and says so.
"""

import sys
from importlib.resources import files
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import mfdiag


class Ring:
    """Points on a ring of radius 2, drawn from three uniform numbers each."""

    name, shape, num_classes, width = "ring", (2,), 0, 3

    def sample(self, u):
        """Samples [n, 2] and their labels, here none, from uniform numbers u [n, 3]."""
        angle, radius = 2 * np.pi * u[:, 0], 2 + 0.1 * (u[:, 1] + u[:, 2] - 1)
        return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1), None


checkpoint = mfdiag.load_model(files("mfdiag") / "data" / "eight_gaussians.safetensors")
array = Ring().sample(np.random.default_rng(0).random((500, 3)))[0]
figure, ax = plt.subplots(figsize=(6, 3.2), layout="constrained")
for data, label in [(array, "array of 500 points"), (Ring(), "distribution")]:
    request = {"tables": ["variance"], "estimators": ["meanflow"], "samples": 2048, "bins": (5, 5), "by_layer": False}
    table = mfdiag.measure(checkpoint.module, data, **request, say=print)["variance"]
    by_time = table.query("t_low.notna() and r_low.isna()")
    for quantity, line in [("variance", "-"), ("conditional_variance", "--")]:
        rows = by_time[by_time["quantity"] == quantity]
        if len(rows):
            ax.plot((rows["t_low"] + rows["t_high"]) / 2, rows["value"], line, marker="o", label=f"{label}: {quantity}")
ax.set(xlabel="t", ylabel="variance of the gradient", yscale="log")
ax.legend()
figure.savefig(sys.argv[1] if sys.argv[1:] else Path(__file__).with_suffix(".png"))
