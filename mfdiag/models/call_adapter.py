"""A network without a model card as u(x, r, t, y), called as its own signature says."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from inspect import Parameter, signature
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from mfdiag.errors import InputError, abbreviated
from mfdiag.flow.conditions import Condition, Conditions, labels_of
from mfdiag.flow.data.datasets import Data, conditions_of
from mfdiag.flow.data.disk_arrays import Points
from mfdiag.models.argument_hooks import moved_argument
from mfdiag.models.call_signature import NetworkCall, call_of, parameters_of, possible_conditions, word_of
from mfdiag.models.plain_calls import activations_kept, attributes_restored
from mfdiag.models.wrapper import Wrapper, conditions_taken

__all__ = [
    "CallAdapter",
    "TimeShape",
    "adapt_call",
    "adapt_to",
    "arrays_possible",
    "call_note",
    "per_sample",
    "shaped_times",
    "unlabeled_note",
]

TimeShape = tuple[str | int, ...]
"""Shape of the times that a network takes: ("n",), ("n", 1), ("n", 1, 1, 1), or () for one number per call."""

_ALIKE = 1e-3  # relative; other kernels for other batch lengths stay far below


class CallAdapter(Wrapper):
    """`network` as a function of (x, r, t, y), called as `call` says.

    `num_classes` exists if the network has it or `classes` is given.

    Args:
        network: The network.
        call: Which parameter receives what.
        time_shape: Shape of the times that the network takes.
        classes: Number of labels, where the network does not say it.
    """

    def __init__(
        self, network: nn.Module, call: NetworkCall, time_shape: TimeShape = ("n",), classes: int | None = None
    ) -> None:
        super().__init__(network)
        self.call, self.time_shape, self.classes = call, time_shape, classes
        self.condition_names = self.conditions_without_null = call.conditions
        if classes is not None or hasattr(network, "num_classes"):
            self.num_classes: Any = network.num_classes if classes is None else classes
        self.takes_guidance = bool(getattr(network, "takes_guidance", False))

    @property
    def note(self) -> str:
        """One line that says how the network is called."""
        shape = "" if self.time_shape == ("n",) else f"; {_described(self.time_shape)}"
        classes = "" if self.classes is None else f" ({self.classes} classes, as in the data)"
        return f"{type(self.network).__name__}.forward is called with {self.call}{classes}{shape}."

    def forward(self, x: Tensor, r: Tensor, t: Tensor, y: Condition = None) -> Tensor:
        """What the network returns.

        Args:
            x: Points x_t [n, *shape].
            r: Times r [n] in [0, 1], the other end of the interval.
            t: Times t [n] in [0, 1] of the points.
            y: Labels int64 [n], `Conditions`, or None.

        Returns:
            The network's output.
        """
        return self._evaluate(self.network, self.call, x, r, t, y)

    @property
    def velocity(self) -> Callable[..., Tensor]:
        """(x, r, t, labels) -> the network's velocity head, called as its own signature says; exists if it has one."""
        head: Any = self.network.velocity
        call = call_of(head, f"{type(self.network).__name__}.velocity", self.call.conditions)

        def velocity(x: Tensor, r: Tensor, t: Tensor, y: Condition = None) -> Tensor:
            return self._evaluate(head, call, x, r, t, y)

        return velocity

    def _evaluate(self, function: Callable[..., Tensor], call: NetworkCall, *inputs: Any) -> Tensor:
        if not self.time_shape and len(inputs[0]) > 1:
            return per_sample(lambda *sample: self._evaluate(function, call, *sample), *inputs)
        arguments, keywords = self.arguments(call, *inputs)
        return function(*(value for _, value in arguments), **keywords)

    def arguments(self, call: NetworkCall, *inputs: Any) -> tuple[list[tuple[str, Any]], dict[str, Any]]:
        """What a call passes for x, r, t and a condition: parameter and value by position, and by keyword."""
        x, r, t, y = inputs
        times = {word: shaped_times(time, self.time_shape) for word, time in (("r", r), ("t", t), ("h", t - r))}
        values = {"x": x, "y": labels_of(y), **times}
        arrays = y.arrays if isinstance(y, Conditions) else {}
        if missing := [name for name in call.conditions if name not in arrays]:
            raise InputError(
                f"{type(self.network).__name__} takes the array {missing[0]!r} of the data, but none was given; pass "
                "--data with an array of this name, or Conditions that hold it."
            )
        keywords = {name: values[w] for name, w in call.keywords} | {name: arrays[name] for name in call.conditions}
        return [(name, values[word]) for name, word in call.arguments], keywords


def per_sample(function: Callable[..., Tensor], x: Tensor, *others: Condition) -> Tensor:
    """The results [n, ...] of a function that takes one sample at a time.

    Args:
        function: Takes the inputs of one sample, each [1, ...] or None.
        x: Points [n, *shape].
        *others: Further inputs of n samples, each [n, ...], `Conditions` or None.

    Returns:
        The results, concatenated.
    """
    inputs = (x, *others)
    return torch.cat([function(*(None if v is None else v[i : i + 1] for v in inputs)) for i in range(len(x))])


def shaped_times(times: Tensor, shape: Sequence[str | int]) -> Tensor:
    """Times [n] in the shape that a network takes; () stands for one number and takes n = 1."""
    return times if tuple(shape) == ("n",) else times.reshape([-1 if size == "n" else 1 for size in shape])


def adapt_call(
    network: nn.Module,
    shape: Sequence[int] | None = None,
    classes: int = 0,
    data: str = "the data",
    conditions: Mapping[str, Points] = {},
) -> nn.Module:
    """A network as u(x, r, t, y), called as the names of its own parameters say.

    With `shape`, two or three random samples decide what names do not: the shape of the times, and whether labels
    matter. The network does not change.

    Args:
        network: A network without a card. A wrapper other than `CallAdapter` is returned as it is.
        shape: Shape of one sample; None tries nothing.
        classes: Number of classes of the data; 0 if it has no labels.
        data: Name of the data, for errors.
        conditions: Arrays [N, ...] beside the samples by name; the first rows are tried.

    Returns:
        `network` itself where it takes (x, r, t, labels) with times [n], else a `CallAdapter` around it.

    Raises:
        InputError: If the names do not decide the call, or if labels would be dropped that change the output.
    """
    if isinstance(network, Wrapper) and not isinstance(network, CallAdapter):
        return network
    inner = network.network if isinstance(network, CallAdapter) else network
    if empty := [name for name, parameter in inner.named_parameters() if parameter.is_meta]:
        raise InputError(
            f"{type(inner).__name__} has parameters without values, on the device meta ({abbreviated(empty)}): load "
            "its weights first."
        )
    call = call_of(*_entry(_readable(inner)), None if shape is None else conditions)
    network = inner if call.documented else CallAdapter(inner, call)
    if shape is None:
        return network
    inputs = _trial_inputs(inner, tuple(shape), classes, {name: conditions[name] for name in call.conditions})
    return _adapted_by_trial(network, inner, call, inputs, classes, data)


def adapt_to(network: nn.Module, data: Data) -> nn.Module:
    """`adapt_call` with samples of `data`: their shape, classes and arrays beside them."""
    return adapt_call(network, data.shape, data.num_classes, data.name, conditions_of(data))


def arrays_possible(network: nn.Module) -> tuple[str, ...]:
    """Names of the arrays beside the samples that a network takes, or may take as its parameters are called."""
    if isinstance(network, Wrapper) and not isinstance(network, CallAdapter):
        return conditions_taken(network)
    inner = network.network if isinstance(network, CallAdapter) else network
    return possible_conditions(_entry(_readable(inner))[0])


def call_note(network: nn.Module) -> str | None:
    """One line that says how the user's own network is called; None where it is the documented call by its names."""
    if isinstance(network, CallAdapter):
        return network.note
    if isinstance(network, Wrapper):
        return None
    function, name = _entry(_readable(network))
    parameters = parameters_of(function)
    if parameters is None or any(p.kind is Parameter.VAR_POSITIONAL for p in parameters):
        return f"{name} does not name its parameters: it is called with x_t, r, t and labels by position."
    return None


def unlabeled_note(network: nn.Module, data: Data) -> str | None:
    """What to say of a network with labels on data that have none; None for any other."""
    classes = getattr(network, "num_classes", 0)
    if not classes or data.num_classes:
        return None
    return f"{data.name} has no labels: the network, which has {classes} classes, is called without a label."


def _entry(network: nn.Module) -> tuple[Callable[..., Any], str]:
    """The function whose parameters the caller fills, and its name: forward, or a __call__ of the user's own."""
    kind = type(network)
    own = str(getattr(kind.__call__, "__module__", "")).partition(".")[0] != "torch"
    return (network.__call__, f"{kind.__name__}.__call__") if own else (network.forward, f"{kind.__name__}.forward")


def _readable(network: nn.Module) -> nn.Module:
    """The network inside torch.compile and data parallelism, whose own forward takes any arguments."""
    while isinstance(inner := getattr(network, "_orig_mod", getattr(network, "module", None)), nn.Module):
        if not any(p.kind is Parameter.VAR_POSITIONAL for p in signature(network.forward).parameters.values()):
            break
        network = inner
    return network


def _adapted_by_trial(
    network: nn.Module, inner: nn.Module, call: NetworkCall, inputs: _TrialInputs, classes: int, data: str
) -> nn.Module:
    """`network`, or an adapter with the shape of times and the labels that a few samples show to be right."""
    declared = getattr(inner, "num_classes", None)
    if classes and declared and "y" not in call.words:
        raise _dropped_labels(inner, call, f"it has num_classes = {declared} and no parameter for them", classes, data)
    if isinstance(declared, int) and 0 < declared < classes:
        raise InputError(
            f"Expected labels 0 to {declared - 1} in {data}, because {type(inner).__name__} has num_classes = "
            f"{declared}, but they go up to {classes - 1}. Number them from 0, pass others with --data "
            "PATH:labels=FILE, or leave them out with --data PATH:labels=none."
        )
    undeclared = "y" in call.words and bool(classes) and declared is None
    choices = (True, False) if undeclared else (bool(classes and declared),)
    batched = False
    for time_shape in _time_shapes(inputs[0].ndim - 1):
        if batched and not time_shape:  # it takes batches, but mixes their samples: single calls would hide that
            break
        adapter = CallAdapter(inner, call, time_shape)
        pairs = {labels: _outputs(adapter, inputs, labels) for labels in choices}
        batched = batched or any(pair is not None for pair in pairs.values())
        outputs = {labels: pair[0] if pair is not None and _alike(*pair) else None for labels, pair in pairs.items()}
        if all(output is None for output in outputs.values()):
            continue
        _refuse_moved_arguments(adapter, inputs)
        if classes and "y" not in call.words:
            _refuse_dropped_labels(adapter, inputs, classes, data)
        uses_labels = undeclared and _labels_matter(inner, call, outputs, classes, data)
        if time_shape == ("n",) and not uses_labels:
            return network
        return CallAdapter(inner, call, time_shape, classes if uses_labels else None)
    if classes and "y" in call.words and not batched:
        _refuse_one_hot_labels(inner, call, inputs, classes, data)
    if not classes and "y" in call.words and not batched:
        _refuse_empty_argument(inner, call, data)
    return network  # the measurement says what the network refuses


def _time_shapes(axes: int) -> Iterator[TimeShape]:
    """The shapes to try for samples with so many axes."""
    yield from (("n",), ("n", 1))
    if axes > 1:
        yield ("n", *[1] * axes)
    yield ()


_TrialInputs = tuple[Tensor, Tensor, Tensor, Tensor, dict[str, Tensor]]


def _trial_inputs(
    network: nn.Module, shape: tuple[int, ...], classes: int, conditions: Mapping[str, Points]
) -> _TrialInputs:
    """x, r, t, labels and arrays of a few samples; their number differs from the length of every axis of a sample."""
    n = next(n for n in range(2, len(shape) + 3) if n not in shape)
    like = next((p for p in network.parameters() if p.is_floating_point()), torch.zeros(()))
    x = torch.randn(n, *shape, generator=torch.Generator().manual_seed(0)).to(like)
    r, t = torch.linspace(0.1, 0.4, n).to(like), torch.linspace(0.5, 0.9, n).to(like)
    y = torch.arange(n, device=x.device) % max(classes, 1)
    rows = {name: torch.as_tensor(array[np.arange(n) % len(array)]) for name, array in conditions.items()}
    return x, r, t, y, dict(Conditions(None, rows).to(x).arrays)


def _outputs(adapter: CallAdapter, inputs: _TrialInputs, labels: bool) -> tuple[Tensor, Tensor] | None:
    """The network's output for the batch and for single samples; None where it fails or has another shape.

    Labels are those of the inputs, class numbers or one-hot rows, or None.
    """
    buffers = {name: buffer.clone() for name, buffer in adapter.named_buffers()}  # a network may write to them

    x, r, t, y, arrays = inputs
    own = y if labels else None
    condition = Conditions(own, arrays) if arrays else own

    def evaluate(*inputs: Any) -> Tensor:  # a network may write to its inputs, too
        own = tuple(a.clone() if isinstance(a, Tensor) else a for a in inputs)
        return functional_call(adapter, buffers, own)

    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]), activations_kept(), attributes_restored(adapter):
            output, single = evaluate(x, r, t, condition), per_sample(evaluate, x, r, t, condition)
    except (Exception, SystemExit):  # whatever the user's network raises: the next shape may suit it
        return None
    return (output, single) if output.shape == single.shape == x.shape else None


def _alike(output: Tensor, single: Tensor) -> bool:
    """Whether a batch gives what its samples give one by one."""
    return bool(torch.dist(output.double(), single.double()) <= _ALIKE * single.double().norm())


def _refuse_dropped_labels(adapter: CallAdapter, inputs: _TrialInputs, classes: int, data: str) -> None:
    """Refuse a call without labels if class numbers, as a parameter that is not passed, change the output."""
    call, network = adapter.call, adapter.network
    plain = _outputs(adapter, inputs, labels=False)
    for name in call.optional:
        labeled = CallAdapter(
            network, call._replace(keywords=(*call.keywords, (name, "y"))), adapter.time_shape, classes
        )
        outputs = _outputs(labeled, inputs, labels=True)
        if plain is not None and outputs is not None and not torch.equal(outputs[0], plain[0]):
            raise _dropped_labels(network, call, f"class numbers as {name} change its output", classes, data, name)


def _refuse_empty_argument(network: nn.Module, call: NetworkCall, data: str) -> None:
    """Refuse a network that fails without labels, if the parameter for them has another name and no default."""
    function, name = _entry(_readable(network))
    taken = next((p for p in parameters_of(function) or () if p.name == call.parameter_of("y")), None)
    if taken is not None and taken.default is Parameter.empty and word_of(taken.name) != "y":
        raise InputError(
            f"Expected labels for {taken.name} of {name}, or an array of this name, but {data} has neither; add an "
            f"array {taken.name} with one row per sample to the data, or labels, or give the parameter a default."
        )


def _refuse_one_hot_labels(
    network: nn.Module, call: NetworkCall, inputs: _TrialInputs, classes: int, data: str
) -> None:
    """Refuse a network that fails with class numbers and runs with a row of zeros and a one for each of them."""
    x, r, t, y, arrays = inputs
    declared = getattr(network, "num_classes", None)
    count = declared if isinstance(declared, int) and declared > 0 else classes
    for rows in (torch.nn.functional.one_hot(y, count).to(x), torch.nn.functional.one_hot(y, count)):
        for time_shape in _time_shapes(x.ndim - 1):
            if _outputs(CallAdapter(network, call, time_shape), (x, r, t, rows, arrays), labels=True) is not None:
                raise InputError(
                    f"Expected {type(network).__name__} to take the labels of {data} as class numbers, but it fails "
                    f"with them as {call.parameter_of('y')} and runs with one-hot rows; pass --model a card with "
                    f"`conditioning: {{kind: one_hot, classes: {count}}}`, or leave the labels out with --data "
                    "PATH:labels=none."
                )


def _refuse_moved_arguments(adapter: CallAdapter, inputs: _TrialInputs) -> None:
    """Refuse a network whose pre-hooks give parameters, by the names that the call goes by, what was meant for others.

    Parameters whose names do not tell receive what a hook gives them: the call is then that of the hook.
    """
    network = adapter.network
    readable = _readable(network)
    if _entry(readable)[0] != readable.forward:
        return
    count = slice(None) if adapter.time_shape else slice(1)
    condition: Any = inputs[3][count]
    if inputs[4]:
        condition = Conditions(condition, {name: rows[count] for name, rows in inputs[4].items()})
    arguments, keywords = adapter.arguments(adapter.call, *(v[count] for v in inputs[:3]), condition)
    named = (*adapter.call.arguments, *adapter.call.keywords)
    words = {name: word for name, word in named if word_of(name) == word}
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]), attributes_restored(adapter):
            moved = moved_argument(readable, arguments, keywords, words)
    except (Exception, SystemExit):  # whatever a user's hook raises: the measurement says it
        return
    if moved is not None:
        raise InputError(
            f"Expected the forward pre-hooks of {type(readable).__name__} to leave each argument in its place, but "
            f"{moved[0]} receives {moved[1]}; pass --model a card with `call: {{arguments: [x, r, t]}}`, in the order "
            "in which the hooks take them, or remove the hooks."
        )


def _dropped_labels(
    network: nn.Module, call: NetworkCall, reason: str, classes: int, data: str, name: str = "NAME"
) -> InputError:
    words = ", ".join(word for _, word in call.arguments)
    keywords = ", ".join(f"{key}: {word}" for key, word in (*call.keywords, (name, "y")))
    return InputError(
        f"Expected {type(network).__name__} to say how it takes the labels of {data}, but {reason}; pass --model a "
        f"card with `call: {{arguments: [{words}], keywords: {{{keywords}}}}}` and `conditioning: {{kind: index, "
        f"classes: {classes}}}`, or leave the labels out with --data PATH:labels=none."
    )


def _labels_matter(
    network: nn.Module, call: NetworkCall, outputs: dict[bool, Tensor | None], classes: int, data: str
) -> bool:
    """Whether to pass labels. Raises InputError where they would be dropped although the network takes them."""
    labeled, unlabeled = outputs[True], outputs[False]
    if labeled is not None and unlabeled is not None and torch.equal(labeled, unlabeled):
        return False
    if (labeled is None) != call.labels_tell:
        return labeled is not None
    fails = f"it fails with class numbers as {call.parameter_of('y')}"
    raise InputError(
        f"Expected {type(network).__name__} to say how it takes the labels of {data}, but it has no num_classes, and "
        f"{fails if labeled is None else 'its output depends on them'}; pass --model a card with `conditioning: "
        f"{{kind: {'one_hot' if labeled is None else 'index'}, classes: {classes}}}`, set num_classes in the network, "
        "or leave the labels out with --data PATH:labels=none."
    )


def _described(shape: TimeShape) -> str:
    if not shape:
        return "one sample at a time, because it takes each time as one number"
    return f"times have the shape [{', '.join(map(str, shape))}], found by trying"
