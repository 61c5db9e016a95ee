"""Networks whose calls are no plain functions as written: both engines and derivatives against plain autograd."""

from __future__ import annotations

import collections
import contextlib
import copy
import dis
import functools
import types
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import mfdiag
from mfdiag.derivatives.choice import choose_derivative
from mfdiag.errors import InputError, MfdiagError
from mfdiag.fields.inputs import Inputs
from mfdiag.gradients.engine import prepare_engine
from mfdiag.models.call_caches import _has_global_statement
from mfdiag.models.plain_calls import plain_calls
from mfdiag.models.precision import copy_network, measured_copy

N, WIDTH = 6, 8
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}
DTYPES = pytest.mark.parametrize("dtype", list(TOLERANCE), ids=["float32", "float64"])


class Net(nn.Module):
    """u = last(tanh(middle(tanh(first(x, r, t)))))."""

    def __init__(self, middle: nn.Module) -> None:
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(5, WIDTH), middle, nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor, r: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        h = self.middle(torch.tanh(self.first(torch.cat([x, r[:, None], t[:, None]], 1))))
        return self.last(torch.tanh(h))


class Block(nn.Module):
    """A function of a linear layer and its input."""

    def __init__(self, function: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.layer, self.function = nn.Linear(WIDTH, WIDTH), function
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(WIDTH))

    def forward(self, h: Tensor) -> Tensor:
        return self.function(self, h)


def counted(block: nn.Module, h: Tensor) -> Tensor:
    block.count += 1
    return block.layer(h)


def assigned(block: nn.Module, h: Tensor) -> Tensor:
    block.mean = 0.9 * block.mean + 0.1 * h.detach().mean(0)
    return block.layer(h)


def copied(block: nn.Module, h: Tensor) -> Tensor:
    block.mean.copy_(h.mean(0))
    return block.layer(h)


def single(block: nn.Module, h: Tensor) -> Tensor:
    return block.layer(h.float().sin().to(torch.float32))


def remembered(block: nn.Module, h: Tensor) -> Tensor:
    block.latest = block.layer(h)  # a tensor with a graph stays behind, as in old-style weight_norm
    return block.latest


def cached(block: nn.Module, h: Tensor) -> Tensor:
    if getattr(block, "folded", None) is None:
        block.folded = 2 * block.layer.weight  # computed once, as networks do in eval mode
    return h @ block.folded


def with_flag(block: nn.Module, h: Tensor) -> Tensor:
    if not getattr(block, "ready", False):
        block.folded, block.ready = 2 * block.layer.weight, True
    return h @ block.folded


def in_containers(block: nn.Module, h: Tensor) -> Tensor:
    """What `cached` does, with the containers that `CACHES` puts in `block.inner`."""
    return h @ block.inner(block.layer.weight)


class Store:
    """Keeps a tensor in an attribute, its class in another."""

    of_class: Tensor | None = None

    def __init__(self) -> None:
        self.items: dict[str, Any] = {"nested": {}}
        self.value: Tensor | None = None


GLOBAL: dict[str, Tensor] = {}
FOLDED: Tensor | None = None


def through_global_name(w: Tensor) -> Tensor:
    global FOLDED
    if FOLDED is None:
        FOLDED = 2 * w
    return FOLDED


def through_default(w: Tensor, cache: list[Tensor] = []) -> Tensor:  # noqa: B006 - this is the case
    cache or cache.append(2 * w)
    return cache[0]


def through_class(w: Tensor) -> Tensor:
    if Store.of_class is None:
        Store.of_class = 2 * w
    return Store.of_class


def through_object() -> Callable[[Tensor], Tensor]:
    store = Store()

    def fold(w: Tensor) -> Tensor:
        if store.value is None:
            store.value = 2 * w
        return store.value

    return fold


def through_nested() -> Callable[[Tensor], Tensor]:
    store = Store()
    return lambda w: store.items["nested"].setdefault("w", 2 * w)


def through_list() -> Callable[[Tensor], Tensor]:
    weights: list[Any] = [None, False]

    def fold(w: Tensor) -> Tensor:
        if not weights[1]:
            weights[:] = [(2 * w, "folded"), True]
        return weights[0][0]

    return fold


def through_namespace() -> Callable[[Tensor], Tensor]:
    space, queue = types.SimpleNamespace(), collections.deque[Tensor](maxlen=1)

    def fold(w: Tensor) -> Tensor:
        if not hasattr(space, "w"):
            space.w = w
            queue.append(w)
        return space.w + queue[0]

    return fold


def through_weak_keys() -> Callable[[Tensor], Tensor]:
    cache, key = weakref.WeakKeyDictionary[Any, Tensor](), Store()
    return lambda w: cache.setdefault(key, 2 * w)


def through_lru() -> Callable[[Tensor], Tensor]:
    box: list[Tensor] = []

    @functools.lru_cache
    def fold(name: str) -> Tensor:
        return 2 * box[0]

    def set_and_fold(w: Tensor) -> Tensor:
        box[:] = [w]
        return fold("w")

    return set_and_fold


CACHES: dict[str, Callable[[], Callable[[Tensor], Tensor]]] = {
    "global dictionary": lambda: lambda w: GLOBAL.setdefault("w", 2 * w),
    "global name": lambda: through_global_name,
    "default": lambda: through_default,
    "class": lambda: through_class,
    "object": through_object,
    "nested": through_nested,
    "list": through_list,
    "namespace": through_namespace,
    "weak keys": through_weak_keys,
    "lru_cache": through_lru,
}


def with_cache(name: str) -> Block:
    block = Block(in_containers)
    block.inner = CACHES[name]()
    return block


def autocast(block: nn.Module, h: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return block.layer(h)


def hooked() -> Block:
    block = Block(lambda block, h: block.layer(h))
    block.scale = nn.Parameter(torch.rand(WIDTH))
    block.layer.register_forward_hook(lambda layer, args, out: out * block.scale)
    return block


def with_lambda() -> Block:
    block = Block(lambda block, h: block.inner["f"](h))
    block.inner = {"f": lambda h: torch.tanh(h @ block.layer.weight) + block.layer.bias}
    return block


def with_default() -> Block:
    block = Block(lambda block, h: block.inner[0](h))
    block.inner = [lambda h, layer=block.layer: layer(h).sin()]
    return block


def replaced_forward() -> Block:
    block = Block(lambda block, h: block.layer(h))
    before = block.layer.forward
    block.layer.forward = lambda h: before(h) * block.layer.bias
    return block


MIDDLES: dict[str, Callable[[], nn.Module]] = {
    "cached": lambda: Block(cached),
    "flag": lambda: Block(with_flag),
    **{f"cache: {name}": functools.partial(with_cache, name) for name in CACHES},
    "autocast": lambda: Block(autocast),
    "hooked": hooked,
    "lambda": with_lambda,
    "default": with_default,
    "forward": replaced_forward,
    "weight_norm": lambda: nn.utils.weight_norm(nn.Linear(WIDTH, WIDTH)),
    "spectral_norm": lambda: nn.utils.spectral_norm(nn.Linear(WIDTH, WIDTH)),
    "two weight_norms": lambda: nn.utils.weight_norm(nn.utils.weight_norm(nn.Linear(WIDTH, WIDTH), dim=1), "bias"),
    "prelu": lambda: nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.PReLU(WIDTH), nn.Linear(WIDTH, WIDTH), nn.PReLU()),
    "functional prelu": lambda: Block(lambda block, h: torch.nn.functional.prelu(block.layer(h), block.layer.bias)),
    "gru": lambda: Block(lambda block, h: block.inner(h.view(-1, 2, 4))[0].flatten(1)),
    "counted": lambda: Block(counted),
    "assigned": lambda: Block(assigned),
    "copied": lambda: Block(copied),
    "single": lambda: Block(single),
    "layer.float": lambda: Block(lambda block, h: block.layer.float()(h.float()).to(h.dtype)),
    "layer.to": lambda: Block(lambda block, h: block.layer.to("cpu", torch.float32)(h)),
    "remembered": lambda: Block(remembered),
    "reentrant": lambda: Block(lambda block, h: checkpoint(block.layer, h, use_reentrant=True)),
    "checkpointed": lambda: Block(lambda block, h: checkpoint(lambda a: block.layer(a).sin(), h, use_reentrant=False)),
}


def network(name: str, dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    middle = MIDDLES[name]()
    if name == "gru":
        middle.inner = nn.GRU(4, 4, batch_first=True)
    return Net(middle).to(dtype).eval()


def inputs_of(dtype: torch.dtype) -> Inputs:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(N, 3, generator=generator, dtype=dtype)
    r, t = torch.rand(2, N, generator=generator, dtype=dtype).sort(0).values
    return x, r, t, None


@DTYPES
@pytest.mark.parametrize("name", MIDDLES)
def test_gradients_and_derivatives_are_those_of_single_samples(name: str, dtype: torch.dtype) -> None:
    inputs, notes = inputs_of(dtype), list[str]()
    e = torch.randn(N, 3, generator=torch.Generator().manual_seed(2), dtype=dtype)
    plain = network(name, dtype)
    if name == "reentrant":
        plain.middle.function = lambda block, h: block.layer(h)
    if name == "single":
        plain.middle.function = lambda block, h: block.layer(h.sin())  # what it is where casts are followed
    if name in ("cached", "flag") or name.startswith("cache: "):
        plain.middle.function = lambda block, h: h @ (2 * block.layer.weight)
    if name == "autocast" or name.startswith("layer."):
        plain.middle.function = lambda block, h: block.layer(h)
    module = measured_copy(network(name, dtype), "cpu", dtype)
    first = tuple(None if a is None else a[:2] for a in inputs)
    engines = [prepare_engine(module, first, kind, notes.append) for kind in ("fast", "reference")]  # type: ignore[arg-type]
    factors = [dict(engine.factors(inputs, e[None])) for engine in engines]
    names = [parameter for parameter, _ in plain.named_parameters()]
    for i in range(N):
        x, r, t = (a[i : i + 1] for a in inputs[:3])  # type: ignore[index]
        truth = torch.autograd.grad(
            plain(x, r, t), list(plain.parameters()), e[i : i + 1], allow_unused=True, materialize_grads=True
        )
        scale = torch.stack([g.norm() for g in truth]).norm()
        for parameter, gradient in zip(names, truth, strict=True):
            for by_name in factors:
                error = torch.dist(by_name[parameter].dense(i, i + 1).flatten(), gradient.flatten())
                assert error <= TOLERANCE[dtype] * scale, (parameter, float(error / scale))
    dx, dt = torch.ones(1, N, 3, dtype=dtype), torch.ones(1, N, dtype=dtype)
    derivative = choose_derivative("auto", module, inputs, dx, dt, notes.append)
    assert derivative.name == "jvp"
    inside = [a.clone().requires_grad_() for a in (inputs[0], inputs[2])]
    rows = [
        torch.autograd.grad(plain(inside[0], inputs[1], inside[1])[:, k].sum(), inside, retain_graph=True)
        for k in range(3)
    ]
    expected = torch.stack([gx.sum(1) + gt for gx, gt in rows], 1)
    actual = derivative.differentiate(*inputs, dx, dt)[1][0]
    assert torch.dist(actual, expected) <= TOLERANCE[dtype] * expected.norm()
    buffers = "count", "mean"
    assert any("buffers" in note for note in notes) == (name in ("counted", "assigned", "copied")), notes
    assert any("casts to float32" in note for note in notes) == (
        name in ("single", "layer.float", "layer.to") and dtype == torch.float64
    ), notes
    assert any("autocast" in note for note in notes) == (name == "autocast"), notes
    assert all(not dict(module.named_buffers()).get(f"middle.{b}", torch.zeros(())).any() for b in buffers)


class Delayed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, h: Tensor) -> Tensor:
        self.seen += 1
        return self.layer(h) * self.seen


def test_a_buffer_that_changes_the_output_is_refused_by_name() -> None:
    module = measured_copy(Net(nn.Sequential(Delayed())), "cpu", torch.float32)
    first = tuple(None if a is None else a[:2] for a in inputs_of(torch.float32))
    with pytest.raises(InputError, match=r"middle\.0 \(Delayed\) changes its buffer 'seen'.*depends on it"):
        prepare_engine(module, first, "fast", lambda note: None)  # type: ignore[arg-type]


def test_copies_are_independent() -> None:
    module = measured_copy(network("counted", torch.float32), "cpu", torch.float32)
    other = copy_network(module)
    assert plain_calls(other) is not plain_calls(module)
    other(*inputs_of(torch.float32))
    assert plain_calls(other).changed == {"middle.count"} and not plain_calls(module).changed  # type: ignore[union-attr]
    with pytest.raises(RuntimeError, match="deepcopy"):
        copy.deepcopy(network("weight_norm", torch.float32))


HIDDEN: dict[str, nn.Parameter] = {}


def with_global() -> Block:
    block = Block(lambda block, h: h @ HIDDEN["weight"])
    HIDDEN["weight"] = block.layer.weight
    return block


def with_weak_reference() -> Block:
    block = Block(lambda block, h: block.inner()(h))
    block.inner = weakref.ref(block.layer)
    return block


def with_list() -> Block:
    block = Block(lambda block, h: block.inner[0](h))
    block.inner = [nn.Linear(WIDTH, WIDTH)]
    return block


def with_second_reference() -> Block:
    block = Block(lambda block, h: h @ block.inner[0])
    block.inner = [block.layer.weight]
    return block


def with_partial() -> Block:
    block = Block(lambda block, h: block.inner(h))
    block.inner = functools.partial(torch.matmul, other=block.layer.weight)
    return block


def with_state() -> Block:
    def function(block: nn.Module, h: Tensor) -> Tensor:
        before, block.mean_before = getattr(block, "mean_before", 0), h.mean()
        return block.layer(h) + before

    return Block(function)


def with_memory() -> Block:
    def function(block: nn.Module, h: Tensor) -> Tensor:
        block.inner.append(h.mean())
        return block.layer(h) + (block.inner[-2] if len(block.inner) > 1 else 0)

    block = Block(function)
    block.inner = []
    return block


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (with_memory, r"stores tensors in containers of its own .*middle\.inner.*next call depends on them"),
        (with_global, r"parameters of its own alone, but it uses one of shape \(8, 8\)"),
        (with_weak_reference, "parameters of its own alone"),
        (with_list, "parameters of its own alone"),
        (with_second_reference, r"parameter middle\.layer\.weight through the module .*a second reference"),
        (with_partial, r"parameter middle\.layer\.weight through the module .*a second reference"),
        (with_state, r"middle \(Block\) stores a tensor in 'mean_before' .*its next call depends on it"),
        (lambda: torch.jit.script(nn.Linear(WIDTH, WIDTH)), r"middle is a \w+ of TorchScript"),
        (lambda: torch.jit.trace(nn.Linear(WIDTH, WIDTH), torch.ones(1, WIDTH)), r"middle is a \w+ of TorchScript"),
    ],
)
def test_gradients_that_would_be_missing_are_refused(build: Callable[[], nn.Module], words: str) -> None:
    torch.manual_seed(0)
    first = tuple(None if a is None else a[:2] for a in inputs_of(torch.float32))
    with pytest.raises(InputError, match=words):
        original = Net(build()).eval()  # kept alive, as the one that the command line loads
        prepare_engine(measured_copy(original, "cpu", torch.float32), first, "fast", lambda note: None)  # type: ignore[arg-type]


def test_frozen_networks_in_lists_are_not_refused() -> None:
    block = with_list()
    block.inner[0].requires_grad_(False)
    first = tuple(None if a is None else a[:2] for a in inputs_of(torch.float32))
    prepare_engine(measured_copy(Net(block), "cpu", torch.float32), first, "fast", lambda note: None)  # type: ignore[arg-type]


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_networks_without_any_gradient_are_refused(context: Callable[[], Any]) -> None:
    class Cut(Net):
        def forward(self, *args: Any) -> Tensor:
            with context():
                return super().forward(*args)

    first = tuple(None if a is None else a[:2] for a in inputs_of(torch.float32))
    module = measured_copy(Cut(nn.Linear(WIDTH, WIDTH)), "cpu", torch.float32)
    with pytest.raises(InputError, match=r"its output has none: it runs under torch\.no_grad"):
        prepare_engine(module, first, "fast", lambda note: None)  # type: ignore[arg-type]


@DTYPES
def test_networks_may_write_to_their_inputs(dtype: torch.dtype) -> None:
    class Writes(Net):
        def forward(self, x: Tensor, r: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
            return super().forward(x.mul_(2).sub_(1), r, t.mul_(0.5))

    torch.manual_seed(0)
    plain = Writes(nn.Linear(WIDTH, WIDTH)).to(dtype)
    module, inputs = measured_copy(plain, "cpu", dtype), inputs_of(dtype)
    x, r, t, _ = inputs
    engine = prepare_engine(module, (x[:2], r[:2], t[:2], None), "fast", lambda note: None)
    (factors,) = (dict(engine.factors(inputs, torch.ones_like(x)[None])),)
    plain(x.clone(), r, t.clone()).sum().backward()
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(factors[name].dense(0, N)[0].sum(0).view_as(parameter), parameter.grad)
    assert torch.equal(x, inputs_of(dtype)[0]) and torch.equal(t, inputs_of(dtype)[2])


@DTYPES
def test_casts_to_the_precision_of_a_part_are_followed(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    plain, notes = Net(Block(lambda block, h: block.layer(h.bfloat16()).to(h.dtype))), list[str]()
    plain.middle.bfloat16()
    module = measured_copy(plain, "cpu", dtype)
    x, r, t, _ = inputs_of(dtype)
    prepare_engine(module, (x[:2], r[:2], t[:2], None), "fast", notes.append)
    assert any("casts to bfloat16 within" in note for note in notes)
    plain.to(dtype).middle.function = lambda block, h: block.layer(h)
    torch.testing.assert_close(module(x, r, t), plain(x, r, t))


class ViewOfAParameter(nn.Module):
    """A part of a weight that was taken once."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)
        self.part = self.layer.weight[:, :2]

    def forward(self, x: Tensor, r: Tensor, t: Tensor) -> Tensor:
        return x @ self.part + self.layer(torch.cat([x, r[:, None], t[:, None]], 1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_view_that_was_taken_once_is_refused(dtype: torch.dtype) -> None:
    """The copy's gradient would not reach the parameter."""
    with pytest.raises(InputError, match=r"part is a view of layer\.weight .* take it in forward"):
        measured_copy(ViewOfAParameter(), "cpu", dtype)


def test_assignments_to_global_names_are_those_that_dis_lists() -> None:
    functions = [
        value for space in (vars(collections), vars(copy), vars(warnings), globals()) for value in space.values()
    ]
    codes = [value.__code__ for value in functions if isinstance(value, types.FunctionType)]
    codes = [code for code in codes if not any(isinstance(constant, types.CodeType) for constant in code.co_consts)]
    listed = [any(step.opname == "STORE_GLOBAL" for step in dis.get_instructions(code)) for code in codes]
    assert [_has_global_statement(code) for code in codes] == listed and 0 < sum(listed) < len(listed)


class _Interrupted(nn.Module):
    """Raises an error in one of its calls."""

    def __init__(self, error: type[BaseException], call: int) -> None:
        super().__init__()
        self.linear, self.error, self.left = nn.Linear(2, 2), error, call

    def forward(self, x: Tensor, r: Tensor, t: Tensor) -> Tensor:
        self.left -= 1
        if self.left == 0:
            raise self.error
        return self.linear(x)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, ValueError])
def test_a_call_that_is_broken_off_leaves_nothing_behind(error: type[BaseException]) -> None:
    for call in (1, 5, 9):
        with contextlib.suppress(error, MfdiagError):  # a trial's error may be caught
            mfdiag.measure(_Interrupted(error, call), "eight_gaussians", samples=64)
        assert torch.overrides._len_torch_function_stack() == 0, call
        assert nn.Module._apply.__qualname__ == "Module._apply"
