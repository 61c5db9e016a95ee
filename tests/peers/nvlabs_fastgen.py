"""NVlabs/FastGen: MeanFlow on class-conditional CIFAR-10 with EDM's U-Net."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace

import torch
from interception import Batch, pulled, returning
from torch import Tensor, nn

REPOSITORY, CODE, CARD = "NVlabs+FastGen", "", "fastgen"
SHAPE, CLASSES = (3, 8, 8), 10
SMALL = {
    "network": {"arguments": {"img_resolution": 8, "model_channels": 16, "num_blocks": 1, "attn_resolutions": [4]}},
    "data": {"shape": list(SHAPE), "mean": 0, "std": 1},
}
DTYPES = (torch.float32,)  # its attention is float32


def network() -> nn.Module:
    from fastgen.networks.EDM.network import EDMPrecond

    options = {"img_channels": 3, "label_dim": CLASSES, "model_type": "SongUNet", "augment_dim": 6, "dropout": 0.2}
    forms = {"r_timestep": True, "drop_precond": "both", "net_pred_type": "flow", "schedule_type": "rf"}
    model = EDMPrecond(channel_mult=[2, 2, 2], **options, **forms, **SMALL["network"]["arguments"])
    return nn.ModuleDict({"net": model, "ema_9999": copy.deepcopy(model)})


def save(model: nn.Module, folder: Path) -> Path:
    from fastgen.utils.checkpointer import Checkpointer

    optimizer = {"net_optimizer": torch.optim.Adam(model["net"].parameters())}
    checkpointer = Checkpointer(SimpleNamespace(use_s3=False, save_dir=str(folder)))
    return Path(checkpointer.save(model, optimizer, path=str(folder / "0050000.pth"), iteration=50000))


def theirs(model: nn.Module, batch: Batch, weighted: bool) -> tuple[Tensor, Tensor]:
    from fastgen.configs.methods.config_mean_flow import LossConfig
    from fastgen.methods.consistency_model.mean_flow import MeanFlowModel

    net = model["net"]
    method = MeanFlowModel.__new__(MeanFlowModel)
    nn.Module.__init__(method)
    method.net, method.precision_amp_jvp, method.device = net, None, torch.device("cpu")
    power = 0.75 * weighted
    method.loss_config = LossConfig(norm_method=f"poly_{power}", norm_const=1e-3, loss_type="l2")
    method.config = SimpleNamespace(guidance_scale=None, guidance_mixture_ratio=None)
    labels = nn.functional.one_hot(batch.y, CLASSES).to(batch.x0)

    def loss() -> Tensor:
        return method._compute_mf_loss(batch.x0, batch.t, batch.r, 1, labels, torch.zeros_like(labels))[0]

    with returning(torch, "randn_like", batch.x1):
        return pulled(net, loss, batch.x0)
