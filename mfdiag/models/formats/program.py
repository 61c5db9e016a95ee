"""The network of an exported program, evaluated one ATen operator after another."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mfdiag.errors import InputError
from mfdiag.models.formats.exported import DTYPES, Program

__all__ = ["ExportedNetwork"]

_INTEGERS = {
    f"_operator.{name}": getattr(operator, name)
    for name in ("add", "sub", "mul", "floordiv", "truediv", "mod", "neg", "eq", "ne", "le", "lt", "ge", "gt")
}
_CHECKS = re.compile(r"torch\.ops\.aten\.(_assert\w*|sym_constrain_range\w*)\.\w+")
_PRIVATE = (
    *("_to_copy", "_unsafe_view", "_softmax", "_log_softmax", "_native_batch_norm_legit_no_training", "_reshape_alias"),
    *("_scaled_dot_product_flash_attention_for_cpu", "_safe_softmax", "_unsafe_index", "_adaptive_avg_pool2d"),
)
_REFUSED = ("from_file", "set_", "set", "resize_", "resize", "resize_as_")  # files, and memory that is not the tensor's
_MEMORY_FORMATS = {1: torch.contiguous_format, 2: torch.channels_last, 3: torch.channels_last_3d}


class ExportedNetwork(nn.Module):
    """u(x, r, t, y) as an exported program computes it, with the program's own names of parameters.

    The program takes x, r, t and, if it is conditional, y, with a batch axis of free length. Its `num_classes` is the
    number of rows of the embedding that y indexes, a row for absent labels included.
    Raises InputError where the program has operators that are not ATen's, or random ones, where its batch is fixed, or
    its inputs or outputs are not those of an average velocity.
    """

    def __init__(self, program: Program, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._path = program.path
        try:
            self._check(program)
            self._inputs = list(program.inputs)
            self._own = self._register(program, weights)
            self._steps = [_step(node, program) for node in program.graph["nodes"]]
            self._output = program.graph["outputs"][0]["as_tensor"]["name"]
            last = {name: step for step in self._steps for name in step.reads if name != self._output}
            for name, step in last.items():
                step.frees.append(name)
            self.num_classes = self._classes(program)
        except InputError:
            raise
        except (KeyError, TypeError, IndexError, AttributeError, ValueError, StopIteration) as error:
            raise _wrong(program.path, error) from error

    @staticmethod
    def _check(program: Program) -> None:
        inputs, outputs = program.inputs, program.signature["output_specs"]
        if len(inputs) not in (3, 4) or len(outputs) != 1 or "user_output" not in outputs[0]:
            raise InputError(
                f"Expected a program u(x, r, t) or u(x, r, t, y) with one output in {program.path}, but it takes "
                f"{', '.join(inputs)} and has {len(outputs)} outputs; export a wrapper of that form."
            )
        fixed = [f"{name} {shape}" for name, shape in inputs.items() if shape[0] is not None]
        if fixed:
            raise InputError(
                f"Expected a free batch length in {program.path}, but its inputs are fixed to {', '.join(fixed)}; "
                "export it again with dynamic_shapes that give the first axis of each input the same torch.export.Dim."
            )

    def _register(self, program: Program, weights: Mapping[str, Tensor]) -> dict[str, str]:
        """Make parameters and buffers; value name -> tensor name."""
        own = {}
        for spec in program.signature["input_specs"]:
            if "user_input" in spec:
                continue
            (kind, found), *_ = spec.items()
            name = found.get("parameter_name") or found.get("buffer_name") or found.get("tensor_constant_name")
            if name is None:
                raise InputError(f"{program.path} holds an input of kind {kind}; export a network of tensors alone.")
            own[found["arg"]["name"]] = name
            place, _, leaf = name.rpartition(".")
            owner = self._submodule(place)
            tensor = weights[name] if name in weights else program.constants[name]
            if kind == "parameter":
                owner.register_parameter(leaf, nn.Parameter(tensor.clone()))
            else:
                owner.register_buffer(leaf, tensor.clone(), persistent=found.get("persistent", False))
        return own

    def _submodule(self, place: str) -> nn.Module:
        owner: nn.Module = self
        for name in filter(None, place.split(".")):
            if name not in owner._modules:
                owner.add_module(name, nn.Module())
            owner = owner._modules[name] or owner
        return owner

    def _classes(self, program: Program) -> int:
        if len(self._inputs) == 3:
            return 0
        tables = [s.reads[0] for s in self._steps if "aten.embedding" in s.target and self._inputs[3] in s.reads]
        return len(self.get_parameter(self._own[tables[0]])) if tables else 2**31

    def forward(self, x: Tensor, r: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """u [n, *shape] of x [n, *shape], times r and t [n] and labels int64 [n]."""
        inputs = [x, r, t, y][: len(self._inputs)]
        if len(inputs) == 4 and y is None:
            raise InputError("The exported program takes labels, but there are none; pass --data with labels.")
        values: dict[str, Any] = dict(zip(self._inputs, inputs, strict=True))
        values |= {value: self._tensor(name) for value, name in self._own.items()}
        try:
            for step in self._steps:
                step.run(values, x.device)
            return values[self._output]
        except (KeyError, TypeError, IndexError, AttributeError, ValueError) as error:
            raise _wrong(self._path, error) from error

    def _tensor(self, name: str) -> Tensor:
        place, _, leaf = name.rpartition(".")
        return getattr(self.get_submodule(place), leaf)


def _wrong(path: Path, error: Exception) -> InputError:
    return InputError(
        f"Expected a program of torch.export.save in {path}, but its description is wrong "
        f"({type(error).__name__}: {error}); export it again."
    )


@dataclass(eq=False)
class _Step:
    """One operator: arguments and outputs as in the file's JSON, and the values that are not read after it."""

    target: str
    call: Callable[..., Any]
    arguments: list[dict[str, Any]]
    outputs: list[dict[str, Any]]
    reads: list[str]
    frees: list[str] = field(default_factory=list)

    def run(self, values: dict[str, Any], device: torch.device) -> None:
        given = [_value(argument["arg"], values, device) for argument in self.arguments]
        named = [argument.get("kind") == _KEYWORD for argument in self.arguments]
        keywords = {a["name"]: value for a, value, by_name in zip(self.arguments, given, named, strict=True) if by_name}
        found = self.call(*(value for value, by_name in zip(given, named, strict=True) if not by_name), **keywords)
        for output, value in zip(self.outputs, found if len(self.outputs) > 1 else [found], strict=True):
            for name, item in _named(output, value):
                values[name] = item
        for name in self.frees:
            del values[name]


_KEYWORD = 2  # torch._export.serde.schema.ArgumentKind


def _step(node: dict[str, Any], program: Program) -> _Step:
    target = node["target"]
    reads = list(dict.fromkeys(name for argument in node["inputs"] for name in _reads(argument["arg"])))
    return _Step(target, _operator(target, node["inputs"], program), node["inputs"], node["outputs"], reads)


def _operator(target: str, arguments: list[dict[str, Any]], program: Program) -> Callable[..., Any]:
    if target in _INTEGERS:
        return _INTEGERS[target]
    if _CHECKS.fullmatch(target):  # of the types and sizes that it was exported with
        return lambda *_, **__: None
    found = re.fullmatch(r"torch\.ops\.aten\.([a-z]\w*|_\w+)\.(\w+)", target)
    name, overload = found.groups() if found else ("", "")
    call = getattr(getattr(torch.ops.aten, name, None), overload, None) if name not in _REFUSED else None
    if not isinstance(call, torch._ops.OpOverload) or (name.startswith("_") and name not in _PRIVATE):
        raise InputError(
            f"Expected a program of common ATen operators in {program.path}, but it has {target}; "
            "pass --model with the network's code and the weights alone."
        )
    if _is_random(call, arguments):
        raise InputError(
            f"Expected a network without randomness of its own in {program.path}, but it has {target}; call eval() "
            "before exporting it."
        )
    return call


def _is_random(call: torch._ops.OpOverload, arguments: list[dict[str, Any]]) -> bool:
    """Whether an operator draws random numbers: dropout does not in eval mode, nor attention without dropout."""
    given = {argument["name"]: next(iter(argument["arg"].values())) for argument in arguments}
    named = {argument.name for argument in call._schema.arguments}
    silent = given.get("train") is False or ("dropout_p" in named and not given.get("dropout_p"))
    return torch.Tag.nondeterministic_seeded in call.tags and not silent


def _reads(argument: Any) -> Iterator[str]:
    """The names of the values in an argument."""
    if isinstance(argument, list):
        for item in argument:
            yield from _reads(item)
    elif isinstance(argument, dict):
        for key, value in argument.items():
            if key in ("name", "as_name"):
                yield value
            elif key != "as_device":
                yield from _reads(value)


def _named(output: dict[str, Any], value: Any) -> Iterator[tuple[str, Any]]:
    """Values by name, from what an operator returned and the file's description of it."""
    ((kind, found),) = output.items()
    if kind == "as_none":
        return
    if isinstance(found, list):
        yield from zip((item["name"] for item in found), value, strict=True)
    else:
        yield found.get("name") or found["as_name"], value


def _value(argument: dict[str, Any], values: Mapping[str, Any], device: torch.device) -> Any:
    """What an operator is given for an argument of the file's JSON, a union with one entry."""
    ((kind, found),) = argument.items()
    match kind:
        case "as_none":
            return None
        case "as_tensor":
            return values[found["name"]]
        case "as_tensors":
            return [values[item["name"]] for item in found]
        case "as_name":
            return values[found]
        case "as_float":
            return float(found)
        case "as_scalar_type":
            return getattr(torch, DTYPES[found])
        case "as_memory_format":
            return _MEMORY_FORMATS.get(found, torch.preserve_format)
        case "as_device":
            return device
        case "as_layout":
            return torch.strided
        case "as_int" | "as_ints" | "as_bool" | "as_bools" | "as_string" | "as_floats":
            return found
        case "as_optional_tensor" | "as_sym_int" | "as_sym_float" | "as_sym_bool":
            return _value(found, values, device)
        case "as_optional_tensors" | "as_sym_ints" | "as_sym_floats" | "as_sym_bools":
            return [_value(item, values, device) for item in found]
    raise InputError(f"The exported program has an argument of kind {kind}, which mfdiag does not know; pass --model.")
