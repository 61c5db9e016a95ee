"""The processes that share a measurement: one alone, or those that torchrun, accelerate or SLURM start together.

Samples depend on (seed, i) alone, so any process can measure any of them. Everything else runs alike on all processes,
and only the first one, of rank 0, writes and prints. A process that fails makes all others raise the same error.
"""

from __future__ import annotations

import os
import pickle
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from mfdiag.errors import InputError, MfdiagError, first_line, machine_error

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["World", "current_world", "joined_world", "may_speak", "started_processes", "using"]

T = TypeVar("T")

_TIMEOUT = timedelta(hours=12)  # a process that dies closes its connections; this is for one that is slow
_MESSAGE_NUMBERS = 2**22  # that travel together: fewer take longer, more take memory
_POLL_SECONDS = 0.002
_PATIENCE_SECONDS = 1.0  # before a process speaks for another one, which may know more


class World:
    """One process alone. Subclasses connect several, and override the three primitives at the top.

    Attributes:
        rank: The number of this process, from 0.
        size: The number of processes.
    """

    rank = 0
    size = 1

    def exchange(self, value: T) -> list[T]:
        """The value of every process, by rank."""
        return [value]

    def broadcast(self, value: T) -> T:
        """The value of rank 0."""
        return value

    def sum_to_first(self, tensor: Tensor) -> None:
        """Adds the tensors of all processes into that of rank 0; those of the others are undefined afterwards."""

    def sums_on_first(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Add tensors over all processes, several in one message.

        Args:
            tensors: As many, of the same shapes, in every process; they stay as they are.

        Returns:
            The sums on rank 0. In the other processes the values are undefined.
        """
        if self.size == 1:
            return list(tensors)
        import torch

        sums: list[Tensor] = []
        for message in _messages(tensors):
            flat = torch.cat([tensor.flatten() for tensor in message])
            self.sum_to_first(flat)
            parts = flat.split([tensor.numel() for tensor in message])
            sums += [part.view_as(tensor) for part, tensor in zip(parts, message, strict=True)]
        return sums

    def require_same(self, tensors: Sequence[Tensor]) -> None:
        """Raise InputError where another process has other numbers, beyond rounding.

        Args:
            tensors: What should be the same in every process.

        Raises:
            InputError: A tensor of another process has another shape or other values.
        """
        import torch

        own = [tensor.detach().cpu() for tensor in tensors]
        for rank, others in enumerate(self.exchange(own)):
            for one, other in zip(own, others, strict=True):
                allowed = (1e-9 if one.dtype == torch.float64 else 1e-3) * one.nan_to_num(0, 0, 0).abs().max().item()
                if one.shape != other.shape or not torch.allclose(one, other, 0, allowed, equal_nan=True):
                    raise InputError(
                        f"Expected the same data and networks in all processes, but those of rank {rank} are others. "
                        "Make the files the same on all machines, and give random numbers in your code a fixed seed."
                    )

    def together(self, function: Callable[[], T]) -> T:
        """Run a function in every process. If it fails in one, all raise its error.

        Args:
            function: What to run; it must not communicate.

        Returns:
            The result of this process.
        """
        if self.size == 1:
            return function()
        result: Any = None
        own: Exception | None = None
        try:
            result = function()
        except Exception as error:
            own = error
        errors = self.exchange(None if own is None else _portable(own))
        try:
            for rank, raised in enumerate(errors):
                if raised is not None:
                    raise own if rank == self.rank and own is not None else raised
        finally:
            del own  # its traceback holds this frame, and the tensors of those below
        return result

    def on_first(self, function: Callable[[], T]) -> T:
        """Run a function on rank 0 alone; every process gets its result, or raises its error."""
        if self.size == 1:
            return function()
        result: Any = None
        error: Exception | None = None
        if self.rank == 0:
            try:
                result = function()
            except Exception as raised:
                error = raised
        result, copy = self.broadcast((result, None if error is None else _portable(error)))
        if copy is not None:
            raise error or copy
        return result

    def spread(self, function: Callable[[int], T], count: int) -> list[T]:
        """Run a function for the numbers 0 to count - 1, each in one process; every process gets all results.

        Args:
            function: number -> something that can be pickled, tensors on the CPU. It must not communicate.
            count: How many numbers.

        Returns:
            The results in order.
        """
        own = self.together(lambda: [function(k) for k in range(self.rank, count, self.size)])
        parts = self.exchange(own)
        return [parts[k % self.size][k // self.size] for k in range(count)]


class _TorchWorld(World):
    """The processes of torch.distributed's default group. Where one ends, the others raise KeyboardInterrupt."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size

    def exchange(self, value: T) -> list[T]:
        import torch.distributed as dist

        values: list[Any] = [None] * self.size
        with _lost_connections():
            self._wait_for_all()
            dist.all_gather_object(values, value)
        return values

    def broadcast(self, value: T) -> T:
        import torch
        import torch.distributed as dist

        values: list[Any] = [value]
        with _lost_connections():
            self._wait_for_all()
            dist.broadcast_object_list(values, device=torch.device("cpu"))
        return values[0]

    def sum_to_first(self, tensor: Tensor) -> None:
        import torch.distributed as dist

        with _lost_connections():
            self._wait_for_all()
            dist.reduce(tensor, 0)

    def _wait_for_all(self) -> None:
        """Waits until every process is here. Signals interrupt it, unlike the operations that follow."""
        import torch
        import torch.distributed as dist

        work = dist.all_reduce(torch.zeros(1), async_op=True)
        while not work.is_completed():
            time.sleep(_POLL_SECONDS)
        work.wait()


_ALONE = World()
_world: ContextVar[World] = ContextVar("world", default=_ALONE)
_store: Any = None  # of torch.distributed; it outlives the group, so that one process can be chosen to speak


def current_world() -> World:
    """The processes that share the work: this one alone unless the command line joined others."""
    return _world.get()


def started_processes() -> int:
    """How many processes the launcher started together, from the variable WORLD_SIZE of torch.distributed."""
    text = os.environ.get("WORLD_SIZE", "1")
    if not text.isdecimal() or int(text) < 1:
        raise InputError(f"The environment variable WORLD_SIZE should be a number of processes, but is {text!r}.")
    return int(text)


@contextmanager
def using(world: World) -> Iterator[World]:
    """Share the work of the block with the processes of a world."""
    token = _world.set(world)
    try:
        yield world
    finally:
        _world.reset(token)


@contextmanager
def joined_world(device: str) -> Iterator[World]:
    """Connect the processes that the launcher started together, for the work of the block.

    Args:
        device: Where they compute; sums on GPUs travel by NCCL, everything else by Gloo.

    Yields:
        The world; of one process if there is no other.

    Raises:
        InputError: The launcher does not say how to reach the others.
    """
    if started_processes() == 1:
        yield _ALONE
        return
    import torch.distributed as dist

    global _store
    try:
        _store, rank, size = next(dist.rendezvous("env://"))
        backend = "cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo"
        dist.init_process_group(backend, store=_store, rank=rank, world_size=size, timeout=_TIMEOUT)
    except (ValueError, RuntimeError) as error:
        raise InputError(
            f"WORLD_SIZE says that {started_processes()} processes share the work, but they cannot connect "
            f"({first_line(error).removesuffix('.')}). Start them with torchrun, or unset WORLD_SIZE."
        ) from error
    with _interrupted_once(), using(_TorchWorld(rank, size)) as world:
        yield world
    dist.destroy_process_group()  # not after an error: the others may be gone


def may_speak(error: BaseException | None) -> bool:
    """Whether this process reports how the run ended: only one of those that end with an error does.

    Args:
        error: Its error. A copy of another process's error, and an interrupt, leave it to others at first.

    Returns:
        True for the process that reports.
    """
    rank = int(os.environ.get("RANK", "0"))
    if _store is None:  # before the processes are connected, all of them fail alike
        return rank == 0 or os.environ.get("WORLD_SIZE", "1") == "1"
    if getattr(error, "of_other_process", False) or (isinstance(error, KeyboardInterrupt) and rank > 0):
        time.sleep(_PATIENCE_SECONDS)
    with suppress(RuntimeError):  # the store is gone with the process that held it
        return bool(_store.add("mfdiag/speakers", 1) == 1)
    return True


def _messages(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """The tensors in order, as many together as one message takes."""
    message: list[Tensor] = []
    for tensor in tensors:
        if message:
            alike = (tensor.dtype, tensor.device) == (message[0].dtype, message[0].device)
            if not alike or sum(t.numel() for t in message) + tensor.numel() > _MESSAGE_NUMBERS:
                yield message
                message = []
        message.append(tensor)
    if message:
        yield message


def _portable(error: Exception) -> Exception:
    """The error as another process can raise it. Causes get lost, so that a lack of the machine is passed on itself."""
    plain = error if isinstance(error, MfdiagError) else machine_error(error) or error
    try:
        copy = pickle.loads(pickle.dumps(plain))
    except Exception:  # errors with arguments of their own
        copy = RuntimeError(first_line(error))
    copy.of_other_process = True
    return copy


@contextmanager
def _lost_connections() -> Iterator[None]:
    """Turns a lost connection into an interrupt: the process at its other end has ended."""
    try:
        yield
    except RuntimeError as error:
        raise KeyboardInterrupt from error


@contextmanager
def _interrupted_once() -> Iterator[None]:
    """Makes SIGTERM an interrupt, as torchrun sends it where a process ended. A process that ends ignores signals."""
    signals = (signal.SIGINT, signal.SIGTERM)

    def ignore() -> None:
        for number in signals:
            signal.signal(number, signal.SIG_IGN)

    def interrupt(*_: object) -> None:
        ignore()
        raise KeyboardInterrupt

    before = [signal.signal(number, interrupt) for number in signals]
    try:
        yield
    except BaseException:
        ignore()
        raise
    for number, handler in zip(signals, before, strict=True):
        signal.signal(number, handler)
