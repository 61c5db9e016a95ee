"""Networks that were called before they are measured, and networks within wrappers of parallel training."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import cast

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from mfdiag.errors import InputError
from mfdiag.models.precision import copy_network, measured_copy


class Gain(nn.Module):
    """exp(gain) / sqrt(2), stored on the first call; the square root is a constant."""

    def __init__(self, get: Callable[[Gain], Tensor]) -> None:
        super().__init__()
        self.get, self.weight = get, nn.Parameter(torch.tensor([0.3, 0.1]))
        self.stored: Tensor | None = None
        self.cache: dict[str, Tensor | tuple[Tensor, int]] = {}
        self.items: list[Tensor] = []
        self.ready, self.large = False, True
        self.root = torch.tensor(2.0).sqrt()

    def forward(self) -> Tensor:
        return self.get(self) / self.root if self.large else 0 * self.weight


def by_attribute(gain: Gain) -> Tensor:
    if gain.stored is None:
        gain.stored = gain.weight.exp()
    return gain.stored


def by_absence(gain: Gain) -> Tensor:
    if "late" not in gain.__dict__:
        gain.late = gain.weight.exp()
    return gain.late


def by_flag(gain: Gain) -> Tensor:
    if not gain.ready:
        gain.stored, gain.ready = gain.weight.exp(), True
    return cast(Tensor, gain.stored)  # an assertion would make pytest's own containers part of the network


def by_dictionary(gain: Gain) -> Tensor:
    if "w" not in gain.cache:
        gain.cache["w"] = gain.weight.exp(), 1
    return gain.cache["w"][0]


def by_list(gain: Gain) -> Tensor:
    if not gain.items:
        gain.items.append(gain.weight.exp())
    return gain.items[0]


class Two(nn.Module):
    def __init__(self, get: Callable[[Gain], Tensor]) -> None:
        super().__init__()
        self.gains = nn.ModuleList([Gain(get), Gain(get)])

    def forward(self, x: Tensor, r: Tensor, t: Tensor) -> Tensor:
        for gain in self.gains:
            x = x * gain()
        return x + r[:, None] * t[:, None]


INPUTS = torch.ones(2, 2), torch.zeros(2), torch.ones(2)


def gradients(network: nn.Module) -> list[Tensor]:
    copied = measured_copy(network, "cpu", torch.float32).requires_grad_(True)
    copied(*INPUTS)
    return [*torch.autograd.grad(copied(*INPUTS).sum(), [*copied.parameters()])]


@pytest.mark.parametrize("with_gradient", [False, True])
@pytest.mark.parametrize("get", [by_attribute, by_absence, by_flag, by_dictionary, by_list])
def test_what_was_stored_before_is_computed_again(get: Callable[[Gain], Tensor], with_gradient: bool) -> None:
    fresh, used = Two(get), Two(get)
    with torch.set_grad_enabled(with_gradient):
        used(*INPUTS)
    stored = [dict(gain.__dict__) for gain in used.gains]
    expected = torch.ones(2, 2) * (0.6 * torch.ones(2)).exp()  # of d/dw exp(2 w) / 2 by each gain, at 0.3
    for measured in (gradients(fresh), gradients(used)):
        assert measured[0][0] == pytest.approx(float(expected[0, 0]), rel=1e-6)
        torch.testing.assert_close(measured[0], measured[1])
    assert stored == [dict(gain.__dict__) for gain in used.gains]  # the user's own network is as it was


def test_constants_stay_as_they_are() -> None:
    network = Two(by_attribute)
    network.gains[0].root = torch.tensor(3.0)
    network.gains[0].large = False
    copied = measured_copy(network, "cpu", torch.float32)
    assert torch.equal(copied(*INPUTS), network(*INPUTS))
    assert copied.gains[0].root == 3 and not copied.gains[0].large  # type: ignore[union-attr]


@pytest.fixture
def one_process() -> Iterator[None]:
    """A process group of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


class Within(nn.Module):
    def __init__(self, wrap: Callable[[nn.Module], nn.Module]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner = wrap(nn.Sequential(nn.Linear(4, 8), nn.SiLU(), nn.Linear(8, 2)))

    def forward(self, x: Tensor, r: Tensor, t: Tensor) -> Tensor:
        return self.inner(torch.cat([x, r[:, None], t[:, None]], 1))


def fully_sharded(module: nn.Module) -> nn.Module:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    return fully_shard(module, mesh=init_device_mesh("cpu", (1,)))


@pytest.mark.usefixtures("one_process")
@pytest.mark.filterwarnings("ignore")
def test_parts_within_parallel_wrappers_are_measured_and_sharded_ones_refused() -> None:
    plain = gradients(Within(lambda part: part))
    for wrap in (nn.DataParallel, nn.parallel.DistributedDataParallel):
        torch.testing.assert_close(gradients(Within(wrap)), plain)
    for shard in (fully_sharded, torch.distributed.fsdp.FullyShardedDataParallel):
        options = {} if shard is fully_sharded else {"device_id": torch.device("cpu")}
        network = Within(lambda part, shard=shard, options=options: shard(part, **options))  # type: ignore[misc]
        with pytest.raises(InputError, match=r"but inner is a F\w+, which shards them: pass the network as it is"):
            copy_network(network)
