"""Where a command computes: its device, checked before anything starts, and its launcher."""

from __future__ import annotations

import os
import platform

import torch

from mfdiag.cli.options import Options
from mfdiag.errors import InputError
from mfdiag.measures.run.ray_launcher import RayLauncher
from mfdiag.models.precision import require_device
from mfdiag.world import World, current_world

__all__ = ["checked_device", "launcher_of"]


def checked_device(name: str, launcher: str = "local") -> str:
    """`name`, if a computation on it works; of several processes on GPUs, each gets its own.

    Raises InputError with the backend's reason otherwise. Another launcher's workers have devices of their own.
    """
    if launcher != "local":
        return name
    world = current_world()
    if world.size > 1 and name.startswith("cuda"):
        name = _own_gpu(name, world)
    require_device(name)
    return name


def launcher_of(options: Options) -> RayLauncher | None:
    """The launcher that the options ask for; None for this process. Raises InputError for options without it."""
    if options.launcher == "local":
        if options.address or options.fail_fast:
            raise InputError("--address and --fail-fast are for --launcher ray: pass it too, or leave them out.")
        return None
    if current_world().size > 1:
        raise InputError("--launcher ray starts its own processes: run it without torchrun.")
    return RayLauncher(options.address, options.fail_fast)


def _own_gpu(name: str, world: World) -> str:
    """The GPU of this process, by its rank on this machine. Raises InputError where two processes would share one."""
    if name != "cuda":
        raise InputError(f"--device {name} is one GPU, but {world.size} processes take one each: pass --device cuda.")
    rank, count = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    own = rank % max(count, 1)  # a launcher may show each process its own GPU alone
    gpus = world.exchange((platform.node(), str(torch.cuda.get_device_properties(own).uuid) if count else None))
    if count and len(set(gpus)) < world.size:
        raise InputError(
            f"Expected a GPU for each process, but {world.size} processes have {len(set(gpus))} GPUs. Start as many "
            "processes as there are GPUs, or pass --device cpu."
        )
    if count:
        torch.cuda.set_device(own)
    return f"cuda:{own}"
