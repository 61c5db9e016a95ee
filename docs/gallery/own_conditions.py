"""Measure a policy with observations.

Arrays beside the samples reach the network in the parameters of their names, in training and in `mfdiag.measure` alike.
Here a policy moves towards one of five goals, which an encoder reads; the encoder is part of the gradient. Many samples
share a goal, so the posterior given the goal is exact, and the noise at a fixed x_t and goal can be told from the rest.
"""

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import nn

import mfdiag


class Policy(nn.Module):
    """Average velocity of an action [n, 2], given a goal [n, 2]."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(2, 16), nn.SiLU())
        self.inside, self.outside = nn.Linear(20, 32), nn.Linear(32, 2)

    def forward(self, action, t, r, goal):
        inputs = torch.cat([action, t[:, None], r[:, None], self.encoder(goal)], 1)
        return self.outside(torch.tanh(self.inside(inputs)))


torch.manual_seed(0)
random = np.random.default_rng(0)
goals = random.normal(size=(5, 2)).astype(np.float32)[random.integers(0, 5, 500)]
actions = goals + 0.2 * random.normal(size=goals.shape).astype(np.float32)
optimizer = torch.optim.Adam((policy := Policy()).parameters(), 1e-2)
for _ in range(300):  # flow matching, the part of MeanFlow with r = t
    rows = random.integers(0, 500, 128)
    x, goal, noise, t = torch.tensor(actions[rows]), torch.tensor(goals[rows]), torch.randn(128, 2), torch.rand(128)
    point = x + t[:, None] * (noise - x)
    loss = (policy(point, t, t, goal) - (noise - x)).square().sum(1).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

request = {"tables": ["variance"], "estimators": ["meanflow"], "samples": 2048, "bins": (5, 5)}
table = mfdiag.measure(policy, actions, conditions={"goal": goals}, times="uniform", **request, say=print)["variance"]
figure, ax = plt.subplots(figsize=(6, 3.2), layout="constrained")
for layer in ("all", "encoder.0"):
    for quantity, line in [("variance", "-"), ("conditional_variance", "--")]:
        rows = table.query("layer == @layer and quantity == @quantity and t_low.notna() and r_low.isna()")
        ax.plot((rows["t_low"] + rows["t_high"]) / 2, rows["value"], line, marker="o", label=f"{layer}: {quantity}")
ax.set(xlabel="t", ylabel="variance of the gradient", yscale="log")
ax.legend(fontsize="small")
figure.savefig(sys.argv[1] if sys.argv[1:] else Path(__file__).with_suffix(".png"))
