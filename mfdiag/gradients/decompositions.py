"""Functions that hide linear maps within them, written out, so that the rule of each map serves its parameters.

Samples come first in what a linear map receives, wherever the function itself has them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Decomposition", "decomposition_of"]

_States = tuple[Tensor, ...]
"""h of each sample, [n, hidden], and in an LSTM c."""


@dataclass(frozen=True)
class Decomposition:
    """A call of a function, written out.

    Attributes:
        data: The arguments that have an entry for each sample, such as initial states.
        run: Gives what the function returns, but for rounding.
    """

    data: Sequence[Tensor]
    run: Callable[[], Any]


def decomposition_of(
    function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Decomposition | None:
    """Write out a call of attention or of a recurrent network.

    Args:
        function: A torch function.
        args: Its arguments.
        kwargs: Its arguments by keyword.

    Returns:
        The call, written out; None for other functions, packed sequences, single samples and dropout.
    """
    decompose = _DECOMPOSITIONS.get(function)
    try:
        return None if decompose is None else decompose(*args, **kwargs)
    except (TypeError, ValueError):  # another overload
        return None


_ATTENTION = inspect.signature(F.multi_head_attention_forward)


# -- attention ------------------------------------------------------------------------------------------------------


def _attention(*args: Any, **kwargs: Any) -> Decomposition | None:
    """Projections, and attention between them, of F.multi_head_attention_forward."""
    bound = _ATTENTION.bind(*args, **kwargs)
    bound.apply_defaults()
    call = bound.arguments
    query, key, value = (call[name] for name in ("query", "key", "value"))
    drops = call["dropout_p"] and call["training"]
    extended = any(call[name] is not None for name in ("bias_k", "static_k", "static_v"))
    if query.ndim != 3 or extended or drops:
        return None

    def run() -> tuple[Tensor, Tensor | None]:
        weights = [call[f"{name}_proj_weight"] for name in "qkv"]
        if not call["use_separate_proj_weight"]:
            weights = call["in_proj_weight"].chunk(3)
        biases = [None] * 3 if call["in_proj_bias"] is None else call["in_proj_bias"].chunk(3)
        parts = zip((query, key, value), weights, biases, strict=True)
        q, k, v = (F.linear(a.transpose(0, 1), weight, bias) for a, weight, bias in parts)  # [n, tokens, p]
        masked = any(call[name] is not None for name in ("attn_mask", "key_padding_mask"))
        if masked or call["add_zero_attn"] or call["is_causal"]:
            out, shares = _projected_by_identity(q, k, v, call)
        else:
            out, shares = _between_heads(q, k, v, call["num_heads"], weights_wanted=call["need_weights"])
            shares = shares.mean(1) if shares is not None and call["average_attn_weights"] else shares
        return F.linear(out, call["out_proj_weight"], call["out_proj_bias"]).transpose(0, 1), shares

    return Decomposition([query, key, value], run)


def _projected_by_identity(q: Tensor, k: Tensor, v: Tensor, call: Mapping[str, Any]) -> tuple[Tensor, Tensor | None]:
    """Attention between [n, tokens, p], where torch makes the masks."""
    identity = torch.eye(q.shape[-1], dtype=q.dtype, device=q.device)
    of_identity = {f"{name}_proj_weight": identity for name in ("q", "k", "v", "out")}
    none = dict.fromkeys(("in_proj_weight", "in_proj_bias", "out_proj_bias"))
    by_token = dict(zip(("query", "key", "value"), (a.transpose(0, 1) for a in (q, k, v)), strict=True))
    arguments: dict[str, Any] = {**call, **by_token, **of_identity, **none, "use_separate_proj_weight": True}
    out, shares = F.multi_head_attention_forward(**arguments)
    return out.transpose(0, 1), shares


def _between_heads(
    q: Tensor, k: Tensor, v: Tensor, heads: int, *, weights_wanted: bool
) -> tuple[Tensor, Tensor | None]:
    """Attention between [n, tokens, p], and its weights [n, heads, tokens, tokens] if they are wanted."""
    q, k, v = (a.unflatten(2, (heads, -1)).transpose(1, 2) for a in (q, k, v))
    shares = None
    if weights_wanted:
        shares = F.softmax(q * q.shape[-1] ** -0.5 @ k.transpose(2, 3), -1)
        out = shares @ v
    else:
        out = F.scaled_dot_product_attention(q, k, v)
    return out.transpose(1, 2).flatten(2), shares


# -- recurrent networks ---------------------------------------------------------------------------------------------


_Step = Callable[[Tensor, _States, Tensor, Tensor | None], _States]
"""(W a + b of the input [n, gates], states before, weight and bias of h) -> states after."""


def _lstm_step(inputs: Tensor, states: _States, weight: Tensor, bias: Tensor | None) -> _States:
    h, c = states
    i, f, g, o = (inputs + F.linear(h, weight, bias)).chunk(4, -1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def _gru_step(inputs: Tensor, states: _States, weight: Tensor, bias: Tensor | None) -> _States:
    (h,) = states
    (r, z, a), (h_r, h_z, h_a) = inputs.chunk(3, -1), F.linear(h, weight, bias).chunk(3, -1)
    z = (z + h_z).sigmoid()
    return ((1 - z) * (a + (r + h_r).sigmoid() * h_a).tanh() + z * h,)


def _tanh_step(inputs: Tensor, states: _States, weight: Tensor, bias: Tensor | None) -> _States:
    return ((inputs + F.linear(states[0], weight, bias)).tanh(),)


def _relu_step(inputs: Tensor, states: _States, weight: Tensor, bias: Tensor | None) -> _States:
    return ((inputs + F.linear(states[0], weight, bias)).relu(),)


def _cell(step: _Step) -> Callable[..., Decomposition | None]:
    """One step in time."""

    def decompose(
        input: Tensor,
        hx: Tensor | _States,
        w_ih: Tensor,
        w_hh: Tensor,
        b_ih: Tensor | None = None,
        b_hh: Tensor | None = None,
    ) -> Decomposition | None:
        states = _states(hx)

        def run() -> Tensor | _States:
            after = step(F.linear(input, w_ih, b_ih), states, w_hh, b_hh)
            return after if len(after) > 1 else after[0]

        return Decomposition([input, *states], run) if input.ndim == 2 else None

    return decompose


def _network(step: _Step) -> Callable[..., Decomposition | None]:
    """All steps of all layers in both directions."""

    def decompose(input: Tensor, hx: Tensor | _States, params: Sequence[Tensor], *options: Any) -> Decomposition | None:
        if isinstance(options[0], Sequence):
            return None  # packed sequences
        has_biases, num_layers, dropout, train, bidirectional, batch_first = options
        states, directions = _states(hx), 2 if bidirectional else 1
        own = len(params) // (num_layers * directions)  # tensors of one layer in one direction
        if input.ndim != 3 or (dropout and train) or own != (4 if has_biases else 2):
            return None  # or an LSTM with projections

        def run() -> tuple[Tensor, ...]:
            x, last = input if batch_first else input.transpose(0, 1), []
            for layer in range(num_layers):
                outputs = []
                for k in range(layer * directions, (layer + 1) * directions):
                    first = tuple(state[k] for state in states)
                    of_layer = params[k * own : (k + 1) * own]
                    out, after = _unrolled(step, x, first, of_layer, backward=k % directions == 1)
                    outputs.append(out)
                    last.append(after)
                x = torch.cat(outputs, -1)
            stacked = (torch.stack(parts) for parts in zip(*last, strict=True))
            return (x if batch_first else x.transpose(0, 1), *stacked)

        return Decomposition([input, *states], run)

    return decompose


def _unrolled(
    step: _Step, x: Tensor, states: _States, params: Sequence[Tensor], *, backward: bool
) -> tuple[Tensor, _States]:
    """h at each time [n, times, hidden], and the last states, of one layer in one direction."""
    w_ih, w_hh, *biases = params
    b_ih, b_hh = biases or (None, None)
    inputs = F.linear(x, w_ih, b_ih)
    outputs = []
    for i in reversed(range(x.shape[1])) if backward else range(x.shape[1]):
        states = step(inputs[:, i], states, w_hh, b_hh)
        outputs.append(states[0])
    return torch.stack(outputs[::-1] if backward else outputs, 1), states


def _states(hx: Tensor | Sequence[Tensor]) -> _States:
    return (hx,) if isinstance(hx, Tensor) else tuple(hx)


_DECOMPOSITIONS: dict[Callable[..., Any], Callable[..., Decomposition | None]] = {
    F.multi_head_attention_forward: _attention,
    torch.lstm: _network(_lstm_step),
    torch.gru: _network(_gru_step),
    torch.rnn_tanh: _network(_tanh_step),
    torch.rnn_relu: _network(_relu_step),
    torch.lstm_cell: _cell(_lstm_step),
    torch.gru_cell: _cell(_gru_step),
    torch.rnn_tanh_cell: _cell(_tanh_step),
    torch.rnn_relu_cell: _cell(_relu_step),
}
