"""Several processes as threads of one, which take turns: for tests of what they share."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from mfdiag.world import World, using

T = TypeVar("T")


class Threads:
    """What the threads share. Only one runs at a time, because forward-mode derivatives are not safe in threads."""

    def __init__(self, size: int) -> None:
        self.size, self.turn, self.barrier = size, threading.Lock(), threading.Barrier(size)
        self.values: list[Any] = [None] * size

    def meet(self) -> None:
        self.turn.release()
        try:
            self.barrier.wait(60)
        except threading.BrokenBarrierError:
            raise KeyboardInterrupt from None  # another one has ended
        finally:
            self.turn.acquire()


class ThreadWorld(World):
    def __init__(self, rank: int, threads: Threads) -> None:
        self.rank, self.size, self.threads = rank, threads.size, threads

    def exchange(self, value: T) -> list[T]:
        self.threads.values[self.rank] = pickle.dumps(value)
        self.threads.meet()
        values = [pickle.loads(text) for text in self.threads.values]
        self.threads.meet()
        return values

    def broadcast(self, value: T) -> T:
        return self.exchange(value)[0]

    def sum_to_first(self, tensor: Tensor) -> None:
        tensors = self.exchange((tensor.shape, tensor.dtype, tensor))
        assert len({(shape, dtype) for shape, dtype, _ in tensors}) == 1, "other processes send something else"
        total = torch.stack([t for _, _, t in tensors]).sum(0)
        tensor.copy_(total if self.rank == 0 else torch.full_like(tensor, torch.nan))


def in_threads(size: int, function: Callable[[], T]) -> list[T]:
    """The result of a function in each of several threads that share a world; the first error if one fails."""
    threads = Threads(size)
    results: list[Any] = [None] * size
    errors: list[BaseException] = []

    def run(rank: int) -> None:
        with threads.turn:
            try:
                with using(ThreadWorld(rank, threads)):
                    results[rank] = function()
            except BaseException as error:
                errors.append(error)
                threads.barrier.abort()

    started = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in started:
        thread.start()
    for thread in started:
        thread.join()
    if errors:
        raise errors[0]
    return results
