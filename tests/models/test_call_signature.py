"""A network's own signature decides how it is called, and what does not decide is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mfdiag import load_model, measure
from mfdiag.errors import InputError
from mfdiag.flow.data.datasets import FiniteData
from mfdiag.measures.run.subject import SubjectOptions, load_subject
from mfdiag.models.call_adapter import CallAdapter, adapt_call
from mfdiag.models.call_signature import call_of
from mfdiag.models.networks.mlp import MLP

N = 5


@pytest.mark.parametrize(
    ("signature", "call"),
    [
        ("x, t, r, y=None", "x = x_t, t = t, r = r, y = labels"),
        ("x, r, t", "x = x_t, r = r, t = t"),
        ("x, t, r=None", "x = x_t, t = t, r = r"),
        ("a, b, c", "a = x_t, b = r, c = t"),
        ("z, t, h", "z = x_t, t = t, h = t - r"),
        ("x, t, delta, label=None", "x = x_t, t = t, delta = t - r, label = labels"),
        ("x, r, t, h=None", "x = x_t, r = r, t = t"),
        ("z, *, t, r", "z = x_t, t = t, r = r"),
        ("t, x, *, dt", "t = t, x = x_t, dt = t - r"),
        ("x, sigma, sigma_next", "x = x_t, sigma = t, sigma_next = r"),
        ("sample, timestep, timestep_next, class_labels=None, return_dict=False",
         "sample = x_t, timestep = t, timestep_next = r, class_labels = labels"),
        ("noise, t_cur, t_next, **options", "noise = x_t, t_cur = t, t_next = r"),
        ("x, r, t, mask=None, y=None", "x = x_t, r = r, t = t, y = labels"),
        ("x, r, t, scale=1.0", "x = x_t, r = r, t = t"),
        ("x, t, r, condition=None", "x = x_t, t = t, r = r, condition = labels"),
        ("x, t, r, cond=None, y=None", "x = x_t, t = t, r = r, y = labels"),
    ],
)  # fmt: skip
def test_names_that_tell_are_used(signature: str, call: str) -> None:
    found = call_of(eval(f"lambda {signature}: x"), "Net.forward")
    assert str(found) == call and not found.documented


@pytest.mark.parametrize(
    "signature",
    ["x, r, t, y=None", "x, r, t, labels=None", "a, b, c, d", "x, r, t, c=None", "*args", "x, *args", "z, a, t, y"],
)
def test_the_documented_order_needs_no_adapter(signature: str) -> None:
    assert call_of(eval(f"lambda {signature}: 0"), "Net.forward").documented


@pytest.mark.parametrize(
    ("signature", "problem", "card"),
    [
        ("x, s, t", "s can be either", "[x, t, r]"),
        ("x, t0, t1", "t0, t1 can be either", "[x, r, t]"),
        ("x, t_start, t_end, y=None", "t_start, t_end can be either", "[x, t, r]"),
        ("x, t, b", "b does not", "[x, t, h]"),
        ("x, t", "neither r nor", "output: {average: false}"),
        ("x, t, y=None", "neither r nor", "output: {average: false}"),
        ("x, t, *args", r"\*args can be anything", "[x, t, r]"),
        ("x, t, r, obs", "also needs obs", "keywords: {obs: VALUE}"),
        ("x, r, t, y, text", "also needs text", "keywords: {text: VALUE}"),
        ("x, **kwargs", "which are x, r and t", "[x, r, t]"),
        ("x", "which are x, r and t", "[x, r, t]"),
    ],
)
def test_names_that_do_not_decide_are_refused_with_the_lines_of_a_card(signature: str, problem: str, card: str) -> None:
    with pytest.raises(InputError, match=problem) as error:
        call_of(eval(f"lambda {signature}: 0"), "Net.forward")
    assert card in str(error.value) and f"Net.forward({signature.partition('=')[0]}" in str(error.value)


class Shaped(nn.Module):
    """Takes its times in the shape that `read` reads."""

    def __init__(self, read: Callable[[Tensor, Tensor], Tensor], classes: int | None = None) -> None:
        super().__init__()
        self.linear, self.read = nn.Linear(4, 4), read
        self.embedding = nn.Embedding(4, 4)
        self.register_buffer("calls", torch.zeros(()))
        self.counts = False
        if classes is not None:
            self.num_classes = classes

    def forward(self, x: Tensor, t: Tensor, r: Tensor, y: Tensor | None = None) -> Tensor:
        if self.counts:
            self.calls += 1
        out = self.linear(x) + self.read(x, t) - 0.3 * self.read(x, r)
        return out if y is None else out + self.embedding(y).view(-1, *[1] * (x.ndim - 2), 4)


SHAPES: dict[str, tuple[tuple[str | int, ...], Any]] = {
    "n": (("n",), lambda x, t: t.view(len(x), *[1] * (x.ndim - 1))),
    "n1": (("n", 1), lambda x, t: torch.cat([t, t], 1).mean(1).view(len(x), *[1] * (x.ndim - 1))),
    "full": (("n", 1, 1, 1), lambda x, t: t.expand(-1, *x.shape[1:])),
    "number": ((), lambda x, t: t * torch.ones_like(x) if t.ndim == 0 else t.fail()),
}


@pytest.mark.parametrize("name", SHAPES)
def test_the_shape_of_times_is_found_by_trying(name: str) -> None:
    torch.manual_seed(0)
    shape, read = SHAPES[name]
    network, reference = Shaped(read), Shaped(SHAPES["n"][1])
    reference.load_state_dict(network.state_dict())
    network.counts = True
    adapted = adapt_call(network, (3, 2, 4))
    assert isinstance(adapted, CallAdapter) and adapted.time_shape == shape
    assert network.calls == 0, "the trial leaves buffers alone"
    x, r, t = torch.randn(N, 3, 2, 4), torch.rand(N) / 2, torch.rand(N)
    torch.testing.assert_close(adapted(x, r, t), reference(x, t, r))
    assert ("found by trying" in adapted.note) == (name in ("n1", "full")) and ("one number" in adapted.note) == (
        name == "number"
    )


@pytest.mark.parametrize("name", ["n1", "number"])
def test_measured_as_the_same_network_with_the_documented_signature(name: str) -> None:
    torch.manual_seed(0)
    network = Shaped(SHAPES[name][1])

    class Documented(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = Shaped(SHAPES["n"][1])
            self.body.load_state_dict(network.state_dict())

        def forward(self, x: Tensor, r: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
            return self.body(x, t, r)

    options: dict[str, Any] = {"tables": ("variance",), "samples": 48, "times": "uniform", "dtype": torch.float64}
    found, expected = (measure(m, "gaussian:4,0,1", **options)["variance"] for m in (network, Documented()))
    expected["layer"] = expected["layer"].str.removeprefix("body.")
    keys = ["estimator", "quantity", "layer"]  # layers in any order: one is measured by the reference method
    values, truth = (frame.fillna({"estimator": ""}).set_index(keys)["value"] for frame in (found, expected))
    np.testing.assert_allclose(values, truth.loc[values.index], rtol=1e-9, atol=1e-12)


def labeled_data() -> FiniteData:
    rng = np.random.default_rng(0)
    return FiniteData("labeled", rng.normal(size=(30, 4)), np.arange(30) % 3)


def test_labels_of_the_data_reach_a_network_whose_names_take_them() -> None:
    notes: list[str] = []
    options: dict[str, Any] = {"tables": ("variance",), "samples": 48, "times": "uniform", "by_layer": False}
    inferred, declared, dropped = _variances(options, notes)
    assert inferred == declared != dropped
    assert any("y = labels (3 classes, as in the data)" in note for note in notes)


def _variances(options: dict[str, Any], notes: list[str]) -> list[float]:
    network, declared = Shaped(SHAPES["n"][1]), Shaped(SHAPES["n"][1], classes=3)
    declared.load_state_dict(network.state_dict())
    unlabeled = FiniteData("unlabeled", labeled_data().points)
    cases = ((network, labeled_data()), (declared, labeled_data()), (network, unlabeled))
    return [measure(m, data, say=notes.append, **options)["variance"]["value"].iloc[0] for m, data in cases]


class OneHot(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 4)

    def forward(self, x: Tensor, r: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        return x * t[:, None] if label is None else x + self.linear(label)


class Unnamed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(3, 4)

    def forward(self, x: Tensor, r: Tensor, t: Tensor, c: Tensor | None = None) -> Tensor:
        return x if c is None else x + self.embedding(c)


@pytest.mark.parametrize(("network", "kind"), [(OneHot, "one_hot"), (Unnamed, "index")])
def test_a_call_that_would_drop_labels_is_refused(network: Callable[[], nn.Module], kind: str) -> None:
    with pytest.raises(InputError, match=rf"conditioning: \{{kind: {kind}, classes: 3\}}.*labels=none"):
        adapt_call(network(), (4,), 3, "labeled")
    unlabeled = network()
    assert adapt_call(unlabeled, (4,)) is unlabeled
    declared = network()
    declared.num_classes = 0
    assert adapt_call(declared, (4,), 3, "labeled") is declared


def test_networks_with_the_documented_signature_are_called_as_they_are() -> None:
    for network in (MLP(2, 4, 1), MLP(2, 4, 1, num_classes=3)):
        assert adapt_call(network, (2,), 3) is network


CODE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 2)

    def forward(self, x, t, r, y=None):
        return self.linear(x) * t.view(-1, 1) + r.view(-1, 1)

def build():
    return Net()
"""


def test_a_file_is_loaded_and_measured_by_name(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(CODE)
    torch.manual_seed(0)
    raw, ema = nn.Linear(2, 2), nn.Linear(2, 2)
    sets = {key: {f"linear.{n}": p for n, p in m.state_dict().items()} for key, m in (("model", raw), ("ema", ema))}
    torch.save(sets, tmp_path / "net.pt")
    factory = f"{tmp_path / 'net.py'}:build"
    loaded = load_model(tmp_path / "net.pt", model=factory)
    x, r, t = torch.randn(N, 2), torch.rand(N), torch.rand(N)
    for module, linear in ((loaded.module, raw), (loaded.with_weights("ema"), ema)):
        torch.testing.assert_close(module(x, r, t), linear(x) * t[:, None] + r[:, None])
    notes: list[str] = []
    options = SubjectOptions(model=factory, data="gaussian:2,0,1", times="uniform")
    subject = load_subject(tmp_path / "net.pt", options, say=notes.append)
    assert notes == ["Net.forward is called with x = x_t, t = t, r = r, y = labels."]
    frame = measure(subject.module, "gaussian:2,0,1", tables=["variance"], samples=32)["variance"]
    assert {"linear.weight", "linear"} & set(frame["layer"]) and not frame["layer"].str.contains("network").any()


def test_a_network_that_mixes_samples_is_not_called_one_by_one() -> None:
    class Centered(nn.Module):
        def forward(self, x: Tensor, r: Tensor, t: Tensor) -> Tensor:
            return x - x.mean(0)

    class OneTime(nn.Module):
        def forward(self, x: Tensor, r: Tensor, t: Tensor) -> Tensor:
            return x * float(t)

    for network, shape in ((Centered(), ("n",)), (OneTime(), ())):
        adapted = adapt_call(network, (2,))
        assert isinstance(adapted, CallAdapter) and adapted.time_shape == shape
