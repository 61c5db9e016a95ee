"""Wrappers keep the names of the network's parameters out of sight of whoever reads the tables."""

from __future__ import annotations

import torch
from torch import nn

import mfdiag
from mfdiag.flow.paths import LINEAR
from mfdiag.models.networks.mlp import MLP
from mfdiag.models.prediction import PredictionAdapter
from mfdiag.models.wrapper import Wrapper, prefix_of


def test_the_prefix_is_that_of_all_wrappers() -> None:
    network = nn.ModuleDict({"network": nn.Linear(2, 2)})  # a name of its own that is the wrapper's too
    wrapped = Wrapper(Wrapper(network))
    assert prefix_of(network) == "" and prefix_of(wrapped) == "network.network."
    names = [name.removeprefix(prefix_of(wrapped)) for name, _ in wrapped.named_parameters()]
    assert names == [name for name, _ in network.named_parameters()] == ["network.weight", "network.bias"]


def test_layers_have_the_networks_own_names() -> None:
    settings = {"tables": ["variance"], "samples": 16, "by_layer": True}
    frames = [
        mfdiag.measure(MLP(2, 4, 1), "gaussian:2,0,1", prediction=prediction, engine=engine, **settings)["variance"]
        for prediction, engine in (("u", "fast"), ("x", "fast"), ("eps", "reference"))
    ]
    for frame in frames:
        assert set(frame["layer"]) == {"all", "layers.0", "layers.2"}


def test_a_head_predicts_what_the_network_does() -> None:
    class TwoHeaded(MLP):
        def velocity(self, x: torch.Tensor, r: torch.Tensor, t: torch.Tensor, y: None = None) -> torch.Tensor:
            return self(x, r, t, y)

    x, r, t = torch.randn(3, 2), torch.zeros(3), torch.rand(3)
    model = PredictionAdapter(TwoHeaded(2, 4, 1), "x", LINEAR)
    torch.testing.assert_close(model.velocity(x, r, t), model(x, r, t))
    assert not hasattr(PredictionAdapter(MLP(2, 4, 1), "x", LINEAR), "velocity")
