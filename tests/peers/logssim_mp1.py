"""LogSSim/MP1: a policy conditioned on point clouds and states, with an encoder that is trained with it."""

from __future__ import annotations

import copy
import functools
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from interception import Batch, pulled, returning
from torch import Tensor, nn

REPOSITORY, CODE, CARD = "LogSSim+MP1", "MP1", "mp1"
SHAPE, CLASSES = (4, 6), 0
SHAPES = {"obs": {"point_cloud": {"shape": [16, 3]}, "agent_pos": {"shape": [5]}}, "action": {"shape": [6]}}
POINTNET = {"in_channels": 3, "out_channels": 8, "use_layernorm": True, "final_norm": "layernorm"}
SIZES = {"diffusion_step_embed_dim": 16, "down_dims": [16, 32], "encoder_output_dim": 8}
SMALL = {
    "network": {
        "arguments": {
            "shape_meta": {"content": SHAPES},
            "pointcloud_encoder_cfg": {"content": {"out_channels": 8}},
            **SIZES,
        }
    },
    "data": {"shape": list(SHAPE)},
}
DIVIDED = 4 * 6


def conditions(rng: np.random.Generator, n: int) -> dict[str, np.ndarray]:
    shapes = {"point_cloud": (2, 16, 3), "agent_pos": (2, 5)}
    return {name: rng.standard_normal((n, *shape)).astype(np.float32) for name, shape in shapes.items()}


def network() -> nn.Module:
    from mp1.model.common.normalizer import LinearNormalizer, SingleFieldLinearNormalizer
    from mp1.policy.meanpolicy_dis import Meanpolicy
    from omegaconf import OmegaConf

    steps = {"horizon": 4, "n_action_steps": 4, "n_obs_steps": 2, "crop_shape": [84, 84], "pointnet_type": "mlp"}
    model = Meanpolicy(OmegaConf.create(SHAPES), pointcloud_encoder_cfg=OmegaConf.create(POINTNET), **steps, **SIZES)
    normalizer = LinearNormalizer()
    for name in ("action", "point_cloud", "agent_pos"):
        normalizer[name] = SingleFieldLinearNormalizer.create_identity()
    model.set_normalizer(normalizer)
    return nn.ModuleDict({"model": model, "ema_model": copy.deepcopy(model)})


def save(model: nn.Module, folder: Path) -> Path:
    # TrainMP1Workspace.save_checkpoint writes this by dill; what is exported from it is the entry state_dicts
    import dill

    states = {**model, "optimizer": torch.optim.AdamW(model["model"].parameters(), lr=1e-4)}
    payload = {"cfg": None, "state_dicts": {key: value.state_dict() for key, value in states.items()}}
    torch.save(payload | {"pickles": {"_output_dir": dill.dumps("out")}}, folder / "latest.ckpt", pickle_module=dill)
    exported = torch.load(folder / "latest.ckpt", pickle_module=dill, weights_only=False)["state_dicts"]
    torch.save(exported, folder / "latest.pt")
    return folder / "latest.pt"


def theirs(model: nn.Module, batch: Batch, weighted: bool) -> tuple[Tensor, Tensor]:
    import mp1.policy.meanpolicy_dis as code
    from mp1.model.common.normalizer import SingleFieldLinearNormalizer

    policy = model["model"]
    for name in ("action", "point_cloud", "agent_pos"):  # given data are normalized
        policy.normalizer[name] = SingleFieldLinearNormalizer.create_identity()
    policy.normalizer.to(batch.x0.dtype)
    plain = functools.partial(code.adaptive_l2_loss, gamma=1.0)  # a power of 1 - gamma
    obs = {name: value.to(batch.x0) for name, value in batch.conditions.items()}
    with (
        mock.patch.object(code, "adaptive_l2_loss", code.adaptive_l2_loss if weighted else plain),
        mock.patch.object(policy, "dispersive_loss", lambda features: 0 * features.sum()),
        returning(policy, "sample_t_r", (batch.t, batch.r)),
        returning(torch, "randn_like", batch.x1),
    ):
        return pulled(policy.model, lambda: policy.compute_loss({"obs": obs, "action": batch.x0})[0], batch.x0)
