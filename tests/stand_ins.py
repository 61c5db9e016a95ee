"""Small networks with the calls, outputs and files of other projects: one for each shipped model card.

The networks are mfdiag's own code; they follow only the convention of each project. Each stand-in also has one step of
its project's sampler.
"""

from __future__ import annotations

import argparse
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from mfdiag.flow.paths import DDPM

__all__ = ["CLASSES", "CONDITIONS", "SHAPE", "STAND_INS", "StandIn"]

SHAPE = (2, 3, 3)
CLASSES = 3
_DIM = 18


class _Core(nn.Module):
    """A tensor shaped as x, from x, two numbers per sample and label rows [n, k]. Other arguments are ignored."""

    def __init__(self, labels: int = 0, **_: Any) -> None:
        super().__init__()
        self.x_embedder = nn.Linear(_DIM + 2 + labels, 8)
        self.pos_embed = nn.Parameter(torch.ones(8), requires_grad=False)
        self.final_layer = nn.Linear(8, _DIM)

    def value(self, x: Tensor, a: Tensor, b: Tensor, *rows: Tensor) -> Tensor:
        hidden = self.x_embedder(torch.cat([x.flatten(1), a[:, None], b[:, None], *rows], 1)) + self.pos_embed
        return self.final_layer(hidden.tanh()).view(x.shape)


class _Labelled(_Core):
    """A core with an embedding of the labels; the null label is the last."""

    def __init__(self, null: int = 1, **_: Any) -> None:
        super().__init__(labels=2)
        self.y_embedder = nn.Embedding(CLASSES + null, 2)

    def of(self, x: Tensor, a: Tensor, b: Tensor, y: Tensor) -> Tensor:
        return self.value(x, a, b, self.y_embedder(y))


class Packed(_Core):
    """py-meanflow: times in a tuple, and augmentations; without them, tensors in its file are unused."""

    def forward(self, x: Tensor, times: tuple[Tensor, Tensor], augmented: None) -> Tensor:
        assert type(times) is tuple and augmented is None
        return self.value(x, *times)


class Between(_Labelled):
    """zhuyu-cs/MeanFlow and mf-rae: (x, r, t, y); the network uses t and t - r."""

    def forward(self, x: Tensor, r: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return self.of(x, t, t - r, y)


class Raw(_Core):
    """zhuyu-cs/MeanFlow, cifar10: (x, r, t) without labels."""

    def forward(self, x: Tensor, r: Tensor, t: Tensor) -> Tensor:
        return self.value(x, r, t)


class OneHead(_Labelled):
    """haidog-yaqub/MeanFlow before 2026: (x, t, r, y) -> u; it multiplies times by 1000 itself."""

    def forward(self, x: Tensor, t: Tensor, r: Tensor, y: Tensor, w: Tensor | None = None) -> Any:
        return self.of(x, (1000 * t / 300).sin(), (1000 * r / 300).cos(), y)


class TwoHeads(OneHead):
    """haidog-yaqub/MeanFlow since 2026: u and v."""

    def __init__(self, **_: Any) -> None:
        super().__init__()
        self.v_head = nn.Linear(_DIM, _DIM)

    def forward(self, x: Tensor, t: Tensor, r: Tensor, y: Tensor, w: Tensor | None = None) -> tuple[Tensor, Tensor]:
        u = super().forward(x, t, r, y)
        return u, self.v_head(u.flatten(1)).view(x.shape)


class Decoupled(_Labelled):
    """dmf: (x, t, r, y) -> u, with a log-variance on request."""

    def forward(self, x: Tensor, t: Tensor, r: Tensor, y: Tensor, return_logvar: bool = False) -> Any:
        u = self.of(x, t, r, y)
        return (u, u.mean((1, 2, 3))) if return_logvar else u


class Guided(_Labelled):
    """imeanflow and pMF for torch: guidance scale and interval as tensors, labels last; returns (u, None)."""

    def forward(
        self, x: Tensor, t: Tensor, h: Tensor, w: Tensor, t_min: Tensor, t_max: Tensor, y: Tensor
    ) -> tuple[Tensor, None]:
        assert w.shape == t_min.shape == t_max.shape == h.shape
        return self.of(x, h, w + t_max - t_min, y), None


class FromNoise(_Labelled):
    """splitmeanflow: times from noise at 0 to data at 1, labels without a null label."""

    def __init__(self, **_: Any) -> None:
        super().__init__(null=0)

    def forward(self, x: Tensor, r: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return self.of(x, r, t, y)


class Preconditioned(_Core):
    """Re-MeanFlow: one-hot labels, and a layer that its file lacks; it returns (x - D) / t of its denoiser D."""

    def __init__(self, **_: Any) -> None:
        super().__init__(labels=CLASSES)
        self.unet = nn.ModuleDict({"emb_noise": nn.Linear(1, 1, bias=False)})

    def forward(self, x: Tensor, t: Tensor, r: Tensor, one_hot: Tensor) -> Tensor:
        return (x - self.value(x, t, r, one_hot)) / t.view(-1, 1, 1, 1)


class ByName(_Core):
    """FastGen: the second time and one-hot labels are keyword arguments."""

    def __init__(self, **_: Any) -> None:
        super().__init__(labels=CLASSES)

    def forward(self, x: Tensor, t: Tensor, condition: Tensor, r: Tensor, fwd_pred_type: str = "flow") -> Tensor:
        assert fwd_pred_type == "flow"
        return self.value(x, t, r, condition)


class Instant(_Labelled):
    """SiT and LightningDiT: (x, t, y), a velocity from noise to data."""

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return self.of(x, t, t, y)


class Length(_Core):
    """rectified-flow-pytorch: (x, t, t - r)."""

    def forward(self, x: Tensor, times: Tensor, s: Tensor) -> Tensor:
        return self.value(x, times, s)


class Seeing(_Core):
    """DM1: (action, time, r, cond), a dictionary of observations."""

    def __init__(self, **_: Any) -> None:
        super().__init__(labels=2)

    def forward(self, action: Tensor, time: Tensor, r: Tensor, cond: dict[str, Tensor]) -> Tensor:
        rows = torch.cat([cond["state"].flatten(1), cond["rgb"].flatten(1).mean(1, keepdim=True)], 1)
        return self.value(action, time, r, rows)


class Noise(_Labelled):
    """DiT: (x, step, y), the noise and as many channels for its variance."""

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        noise = self.of(x, t / 1000, t / 1000, y)
        return torch.cat([noise, 2 * noise], 1)


class Anchored(_Labelled):
    """FACM: (x, t, r, y), average velocities from noise at 0 to data at 1."""

    def forward(self, x: Tensor, t: Tensor, r: Tensor, y: Tensor) -> Tensor:
        return self.of(x, t, r, y)


class Solution(_Labelled):
    """SoFlow: (x, t, s, y, augment_labels)."""

    def forward(self, x: Tensor, t: Tensor, s: Tensor, y: Tensor, augment_labels: None) -> Tensor:
        assert augment_labels is None
        return self.of(x, t, t - s, y)


class Texts(_Core):
    """MeanAudio: keyword arguments, features of words and of the text, and the empty text's in the file."""

    def __init__(self, **_: Any) -> None:
        super().__init__(labels=2)
        self.empty_string_feat = nn.Parameter(torch.ones(2, 3), requires_grad=False)
        self.empty_string_feat_c = nn.Parameter(-torch.ones(1), requires_grad=False)

    def forward(self, latent: Tensor, text_f: Tensor, text_f_c: Tensor, r: Tensor, t: Tensor) -> Tensor:
        return self.value(latent, t, r, text_f.flatten(1).mean(1, keepdim=True), text_f_c)


class Voice(_Core):
    """MeanVC: (x, t, r) with content, speaker, prompts and clean frames by name; a mask hides the first three."""

    def __init__(self, **_: Any) -> None:
        super().__init__(labels=3)

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        r: Tensor,
        cache: Tensor,
        cond: Tensor,
        spks: Tensor,
        prompts: Tensor,
        cfg_mask: Tensor | None = None,
    ) -> Tensor:
        hidden = torch.stack([cond.flatten(1).mean(1) + prompts.flatten(1).mean(1), spks[:, 0]], 1)
        if cfg_mask is not None:
            hidden = hidden.masked_fill(cfg_mask[:, None], 0)
        return self.value(x, t, r, hidden, cache.flatten(1).mean(1, keepdim=True))


class _Encoder(nn.Module):
    """Features [n, 1] of a dictionary of observations."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp = nn.Linear(2, 1)

    def forward(self, obs: dict[str, Tensor]) -> Tensor:
        return self.mlp(torch.cat([obs["agent_pos"], obs["point_cloud"].amax((1, 2))[:, None]], 1))


class _Hidden(_Core):
    """The U-Net of MP1: keyword arguments, and hidden features beside the velocity."""

    def forward(self, sample: Tensor, timestep: Tensor, global_cond: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
        return self.value(sample, timestep, r, global_cond), sample.flatten(1)[None]


class Policy(nn.Module):
    """MP1: a policy with an encoder, whose network is an attribute."""

    def __init__(self, **_: Any) -> None:
        super().__init__()
        self.obs_encoder, self.model = _Encoder(), _Hidden(labels=2)


class InExtra(_Labelled):
    """flow_matching: a velocity from noise to data, labels in a dictionary."""

    def forward(self, x: Tensor, t: Tensor, extra: dict[str, Tensor]) -> Tensor:
        return self.of(x, t, t, extra["label"])


class TimeFirst(_Core):
    """torchcfm: (t, x), a velocity from noise to data."""

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        return self.value(x, t, t)


State = dict[str, Tensor]


def _ema(state: State) -> State:
    return {name: 0.9 * value for name, value in state.items()}


def _prefixed(**states: State) -> State:
    return {f"{prefix}.{name}": value for prefix, state in states.items() for name, value in state.items()}


def _research(state: State) -> dict[str, Any]:
    """The file layout of SiT and repositories based on it."""
    return {
        "model": state,
        "ema": OrderedDict(_ema(state)),
        "opt": {"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 1e-4, "params": [0]}]},
        "args": argparse.Namespace(resolution=256, num_classes=CLASSES, qk_norm=False, dmf_depth=2),
        "steps": 1000,
    }


def _packed(state: State) -> dict[str, Any]:
    unused = {"map_augment.weight": torch.zeros(8, 9)}
    nets = {"net": state | unused, **{name: _ema(state | unused) for name in ("net_ema", "net_ema1", "net_ema2")}}
    return {"model": _prefixed(**nets), "optimizer": {}, "lr_schedule": {}, "epoch": 7, "args": argparse.Namespace()}


def _shadowed(state: State) -> dict[str, Any]:
    trained = [value for name, value in state.items() if name != "pos_embed"]
    shadows = {f"shadow_params.{k}": 0.9 * value for k, value in enumerate(trained)}
    return {"model": {**_prefixed(model=state), **shadows, "num_updates": torch.tensor(5)}, "epoch": 3}


def _preconditioned(state: State) -> dict[str, Any]:
    return _research({name: value for name, value in state.items() if name != "unet.emb_noise.weight"})


def _times(x1: Tensor) -> tuple[Tensor, Tensor]:
    return torch.zeros(len(x1)), torch.ones(len(x1))


@dataclass(frozen=True)
class StandIn:
    """Replaces the network of a card; `saved` makes the file's content, `step` is one step from noise."""

    network: type[nn.Module]
    saved: Callable[[State], Any]
    step: Callable[[Any, Tensor, Tensor], Tensor]
    statistics: dict[str, Any] = field(default_factory=dict)  # if the card has one for each channel
    weights: dict[str, Any] = field(default_factory=dict)  # in place of rules that are for the real network's names


def _towards_data(net: Any, x: Tensor, *arguments: Any) -> Tensor:
    return x + net(x, *arguments)


def _guided_step(net: Any, x: Tensor, y: Tensor) -> Tensor:
    zero, one = _times(x)
    return x - net(x, one, one, one, zero, one, y)[0]


def _reflowed(net: Any, x: Tensor, y: Tensor) -> Tensor:
    zero, one = _times(x)
    return x - net(x, one.clamp_max(80 / 81), zero, torch.eye(CLASSES)[y])


def _policy_step(net: Any, x: Tensor, conditions: dict[str, Tensor]) -> Tensor:
    zero, one = _times(x)
    steps = [{name: values[:, k] for name, values in conditions.items()} for k in range(2)]
    features = torch.cat([net.obs_encoder(step) for step in steps], 1)
    return x - net.model(sample=x, timestep=one, global_cond=features, r=zero)[0]


def _denoised(net: Any, x: Tensor, y: Tensor) -> Tensor:
    _, one = _times(x)
    noise = net(x, 999 * one, y)[:, : SHAPE[0]]
    data = (x - DDPM.sigma(one[:1]) * noise) / DDPM.alpha(one[:1])
    return x - DDPM.velocity(data, noise, one)


CONDITIONS = {  # name of the card: shapes of the arrays beside the samples
    "dm1": {"state": (1, 1), "rgb": (1, 3, 2, 2)},
    "meanaudio": {"text_f": (2, 3), "text_f_c": (1,)},
    "meanvc": {"cache": SHAPE, "bn": (2, 3), "xvector": (1,), "prompt": (4, 2)},
    "mp1": {"point_cloud": (2, 4, 3), "agent_pos": (2, 1)},
}
STAND_INS = {
    "meanflow-jax": StandIn(
        Between,
        lambda state: {"params": _prefixed(net=state), "ema_params": _prefixed(net=_ema(state)), "step": 300},
        lambda net, x, y: x - net(x, *_times(x), y),
        weights={"layout": "torch", "rules": [], "absent": []},
    ),
    "py-meanflow": StandIn(Packed, _packed, lambda net, x, y: x - net(x, (_times(x)[1],) * 2, None)),
    "zhuyu-meanflow": StandIn(Between, _research, lambda net, x, y: x - net(x, *_times(x), y)),
    "zhuyu-meanflow-cifar10": StandIn(Raw, _research, lambda net, x, y: x - net(x, *_times(x))),
    "mf-rae": StandIn(Between, _research, lambda net, x, y: x - net(x, *_times(x), y)),
    "haidog-meanflow": StandIn(TwoHeads, dict, lambda net, x, y: x - net(x, *_times(x)[::-1], y)[0]),
    "haidog-meanflow-2025": StandIn(OneHead, dict, lambda net, x, y: x - net(x, *_times(x)[::-1], y)),
    "dmf": StandIn(Decoupled, _research, lambda net, x, y: x - net(x, *_times(x)[::-1], y)),
    "imeanflow": StandIn(
        Guided, lambda state: _prefixed(net=state), _guided_step, {"mean": [0.9, -0.3], "std": [4.9, 5.3]}
    ),
    "pmf": StandIn(Guided, lambda state: _prefixed(net=state), _guided_step),
    "splitmeanflow": StandIn(
        FromNoise,
        lambda state: {"model": state, "ema": _ema(state), "optimizer": {}, "step": 9, "config": {"dim": 8}},
        lambda net, x, y: x - net(x, *_times(x), y),  # from data to noise
    ),
    "modular-meanflow": StandIn(
        Between,
        lambda state: {"model": state, "ema_model": _ema(state), "optimizer": {}, "step": 9, "config": {"dim": 8}},
        lambda net, x, y: x - net(x, *_times(x), y),  # from data to noise
    ),
    "swaystar-meanflow": StandIn(Between, _research, lambda net, x, y: x - net(x, *_times(x), y)),
    "sit": StandIn(Instant, _research, lambda net, x, y: _towards_data(net, x, _times(x)[0], y)),
    "dit": StandIn(Noise, _research, _denoised),
    "lightningdit": StandIn(Instant, _research, lambda net, x, y: _towards_data(net, x, _times(x)[0], y)),
    "rectified-flow": StandIn(
        Length,
        lambda state: {
            "model": _prefixed(model=state),
            "ema_model": {"initted": torch.tensor(True)}
            | _prefixed(online_model=_prefixed(model=state), ema_model=_prefixed(model=_ema(state))),
            "optimizer": {},
        },
        lambda net, x, y: x - net(x, _times(x)[1], _times(x)[1]),
    ),
    "facm": StandIn(
        Anchored,
        lambda state: {
            "model": state,
            "emas": _prefixed(**{f"ema_models.{k}": _prefixed(ema_model=_ema(state)) for k in range(2)}),
        },
        lambda net, x, y: _towards_data(net, x, *_times(x), y),
    ),
    "soflow": StandIn(
        Solution,
        lambda state: {
            "model": _prefixed(network=state),
            "ema_model": _prefixed(network=_ema(state)),
            "finished_steps": 5,
            "finished_epochs": 1,
        },
        lambda net, x, y: x - net(x, *_times(x)[::-1], y, None),
    ),
    "meanaudio": StandIn(
        Texts,
        lambda state: {
            "it": 5,
            "weights": state,
            "ema": _prefixed(**{f"ema_models.{k}": _prefixed(ema_model=_ema(state)) for k in range(2)}),
        },
        lambda net, x, conditions: x - net(latent=x, t=_times(x)[1], r=_times(x)[0], **conditions),
    ),
    "meanvc": StandIn(
        Voice,
        lambda state: {
            "model_state_dict": state,
            "ema_model_state_dict": {"initted": torch.tensor(True), **_prefixed(ema_model=_ema(state))},
            "step": 5,
        },
        lambda net, x, c: x - net(x, *_times(x)[::-1], c["cache"], c["bn"], c["xvector"], c["prompt"]),
    ),
    "dm1": StandIn(
        Seeing,
        lambda state: {"epoch": 3, "model": _prefixed(network=state), "ema": _prefixed(network=_ema(state))},
        lambda net, x, conditions: x - net(x, *_times(x)[::-1], conditions),
    ),
    "mp1": StandIn(Policy, lambda state: {"model": state, "ema_model": _ema(state), "optimizer": {}}, _policy_step),
    "re-meanflow": StandIn(Preconditioned, _preconditioned, _reflowed),
    "fastgen": StandIn(
        ByName,
        lambda state: {"model": _prefixed(net=state, ema_9999=_ema(state)), "iteration": 4},
        lambda net, x, y: x - net(x, 0.999 * _times(x)[1], condition=torch.eye(CLASSES)[y], r=_times(x)[0]),
    ),
    "flow-matching": StandIn(InExtra, _shadowed, lambda net, x, y: _towards_data(net, x, _times(x)[0], {"label": y})),
    "torchcfm": StandIn(
        TimeFirst,
        lambda state: {"net_model": _prefixed(module=state), "ema_model": _prefixed(module=_ema(state)), "step": 2},
        lambda net, x, y: x + net(_times(x)[0], x),
    ),
}
