"""Which layer's output serves as hidden features, on networks whose stacks are nested, unused or return tuples."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mfdiag.fields.hidden_features import hidden_features

N = 3


class Network(nn.Module):
    """A network of `width` 4 that applies what `use` yields; `unused` is never called."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        linears = [nn.Linear(4, 4) for _ in range(4)]
        if kind == "longest_unused":
            self.unused = nn.Sequential(*[nn.Linear(4, 4) for _ in range(9)])
        self.blocks = nn.ModuleList(linears)
        if kind == "nested":
            self.blocks = nn.ModuleList([nn.ModuleList(linears[:2]), nn.ModuleList(linears[2:])])
        if kind == "tuples":
            self.blocks = nn.ModuleList([Tupled(linear) for linear in linears])
        if kind == "none":
            self.blocks = linears[0]  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "none":
            return self.blocks(x)
        if self.kind == "nested":
            for pair in self.blocks:
                for linear in pair:  # type: ignore[attr-defined]
                    x = linear(x).tanh()
            return x
        for block in self.blocks:
            out = block(x)
            x = (out[0] if isinstance(out, tuple) else out).tanh()
        return x


class Tupled(nn.Module):
    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return self.linear(x), None


@pytest.mark.parametrize("kind", ["plain", "longest_unused", "nested", "tuples", "none"])
def test_features_are_the_output_of_a_layer_that_ran(kind: str) -> None:
    torch.manual_seed(0)
    network, x = Network(kind), torch.randn(N, 4)
    u, features = hidden_features(network, lambda: network(x))
    assert torch.equal(u, network(x)) and features.shape == (N, 4) and features.requires_grad
    if kind == "none":
        assert torch.equal(features, u)
        return
    linears = [m for m in network.modules() if isinstance(m, nn.Linear)][9 * (kind == "longest_unused") :]
    before = x
    for linear in linears[: 1 if kind == "nested" else 2]:
        before = linear(before).tanh()
    torch.testing.assert_close(features, linears[1 if kind == "nested" else 2](before))
    assert not any(m._forward_hooks for m in network.modules())


def test_tokens_folded_into_the_batch_axis_belong_to_their_sample() -> None:
    layers = nn.ModuleList([nn.Linear(2, 5)])
    network = nn.Module()
    network.layers = layers
    x = torch.randn(N, 2, 2)
    u, features = hidden_features(network, lambda: layers[0](x.reshape(-1, 2)).reshape(N, 2, 5))  # type: ignore[arg-type]
    assert features.shape == (N, 10) and torch.equal(features, u.reshape(N, 10))
