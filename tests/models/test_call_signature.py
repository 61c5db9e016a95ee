"""A network's own signature decides how it is called, and what does not decide is refused."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mfdiag import load_model, measure, measure_quality
from mfdiag.errors import InputError
from mfdiag.flow.data.datasets import FiniteData
from mfdiag.measures.run.subject import SubjectOptions, load_subject
from mfdiag.models.call_adapter import CallAdapter, adapt_call, call_note
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


@pytest.mark.parametrize("signature", ["x, t, r, image=None", "x, r, t, image", "z, t, h, *, image"])
def test_an_array_may_have_a_name_of_points_beside_the_point(signature: str) -> None:
    call = call_of(eval(f"lambda {signature}: 0"), "Net.forward", ["image"])
    assert call.conditions == ("image",) and call.parameter_of("x") == signature[0]


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
        ("x, **kwargs", "which are x, r and t", "[x], keywords: {r: r, t: t}"),
        ("x, times", "it takes an interval", "[x, {cat: [r, t]}]"),
        ("sample, both", "which are x, r and t", "[x, {cat: [r, t]}]"),
        ("x", "which are x, r and t", "[{cat: [x, r, t]}]"),
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


# ------------------------------------------------------------------ ways to hide or replace a signature

SIGNATURES: dict[str, tuple[str, str] | str] = {  # parameters: (by position, by name) of words, or what is refused
    "x, time, r": ("x t r", ""),
    "x, t, r=None": ("x t r", ""),
    "x, t, r=None, h=None": ("x t r", ""),
    "x, t, h, r=None": ("x t h r", ""),
    "x, t, dt": ("x t h", ""),
    "x, t, t_delta": ("x t h", ""),
    "x, noise_level, sigma_next": ("x t r", ""),
    "x, timesteps, class_labels=None, *, target_time": ("x t y", "target_time:r"),
    "x, t, context=None, r=None": ("x t", "r:r"),
    "x, t, cond, r": ("x t y r", ""),
    "x, t, r, **kwargs": ("x t r", ""),
    "x, a, b": ("x r t", ""),
    "x, t_r, t_t": ("x r t", ""),
    "x, t, duration": "duration does not",
    "x, t, d": "d does not",
    "x, start, end": "start, end can be either",
    "x, s, t": "s can be either",
    "x, tau, sigma": "tau can be either",
    "x, lam, lam_next": "lam_next can be either",
    "x, noise_prev, noise": "noise_prev can be either",
    "x, sigma": "neither r nor t - r",
    "x, r, dt": "which are x, r and t",
    "x, a, r": "which are x, r and t",
    "t, r": "which are x, r and t",
    "inputs": "which are x, r and t",
    "**kwargs": "which are x, r and t",
    "x, t, r, t_min, t_max": "also needs t_min, t_max",
}


def network_of(signature: str, kind: str) -> nn.Module:
    """A network with this signature, whose output says which argument was which: 1 x + 10 t + 100 r + 1000 (t - r)."""
    code = f"""
    import functools, torch
    from torch import nn

    def value(given):
        weight = dict(x=1.0, t=10.0, r=100.0, h=1000.0)
        out = 0.0
        for name, v in given.items():
            if isinstance(v, torch.Tensor) and v.is_floating_point():
                out = out + (v if v.ndim > 1 else v[:, None] * torch.ones(1, 3)) * POSITION[name]
        return out

    def named(function):
        @functools.wraps(function)
        def inner(*args, **kwargs):
            return function(*args, **kwargs)
        return inner

    class Net(nn.Module):
        def forward(self, {signature}):
            return value({{k: v for k, v in locals().items() if k != "self"}})

    class Called(nn.Module):
        def __call__(self, {signature}):
            return value({{k: v for k, v in locals().items() if k != "self"}})

    class Decorated(nn.Module):
        @named
        def forward(self, {signature}):
            return value({{k: v for k, v in locals().items() if k != "self"}})

    class Assigned(nn.Module):
        def __init__(self):
            super().__init__()
            self.forward = functools.partial(self.run)

        def run(self, {signature}):
            return value({{k: v for k, v in locals().items() if k != "self"}})

    class Hooked(Net):
        def __init__(self):
            super().__init__()
            self.register_forward_hook(lambda module, args, out: out)
    """
    names = [part.partition("=")[0].strip(" *") for part in signature.split(",")]
    scope: dict[str, Any] = {"POSITION": {name: 10.0**k for k, name in enumerate(names)}}
    exec(textwrap.dedent(code), scope)
    return scope[kind]()


@pytest.mark.parametrize("kind", ["Net", "Called", "Decorated", "Assigned", "Hooked"])
@pytest.mark.parametrize("signature", [s for s, call in SIGNATURES.items() if not isinstance(call, str)])
def test_each_argument_receives_its_own_number(signature: str, kind: str) -> None:
    """Whatever stands between the caller and the function, each parameter gets the word that its name means."""
    x, r, t = torch.randn(4, 3), torch.full((4,), 0.25), torch.full((4,), 0.75)
    values = {"x": x, "r": r[:, None], "t": t[:, None], "h": (t - r)[:, None]}
    positional, named = SIGNATURES[signature]
    names = [part.partition("=")[0].strip(" *") for part in signature.split(",")]
    words = dict(zip(names, positional.split(), strict=False)) | dict(pair.split(":") for pair in named.split())
    parts = [values[word] * 10.0 ** names.index(name) for name, word in words.items() if word != "y"]
    expected = sum(part * torch.ones(1, 3) for part in parts)
    adapted = adapt_call(network_of(signature, kind), (3,))
    torch.testing.assert_close(adapted(x, r, t), expected)


@pytest.mark.parametrize("kind", ["Net", "Called", "Assigned"])
@pytest.mark.parametrize("signature", [s for s, call in SIGNATURES.items() if isinstance(call, str)])
def test_what_does_not_tell_is_refused(signature: str, kind: str) -> None:
    with pytest.raises(InputError, match=str(SIGNATURES[signature])) as error:
        adapt_call(network_of(signature, kind), (3,))
    assert "pass --model a card with `call: " in str(error.value)


class Scripted(nn.Module):
    def forward(self, x: Tensor, t: Tensor, r: Tensor) -> Tensor:
        return x + 10 * t[:, None] + 100 * r[:, None]


def hidden(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def inner(*args: Any, **kwargs: Any) -> Tensor:
        return function(*args, **kwargs)

    return inner


class Hidden(Scripted):
    forward = hidden(Scripted.forward)


def test_scripted_and_traced_networks_say_their_parameters() -> None:
    x, r, t = torch.randn(4, 3), torch.rand(4), torch.rand(4)
    for network in (torch.jit.script(Scripted()), torch.jit.trace(Scripted(), (x, t, r))):
        torch.testing.assert_close(adapt_call(network, (3,))(x, r, t), Scripted()(x, t, r))


def test_a_hidden_signature_is_positional_as_documented_and_said() -> None:
    network = Hidden()
    assert adapt_call(network, (3,)) is network
    assert call_note(network) == (
        "Hidden.forward does not name its parameters: it is called with x_t, r, t and labels by position."
    )
    said: list[str] = []
    measure(Shaped(SHAPES["n"][1]), "gaussian:4,0,1", samples=32, tables=["sweep"], beta=[0, 1], say=said.append)
    assert any("is called with x = x_t, t = t, r = r" in note for note in said)
    assert call_note(Scripted()) is None or "t = t, r = r" in str(call_note(adapt_call(Scripted())))


# ------------------------------------------------------------------ labels that a call would drop


class Labelled(nn.Module):
    def __init__(self, name: str, classes: int | None = None) -> None:
        super().__init__()
        self.embedding, self.linear = nn.Embedding(4, 4), nn.Linear(4, 4)
        if classes is not None:
            self.num_classes = classes
        self.keyword = name


class ByContext(Labelled):
    def forward(self, x: Tensor, t: Tensor, r: Tensor, context: Tensor | None = None, scale: float = 1.0) -> Tensor:
        out = self.linear(x) + t[:, None] * r[:, None]
        return out if context is None else out + self.embedding(context)


class Without(Labelled):
    def forward(self, x: Tensor, t: Tensor, r: Tensor) -> Tensor:
        return self.linear(x) + t[:, None] * r[:, None]


class WithMask(Labelled):
    def forward(self, x: Tensor, t: Tensor, r: Tensor, mask: Tensor | None = None) -> Tensor:
        if mask is not None and mask.shape != x.shape:
            raise ValueError("one number of the mask per coordinate")
        return self.linear(x if mask is None else x * mask) + t[:, None] * r[:, None]


LABELED = FiniteData("labeled", np.random.default_rng(0).standard_normal((12, 4)), np.arange(12) % 3)
UNLABELED = FiniteData("plain", LABELED.points, None)
DROPPED = [(ByContext("context"), "class numbers as context change its output"), (Without("", 3), "num_classes = 3")]


@pytest.mark.parametrize(("network", "reason"), DROPPED)
def test_labels_are_dropped_nowhere(network: nn.Module, reason: str) -> None:
    options: dict[str, Any] = {"samples": 64, "tables": ["sweep"], "beta": [0, 1]}
    other = MLP(4, 4, 1)
    for attempt in (
        lambda: measure(network, LABELED, **options),
        lambda: measure(other, LABELED, proxy="teacher", proxy_model=network, **options),
        lambda: measure_quality(network, LABELED, samples=64, subsample=8, metrics=["energy_distance"]),
    ):
        with pytest.raises(InputError, match=reason) as error:
            attempt()
        assert "conditioning: {kind: index, classes: 3}" in str(error.value)
        assert "labels=none" in str(error.value)
    measure(network, UNLABELED, **options)


def test_other_optional_parameters_do_not_hinder() -> None:
    adapted = adapt_call(WithMask("mask"), (4,), 3)
    assert isinstance(adapted, CallAdapter) and adapted.call.optional == ("mask",)


def test_a_network_with_classes_on_data_without_labels_is_said() -> None:
    said: list[str] = []
    measure(MLP(4, 4, 1, num_classes=3), UNLABELED, samples=32, tables=["sweep"], beta=[0, 1], say=said.append)
    assert "plain has no labels: the network, which has 3 classes, is called without a label." in said


def test_quality_in_memory_calls_by_name_and_shape() -> None:
    torch.manual_seed(0)
    _, read = SHAPES["n1"]
    network, plain = Shaped(read), Shaped(SHAPES["n"][1])
    plain.load_state_dict(network.state_dict())
    options: dict[str, Any] = {"samples": 64, "subsample": 8, "metrics": ["energy_distance"], "nfe": [2]}
    ours, reference = (measure_quality(model, "gaussian:4,0,1", **options)["value"] for model in (network, plain))
    np.testing.assert_allclose(ours, reference, rtol=1e-4)


def test_quality_in_memory_says_how_the_network_is_called() -> None:
    options: dict[str, Any] = {"samples": 64, "subsample": 8, "metrics": ["energy_distance"], "nfe": [1]}
    said: list[str] = []
    measure_quality(Shaped(SHAPES["n1"][1]), "gaussian:4,0,1", say=said.append, **options)
    (note,) = said
    assert note.startswith("Shaped.forward is called with x = x_t, t = t, r = r, y = labels; times have the shape")
    measure_quality(MLP(4, 4, 1, num_classes=3), UNLABELED, say=said.append, **options)
    assert said[1:] == ["plain has no labels: the network, which has 3 classes, is called without a label."]


class Plain(nn.Module):
    """u = x + 10 t + 100 r, and the parameters of `forward` in three orders."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def value(self, x: Tensor, r: Tensor, t: Tensor) -> Tensor:
        return self.weight * (x + 10 * t.view(-1, 1) + 100 * r.view(-1, 1))


class TimeFirst(Plain):
    def forward(self, x: Tensor, t: Tensor, r: Tensor) -> Tensor:
        return self.value(x, r, t)


class Interval(Plain):
    def forward(self, x: Tensor, t: Tensor, h: Tensor, label: Tensor | None = None) -> Tensor:
        return self.value(x, t - h, t)


class Untelling(Plain):
    def forward(self, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        return self.value(a, c, b)


class ByKeyword(Plain):
    def forward(self, x: Tensor, *, t: Tensor, r: Tensor) -> Tensor:
        return self.value(x, r, t)


def renamed(module: nn.Module, args: Any, kwargs: dict[str, Tensor]) -> Any:
    return args, {"t": kwargs.get("time", torch.full((len(args[0]),), 0.5)), "r": kwargs["r"]}


def swapped_keywords(module: nn.Module, args: Any, kwargs: dict[str, Tensor]) -> Any:
    return args, {"t": kwargs["r"], "r": kwargs["t"]}


MOVED = {
    "swapped": (TimeFirst, lambda m, args: (args[0], args[2], args[1]), "t receives what was passed as r"),
    "interval": (Interval, lambda m, a: (a[0], a[1], a[1] - a[2]), "h receives a value made of t and h"),
    "end to interval": (Interval, lambda m, a: (a[0], a[2], a[2] - a[1]), "t receives what was passed as h"),
    "constant": (TimeFirst, lambda m, a: (a[0], torch.full_like(a[1], 0.5), a[2]), "t receives a value of its own"),
    "keyword renamed": (ByKeyword, renamed, "t receives a value of its own"),
    "keywords swapped": (ByKeyword, swapped_keywords, "t receives what was passed as r"),
}


@pytest.mark.parametrize("case", MOVED)
def test_hooks_that_move_arguments_are_refused(case: str) -> None:
    kind, hook, words = MOVED[case]
    network = kind()
    network.register_forward_pre_hook(hook, with_kwargs="keyword" in case)
    with pytest.raises(InputError, match=words) as error:
        measure(network, "gaussian:3,0,1", tables=["sweep"], samples=64)
    assert "arguments: [x, r, t]" in str(error.value)


def test_a_card_settles_what_hooks_take(tmp_path: Path) -> None:
    """The card's order is that of the caller, before the hooks."""
    code = """
    from torch import nn

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(2, 2)
            self.register_forward_pre_hook(lambda module, args: (args[0], args[2], args[1]))

        def forward(self, x, t, r):
            return self.linear(x) * t.view(-1, 1) + r.view(-1, 1)
    """
    (tmp_path / "net.py").write_text(textwrap.dedent(code))
    (tmp_path / "net.yaml").write_text(
        f"network: {{factory: '{tmp_path / 'net.py'}:Net'}}\ncall: {{arguments: [x, r, t]}}\n"
    )
    linear = nn.Linear(2, 2)
    torch.save({f"linear.{name}": p for name, p in linear.state_dict().items()}, tmp_path / "net.pt")
    x, r, t = torch.randn(N, 2), torch.rand(N), torch.rand(N)
    by_card = load_model(tmp_path / "net.pt", model=str(tmp_path / "net.yaml"))
    torch.testing.assert_close(by_card.module(x, r, t), linear(x) * t[:, None] + r[:, None])
    with pytest.raises(InputError, match="t receives what was passed as r"):
        measure(load_model(tmp_path / "net.pt", model=f"{tmp_path / 'net.py'}:Net"), "gaussian:2,0,1")


@pytest.mark.parametrize(
    ("kind", "hook", "expected"),
    [
        (TimeFirst, lambda m, a: (a[0] * a[1].view(-1, 1), *a[1:]), lambda x, r, t: x * t + 10 * t + 100 * r),
        (TimeFirst, lambda m, a: (a[0], 0.5 * a[1].log(), a[2]), lambda x, r, t: x + 5 * t.log() + 100 * r),
        (TimeFirst, lambda m, a: (a[0], torch.maximum(a[1], a[2]), a[2]), lambda x, r, t: x + 10 * t + 100 * r),
        (Interval, lambda m, a: None, lambda x, r, t: x + 10 * t + 100 * r),
        (Untelling, lambda m, a: (a[0], a[2], a[1]), lambda x, r, t: x + 10 * t + 100 * r),
    ],
)
def test_hooks_that_leave_each_argument_in_its_place_are_part_of_the_network(
    kind: type[Plain], hook: Any, expected: Callable[..., Tensor]
) -> None:
    network = kind()
    network.register_forward_pre_hook(hook)
    x, r, t = torch.randn(4, 3), torch.full((4,), 0.25), torch.full((4,), 0.75)
    torch.testing.assert_close(adapt_call(network, (3,))(x, r, t), expected(x, r[:, None], t[:, None]))


class RequiredOneHot(nn.Module):
    """Takes one-hot rows in a parameter without a default."""

    def __init__(self, cast: Callable[[Tensor], Tensor], classes: int | None = None) -> None:
        super().__init__()
        self.cast, self.linear = cast, nn.Linear(3, 4)
        if classes:
            self.num_classes = classes

    def forward(self, x: Tensor, t: Tensor, r: Tensor, labels: Tensor) -> Tensor:
        return x * t.view(-1, 1) + self.linear(self.cast(labels))


@pytest.mark.parametrize("cast", [lambda y: y, lambda y: y.float(), lambda y: y.view(-1, 3)])
@pytest.mark.parametrize("classes", [None, 3])
def test_one_hot_labels_are_told_from_class_numbers(cast: Callable[[Tensor], Tensor], classes: int | None) -> None:
    with pytest.raises(InputError, match=r"as labels and runs with one-hot rows.*kind: one_hot, classes: 3\}"):
        measure(RequiredOneHot(cast, classes), LABELED, samples=32, tables=["sweep"])


class Numbered(nn.Module):
    """A network with a table of labels, which states a number of classes."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.layer, self.table, self.num_classes = nn.Linear(4, 2), nn.Embedding(6, 2), num_classes

    def forward(self, x: Tensor, r: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        u = self.layer(torch.cat([x, r[:, None], t[:, None]], 1))
        return u if y is None else u + self.table(y)


def test_labels_beyond_the_stated_number_of_classes_are_refused() -> None:
    """As labels that count from 1, whose last one would be taken for the null label."""
    with pytest.raises(InputError, match=r"labels 0 to 2 in digits, .* but they go up to 3\. Number them from 0"):
        adapt_call(Numbered(3), (2,), 4, "digits")
    assert isinstance(adapt_call(Numbered(4), (2,), 4, "digits"), Numbered)
