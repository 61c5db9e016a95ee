"""Folders of DeepSpeed's ZeRO, stages 1 to 3: float32 weights in pieces, one file of the optimizer per process.

Each process stores a flat vector for each group of parameters.
Stages 1 and 2 cut the vector of all parameters of a group, one after another, into equal pieces: process i has piece i.
Stage 3 cuts each parameter into equal pieces, and process i has piece i of every parameter, one after another.
Both fill up with numbers that are no weights.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from mfdiag.errors import InputError, abbreviated, first_line
from mfdiag.models.formats.archives import damaged_file
from mfdiag.models.formats.named_files import regular_file
from mfdiag.models.formats.pickles import TensorHeader
from mfdiag.models.formats.torchfile import read_torch, torch_format

__all__ = ["Zero", "read_zero"]

_MODEL = re.compile(r"(?:zero_pp_rank_(?P<rank>\d+)_)?mp_rank_(?P<part>\d+)_model_states\.pt")
_OPTIMIZER = re.compile(r"(?:bf16_|fp16_)?zero_pp_rank_(?P<rank>\d+)_mp_rank_(?P<part>\d+)_optim_states\.pt")
_IGNORED = ("deepspeed",)  # settings and scalers of loss; they are no weights
_WEIGHTS = "module"
_NOT_LISTED = (  # entries of a model file that describe its pieces
    *(_WEIGHTS, "buffer_names", "optimizer", "param_shapes", "frozen_param_shapes", "frozen_param_fragments"),
    *("shared_params", "sparse_tensor_module_names"),
)
_FLAT_GROUPS = {1: "single_partition_of_fp32_groups", 2: "single_partition_of_fp32_groups", 3: "fp32_flat_groups"}

Shapes = Mapping[str, Sequence[int]]


class Zero(NamedTuple):
    """A ZeRO folder: its format with the stage, the tree, the files, and sentences about what they lack."""

    kind: str
    tree: dict[str, Any]
    files: list[Path]
    notes: list[str]


def read_zero(folder: Path, *, load: bool) -> Zero:
    """Read the weights of a ZeRO folder, in float32 and whole.

    Args:
        folder: The folder with the files `*_model_states.pt`.
        load: Whether to load tensors. Without it, each is a `TensorHeader`, and torch is not imported.

    Returns:
        The weights under `module`, beside what else the model file holds.

    Raises:
        InputError: If files of some processes are missing, if a file is damaged or holds other pickled objects, or if
            tensor parallelism or experts divide the network further.
    """
    models, optimizers = _files(folder)
    first = models[min(models)]
    try:
        state = _read(first, load)
        rest = {name: value for name, value in state.items() if name not in _NOT_LISTED and value is not None}
        if not optimizers:
            weights = _unpartitioned(state, first)
            return Zero("DeepSpeed", rest | {_WEIGHTS: weights}, [first], _half_precision(weights, folder))
        parts = {rank: _read(file, load)["optimizer_state_dict"] for rank, file in sorted(optimizers.items())}
        stage = _stage(parts[min(parts)])
        _check_complete(parts, optimizers, folder)
        states = {0: state}
        if stage == 3 and state.get("frozen_param_shapes"):
            _check_complete(parts, models, folder)
            states |= {rank: _read(models[rank], load) for rank in parts if rank != min(models)}
        weights = _merged(stage, states, [parts[rank] for rank in sorted(parts)], load, first)
        used = [first, *(models[rank] for rank in states if rank), *(optimizers[rank] for rank in sorted(optimizers))]
        return Zero(f"DeepSpeed ZeRO {stage}", rest | {_WEIGHTS: weights}, used, [])
    except InputError:
        raise
    except Exception as error:  # content of another form raises KeyError, TypeError, AttributeError, ...
        raise damaged_file(first, "DeepSpeed", f"{type(error).__name__}: {first_line(error)}".rstrip(".")) from error


def _files(folder: Path) -> tuple[dict[int, Path], dict[int, Path]]:
    """Model files and optimizer files by the number of their process."""
    models: dict[int, Path] = {}
    optimizers: dict[int, Path] = {}
    for file in sorted(folder.iterdir()):
        match = _MODEL.fullmatch(file.name) or _OPTIMIZER.fullmatch(file.name)
        if match is None:
            if "expert" in file.name and file.name.endswith("_states.pt"):
                raise _divided(folder, "experts", file)
            continue
        if int(match["part"]):
            raise _divided(folder, "tensor parallelism", file)
        target = models if file.name.endswith("model_states.pt") else optimizers
        target[int(match["rank"] or 0)] = regular_file(file)
    if not models:
        raise InputError(
            f"Expected mp_rank_00_model_states.pt or its parts in {folder}, but it has neither; copy the whole folder."
        )
    return models, optimizers


def _divided(folder: Path, reason: str, file: Path) -> InputError:
    return InputError(
        f"Expected weights that only ZeRO divides, but {folder} also divides them by {reason} ({file.name}). Convert "
        "it with DeepSpeed's ds_to_universal.py, or save the whole state dict with torch.save."
    )


def _read(file: Path, load: bool) -> Mapping[str, Any]:
    return read_torch(file, torch_format(file), load=load, ignored=_IGNORED)


def _stage(part: Mapping[str, Any]) -> int:
    """The stage that a file records, as a number or as DeepSpeed's enumeration of stages."""
    stage = part.get("zero_stage", 1 if _FLAT_GROUPS[1] in part else 3)
    return int(getattr(stage, "args", (stage,))[0])


def _check_complete(parts: Mapping[int, Mapping[str, Any]], files: Mapping[int, Path], folder: Path) -> None:
    """Raises InputError that lists the files that are missing."""
    counts = next(iter(parts.values()))["partition_count"]
    processes = max(counts) if isinstance(counts, list | tuple) else counts
    missing = [rank for rank in range(processes) if rank not in files]
    if not missing:
        return
    example = next(iter(files.values())).name
    names = [re.sub(r"pp_rank_\d+", f"pp_rank_{rank}", example) for rank in missing]
    raise InputError(
        f"Expected the files of {processes} processes in {folder}, but {len(missing)} are missing: "
        f"{abbreviated(names)}; copy them from the machines that wrote them."
    )


def _unpartitioned(state: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """The weights of a model file alone. Raises InputError if it has only empty pieces of them."""
    weights = dict(state[_WEIGHTS])
    shapes = _shapes(state)
    empty = [name for name, shape in shapes.items() if name in weights and tuple(weights[name].shape) != tuple(shape)]
    if empty or not weights:
        raise InputError(
            f"Expected the files *_optim_states.pt beside {file}, because ZeRO 3 stores the weights there, but there "
            "are none; copy the whole folder."
        )
    return weights


def _half_precision(weights: Mapping[str, Any], folder: Path) -> list[str]:
    dtypes = {str(value.dtype).removeprefix("torch.") for value in weights.values()} & {"float16", "bfloat16"}
    return [
        f"{folder} has no files *_optim_states.pt with float32 weights; those of the model file are {dtype}."
        for dtype in sorted(dtypes)
    ]


def _shapes(state: Mapping[str, Any]) -> Shapes:
    groups = state.get("param_shapes") or []
    return {
        name: shape for group in ([groups] if isinstance(groups, Mapping) else groups) for name, shape in group.items()
    }


def _merged(
    stage: int, states: Mapping[int, Mapping[str, Any]], parts: Sequence[Mapping[str, Any]], load: bool, file: Path
) -> dict[str, Any]:
    """Weights by name: buffers and frozen parameters of the model files, and trained parameters in float32."""
    state = states[0]
    shapes = _shapes(state)
    frozen: Shapes = state.get("frozen_param_shapes") or {}
    groups = [part[_FLAT_GROUPS[stage]] for part in parts]
    if stage == 3:
        trained = _from_pieces_of_each(shapes, [_joined(flat, load) for flat in groups], load, file)
        fragments = [states[rank]["frozen_param_fragments"] for rank in states] if frozen else []
        still = {
            name: _from_pieces_of_each({name: shape}, [piece[name] for piece in fragments], load, file)[name]
            for name, shape in frozen.items()
        }
    else:
        trained = {}
        param_groups = state["param_shapes"]
        param_groups = [param_groups] if isinstance(param_groups, Mapping) else param_groups
        paddings = parts[0].get("param_alignment_paddings") or [None] * len(param_groups)
        for number, group in enumerate(param_groups):
            whole = _joined([flat[number] for flat in groups], load)
            trained |= _one_after_another(group, whole, paddings[number], load, file)
        still = {name: (state.get("frozen_param_fragments") or state[_WEIGHTS])[name] for name in frozen}
    weights = {name: value for name, value in state[_WEIGHTS].items() if name not in shapes and name not in frozen}
    weights |= still | trained
    aliases = state.get("shared_params") or {}
    return weights | {alias: weights[name] for alias, name in dict(aliases).items() if name in weights}


def _joined(vectors: Sequence[Any], load: bool) -> Any:
    if not load:
        return TensorHeader((sum(prod(vector.shape) for vector in vectors),), vectors[0].dtype)
    import torch

    return torch.cat([vector.reshape(-1) for vector in vectors])


def _one_after_another(
    shapes: Shapes, vector: Any, paddings: Sequence[int] | None, load: bool, file: Path
) -> dict[str, Any]:
    """Stages 1 and 2: the parameters of a group lie one after another in the joined vector."""
    weights, start = {}, 0
    for number, (name, shape) in enumerate(shapes.items()):
        size = prod(shape)
        weights[name] = _cut(vector, start, size, shape, load, name, file)
        start += size + (paddings[number] if paddings else 0)
    return weights


def _from_pieces_of_each(shapes: Shapes, vectors: Sequence[Any], load: bool, file: Path) -> dict[str, Any]:
    """Stage 3: each process has an equal piece of each parameter; the last pieces are filled up."""
    weights, start = {}, 0
    for name, shape in shapes.items():
        length = -(-prod(shape) // len(vectors))
        pieces = [_cut(vector, start, length, (length,), load, name, file) for vector in vectors]
        weights[name] = _cut(_joined(pieces, load), 0, prod(shape), shape, load, name, file)
        start += length
    return weights


def _cut(vector: Any, start: int, size: int, shape: Sequence[int], load: bool, name: str, file: Path) -> Any:
    if start + size > prod(vector.shape):
        raise damaged_file(
            file, "DeepSpeed", f"{name} should end at number {start + size:,} of {prod(vector.shape):,} in its group"
        )
    if not load:
        return TensorHeader(tuple(shape), vector.dtype)
    return vector.reshape(-1)[start : start + size].reshape(tuple(shape))
