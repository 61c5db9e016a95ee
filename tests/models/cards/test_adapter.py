"""Round trip: a network in the convention of another project, read back through its card, is the network again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from foreign import CLASSES, SHAPE, AverageVelocity, CallConvention, ForeignNetwork
from helpers import randomised
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mfdiag.derivatives.forward_mode import forward_mode_derivatives
from mfdiag.errors import InputError
from mfdiag.flow.conditions import Conditions, null_of
from mfdiag.flow.paths import LINEAR
from mfdiag.gradients.engine import prepare_engine, single_gradients
from mfdiag.models.cards.adapter import CardAdapter
from mfdiag.models.cards.card import Card
from mfdiag.models.prediction import as_average_velocity
from mfdiag.models.wrapper import prefix_of

N = 4

CALLS: list[tuple[list[Any], dict[str, Any]]] = [
    (["x", "r", "t", "y"], {}),
    (["t", "x", "h", "y"], {}),
    (["x", ["t", "h"], "none"], {"labels": "y"}),
    (["x"], {"end": "r", "time": "t", "flag": True, "extra": {"label": "y", "scale": 2.5}}),
    ([["x", ["r", "t"]]], {"y": "y"}),
]
INSTANT: list[tuple[list[Any], dict[str, Any]]] = [(["x", "t", "y"], {}), (["t", "x", "r"], {"y": "y"})]


@st.composite
def call_conventions(draw: st.DrawFn) -> CallConvention:
    average = draw(st.booleans())
    arguments, keywords = draw(st.sampled_from(CALLS if average else INSTANT))
    direction = draw(st.sampled_from(["D0", "D1"]))
    predictions = ["u", "x", "eps", "v"] + (["denoised"] if direction == "D0" else [])
    prediction = draw(st.sampled_from(predictions))
    return CallConvention(
        arguments,
        keywords,
        direction,
        draw(st.sampled_from([1.0, 1000.0])),
        draw(st.sampled_from(["NCHW", "NHWC"])),
        prediction,
        draw(st.sampled_from([None, 0, 1, "out"])),
        average,
        draw(st.sampled_from(["index", "one_hot"])),
    )


def card_of(convention: CallConvention) -> Card:
    return Card.model_validate(
        {
            "network": {"factory": "foreign:ForeignNetwork"},
            "call": {
                "arguments": convention.arguments,
                "keywords": convention.keywords,
                "time_scale": convention.time_scale,
                "layout": convention.layout,
            },
            "convention": {
                "direction": convention.direction,
                "time_clamp": [0, 0.95] if convention.prediction == "denoised" else None,
            },
            "output": {"part": convention.part, "prediction": convention.prediction, "average": convention.average},
            "conditioning": {"kind": convention.labels, "classes": CLASSES, "null": CLASSES},
        }
    )


def read_back(convention: CallConvention, field: AverageVelocity) -> nn.Module:
    card = card_of(convention)
    return (
        as_average_velocity(CardAdapter(ForeignNetwork(convention, field), card), card.prediction, LINEAR)
        .double()
        .eval()
    )


class AtOneTime(nn.Module):
    """The velocity u(x, t, t) of a field, whatever r is."""

    def __init__(self, field: AverageVelocity) -> None:
        super().__init__()
        self.field = field

    def forward(self, x: Tensor, r: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        return self.field(x, t, t, y)


@settings(max_examples=25)
@given(convention=call_conventions(), seed=st.integers(0, 9), labelled=st.booleans())
def test_round_trip(convention: CallConvention, seed: int, labelled: bool) -> None:
    """u, its derivative along (dx, 1), and gradients of each sample by the plain loop and by the fast engine."""
    torch.manual_seed(seed)
    field = randomised(AverageVelocity(), seed=seed).double().requires_grad_(True)
    own = field if convention.average else AtOneTime(field)
    foreign = read_back(convention, field)
    x, dx, e = torch.randn(3, N, *SHAPE, dtype=torch.float64)
    r, t = (0.1 + 0.8 * torch.rand(2, N, dtype=torch.float64)).sort(0).values
    inputs = (x, r, t, torch.arange(N) % (CLASSES + 1) if labelled else None)
    torch.testing.assert_close(foreign(*inputs), own(*inputs), rtol=1e-9, atol=1e-10)

    tangents = dx[None], torch.ones(1, N, dtype=torch.float64)
    derivative, expected = (forward_mode_derivatives(module, *inputs, *tangents)[1] for module in (foreign, own))
    torch.testing.assert_close(derivative, expected, rtol=1e-7, atol=1e-8)

    before = prefix_of(foreign) + "field."
    truth = single_gradients(own, inputs, e)
    gradients = single_gradients(foreign, inputs, e)
    assert len(gradients) == 6
    notes: list[str] = []
    factors = dict(prepare_engine(foreign, inputs, "fast", notes.append).factors(inputs, e[None]))
    assert not notes
    for name, parts in gradients.items():
        single = truth[name.removeprefix(before) if convention.average else name.removeprefix(prefix_of(foreign))]
        torch.testing.assert_close(torch.stack(parts), torch.stack(single), rtol=1e-7, atol=1e-9)
        torch.testing.assert_close(
            factors[name].dense(0, N)[0], torch.stack(single).flatten(1), rtol=1e-7, atol=1e-9, check_dtype=False
        )


def adapted(network: nn.Module, **sections: Any) -> CardAdapter:
    return CardAdapter(network, Card.model_validate({"network": {"factory": "a.b:c"}, **sections}))


class Returns(nn.Module):
    """Records its arguments and returns a fixed value."""

    def __init__(self, returned: Any) -> None:
        super().__init__()
        self.returned = returned

    def forward(self, *arguments: Any, **keywords: Any) -> Any:
        self.called = arguments, keywords
        return self.returned

    other = forward


X, R, T = torch.randn(2, 3), torch.tensor([0.1, 0.2]), torch.tensor([0.6, 0.9])


def test_both_kinds_of_reversed_time() -> None:
    """u(x_t, r, t) = -U: the network's time at the point is 1 - t, the other end's 1 - r, wherever it takes them.

    Of straight paths x_s = x + (s - s') w in the network's time s, one that steps from the point at its first time to
    the other, x + (s_2 - s_1) U(x, s_1, s_2), has U = w, and one step from noise (s = 0) gives the data (s = 1).
    """
    noise, data = torch.randn(2, 5, 3)
    network = Returns(data - noise)
    model = adapted(network, call={"arguments": ["x", "t", "r"]}, convention={"direction": "D1"})
    zeros, ones = torch.zeros(5), torch.ones(5)
    torch.testing.assert_close(noise - model(noise, zeros, ones), data)
    (_, first, second), _ = network.called
    assert torch.equal(first, zeros) and torch.equal(second, ones)
    model = adapted(network, call={"arguments": ["x", "r", "t", "h"]}, convention={"direction": "D1"})
    model(X, R, T)
    (_, r, t, h), _ = network.called
    torch.testing.assert_close((r, t, h), (1 - R, 1 - T, T - R))


def test_times_are_clamped_then_scaled() -> None:
    network = Returns(X)
    call = {"arguments": ["x", "r", "t", "h"], "time_scale": 1000}
    adapted(network, call=call, convention={"time_clamp": [0.15, 0.8]})(X, R, T)
    r, t, h = network.called[0][1:]
    torch.testing.assert_close(r, torch.tensor([150.0, 200.0]))
    torch.testing.assert_close(t, torch.tensor([600.0, 800.0]))
    torch.testing.assert_close(h, torch.tensor([450.0, 600.0]))


@pytest.mark.parametrize("shape", [["n", 1], ["n", 1, 1, 1], []])
def test_times_have_the_shape_that_the_card_states(shape: list[str | int]) -> None:
    network = Returns(X) if shape else Returns(X[:1])
    call = {"arguments": ["x", "r", "t", "h"], "time_shape": shape, "keywords": {"w": {"each": 2.0}}}
    out = adapted(network, call=call)(X, R, T)
    assert out.shape == X.shape
    (x, r, t, h), keywords = network.called
    expected = [len(X) if size == "n" else 1 for size in shape]
    assert list(r.shape) == list(t.shape) == list(h.shape) == expected and keywords["w"].shape == (len(x),)
    last = slice(None) if shape else slice(-1, None)
    torch.testing.assert_close(h.reshape(-1), (T - R)[last])
    with pytest.raises(ValueError, match=r"time_shape must be \[\], or n followed by ones"):
        adapted(network, call=call | {"time_shape": [1, "n"]})


class Joined(nn.Module):
    """u(x, r, t) of a network that takes times, or everything, in one tensor."""

    def __init__(self, field: AverageVelocity, split: Callable[..., tuple[Tensor, Tensor, Tensor]]) -> None:
        super().__init__()
        self.field, self.split = field, split

    def forward(self, *arguments: Tensor) -> Tensor:
        u = self.field(*self.split(*arguments))
        return u if arguments[0].shape[2:] == SHAPE[1:] else u.movedim(1, -1)


JOINED: list[tuple[dict[str, Any], Callable[..., tuple[Tensor, Tensor, Tensor]]]] = [
    ({"arguments": ["x", {"cat": ["t", "r"]}]}, lambda x, s: (x, s[:, 1], s[:, 0])),
    ({"arguments": ["x", {"cat": ["h", "t"]}], "time_shape": ["n", 1]}, lambda x, s: (x, s[:, 1] - s[:, 0], s[:, 1])),
    ({"arguments": [{"cat": ["x", "r", "t"]}]}, lambda z: (z[:, :2], z[:, 2, 0, 0], z[:, 3, 1, 1])),
    (
        {"arguments": [{"cat": ["t", "x", "r"]}], "time_shape": ["n", 1, 1, 1]},
        lambda z: (z[:, 1:3], z[:, 3, 2, 0], z[:, 0, 1, 1]),
    ),
    (
        {"arguments": [{"cat": ["x", "r", "t"]}], "layout": "NHWC"},
        lambda z: (z[..., :2].movedim(-1, 1), z[:, 0, 0, 2], z[:, 1, 1, 3]),
    ),
    ({"arguments": ["x", {"cat": ["r", "t"]}], "time_shape": []}, lambda x, s: (x, s[:, 0], s[:, 1])),
]


@pytest.mark.parametrize("kind", ["fast", "reference"])
@pytest.mark.parametrize(("call", "split"), JOINED)
def test_words_joined_in_one_tensor(call: dict[str, Any], split: Any, kind: Any) -> None:
    """Values, derivatives and gradients are those of the network that takes them apart."""
    torch.manual_seed(0)
    field = randomised(AverageVelocity()).double()
    joined = adapted(Joined(field, split), call=call).double()
    x, dx, e = torch.randn(3, N, *SHAPE, dtype=torch.float64)
    r, t = torch.rand(2, N, dtype=torch.float64).sort(0).values
    inputs = (x, r, t, None)
    torch.testing.assert_close(joined(*inputs), field(*inputs))
    tangents = dx[None], torch.ones(1, N, dtype=torch.float64)
    _, derivative = forward_mode_derivatives(joined, *inputs, *tangents)
    torch.testing.assert_close(derivative, forward_mode_derivatives(field, *inputs, *tangents)[1])
    engine = prepare_engine(joined.requires_grad_(False), inputs, kind, lambda note: None)
    expected = single_gradients(field, inputs, e)
    for name, factors in engine.factors(inputs, e[None]):
        mine = factors.dense(0, N)[0].view(N, -1)
        torch.testing.assert_close(mine, torch.stack(expected[name.removeprefix("network.field.")]).view(N, -1))


def test_constants_and_packs() -> None:
    network = Returns(X)
    keywords = {"flag": False, "kind": {"value": "flow"}, "w": {"each": 7.5}, "extra": {"t": "t"}, "empty": {}}
    adapted(network, call={"arguments": ["x", ["t", "r"], None], "keywords": keywords, "method": "other"})(X, R, T)
    (_, pack, nothing), keywords = network.called
    assert isinstance(pack, tuple) and nothing is None and keywords["flag"] is False and keywords["kind"] == "flow"
    assert (
        torch.equal(keywords["w"], torch.full((2,), 7.5))
        and keywords["extra"]["t"] is pack[0]
        and keywords["empty"] == {}
    )


@pytest.mark.parametrize("y", [None, torch.tensor([2, 1])])
def test_labels_and_the_null_label(y: Tensor | None) -> None:
    network = Returns(X)
    for kind, expected in (("index", [0, 1]), ("one_hot", [[0, 0], [0, 1]])):
        model = adapted(
            network,
            call={"arguments": ["x", "r", "t", "y"]},
            conditioning={"kind": kind, "classes": 2, "null": 0 if kind == "index" else 2},
        )
        assert model.num_classes == 2
        model(X, R, T, y)
        labels = network.called[0][3]
        whole = expected if y is not None else [expected[0], expected[0]]
        assert labels.tolist() == whole and labels.dtype == (torch.int64 if kind == "index" else X.dtype)


def test_guidance_passed_to_the_network() -> None:
    network = Returns(X)
    model = adapted(
        network,
        call={"arguments": ["x", "r", "t", "omega", "t_min", "t_max", "y"]},
        conditioning={"kind": "index", "classes": 2, "null": 2},
    )
    assert model.takes_guidance and not adapted(network).takes_guidance
    model(X, R, T, torch.tensor([[1, 3.0, 0.2, 0.8], [2, 1.0, 0.0, 1.0]]))
    guidance = [value.tolist() for value in network.called[0][3:]]
    assert guidance == [pytest.approx(part) for part in ([3, 1], [0.2, 0], [0.8, 1], [1, 2])]
    model(X, R, T, torch.tensor([1, 0]))
    assert [value.tolist() for value in network.called[0][3:]] == [[1, 1], [0, 0], [1, 1], [1, 0]]


def test_which_samples_are_dropped_passed_to_the_network() -> None:
    """By labels, or by the mask of conditions that a network hides itself."""
    network = Returns(X)
    call = {"arguments": ["x", "r", "t", "y"], "keywords": {"mask": "dropped"}}
    model = adapted(network, call=call, conditioning={"kind": "index", "classes": 2, "null": 2})
    for y, expected in ((torch.tensor([2, 0]), [True, False]), (None, [True, True])):
        model(X, R, T, y)
        assert network.called[1]["mask"].tolist() == expected
    held = {"seen": {"array": "seen", "null": "keep"}}
    model = adapted(network, call={"arguments": ["x", "r", "t"], "keywords": {"mask": "dropped"}, "conditions": held})
    arrays = {"seen": torch.tensor([3.0, 4.0])}
    for dropped, expected in ((None, [False, False]), (torch.tensor([False, True]), [False, True])):
        condition = Conditions(None, arrays, dropped)
        model(X, R, T, condition)
        keywords = network.called[1]
        assert keywords["mask"].tolist() == expected and torch.equal(keywords["seen"], arrays["seen"])
    model(X, R, T, null_of(condition, 0))
    assert network.called[1]["mask"].tolist() == [True, True]
    assert model.conditions_without_null == ()


def test_the_velocity_head_goes_through_the_same_conventions() -> None:
    field = randomised(AverageVelocity(), seed=1)
    convention = CallConvention(["x", "r", "t", "y"], {}, "D1", 1.0, "NHWC", "u", 0, True, "index")
    both = ForeignNetwork(convention, field)
    card = card_of(convention).model_copy(
        update={"output": card_of(convention).output.model_copy(update={"velocity_head": 0})}
    )
    x, y = torch.randn(2, *SHAPE), torch.tensor([0, 2])
    torch.testing.assert_close(CardAdapter(both, card).velocity(x, R, T, y), field(x, R, T, y))
    assert not hasattr(CardAdapter(both, card_of(convention)), "velocity")
    head = as_average_velocity(CardAdapter(both, card), "x", LINEAR)
    torch.testing.assert_close(head.velocity(x, R, T, y), head(x, R, T, y))


class Point:
    """An output with an attribute."""

    sample = X


@pytest.mark.parametrize(
    ("returned", "part", "message"),
    [
        ((X, X), None, "a tensor as the whole output of Returns, but the output is a tuple of 2 parts"),
        ((X, X), 2, "part 2 of"),
        ((X, None), 1, "part 1 of"),
        ({"u": X}, "v", "but the output is a dict of 'u'"),
        (X, "v", "but the output is one Tensor"),
        (Point(), "output", "one Point"),
    ],
)
def test_an_output_that_does_not_exist(returned: Any, part: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        adapted(Returns(returned), output={"part": part})(X, R, T)


def test_parts_by_attribute_and_key() -> None:
    for returned, part in ((Point(), "sample"), ({"sample": X}, "sample"), ([None, X], 1)):
        assert adapted(Returns(returned), output={"part": part})(X, R, T) is X


def test_a_method_that_does_not_exist() -> None:
    with pytest.raises(InputError, match="calls 'predict', which Returns does not have"):
        adapted(Returns(X), call={"method": "predict"})
