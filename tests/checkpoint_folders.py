"""Checkpoint folders as training tools write them, made of a raw state dict and its average."""

from __future__ import annotations

import json
import sys
import types
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

State = dict[str, Tensor]


def write_index(folder: Path, name: str, state: State, *, torch_files: bool = False, variant: str = "") -> None:
    """Two shards and their index, as save_pretrained writes them."""
    ending = "bin" if torch_files else "safetensors"
    places = {key: f"{name}{variant}-{i % 2 + 1:05d}-of-00002.{ending}" for i, key in enumerate(state)}
    for place in set(places.values()):
        part = {key: state[key] for key in state if places[key] == place}
        torch.save(part, folder / place) if torch_files else save_file(part, folder / place)
    (folder / f"{name}.{ending}.index{variant}.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


def write_leftovers(folder: Path) -> None:
    """What accelerate writes beside the weights."""
    for name in (
        "optimizer.bin",
        "scheduler.bin",
        "scaler.pt",
        "random_states_0.pkl",
        "sampler.bin",
        "optimizer_1.bin",
    ):
        (folder / name).write_bytes(b"not weights")


def write_pipeline(folder: Path, state: State, network: str = "unet") -> None:
    """A diffusers pipeline: components in folders, of which one is the generator."""
    classes = {
        "_class_name": "DDPMPipeline",
        network: ["diffusers", "UNet2DModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    for component in (network, "vae", "text_encoder", "scheduler"):
        (folder / component).mkdir(parents=True)
    (folder / "model_index.json").write_text(json.dumps(classes))
    (folder / network / "config.json").write_text(json.dumps({"_class_name": "UNet2DModel", "sample_size": 32}))
    save_file(state, folder / network / "diffusion_pytorch_model.safetensors")
    save_file({"conv.weight": torch.ones(3)}, folder / "vae" / "diffusion_pytorch_model.safetensors")
    save_file({"conv.weight": torch.ones(3)}, folder / "text_encoder" / "model.safetensors")
    (folder / "scheduler" / "scheduler_config.json").write_text("{}")


def write_training_script(folder: Path, raw: State, ema: State, steps: int = 3) -> None:
    """A checkpoint-N folder of diffusers' training scripts with --use_ema."""
    for name, state in (("unet", raw), ("unet_ema", ema)):
        (folder / name).mkdir(parents=True)
        save_file(state, folder / name / "diffusion_pytorch_model.safetensors")
        (folder / name / "config.json").write_text(json.dumps({"optimization_step": steps} if name != "unet" else {}))
    write_leftovers(folder)


def write_dcp(folder: Path, content: Mapping[str, Any]) -> None:
    """A folder of torch.distributed.checkpoint, written by one process."""
    import torch.distributed.checkpoint as dcp

    dcp.save(dict(content), checkpoint_id=folder, no_dist=True)


@contextmanager
def process(rank: int, processes: int) -> Iterator[Any]:
    """A mesh as process `rank` sees it, without the others."""
    from torch.distributed.tensor import init_device_mesh
    from torch.testing._internal.distributed.fake_pg import FakeStore

    torch.distributed.init_process_group("fake", store=FakeStore(), rank=rank, world_size=processes)
    try:
        yield init_device_mesh("cpu", (processes,))
    finally:
        torch.distributed.destroy_process_group()


def distributed(state: State, mesh: Any, rank: int, processes: int) -> dict[str, Any]:
    """The state as process `rank` holds it: rows are sharded, numbers are replicated."""
    from torch.distributed.tensor import DTensor, Replicate, Shard

    parts: dict[str, Any] = {}
    for name, value in state.items():
        chunks = value.chunk(processes) if value.ndim else (value,)
        own = (chunks[rank] if rank < len(chunks) else value[:0]) if value.ndim else value
        placement = Shard(0) if value.ndim else Replicate()
        parts[name] = DTensor.from_local(
            own.clone(), mesh, [placement], run_check=False, shape=value.shape, stride=value.stride()
        )
    return parts


def write_dcp_of_processes(folder: Path, sets: Mapping[str, State], processes: int = 3) -> None:
    """A DCP folder with a data file for each of several processes, by the steps of torch's own writer."""
    from torch.distributed.checkpoint import DefaultSavePlanner, FileSystemWriter

    plans, planners, writers = [], [], []
    for rank in range(processes):
        with process(rank, processes) as mesh:
            content = {key: distributed(state, mesh, rank, processes) for key, state in sets.items()}
            planner, writer = DefaultSavePlanner(), FileSystemWriter(folder)
            planner.set_up_planner(content, None, rank == 0)
            writer.set_up_storage_writer(rank == 0)
            plans.append(writer.prepare_local_plan(planner.create_local_plan()))
            planners.append(planner)
            writers.append(writer)
    plans, metadata = planners[0].create_global_plan(plans)
    results = []
    for planner, writer, plan in zip(planners, writers, writers[0].prepare_global_plan(plans), strict=True):
        results.append(writer.write_data(planner.finish_plan(plan), planner).wait())
    writers[0].finish(metadata, results)


def write_ranks(folder: Path, sets: Mapping[str, State], processes: int = 3) -> None:
    """A file of torch.save for each process, with its parts of the tensors."""
    folder.mkdir(parents=True, exist_ok=True)
    for rank in range(processes):
        with process(rank, processes) as mesh:
            content = {key: distributed(state, mesh, rank, processes) for key, state in sets.items()}
            torch.save(content, folder / f"model_rank{rank}.pt")


def _deepspeed_object(module: str, name: str, *arguments: Any) -> Any:
    """An object that pickles as one of DeepSpeed's, which is not installed."""
    for depth in range(1, module.count(".") + 2):
        path = ".".join(module.split(".")[:depth])
        sys.modules.setdefault(path, types.ModuleType(path))
    kind = type(name, (), {"__module__": module, "__reduce__": lambda self: (kind, arguments)})
    kind.__init__ = lambda self, *_: None  # type: ignore[misc]
    setattr(sys.modules[module], name, kind)
    return kind()


def write_zero(
    folder: Path, state: State, *, stage: int, processes: int = 2, frozen: tuple[str, ...] = (), client: Any = None
) -> None:
    """A ZeRO folder of DeepSpeed: `latest`, and files of the model and of the optimizer in the folder of the step."""
    tag = folder / "global_step3"
    tag.mkdir(parents=True)
    (folder / "latest").write_text("global_step3")
    floating = [name for name, value in state.items() if value.is_floating_point() and "running" not in name]
    trained = [name for name in floating if name not in frozen]
    groups = [trained[: len(trained) // 2], trained[len(trained) // 2 :]]
    shapes = [OrderedDict((name, state[name].shape) for name in group) for group in groups]
    buffers = [name for name in state if name not in floating]
    pieces = {rank: _pieces(state, groups, stage, rank, processes) for rank in range(processes)}
    zero_stage = _deepspeed_object("deepspeed.runtime.zero.config", "ZeroStageEnum", stage)
    scaler = _deepspeed_object("deepspeed.runtime.fp16.loss_scaler", "LossScaler")
    for rank in range(processes):
        half = {name: v.bfloat16() if name in trained else v for name, v in state.items()}
        fragments = {name: state[name] if stage < 3 else _piece(state[name], rank, processes) for name in frozen}
        empty = {name: torch.empty(0, dtype=torch.bfloat16) for name in floating}
        model = {
            "module": half if stage < 3 else half | empty,
            "buffer_names": buffers,
            "optimizer": None,
            "param_shapes": shapes,
            "frozen_param_shapes": {name: state[name].shape for name in frozen} or None,
            "frozen_param_fragments": fragments or None,
            "shared_params": {},
            "global_steps": 3,
            "ds_config": {"train_batch_size": 2},
            **(client or {}),
        }
        prefix = f"zero_pp_rank_{rank}_" if stage == 3 else ""
        torch.save(model, tag / f"{prefix}mp_rank_00_model_states.pt")
        key = "fp32_flat_groups" if stage == 3 else "single_partition_of_fp32_groups"
        optimizer = {
            "loss_scaler": scaler,
            "zero_stage": zero_stage,
            "partition_count": processes if stage == 3 else [processes] * 2,
            key: pieces[rank],
            "base_optimizer_state": {"state": {0: {"exp_avg": pieces[rank][0]}}},
        }
        name = f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"
        torch.save({"optimizer_state_dict": optimizer, "ds_version": "0.19.8"}, tag / name)


def _pieces(state: State, groups: list[list[str]], stage: int, rank: int, processes: int) -> list[Tensor]:
    """The flat vectors of one process, filled up with numbers that are no weights."""
    if stage == 3:
        return [torch.cat([_piece(state[name], rank, processes) for name in group]) for group in groups]
    wholes = [torch.cat([state[name].reshape(-1) for name in group]) for group in groups]
    return [_piece(whole, rank, processes, multiple=2) for whole in wholes]


def _piece(value: Tensor, rank: int, processes: int, multiple: int = 1) -> Tensor:
    length = -(-prod(value.shape) // (processes * multiple)) * multiple
    filled = torch.cat([value.reshape(-1).float(), torch.full((length * processes - value.numel(),), 99.0)])
    return filled[rank * length : (rank + 1) * length].clone()
