"""Saving and loading checkpoints: this project's self-describing safetensors files, and files of other projects."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mfdiag.errors import InputError
from mfdiag.models.containers import (
    StateDict,
    checkpoint_file,
    container_of,
    read_safetensors,
    read_torch,
    scalar,
    subset,
    weight_sets,
)
from mfdiag.models.description import METADATA_KEY, Description, parse_description
from mfdiag.models.factory import call_factory
from mfdiag.models.registry import build_model
from mfdiag.storage import replacing, sha256_of

if TYPE_CHECKING:
    from torch import nn

__all__ = ["LoadedModel", "bundled", "load_model", "save_checkpoint"]

_ALIASES = {
    "raw": ("raw", "", "model", "net", "state_dict"),
    "ema": ("ema", "model_ema", "ema_model", "ema_state_dict", "net_ema"),
}
_STEP_KEYS = ("step", "steps", "train_steps", "global_step", "iteration")
_WRAPPERS = {"module", "_orig_mod"}  # prefixes left by DistributedDataParallel and torch.compile


def bundled() -> Path:
    """The checkpoint shipped with the package: an MLP trained on eight Gaussians with MeanFlow's original loss."""
    return Path(str(resources.files("mfdiag").joinpath("data", "eight_gaussians.safetensors")))


def save_checkpoint(
    path: str | os.PathLike[str], module: nn.Module, ema_state: StateDict | None, description: Description
) -> None:
    """Write the module's weights as `raw.*`, `ema_state` (the same names) as `ema.*`, and the description, atomically.

    The same weights and description give the same bytes.
    """
    from safetensors.torch import save

    sets = {"raw": module.state_dict(), "ema": ema_state or {}}
    # cloned, because safetensors refuses tensors that share memory
    tensors = {f"{key}.{name}": v.detach().cpu().clone().contiguous() for key in sets for name, v in sets[key].items()}
    with replacing(Path(path)) as temporary:
        # not save_file, which denies the file to every other user
        temporary.write_bytes(save(tensors, metadata={METADATA_KEY: description.model_dump_json()}))


@dataclass(frozen=True)
class LoadedModel:
    """A network in eval mode with its parameters loaded and frozen, and where it came from.

    `state` holds every set of weights in the file by its key (dotted where nested, "" for a bare state dict);
    `description` is None for files of other projects, `step` the training step where the file tells it.
    """

    module: nn.Module
    state: dict[str, StateDict]
    description: Description | None
    sha256: str
    step: int | None
    path: Path

    def has_weights(self, key: str) -> bool:
        """Whether the file holds the weights that `--weights KEY` asks for."""
        return _find(self.state, key) is not None

    def with_weights(self, key: str) -> nn.Module:
        """A fresh module like `module` with another set of weights. Raises InputError as `load_model` does."""
        return _filled(copy.deepcopy(self.module), _select(self.state, key, self.path), self.path)


def load_model(path: str | os.PathLike[str], *, factory: str | None = None, weights: str = "raw") -> LoadedModel:
    """Load a network from a checkpoint; nothing in the file is run.

    `factory`, as `FILE.py:factory` or `pkg.module:factory`, makes the network for files that do not describe it (and
    overrides the description of those that do). `weights` is "raw", "ema" or the key of a state dict, dotted where
    nested; a key may end in a prefix of tensor names (`model.net_ema`).

    Raises InputError for a file that is missing, empty, damaged, or holds code; for weights that are absent, not
    finite, or do not fit the network; for an unknown architecture and a factory that fails.
    """
    path = checkpoint_file(path)
    container = container_of(path)
    file = read_safetensors(path, load=True) if container == "safetensors" else read_torch(path, container, load=True)
    text = file.metadata.get(METADATA_KEY)
    description = None if text is None else parse_description(text, path)
    state = weight_sets(file.tree, described=description is not None)
    chosen = _select(state, weights, path)
    if factory is not None:
        module = call_factory(factory)
    elif description is not None:
        module = build_model(description.architecture.name, description.architecture.arguments)
    else:
        raise InputError(
            f"{path} does not describe its network, so pass --model FILE.py:factory that builds it; "
            f"the chosen weights are {len(chosen)} tensors: {_brief(_shapes(chosen))}."
        )
    step = description.step if description else _step(file.tree)
    return LoadedModel(_filled(module, chosen, path), state, description, sha256_of(path), step, path)


def _step(tree: Mapping[Any, Any]) -> int | None:
    found = (scalar(tree[key]) for key in _STEP_KEYS if key in tree)
    return next((int(value) for value in found if isinstance(value, int | float)), None)


def _find(state: Mapping[str, StateDict], key: str) -> StateDict | None:
    names = _ALIASES.get(key, (key,))
    for name in names:
        below = [place for place in state if name and place.startswith(f"{name}.")]
        if name in state:
            return state[name]
        if len(below) == 1:
            return state[below[0]]
    for name in filter(None, names):
        for place, tensors in state.items():
            prefix = name.removeprefix(f"{place}.") if place else name
            if found := subset(tensors, prefix):
                return found
    return None


def _select(state: Mapping[str, StateDict], key: str, path: Path) -> StateDict:
    found = _find(state, key)
    if found is None:
        known = ", ".join(repr(name) if name else "a bare state dict ('raw')" for name in state) or "no state dict"
        raise InputError(f"Expected weights {key!r} in {path}, but it has {known}; pass one of these as --weights.")
    return found


def _filled(module: nn.Module, tensors: StateDict, path: Path) -> nn.Module:
    """`module` with `tensors` as its parameters and buffers, frozen and in eval mode; InputError if they do not fit."""
    own = module.state_dict()
    while tensors.keys().isdisjoint(own):
        wrapper = next(iter(tensors)).partition(".")[0]
        if wrapper not in _WRAPPERS or not all(name.startswith(f"{wrapper}.") for name in tensors):
            break
        tensors = subset(tensors, wrapper)
    missing = [name for name in own if name not in tensors]
    unexpected = [name for name in tensors if name not in own]
    wrong = [
        f"{name} {list(tensors[name].shape)} instead of {list(own[name].shape)}"
        for name in own
        if name in tensors and tensors[name].shape != own[name].shape
    ]
    faults = [("missing", missing), ("unexpected", unexpected), ("of another shape", wrong)]
    found = "; ".join(f"{len(names)} {what}: {_brief(names)}" for what, names in faults if names)
    if found:
        raise InputError(
            f"The weights in {path} do not fit the network {type(module).__name__} ({found}); "
            "pass the --model that was trained, or other --weights."
        )
    _check_finite(tensors, path)
    module.load_state_dict(tensors)
    return module.eval().requires_grad_(False)


def _check_finite(tensors: StateDict, path: Path) -> None:
    bad = {name: int((~value.isfinite()).sum()) for name, value in tensors.items()}
    bad = {name: count for name, count in bad.items() if count}
    if bad:
        named = _brief([f"{name} ({count} of {tensors[name].numel()})" for name, count in bad.items()])
        raise InputError(
            f"Expected finite weights, but {path} has NaN or infinite values in {len(bad)} of {len(tensors)} tensors: "
            f"{named}; use an earlier checkpoint."
        )


def _shapes(tensors: StateDict) -> list[str]:
    return [f"{name} {list(value.shape)}" for name, value in tensors.items()]


def _brief(names: list[str], count: int = 3) -> str:
    return ", ".join(names[:count]) + (", ..." if len(names) > count else "")
