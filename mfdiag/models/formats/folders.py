"""Which files of a checkpoint folder hold weights, as training tools lay folders out. Nothing is read but names."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from mfdiag.errors import InputError
from mfdiag.storage import is_file

__all__ = ["DCP", "PLAIN", "RANKS", "ZERO", "FolderLayout", "find_layout", "is_index"]

PLAIN, DCP, ZERO, RANKS = "folder", "DCP", "DeepSpeed ZeRO", "files of processes"

_MAX_EXAMPLES = 3  # files that an error lists
_MAX_TAG = 4096  # bytes of the file that names DeepSpeed's newest checkpoint
_WEIGHT_FILES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".pt2")
_NOT_WEIGHTS = re.compile(r"optim|sched|scaler|random|rng|sampler|trainer_state|training_args|dl_state_dict", re.I)
_INDEX = re.compile(r"\.(safetensors|bin)\.index(\.[\w-]+)?\.json$")
_SHARD = re.compile(r"-\d{5}-of-\d{5}\b")
# what transformers, diffusers and accelerate call the weights; a variant is a second copy in another dtype
_PRETRAINED = re.compile(
    r"(?:diffusion_pytorch_model|pytorch_model_fsdp|pytorch_model|model)(?P<number>_\d+)?"
    r"(?:\.(?P<variant>[\w-]+))?\.(?P<format>safetensors|bin)(?P<index>\.index(?:\.(?P<index_variant>[\w-]+))?\.json)?"
)
_DIFFUSERS = "diffusion_pytorch_model"
_SHARDED_MODEL = re.compile(r"pytorch_model_fsdp_\d+")  # DCP folders that accelerate writes
_CUSTOM = re.compile(r"(custom_checkpoint_\d+)\.pkl")  # other objects that accelerate saves, an average among them
_OTHER_NETWORKS = re.compile(  # components of a diffusers pipeline that are not the generator
    r"vae|vqvae|vqgan|movq|.*tokenizer.*|.*scheduler|.*text_(en)?coder.*|.*_encoder(_\d+)?|safety_checker|"
    r"feature_extractor|vocoder|watermarker"
)
_RANK = re.compile(r"(.*rank[_-]?)(\d+)(.*)", re.I)
_SNAPSHOT = re.compile(r"\d+\.\d+\.pt")
_NON_EMA = "non_ema"  # the variant that Stable Diffusion's raw weights have beside their average
_ZERO_FILES = "*_model_states.pt"
_LATEST = "latest"


@dataclass
class FolderLayout:
    """Where the weights of a checkpoint folder are.

    `kind` is how `parts` are read: PLAIN files, the files of all RANKS, or one folder
    of the formats DCP or ZERO. `parts` are files, or
    folders, by the name of their weights; "" if the folder is one file. `optional` names parts that may be unreadable,
    because they may hold anything. `configs` are the JSON files that describe the networks. `left_out` names folders
    with weights of other networks.
    """

    kind: str
    parts: dict[str, Path]
    optional: list[str] = field(default_factory=list)
    configs: list[Path] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)


def is_index(name: str) -> bool:
    """Whether a file of this name is an index of shards."""
    return _INDEX.search(name) is not None


def find_layout(folder: Path) -> FolderLayout:
    """Where the weights of a folder are.

    Args:
        folder: A folder of transformers, diffusers, accelerate, DeepSpeed or torch.distributed.checkpoint, or one with
            a single index of shards or file of weights.

    Returns:
        Its layout.

    Raises:
        InputError: If the folder holds no weights, or several files without a layout that says what they are.
    """
    if is_file(folder / ".metadata"):
        return FolderLayout(DCP, {"": folder})
    if zero := _zero_folder(folder):
        custom = _custom(sorted(folder.iterdir()))  # accelerate's, beside the folder of DeepSpeed
        return FolderLayout(ZERO, {"": zero} | custom, list(custom))
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise InputError(
            f"Expected a readable folder, but {folder} is not ({error.strerror}); check its permissions."
        ) from error
    files = [file for file in entries if is_file(file)]
    return (
        _components(folder, entries)
        or _pretrained_layout(folder, entries, files)
        or _post_hoc_snapshots(files)
        or _rank_files(files)
        or _only_file(folder, files)
    )


def _zero_folder(folder: Path) -> Path | None:
    """The folder of DeepSpeed's files: `folder`, or the one in it that the file `latest` or its only name tells."""
    if any(folder.glob(_ZERO_FILES)):
        return folder
    tagged = sorted({file.parent for file in folder.glob(f"*/{_ZERO_FILES}")})
    if not tagged:
        return None
    latest = folder / _LATEST
    if not is_file(latest):
        if len(tagged) == 1:
            return tagged[0]
        names = ", ".join(path.name for path in tagged[:_MAX_EXAMPLES])
        raise InputError(
            f"Expected one DeepSpeed checkpoint in {folder}, or a file named {_LATEST} that says which, but it has "
            f"{len(tagged)}: {names}; pass one of these folders."
        )
    with latest.open("rb") as stream:
        tag = stream.read(_MAX_TAG).decode("utf-8", "replace").strip()
    chosen = next((path for path in tagged if path.name == tag), None)
    if chosen is None:
        raise InputError(
            f"Expected the folder that {latest} names, {tag[:60]!r}, but {folder} has "
            f"{', '.join(path.name for path in tagged[:_MAX_EXAMPLES])}; pass one of these folders."
        )
    return chosen


def _components(folder: Path, entries: list[Path]) -> FolderLayout | None:
    """The networks of a diffusers pipeline, or of a folder that its training scripts write; None for others."""
    is_pipeline = is_file(folder / "model_index.json")
    parts: dict[str, Path] = {}
    configs, left_out = [], []
    for entry in entries:
        weights = _pretrained(entry) if entry.is_dir() else {}
        if not (weights and (is_pipeline or any(file.name.startswith(_DIFFUSERS) for file in weights.values()))):
            continue
        if _OTHER_NETWORKS.fullmatch(entry.name):
            left_out.append(entry.name)
            continue
        parts |= {f"{entry.name}.{name}" if len(weights) > 1 else entry.name: file for name, file in weights.items()}
        configs += [file for file in (entry / "config.json",) if is_file(file)]
    if not parts:
        return None
    custom = _custom(entries)
    return FolderLayout(PLAIN, parts | custom, list(custom), configs, left_out)


def _pretrained_layout(folder: Path, entries: list[Path], files: list[Path]) -> FolderLayout | None:
    """The files that transformers, diffusers and accelerate write; None if other files may be the weights."""
    weights = _pretrained(folder)
    fsdp = {entry.name: entry for entry in entries if entry.is_dir() and _SHARDED_MODEL.fullmatch(entry.name)}
    fsdp = {name.replace("pytorch_model_fsdp", "model").removesuffix("_0"): path for name, path in fsdp.items()}
    fsdp = {name: path for name, path in fsdp.items() if is_file(path / ".metadata")}
    others = [file for file in _weight_files(files) if not (_PRETRAINED.fullmatch(file.name) or _is_shard(file))]
    parts = fsdp | weights
    if others or not parts:
        return None
    custom = _custom(entries)
    config = folder / "config.json"
    configs = [config] if is_file(config) else []
    if len(parts) == 1 and not custom and not fsdp:
        parts = {"": next(iter(parts.values()))}
    return FolderLayout(PLAIN, parts | custom, list(custom), configs)


def _post_hoc_snapshots(files: list[Path]) -> FolderLayout | None:
    """The averages that ema-pytorch's PostHocEMA writes, PROFILE.STEP.pt, if the folder has no other weights."""
    parts = {file.stem: file for file in _weight_files(files)}
    named = all(_SNAPSHOT.fullmatch(file.name) for file in parts.values())
    return FolderLayout(PLAIN, parts) if len(parts) > 1 and named else None


def _rank_files(files: list[Path]) -> FolderLayout | None:
    """The files of several processes, whose names differ in the number after `rank`, if there are no other weights."""
    matches = [(file, _RANK.fullmatch(file.name)) for file in _weight_files(files)]
    names = {(match[1], match[3]) if match else None for _, match in matches}
    if len(matches) < 2 or len(names) != 1 or None in names:
        return None
    return FolderLayout(RANKS, {match[2]: file for file, match in matches if match})


def _pretrained(folder: Path) -> dict[str, Path]:
    """The best file of each set of weights in a folder: in full precision, as safetensors, whole."""
    best: dict[str, tuple[tuple[bool, bool, bool], Path]] = {}
    for file in sorted(folder.iterdir()):
        match = _PRETRAINED.fullmatch(file.name)
        if match is None or not is_file(file) or _is_shard(file):
            continue
        variant = match["variant"] or match["index_variant"] or ""
        name = _NON_EMA if variant == _NON_EMA else f"model{match['number'] or ''}"
        rank = (variant not in ("", _NON_EMA), match["format"] != "safetensors", match["index"] is not None)
        if name not in best or rank < best[name][0]:
            best[name] = (rank, file)
    weights = {name: file for name, (_, file) in best.items()}
    if {_NON_EMA, "model"} <= weights.keys():
        return {"raw": weights.pop(_NON_EMA), "ema": weights.pop("model"), **weights}
    return weights


def _custom(entries: list[Path]) -> dict[str, Path]:
    matches = ((entry, _CUSTOM.fullmatch(entry.name)) for entry in entries)
    return {match[1]: entry for entry, match in matches if match is not None and is_file(entry)}


def _is_shard(file: Path) -> bool:
    return _SHARD.search(file.name) is not None


def _weight_files(files: list[Path]) -> list[Path]:
    return [file for file in files if file.suffix in _WEIGHT_FILES and not _NOT_WEIGHTS.search(file.name)]


def _only_file(folder: Path, files: list[Path]) -> FolderLayout:
    """The index of shards in a folder, else its only file of weights."""
    indexes = [file for file in files if is_index(file.name)]
    choices = indexes or _weight_files(files)
    if len(choices) == 1:
        return FolderLayout(PLAIN, {"": choices[0]})
    below = sorted(file for file in folder.glob("*/*") if file.suffix in _WEIGHT_FILES)
    examples = [file.relative_to(folder) for file in (choices or below)][:_MAX_EXAMPLES]
    listed = f"; it has {', '.join(map(str, examples))}" if examples else ""
    raise InputError(
        f"Expected a checkpoint file or a folder with one file of weights, but {folder} is a folder with "
        f"{len(choices) or 'none'}{listed}; pass a file inside it."
    )
