"""Measure a network while it trains.

`mfdiag.measure` takes any module that is called as u(x, r, t, labels). Here a small network trains on two moons with
MeanFlow's loss. Every 200 steps it is measured on the same 512 samples, so the curve has no noise from sampling. The
noise scale is the batch size at which the noise of the gradient equals its signal.
"""

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import make_moons
from torch import nn

import mfdiag


class Network(nn.Module):  # average velocity u(x, r, t) in the plane, data at t = 0
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 2))

    def forward(self, x, r, t, labels=None):
        return self.layers(torch.cat([x, r[:, None], t[:, None]], dim=1))


torch.manual_seed(0)
points = make_moons(2048, noise=0.05, random_state=0)[0].astype("float32")
network = Network()
optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
figure, ax = plt.subplots(figsize=(6, 3), layout="constrained")
for step in range(1001):
    if step % 200 == 0:
        table = mfdiag.measure(network, points, tables=["variance"], estimators=["meanflow"], samples=512)["variance"]
        row = table.query("quantity == 'noise_scale' and layer == 'all' and t_low.isna()").iloc[0]
        ax.vlines(step, row["ci_low"], row["ci_high"])
        ax.plot(step, row["value"], "o", color="C0")
    x0 = torch.as_tensor(points)[torch.randint(len(points), (128,))]
    x1, t = torch.randn_like(x0), torch.rand(128)
    r, v = t * torch.rand(128), x1 - x0
    primals, tangents = (x0 + t[:, None] * v, r, t), (v, torch.zeros_like(r), torch.ones_like(t))
    u, du_dt = torch.func.jvp(network, primals, tangents)
    optimizer.zero_grad()
    (u - (v - (t - r)[:, None] * du_dt).detach()).square().sum(1).mean().backward()
    optimizer.step()
ax.set(xlabel="training step", ylabel="noise scale (samples)", yscale="log")
figure.savefig(sys.argv[1] if sys.argv[1:] else Path(__file__).with_suffix(".png"))
