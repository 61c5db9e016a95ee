"""Networks u(x, r, t, y) put together at random from blocks that real networks use, each a function of one sample."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

TOKENS, WIDTH, CHANNELS, CLASSES = 4, 4, 2, 3
Block = Callable[["Part", Tensor, Tensor, Tensor], Tensor]
"""(its parameters and layers, tokens h [n, TOKENS, WIDTH], condition c [n, WIDTH], labels y [n]) -> tokens."""

BLOCKS: dict[str, tuple[Callable[[Part], None], Block]] = {}


def block(make: Callable[[Part], None]) -> Callable[[Block], Block]:
    """Register a block under the name of its function; `make` gives its part layers and parameters."""

    def register(function: Block) -> Block:
        BLOCKS[function.__name__] = (make, function)
        return function

    return register


class Part(nn.Module):
    """One block: what it holds, and how it maps tokens. Its result is added to them."""

    def __init__(self, name: str) -> None:
        super().__init__()
        make, self.function = BLOCKS[name]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old-style parametrizations are deprecated
            make(self)

    def forward(self, h: Tensor, c: Tensor, y: Tensor) -> Tensor:
        return self.function(self, h, c, y)

    def hold(self, **members: nn.Module | Tensor) -> None:
        for name, member in members.items():
            setattr(self, name, nn.Parameter(member) if isinstance(member, Tensor) else member)


class RandomNetwork(nn.Module):
    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self.enter, self.times, self.label = (
            nn.Linear(CHANNELS, WIDTH),
            nn.Linear(4, WIDTH),
            nn.Embedding(CLASSES, WIDTH),
        )
        self.parts = nn.ModuleList(Part(name) for name in names)
        self.leave = nn.Linear(WIDTH, CHANNELS)

    def forward(self, x: Tensor, r: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        assert y is not None
        c = torch.tanh(self.times(torch.stack([r.sin(), r.cos(), t.sin(), t.cos()], 1))) + self.label(y)
        h = self.enter(x) + c[:, None]
        for part in self.parts:
            h = h + torch.tanh(part(h, c, y))
        return self.leave(h)


def linear(inputs: int = WIDTH, outputs: int = WIDTH, **options: Any) -> nn.Linear:
    return nn.Linear(inputs, outputs, **options)


def one(p: Part) -> None:
    p.hold(a=linear())


def two(p: Part) -> None:
    p.hold(a=linear(), b=linear())


def experts(p: Part) -> None:
    p.hold(gate=linear(WIDTH, CLASSES), experts=nn.ModuleList([linear() for _ in range(CLASSES)]))


@block(two)
def perceptron(p: Part, h: Tensor, c: Tensor, y: Tensor) -> Tensor:
    return p.b(F.gelu(p.a(h)))


@block(two)
def gated(p: Part, h: Tensor, c: Tensor, y: Tensor) -> Tensor:
    return F.silu(p.a(h)) * p.b(h)


@block(one)
def in_place(p: Part, h: Tensor, c: Tensor, y: Tensor) -> Tensor:
    out = p.a(h)
    out += 1
    out[:, :1] = 0.5
    out = F.relu(out, inplace=True)
    return out


@block(lambda p: p.hold(a=nn.Conv1d(WIDTH, WIDTH, 3, padding=1)))
def convolution(p: Part, h: Tensor, c: Tensor, y: Tensor) -> Tensor:
    return p.a(h.mT).mT


@block(lambda p: p.hold(a=nn.Conv2d(1, 2, 3, padding=1), b=nn.Conv2d(2, 1, 1)))
def plane_convolution(p: Part, h: Tensor, c: Tensor, y: Tensor) -> Tensor:
    return p.b(F.silu(p.a(h[:, None])))[:, 0]


@block(lambda p: p.hold(a=nn.Conv1d(WIDTH, WIDTH, 2, groups=2, dilation=2, padding=1, padding_mode="circular")))
def grouped_convolution(p: Part, h: Tensor, c: Tensor, y: Tensor) -> Tensor:
    return p.a(h.mT).mT


@block(lambda p: p.hold(a=nn.ConvTranspose1d(WIDTH, WIDTH, 2, stride=2)))
def transposed_convolution(p: Part, h: Tensor, c: Tensor, y: Tensor) -> Tensor:
    return F.avg_pool1d(p.a(h.mT), 2).mT


@block(lambda p: p.hold(a=nn.ConvTranspose2d(1, 1, 3, padding=1)))
def transposed_plane(p: Part, h: Tensor, c: Tensor, y: Tensor) -> Tensor:
    return p.a(h[:, None])[:, 0]


@block(lambda p: p.hold(a=nn.LayerNorm(WIDTH), b=nn.RMSNorm(WIDTH, eps=1e-3)))
def layer_norms(p: Part, h: Tensor, c: Tensor, y: Tensor) -> Tensor:
    return p.b(p.a(h).sin())


@block(lambda p: p.hold(a=nn.GroupNorm(2, WIDTH), b=nn.InstanceNorm1d(WIDTH, affine=True)))
def channel_norms(p: Part, h: Tensor, c: Tensor, y: Tensor) -> Tensor:
    return p.b(p.a(h.mT).cos()).mT


@block(lambda p: p.hold(a=nn.BatchNorm1d(WIDTH)))
def batch_norm(p: Part, h: Tensor, c: Tensor, y: Tensor) -> Tensor:
    return p.a(h.mT).mT  # in eval mode: an affine map


@block(lambda p: p.hold(a=nn.MultiheadAttention(WIDTH, 2, batch_first=True)))
def attention(p: Part, h: Tensor, c: Tensor, y: Tensor) -> Tensor:
    return p.a(h, h, h, need_weights=False)[0]


@block(lambda p: p.hold(a=nn.MultiheadAttention(WIDTH, 2)))
def tokens_first(p: Part, h: Tensor, c: Tensor, y: Tensor) -> Tensor:
    h = h.transpose(0, 1)
    return p.a(h, h, h)[0].transpose(0, 1)


@block(lambda p: p.hold(q=linear(), kv=linear(WIDTH, 2 * WIDTH), scale=torch.ones(2, 1, 1)))
def cosine_attention(p: Part, h: Tensor, c: Tensor, y: Tensor) -> Tensor:
    q, k, v = (a.unflatten(2, (2, -1)).transpose(1, 2) for a in (p.q(h), *p.kv(h).chunk(2, -1)))
    scores = (F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT) * p.scale.exp()
    mask = torch.full((TOKENS, TOKENS), -torch.inf, dtype=h.dtype).triu(1)
    return ((scores + mask).softmax(-1) @ v).transpose(1, 2).flatten(2)


@block(lambda p: p.hold(q=linear(), k=linear(), v=linear()))
def masked_attention(p: Part, h: Tensor, c: Tensor, y: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(p.q(h), p.k(h), p.v(h), is_causal=True)


@block(lambda p: p.hold(q=linear(), k=linear(), v=linear(), memory=torch.randn(1, 3, WIDTH)))
def cross_attention(p: Part, h: Tensor, c: Tensor, y: Tensor) -> Tensor:
    context = torch.cat([p.memory.expand(len(h), -1, -1), c[:, None]], 1)
    return F.scaled_dot_product_attention(p.q(h), p.k(context), p.v(context))


@block(lambda p: p.hold(a=nn.TransformerEncoderLayer(WIDTH, 2, 6, batch_first=True, norm_first=True)))
def encoder_layer(p: Part, h: Tensor, c: Tensor, y: Tensor) -> Tensor:
    return p.a(h)


@block(lambda p: p.hold(a=nn.GRU(WIDTH, WIDTH, batch_first=True)))
def gru(p: Part, h: Tensor, c: Tensor, y: Tensor) -> Tensor:
    return p.a(h, c[None])[0]


@block(lambda p: p.hold(a=nn.LSTM(WIDTH, 2, bidirectional=True, batch_first=True)))
def lstm(p: Part, h: Tensor, c: Tensor, y: Tensor) -> Tensor:
    return p.a(h)[0]


@block(lambda p: p.hold(a=nn.RNN(WIDTH, WIDTH)))
def rnn(p: Part, h: Tensor, c: Tensor, y: Tensor) -> Tensor:
    return p.a(h.transpose(0, 1))[0].transpose(0, 1)


@block(lambda p: p.hold(a=nn.GRUCell(WIDTH, WIDTH)))
def recurrent_cell(p: Part, h: Tensor, c: Tensor, y: Tensor) -> Tensor:
    states = [c]
    for token in h.unbind(1):
        states.append(p.a(token, states[-1]))
    return torch.stack(states[1:], 1)


@block(lambda p: p.hold(a=linear(), b=nn.PReLU(), c=linear(), d=nn.PReLU(TOKENS)))
def prelu(p: Part, h: Tensor, c: Tensor, y: Tensor) -> Tensor:
    return p.d(p.c(p.b(p.a(h))))


@block(lambda p: p.hold(table=nn.Embedding(TOKENS, WIDTH)))
def positions(p: Part, h: Tensor, c: Tensor, y: Tensor) -> Tensor:
    return h * p.table(torch.arange(TOKENS, device=h.device))


@block(lambda p: p.hold(table=nn.Embedding(CLASSES + 1, WIDTH, padding_idx=0)))
def padded_labels(p: Part, h: Tensor, c: Tensor, y: Tensor) -> Tensor:
    return h * p.table(y)[:, None]


@block(lambda p: p.hold(table=nn.Embedding(6, WIDTH)))
def quantized(p: Part, h: Tensor, c: Tensor, y: Tensor) -> Tensor:
    return p.table((h.mean(2) > 0).long() + 2 * y[:, None].clamp(max=1))


@block(lambda p: p.hold(a=nn.utils.weight_norm(linear()), b=nn.utils.parametrizations.weight_norm(linear())))
def weight_norms(p: Part, h: Tensor, c: Tensor, y: Tensor) -> Tensor:
    return p.b(torch.tanh(p.a(h)))


@block(lambda p: p.hold(a=nn.utils.spectral_norm(linear()), b=nn.utils.parametrizations.spectral_norm(linear())))
def spectral_norms(p: Part, h: Tensor, c: Tensor, y: Tensor) -> Tensor:
    return p.b(torch.tanh(p.a(h)))


@block(experts)
def mixture_by_mask(p: Part, h: Tensor, c: Tensor, y: Tensor) -> Tensor:
    chosen, out = p.gate(h).argmax(-1), torch.zeros_like(h)
    for k, expert in enumerate(p.experts):
        out[chosen == k] = expert(h[chosen == k])
    return out


@block(experts)
def mixture_by_top_k(p: Part, h: Tensor, c: Tensor, y: Tensor) -> Tensor:
    flat = h.flatten(0, 1)
    weights, chosen = p.gate(flat).softmax(-1).topk(2, dim=-1)
    out = torch.zeros_like(flat)
    for k, expert in enumerate(p.experts):
        row, place = (chosen == k).nonzero(as_tuple=True)
        out = out.index_add(0, row, expert(flat[row]) * weights[row, place, None])
    return out.view_as(h)


@block(experts)
def soft_mixture(p: Part, h: Tensor, c: Tensor, y: Tensor) -> Tensor:
    outputs = torch.stack([expert(h) for expert in p.experts], -1)
    return (outputs * p.gate(h).softmax(-1)[:, :, None]).sum(-1)


@block(experts)
def heads_by_class(p: Part, h: Tensor, c: Tensor, y: Tensor) -> Tensor:
    out = torch.zeros_like(h)
    for k in y.unique().tolist():
        out[y == k] = p.experts[k](h[y == k])
    return out + p.gate(h).sum(-1, keepdim=True)


@block(two)
def masked_tokens(p: Part, h: Tensor, c: Tensor, y: Tensor) -> Tensor:
    visible = h[..., 0] > 0
    return p.b(h).masked_scatter(visible[..., None], p.a(h[visible]))


@block(one)
def sorted_batch(p: Part, h: Tensor, c: Tensor, y: Tensor) -> Tensor:
    order = h[:, 0, 0].argsort()
    return p.a(h[order])[order.argsort()]


@block(one)
def flipped_batch(p: Part, h: Tensor, c: Tensor, y: Tensor) -> Tensor:
    return p.a(h.flip(0)).flip(0)


@block(two)
def doubled_batch(p: Part, h: Tensor, c: Tensor, y: Tensor) -> Tensor:
    first, second = p.a(torch.cat([h, h.sin()])).chunk(2)
    return p.b(first * second)


@block(two)
def repeated_samples(p: Part, h: Tensor, c: Tensor, y: Tensor) -> Tensor:
    return p.a(h.repeat_interleave(2, 0)).unflatten(0, (-1, 2)).prod(1) + p.b(h[:, None].expand(-1, 2, -1, -1)).sum(1)


@block(one)
def twice_used(p: Part, h: Tensor, c: Tensor, y: Tensor) -> Tensor:
    return p.a(torch.tanh(p.a(h)))


@block(two)
def never_used(p: Part, h: Tensor, c: Tensor, y: Tensor) -> Tensor:
    return p.a(h)


@block(two)
def without_effect(p: Part, h: Tensor, c: Tensor, y: Tensor) -> Tensor:
    return p.a(h) + 0 * p.b(h)


@block(lambda p: p.hold(a=linear(), b=linear(bias=False)))
def tied(p: Part, h: Tensor, c: Tensor, y: Tensor) -> Tensor:
    return F.linear(torch.tanh(p.a(h)), p.a.weight.t()) + p.b(h)


def aliases(p: Part) -> None:
    p.hold(a=linear(), b=linear())
    p.b.weight, p.again = p.a.weight, p.a


@block(aliases)
def aliased(p: Part, h: Tensor, c: Tensor, y: Tensor) -> Tensor:
    return p.b(p.again(h).sin())


@block(lambda p: p.hold(filter=torch.randn(TOKENS // 2 + 1, WIDTH, dtype=torch.complex64)))
def fourier(p: Part, h: Tensor, c: Tensor, y: Tensor) -> Tensor:
    return torch.fft.irfft(torch.fft.rfft(h, dim=1) * p.filter, n=TOKENS, dim=1)


def loose(p: Part) -> None:
    p.hold(scale=torch.ones(WIDTH), shift=torch.zeros(1, TOKENS, WIDTH), gain=torch.ones(()), one=torch.ones(1))


@block(loose)
def bare(p: Part, h: Tensor, c: Tensor, y: Tensor) -> Tensor:
    return p.gain * (p.scale * h + p.shift) + p.one * c[:, None]


@block(lambda p: p.hold(w=torch.randn(TOKENS, WIDTH, WIDTH), token=torch.randn(1, 1, WIDTH)))
def einsum(p: Part, h: Tensor, c: Tensor, y: Tensor) -> Tensor:
    h = torch.cat([p.token.expand(len(h), -1, -1), h[:, 1:]], 1)
    return torch.einsum("nti,tij->ntj", h, p.w)


@block(lambda p: p.hold(w=torch.randn(WIDTH, WIDTH), b=torch.randn(WIDTH)))
def functional(p: Part, h: Tensor, c: Tensor, y: Tensor) -> Tensor:
    return torch.addmm(p.b, h.flatten(0, 1), F.normalize(p.w, dim=1)).view_as(h) + torch.cdist(h, p.w[None]).tanh()


@block(lambda p: p.hold(a=linear(WIDTH, WIDTH * WIDTH)))
def hypernetwork(p: Part, h: Tensor, c: Tensor, y: Tensor) -> Tensor:
    return torch.bmm(h, p.a(c).view(-1, WIDTH, WIDTH))


@block(lambda p: p.hold(w=torch.randn(WIDTH, WIDTH, 3), a=linear()))
def modulated_convolution(p: Part, h: Tensor, c: Tensor, y: Tensor) -> Tensor:
    w = p.w * p.a(c)[:, None, :, None]
    w = w * (w.square().sum((2, 3), keepdim=True) + 1e-3).rsqrt()
    return F.conv1d(h.mT.reshape(1, -1, TOKENS), w.flatten(0, 1), padding=1, groups=len(h)).view(len(h), WIDTH, -1).mT


@block(lambda p: p.hold(a=linear(WIDTH, 3 * WIDTH), b=linear()))
def adaptive_norm(p: Part, h: Tensor, c: Tensor, y: Tensor) -> Tensor:
    shift, scale, gate = p.a(F.silu(c))[:, None].chunk(3, -1)
    return gate * p.b(F.layer_norm(h, (WIDTH,)) * (1 + scale) + shift)


@block(lambda p: p.hold(a=nn.ModuleDict({"scale": linear(), "shift": linear()})))
def film(p: Part, h: Tensor, c: Tensor, y: Tensor) -> Tensor:
    return p.a["scale"](c).unsqueeze(1) * h + p.a["shift"](input=c).unsqueeze(1)


def zeros(p: Part) -> None:
    p.hold(a=linear(), b=linear(), gate=torch.zeros(()))
    p.starts_at_zero = True


@block(zeros)
def zero_initialised(p: Part, h: Tensor, c: Tensor, y: Tensor) -> Tensor:
    return p.b(p.a(h)) + p.gate * p.a(h.cos())


@block(two)
def zero_at_first(p: Part, h: Tensor, c: Tensor, y: Tensor) -> Tensor:
    return p.a(h) * (y == CLASSES - 1)[:, None, None] + p.b(h)


@block(two)
def checkpointed(p: Part, h: Tensor, c: Tensor, y: Tensor) -> Tensor:
    return checkpoint(lambda a: p.b(p.a(a).sin()), h, use_reentrant=False)


@block(two)
def padded(p: Part, h: Tensor, c: Tensor, y: Tensor) -> Tensor:
    return p.a(F.pad(h, (0, 0, 1, 1)))[:, 1:-1] + p.b(h[:, ::2]).repeat_interleave(2, 1)


@block(lambda p: p.hold(layers=nn.ModuleList([linear() for _ in range(TOKENS)])))
def unbound(p: Part, h: Tensor, c: Tensor, y: Tensor) -> Tensor:
    return torch.cat([layer(token)[:, None] for layer, token in zip(p.layers, h.unbind(1), strict=True)], 1)


@block(lambda p: p.hold(a=linear(TOKENS, TOKENS), b=linear()))
def mixer(p: Part, h: Tensor, c: Tensor, y: Tensor) -> Tensor:
    return p.b(p.a(h.mT).mT)


@block(lambda p: p.hold(a=nn.Bilinear(WIDTH, WIDTH, WIDTH)))
def bilinear(p: Part, h: Tensor, c: Tensor, y: Tensor) -> Tensor:
    return p.a(h, c[:, None].expand_as(h).contiguous())


def counters(p: Part) -> None:
    p.hold(a=linear())
    p.register_buffer("count", torch.zeros(()))


@block(counters)
def counted(p: Part, h: Tensor, c: Tensor, y: Tensor) -> Tensor:
    p.count += 1
    return p.a(h)


@block(lambda p: p.hold(a=linear(), low=torch.randn(WIDTH, 2), high=torch.zeros(2, WIDTH)))
def low_rank(p: Part, h: Tensor, c: Tensor, y: Tensor) -> Tensor:
    return F.linear(h, p.a.weight + (p.low @ p.high).t(), p.a.bias)


@block(two)
def nested_gradient(p: Part, h: Tensor, c: Tensor, y: Tensor) -> Tensor:
    """The gradient of an energy, as in energy-based networks."""
    slope = torch.func.grad(lambda a: torch.tanh(p.a(a)).sum())(h)
    return p.b(slope)
