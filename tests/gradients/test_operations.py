"""Layers and operations as repositories write them: both engines against plain gradients of single samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from engine_cases import TOLERANCE
from helpers import randomised
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mfdiag.fields.inputs import Inputs
from mfdiag.gradients.engine import prepare_engine, single_gradients
from mfdiag.gradients.fast_engine import FastEngine
from mfdiag.gradients.parameter_uses import ParameterUses, RuledUse

N, WIDTH, TOKENS, LABELS = 4, 4, 6, 3
DTYPE = pytest.mark.parametrize("dtype", list(TOLERANCE), ids=["float32", "float64"])


class Around(nn.Module):
    """u = last(tanh(middle(first(x), y))), with x [n, TOKENS, WIDTH], or x [n, WIDTH, ...] where `first` is none."""

    def __init__(self, middle: nn.Module, linear: bool = True) -> None:
        super().__init__()
        self.first = nn.Linear(WIDTH, WIDTH) if linear else nn.Identity()
        self.middle = middle
        self.last = nn.Linear(WIDTH, WIDTH) if linear else nn.Identity()

    def forward(self, x: Tensor, r: Tensor, t: Tensor, y: Tensor) -> Tensor:
        column = (-1, *[1] * (x.ndim - 1))
        h = self.first(x * (1 + t.view(column)) + r.view(column))
        h = torch.tanh(self.middle(h, y))
        rows = h.flatten(1)[:, : x[0].numel()]
        rows = F.pad(rows, (0, x[0].numel() - rows.shape[1]))
        return self.last(rows.view_as(x)) + 0.1 * x


class Of(nn.Module):
    """A layer that is a function of its parameters, of h and of labels."""

    def __init__(self, function: Callable[..., Tensor], **shapes: tuple[int, ...]) -> None:
        super().__init__()
        self.function = function
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.randn(shape)))

    def forward(self, h: Tensor, y: Tensor) -> Tensor:
        return self.function(self, h, y)


class Alone(nn.Module):
    """A layer without labels."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, h: Tensor, y: Tensor) -> Tensor:
        return self.layer(h)


class ChannelLast(nn.Conv1d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


class Equalized(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * 0.3, self.bias)


class Standardized(nn.Conv1d):
    def forward(self, x: Tensor) -> Tensor:
        w = self.weight
        w = (w - w.mean((1, 2), keepdim=True)) / (w.var((1, 2), keepdim=True) + 1e-3).sqrt()
        return F.conv1d(x, w, self.bias, padding=1)


class Plain(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).relu()


def memory(m: Any, h: Tensor, y: Tensor) -> Tensor:
    """Attention with tokens of its own."""
    keys, values = (part[None].expand(len(h), -1, -1) for part in m.kv)
    keys, values = torch.cat([keys, h], 1), torch.cat([values, h.sin()], 1)
    return F.scaled_dot_product_attention(h, keys, values)


def registers(m: Any, h: Tensor, y: Tensor) -> Tensor:
    return torch.cat([m.tokens.repeat(len(h), 1, 1), h], 1).cumsum(1)[:, 2:]


def modulated(m: Any, h: Tensor, y: Tensor) -> Tensor:
    shift, scale = m.table[y].chunk(2, -1)
    return F.layer_norm(h, (WIDTH,), m.gain, m.offset) * (1 + scale[:, None]) + shift[:, None]


def demodulated(m: Any, h: Tensor, y: Tensor) -> Tensor:
    """A convolution whose weight depends on the sample, all samples in one call, as in StyleGAN2."""
    w = m.weight[None] * (1 + h.mean(1)[:, None, :, None])
    w = w * (w.square().sum((2, 3), keepdim=True) + 1e-3).rsqrt()
    out = F.conv1d(h.transpose(1, 2).reshape(1, -1, TOKENS), w.flatten(0, 1), padding=1, groups=len(h))
    return out.view(len(h), WIDTH, TOKENS).transpose(1, 2)


def attended(**options: Any) -> Callable[[Any, Tensor, Tensor], Tensor]:
    """nn.MultiheadAttention, with tokens first where it is so made; half of one sample's keys may be masked."""

    def function(m: Any, h: Tensor, y: Tensor) -> Tensor:
        parts = (h, h.sin(), h.cos()) if m.layer.batch_first else (a.transpose(0, 1) for a in (h, h.sin(), h.cos()))
        masked = (torch.arange(TOKENS) >= 3) & (y == 1)[:, None] if options.get("masked") else None
        out, weights = m.layer(*parts, masked, need_weights=options.get("weights", False))
        out = out if m.layer.batch_first else out.transpose(0, 1)
        return out if weights is None else out + weights.sum(1)[:, :, None].expand(-1, -1, 1)

    return function


def recurred(m: Any, h: Tensor, y: Tensor) -> Tensor:
    """A recurrent network whose initial state depends on labels in its last layer."""
    first = m.layer.batch_first
    shape = (m.layer.num_layers * (2 if m.layer.bidirectional else 1), len(h), m.layer.hidden_size)
    start = (0.1 * y.view(1, -1, 1)).to(h).expand(shape)
    states = (start, start.sin()) if isinstance(m.layer, nn.LSTM) else start
    out, last = m.layer(h if first else h.transpose(0, 1), states)
    last = last[1] if isinstance(last, tuple) else last
    return (out if first else out.transpose(0, 1)) * (1 + last[0, :, None, :1])


def stepped(m: Any, h: Tensor, y: Tensor) -> Tensor:
    """A cell over all tokens, from the state that it makes itself."""
    states, outputs = None, []
    for token in h.unbind(1):
        states = m.layer(token, states)
        outputs.append(states[0] if isinstance(states, tuple) else states)
    return torch.stack(outputs, 1)


def with_layer(function: Callable[..., Tensor], make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        module = Of(function)
        module.layer = make()
        return module

    return build


WRITTEN_OUT: dict[str, Callable[[], nn.Module]] = {
    "attention": with_layer(attended(), lambda: nn.MultiheadAttention(WIDTH, 2, batch_first=True)),
    "attention_tokens_first": with_layer(attended(), lambda: nn.MultiheadAttention(WIDTH, 2, bias=False)),
    "attention_masked": with_layer(
        attended(masked=True), lambda: nn.MultiheadAttention(WIDTH, 2, add_zero_attn=True, batch_first=True)
    ),
    "attention_weights": with_layer(
        attended(weights=True, masked=True), lambda: nn.MultiheadAttention(WIDTH, 2, kdim=WIDTH, vdim=WIDTH)
    ),
    "attention_default": with_layer(
        lambda m, h, y: m.layer(h, h.sin(), h, average_attn_weights=False)[1].sum(1) @ m.layer(h, h, h)[0],
        lambda: nn.MultiheadAttention(WIDTH, 2, batch_first=True),
    ),
    "attention_causal": with_layer(
        lambda m, h, y: m.layer(
            h, h, h, need_weights=False, is_causal=True, attn_mask=torch.ones(TOKENS, TOKENS).triu(1).bool()
        )[0],
        lambda: nn.MultiheadAttention(WIDTH, 2, batch_first=True),
    ),
    "attention_separate": with_layer(
        lambda m, h, y: m.layer(h, h[..., :3], h[..., :2])[0],
        lambda: nn.MultiheadAttention(WIDTH, 2, kdim=3, vdim=2, batch_first=True),
    ),
    "transformer": with_layer(
        lambda m, h, y: m.layer(h), lambda: nn.TransformerEncoderLayer(WIDTH, 2, 5, batch_first=True)
    ),
    "lstm": with_layer(recurred, lambda: nn.LSTM(WIDTH, 3, 2, bidirectional=True)),
    "gru": with_layer(recurred, lambda: nn.GRU(WIDTH, WIDTH, 2, batch_first=True)),
    "gru_without_bias": with_layer(recurred, lambda: nn.GRU(WIDTH, 3, bias=False, bidirectional=True)),
    "rnn": with_layer(recurred, lambda: nn.RNN(WIDTH, 5, batch_first=True)),
    "rnn_relu": with_layer(recurred, lambda: nn.RNN(WIDTH, 3, nonlinearity="relu")),
    "lstm_cell": with_layer(stepped, lambda: nn.LSTMCell(WIDTH, WIDTH)),
    "gru_cell": with_layer(stepped, lambda: nn.GRUCell(WIDTH, WIDTH)),
    "rnn_cell": with_layer(stepped, lambda: nn.RNNCell(WIDTH, 3, bias=False)),
}
MIDDLES: dict[str, Callable[[], nn.Module]] = {
    "channel_last": lambda: Alone(ChannelLast(WIDTH, WIDTH, 3, padding=1)),
    "equalized": lambda: Alone(Equalized(WIDTH, 5)),
    "standardized": lambda: Alone(Standardized(TOKENS, TOKENS, 3)),
    "subclass": lambda: Alone(Plain(WIDTH, WIDTH)),
    "weight_norm": lambda: Alone(nn.utils.parametrizations.weight_norm(nn.Linear(WIDTH, WIDTH))),
    "raw_linear": lambda: Of(lambda m, h, y: F.linear(h, m.w, m.b), w=(5, WIDTH), b=(5,)),
    "raw_product": lambda: Of(lambda m, h, y: h @ m.w + m.b, w=(WIDTH, 5), b=(5,)),
    "transposed": lambda: Of(lambda m, h, y: h @ m.w.T, w=(5, WIDTH)),
    "sliced": lambda: Of(lambda m, h, y: F.linear(h, m.w[1:4], m.w[0, :3]), w=(5, WIDTH)),
    "addmm": lambda: Of(lambda m, h, y: torch.addmm(m.b, h.flatten(0, 1), m.w).view(len(h), -1), w=(4, 5), b=(5,)),
    "raw_convolution": lambda: Of(
        lambda m, h, y: F.conv1d(h, m.w, m.b, padding="same", groups=2), w=(TOKENS, 3, 2), b=(TOKENS,)
    ),
    "token_mixing": lambda: Of(lambda m, h, y: m.w @ h, w=(TOKENS, TOKENS)),
    "heads": lambda: Of(
        lambda m, h, y: torch.einsum("bthd,hde->bthe", h.unflatten(2, (2, 2)), m.w).flatten(2), w=(2, 2, 2)
    ),
    "layer_scale": lambda: Of(lambda m, h, y: h + m.gamma.view(1, 1, -1) * h.sin(), gamma=(WIDTH,)),
    "gate": lambda: Of(lambda m, h, y: torch.lerp(h, h.cos(), m.gate.sigmoid()), gate=()),
    "position": lambda: Of(lambda m, h, y: h * m.w[:TOKENS].exp(), w=(TOKENS + 2, WIDTH)),
    "prelu": lambda: Of(lambda m, h, y: F.prelu(h.transpose(1, 2), m.w), w=(WIDTH,)),
    "frequencies": lambda: Of(lambda m, h, y: (h[..., :1] * m.w[None, None] * 2).sin(), w=(5,)),
    "memory": lambda: Of(memory, kv=(2, 3, WIDTH)),
    "registers": lambda: Of(registers, tokens=(1, 2, WIDTH)),
    "modulated": lambda: Of(modulated, table=(LABELS, 2 * WIDTH), gain=(WIDTH,), offset=(WIDTH,)),
    "twice": lambda: Of(lambda m, h, y: F.linear(torch.tanh(F.linear(h, m.w)), m.w.T + m.w), w=(WIDTH, WIDTH)),
    "stopped": lambda: Of(lambda m, h, y: h @ m.w + (h @ m.w.detach()).sin(), w=(WIDTH, WIDTH)),
    "unused": lambda: Of(lambda m, h, y: h, w=(7, 7)),
    "times_zero": lambda: Of(lambda m, h, y: h + 0 * F.linear(h, m.w), w=(WIDTH, WIDTH)),
    "folded": lambda: Of(lambda m, h, y: (h.flatten(0, 1) * m.g).view_as(h), g=(WIDTH,)),
    **WRITTEN_OUT,
}
SLOW = {"demodulated": lambda: Of(demodulated, weight=(WIDTH, WIDTH, 3))}


def inputs_of(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> Inputs:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(N, *shape, dtype=dtype, generator=generator)
    r, t = torch.rand(2, N, dtype=dtype, generator=generator).sort(0).values
    return x, r, t, torch.arange(N) % LABELS


def assert_agrees(module: nn.Module, inputs: Inputs, fallback: set[str] | None = frozenset()) -> FastEngine:  # type: ignore[assignment]
    """Gradients of the fast engine, made on the first two samples, against those of single samples."""
    module = module.to(inputs[0].dtype).eval().requires_grad_(False)
    first = tuple(a[:2] for a in inputs)  # type: ignore[index]
    engine = prepare_engine(module, first, "fast", lambda note: None)  # type: ignore[arg-type]
    assert isinstance(engine, FastEngine)
    if fallback is not None:
        assert engine.capabilities.fallback == fallback
    cotangents = torch.randn(2, *inputs[0].shape, dtype=inputs[0].dtype, generator=torch.Generator().manual_seed(1))
    actual = dict(engine.factors(inputs, cotangents))
    tolerance = TOLERANCE[inputs[0].dtype]
    for c, e in enumerate(cotangents):
        singles = single_gradients(module, inputs, e)
        assert actual.keys() == singles.keys()
        whole = float(torch.stack([g.norm() for gradients in singles.values() for g in gradients]).max())
        for name, gradients in singles.items():
            expected = torch.stack([g.flatten() for g in gradients])
            factors = actual[name]
            assert torch.dist(factors.dense(0, N)[c], expected) <= tolerance * whole, name
            assert torch.dist(factors.total(1, 3)[c], expected[1:3].sum(0)) <= 3 * tolerance * whole, name
            totals = factors.totals([(0, 2), (2, 4)])[:, c]
            assert torch.dist(totals, expected.unflatten(0, (2, 2)).sum(1)) <= 3 * tolerance * whole, name
            gram = factors.gram(1)[:, 0, c, c]
            assert float((gram - expected.double().square().sum(1)).abs().max()) <= 3 * tolerance * whole**2, name
    return engine


@DTYPE
@pytest.mark.parametrize("name", MIDDLES)
def test_operations(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    module = randomised(Around(MIDDLES[name]()))
    engine = assert_agrees(module, inputs_of((TOKENS, WIDTH), dtype))
    idle = {"middle.w"} if name in ("unused", "times_zero") else set()
    assert engine.capabilities.idle == idle


@pytest.mark.parametrize("name", WRITTEN_OUT)
def test_functions_that_are_written_out_give_the_same(name: str) -> None:
    torch.manual_seed(0)
    module = randomised(Around(WRITTEN_OUT[name]())).double().eval()
    inputs = inputs_of((TOKENS, WIDTH), torch.float64)
    before = module(*inputs)
    calls = []

    def record(name: str, a: Tensor, output: Tensor, use: RuledUse) -> Tensor:
        calls.append(len(a) / N)
        return output.detach().requires_grad_()

    with ParameterUses(dict(module.named_parameters()), inputs, record, set()):
        torch.testing.assert_close(module(*inputs), before, rtol=1e-12, atol=1e-12)
    assert {rows for rows in calls if rows} == {1}  # each linear map, with samples first


@pytest.mark.parametrize("name", SLOW)
def test_what_no_operation_serves_is_left_to_the_reference(name: str) -> None:
    torch.manual_seed(0)
    assert_agrees(randomised(Around(SLOW[name]())), inputs_of((TOKENS, WIDTH), torch.float64), None)


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[nn.Module, tuple[int, ...]]:
    axes, groups = draw(st.integers(1, 3)), draw(st.sampled_from([1, 2]))
    transposed, functional = draw(st.booleans()), draw(st.booleans())
    size = st.integers(1, 3)
    kernel, stride, dilation = (tuple(draw(size) for _ in range(axes)) for _ in range(3))
    padding = tuple(draw(st.integers(0, d * (k - 1))) for k, d in zip(kernel, dilation, strict=True))
    options: dict[str, Any] = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    if transposed:
        most = [max(s, d) - 1 for s, d in zip(stride, dilation, strict=True)]
        options["output_padding"] = tuple(draw(st.integers(0, m)) for m in most)
    kinds: dict[tuple[bool, int], Any] = {
        (False, 1): nn.Conv1d, (False, 2): nn.Conv2d, (False, 3): nn.Conv3d,
        (True, 1): nn.ConvTranspose1d, (True, 2): nn.ConvTranspose2d, (True, 3): nn.ConvTranspose3d,
    }  # fmt: skip
    layer = kinds[transposed, axes](WIDTH, 2 * draw(st.integers(1, 2)), kernel, bias=draw(st.booleans()), **options)
    spatial = tuple(d * (k - 1) + draw(st.integers(1, 3)) for k, d in zip(kernel, dilation, strict=True))
    if functional:
        f = getattr(F, f"conv{'_transpose' * transposed}{axes}d")
        module: nn.Module = Of(lambda m, h, y: f(h, m.weight * 1.0, m.bias, **options))
        module.weight, module.bias = layer.weight, layer.bias
        return module, (WIDTH, *spatial)
    return Alone(layer), (WIDTH, *spatial)


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(convolutions(), st.integers(0, 10**6), st.sampled_from(list(TOLERANCE)))
def test_convolutions(case: tuple[nn.Module, tuple[int, ...]], seed: int, dtype: torch.dtype) -> None:
    layer, shape = case
    torch.manual_seed(seed)
    assert_agrees(randomised(Around(layer, linear=False), 0.5, seed), inputs_of(shape, dtype, seed))
