"""The network of an exported program, evaluated one ATen operator at a time."""

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

_INTEGER_OPERATORS = {  # on sizes, such as the length of the batch
    f"_operator.{name}": getattr(operator, name)
    for name in ("add", "sub", "mul", "floordiv", "truediv", "mod", "neg", "eq", "ne", "le", "lt", "ge", "gt")
}
_ASSERTIONS = re.compile(r"torch\.ops\.aten\.(_assert\w*|sym_constrain_range\w*)\.\w+")
_ALLOWED_PRIVATE = (
    *("_to_copy", "_unsafe_view", "_softmax", "_log_softmax", "_native_batch_norm_legit_no_training", "_reshape_alias"),
    *("_scaled_dot_product_flash_attention_for_cpu", "_safe_softmax", "_unsafe_index", "_adaptive_avg_pool2d"),
)
# these read files, or memory outside the tensor
_REFUSED = ("from_file", "set_", "set", "resize_", "resize", "resize_as_")
_UNKNOWN_CLASSES = 2**31  # labels that index no embedding: any number of classes fits
_MEMORY_FORMATS = {1: torch.contiguous_format, 2: torch.channels_last, 3: torch.channels_last_3d}


class ExportedNetwork(nn.Module):
    """u(x, r, t, y) as an exported program computes it. Parameters have the names that they have in the program.

    The program takes x, r and t, and y if it is conditional; its batch axis has a dynamic length. `num_classes` is the
    number of rows of the embedding that y indexes, which includes a row for absent labels if there is one.

    Raises:
        InputError: If the program has random operators or operators outside ATen, a fixed batch length, or inputs or
            outputs other than those of an average velocity.
    """

    def __init__(self, program: Program, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._path = program.path
        try:
            self._check(program)
            self._inputs = list(program.inputs)
            self._tensor_names = self._register(program, weights)
            self._operations = [_operation(node, program) for node in program.graph["nodes"]]
            self._output = program.graph["outputs"][0]["as_tensor"]["name"]
            last = {name: operation for operation in self._operations for name in operation.reads}
            last.pop(self._output, None)
            for name, operation in last.items():
                operation.frees.append(name)
            self.num_classes = self._classes(program)
        except InputError:
            raise
        except (KeyError, TypeError, IndexError, AttributeError, ValueError, StopIteration) as error:
            raise _malformed(program.path, error) from error

    @staticmethod
    def _check(program: Program) -> None:
        inputs, outputs = program.inputs, program.signature["output_specs"]
        if len(inputs) not in (3, 4) or len(outputs) != 1 or "user_output" not in outputs[0]:
            raise InputError(
                f"Expected a program u(x, r, t) or u(x, r, t, y) with one output in {program.path}, but it takes "
                f"{', '.join(inputs)} and has {len(outputs)} outputs; export a module of that form."
            )
        fixed = [f"{name} {shape}" for name, shape in inputs.items() if shape[0] is not None]
        if fixed:
            raise InputError(
                f"Expected a dynamic batch length in {program.path}, but its inputs are fixed to {', '.join(fixed)}; "
                "export it again with dynamic_shapes that give the first axis of each input the same torch.export.Dim."
            )

    def _register(self, program: Program, weights: Mapping[str, Tensor]) -> dict[str, str]:
        """Register parameters and buffers; name of each value in the program -> name of its tensor."""
        tensor_names = {}
        for spec in program.signature["input_specs"]:
            if "user_input" in spec:
                continue
            (kind, content), *_ = spec.items()
            name = content.get("parameter_name") or content.get("buffer_name") or content.get("tensor_constant_name")
            if name is None:
                raise InputError(
                    f"Expected a network with only tensor inputs in {program.path}, but it has an input of kind "
                    f"{kind}; export it without that input."
                )
            tensor_names[content["arg"]["name"]] = name
            place, _, leaf = name.rpartition(".")
            owner = self._submodule(place)
            tensor = weights[name] if name in weights else program.constants[name]
            if kind == "parameter":
                owner.register_parameter(leaf, nn.Parameter(tensor.clone()))
            else:
                owner.register_buffer(leaf, tensor.clone(), persistent=content.get("persistent", False))
        return tensor_names

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
        labels = self._inputs[3]
        lookups = (o for o in self._operations if "aten.embedding" in o.target and labels in o.reads)
        table = next((o.reads[0] for o in lookups), None)
        return _UNKNOWN_CLASSES if table is None else len(self.get_parameter(self._tensor_names[table]))

    def forward(self, x: Tensor, r: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """Average velocity u.

        Args:
            x: Points x_t [n, *shape].
            r: Times r [n], the other end of the interval.
            t: Times t [n] of the points.
            y: Labels int64 [n], which a conditional program needs.

        Returns:
            u [n, *shape].

        Raises:
            InputError: If the program takes labels and y is None, or the program is malformed.
        """
        inputs = [x, r, t, y][: len(self._inputs)]
        if len(inputs) == 4 and y is None:
            raise InputError("The exported program takes labels, but the data have none; pass --data with labels.")
        values: dict[str, Any] = dict(zip(self._inputs, inputs, strict=True))
        values |= {value: self._tensor(name) for value, name in self._tensor_names.items()}
        try:
            for operation in self._operations:
                operation.run(values, x.device)
            return values[self._output]
        except (KeyError, TypeError, IndexError, AttributeError, ValueError) as error:
            raise _malformed(self._path, error) from error

    def _tensor(self, name: str) -> Tensor:
        place, _, leaf = name.rpartition(".")
        return getattr(self.get_submodule(place), leaf)


def _malformed(path: Path, error: Exception) -> InputError:
    return InputError(
        f"Expected a program of torch.export.save in {path}, but its description is malformed "
        f"({type(error).__name__}: {error}); export it again."
    )


@dataclass(eq=False)
class _Operation:
    """One operator: its arguments and outputs as in the file's JSON, and the values that no later operator reads."""

    target: str
    call: Callable[..., Any]
    arguments: list[dict[str, Any]]
    outputs: list[dict[str, Any]]
    reads: list[str]
    frees: list[str] = field(default_factory=list)

    def run(self, values: dict[str, Any], device: torch.device) -> None:
        positional: list[Any] = []
        keywords: dict[str, Any] = {}
        for argument in self.arguments:
            value = _value(argument["arg"], values, device)
            if argument.get("kind") == _KEYWORD:
                keywords[argument["name"]] = value
            else:
                positional.append(value)
        result = self.call(*positional, **keywords)
        for output, value in zip(self.outputs, result if len(self.outputs) > 1 else [result], strict=True):
            values.update(_named_values(output, value))
        for name in self.frees:
            del values[name]


_KEYWORD = 2  # torch._export.serde.schema.ArgumentKind


def _operation(node: dict[str, Any], program: Program) -> _Operation:
    target = node["target"]
    reads = list(dict.fromkeys(name for argument in node["inputs"] for name in _reads(argument["arg"])))
    return _Operation(target, _operator(target, node["inputs"], program), node["inputs"], node["outputs"], reads)


def _operator(target: str, arguments: list[dict[str, Any]], program: Program) -> Callable[..., Any]:
    if target in _INTEGER_OPERATORS:
        return _INTEGER_OPERATORS[target]
    if _ASSERTIONS.fullmatch(target):  # about the types and sizes of the inputs that it was exported with
        return lambda *_, **__: None
    match = re.fullmatch(r"torch\.ops\.aten\.([a-z]\w*|_\w+)\.(\w+)", target)
    name, overload = match.groups() if match else ("", "")
    call = getattr(getattr(torch.ops.aten, name, None), overload, None) if name not in _REFUSED else None
    if not isinstance(call, torch._ops.OpOverload) or (name.startswith("_") and name not in _ALLOWED_PRIVATE):
        raise InputError(
            f"Expected a program of common ATen operators in {program.path}, but it has {target}; "
            "save only the weights and pass the network's code as --model."
        )
    if _is_random(call, arguments):
        raise InputError(
            f"Expected a network without random operators in {program.path}, but it has {target}; call eval() before "
            "exporting it."
        )
    return call


def _is_random(call: torch._ops.OpOverload, arguments: list[dict[str, Any]]) -> bool:
    """Whether an operator draws random numbers. Dropout in eval mode and attention without dropout do not."""
    values = {argument["name"]: next(iter(argument["arg"].values())) for argument in arguments}
    takes_dropout = any(argument.name == "dropout_p" for argument in call._schema.arguments)
    inactive = values.get("train") is False or (takes_dropout and not values.get("dropout_p"))
    return torch.Tag.nondeterministic_seeded in call.tags and not inactive


def _reads(argument: Any) -> Iterator[str]:
    """The names of the values that an argument refers to."""
    if isinstance(argument, list):
        for item in argument:
            yield from _reads(item)
    elif isinstance(argument, dict):
        for key, value in argument.items():
            if key in ("name", "as_name"):
                yield value
            elif key != "as_device":
                yield from _reads(value)


def _named_values(output: dict[str, Any], value: Any) -> Iterator[tuple[str, Any]]:
    """Name and value pairs of what an operator returned, by the file's description of it."""
    ((kind, content),) = output.items()
    if kind == "as_none":
        return
    if isinstance(content, list):
        yield from zip((item["name"] for item in content), value, strict=True)
    else:
        yield content.get("name") or content["as_name"], value


def _value(argument: dict[str, Any], values: Mapping[str, Any], device: torch.device) -> Any:
    """The value of an operator's argument; in the file's JSON it is a union with one entry."""
    ((kind, content),) = argument.items()
    match kind:
        case "as_none":
            return None
        case "as_tensor":
            return values[content["name"]]
        case "as_tensors":
            return [values[item["name"]] for item in content]
        case "as_name":
            return values[content]
        case "as_float":
            return float(content)
        case "as_scalar_type":
            return getattr(torch, DTYPES[content])
        case "as_memory_format":
            return _MEMORY_FORMATS.get(content, torch.preserve_format)
        case "as_device":
            return device
        case "as_layout":
            return torch.strided
        case "as_int" | "as_ints" | "as_bool" | "as_bools" | "as_string" | "as_floats":
            return content
        case "as_optional_tensor" | "as_sym_int" | "as_sym_float" | "as_sym_bool":
            return _value(content, values, device)
        case "as_optional_tensors" | "as_sym_ints" | "as_sym_floats" | "as_sym_bools":
            return [_value(item, values, device) for item in content]
    raise InputError(
        f"Expected arguments of known kinds in the exported program, but it has one of kind {kind}; save only "
        "the weights and pass the network's code as --model."
    )
