"""Measure a network of another repository with a model card.

Another repository may call its network with other arguments, run time from noise to data, or predict another velocity.
A model card states these conventions, so no wrapper is needed. The network below stands for such a repository: it is
called as net(t, x) with t times 1000, has data at t = 1 and predicts the instantaneous velocity of flow matching. The
figure shows which layers carry the gradient variance if MeanFlow training starts from these weights.
"""

import runpy
import sys
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import torch

import mfdiag

REPOSITORY = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.embed, self.body, self.head = nn.Linear(3, width), nn.Linear(width, width), nn.Linear(width, 2)
    def forward(self, t, x):
        h = torch.tanh(self.embed(torch.cat([x, t[:, None] / 1000], dim=1)))
        return self.head(torch.tanh(self.body(h)))
"""
CARD = """
network: {factory: "net.py:Net", arguments: {width: 64}}
weights: {raw: model}
call: {arguments: [t, x], time_scale: 1000}
convention: {direction: D1}
output: {average: false}
"""

folder = Path(tempfile.mkdtemp())
(folder / "net.py").write_text(REPOSITORY)
(folder / "card.yaml").write_text(CARD)
torch.manual_seed(0)
network = runpy.run_path(str(folder / "net.py"))["Net"](width=64)  # random weights stand in for trained ones
torch.save({"model": network.state_dict()}, folder / "checkpoint.pt")

loaded = mfdiag.load_model(folder / "checkpoint.pt", model=str(folder / "card.yaml"))
names = ["meanflow", "self_tangent"]
table = mfdiag.measure(loaded.module, "two_moons", tables=["variance"], estimators=names, samples=1024)["variance"]
rows = table.query("quantity == 'variance' and layer != 'all' and t_low.isna()")
shares = rows.pivot(index="layer", columns="estimator", values="value")
figure, ax = plt.subplots(figsize=(6, 3), layout="constrained")
(shares / shares.sum()).plot.barh(ax=ax, xlabel="share of the gradient variance", ylabel="")
figure.savefig(sys.argv[1] if sys.argv[1:] else Path(__file__).with_suffix(".png"))
