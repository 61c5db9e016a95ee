"""Gsunshine/meanflow: a DiT on ImageNet latents in JAX; its code runs in the Python of MFDIAG_JAX_PYTHON.

That Python needs jax, flax and optax. Run as a program, this file is what runs there:
`python gsunshine_meanflow_jax.py CHECKOUT (init | save | loss) IN.npz OUT`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

REPOSITORY, CODE, CARD = "Gsunshine+meanflow", "", "meanflow-jax"
SHAPE, CLASSES = (4, 32, 32), 10
SIZES = {"depth": 2, "hidden_size": 32, "patch_size": 4, "num_heads": 2}
SMALL = {
    "network": {"arguments": {"num_classes": CLASSES, "depth": 2, "width": 32, "patch": 4, "heads": 2}},
    "conditioning": {"classes": CLASSES, "null": CLASSES},
}
SEED = 0

try:
    import torch
except ImportError:  # where jax runs
    DTYPES: tuple[Any, ...] = ()
else:
    DTYPES = (torch.float32,)


def _jax(task: str, arrays: dict[str, np.ndarray], out: Path | None = None) -> dict[str, np.ndarray]:
    """Run a task of this file where jax is; returns the arrays that it wrote, none if it wrote to `out`."""
    checkout = next(path for path in sys.path if (Path(path) / "meanflow.py").is_file())
    python = os.environ.get("MFDIAG_JAX_PYTHON", sys.executable)
    with tempfile.TemporaryDirectory() as folder:
        given, result = Path(folder) / "in.npz", Path(folder) / "out.npz"
        np.savez(given, **arrays)
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        program = [python, __file__, checkout, task, str(given), str(out or result)]
        subprocess.run(program, check=True, env=environment | {"JAX_PLATFORMS": "cpu"})
        return {} if out else dict(np.load(result))


def network() -> Any:
    """The raw and averaged parameters, by their path in flax with / for dots."""
    from torch import nn

    params = _jax("init", {})
    return nn.ParameterDict(
        {f"{key}/{name}": nn.Parameter(torch.tensor(value)) for key in ("raw", "ema") for name, value in params.items()}
    )


def _arrays(module: Any) -> dict[str, np.ndarray]:
    return {name: value.detach().float().numpy() for name, value in module.items()}


def save(module: Any, folder: Path) -> Path:
    _jax("save", _arrays(module), folder)
    (checkpoint,) = folder.glob("checkpoint_*")
    return checkpoint


def theirs(module: Any, batch: Any, weighted: bool) -> tuple[Any, Any]:
    first = torch.argsort(batch.dropped, descending=True, stable=True)  # it drops the first labels of a batch
    images = {name: getattr(batch, name)[first].movedim(1, -1) for name in ("x0", "x1")}
    others = {name: getattr(batch, name)[first] for name in ("r", "t", "y", "dropped")}
    numbers = {f"batch_{name}": value.numpy() for name, value in (images | others).items()}
    result = _jax("loss", _arrays(module) | numbers | {"batch_weighted": np.array(weighted)})
    e = torch.empty_like(batch.x0)
    e[first] = torch.as_tensor(result["residual"]).movedim(-1, 1)
    return torch.as_tensor(result["loss"]), e


def _model(weighted: bool = True) -> Any:
    import meanflow
    from models import models_dit

    models_dit.Small = partial(models_dit.DiT, num_classes=CLASSES, **SIZES)
    return meanflow.MeanFlow(model_str="Small", model_config={}, num_classes=CLASSES, norm_p=1.0 if weighted else 0.0)


def _init(given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    import jax
    import jax.numpy as jnp
    from flax.traverse_util import flatten_dict

    ones = jnp.ones((1,), int)
    rngs = {name: jax.random.key(SEED) for name in ("params", "gen")}
    variables = _model().init(rngs, jnp.ones((1, 32, 32, 4)), ones, ones)
    return {"/".join(name): np.asarray(value) for name, value in flatten_dict(variables["params"]).items()}


def _tree(given: dict[str, np.ndarray], key: str) -> Any:
    from flax.traverse_util import unflatten_dict

    flat = {name.removeprefix(f"{key}/"): value for name, value in given.items() if name.startswith(f"{key}/")}
    return unflatten_dict({tuple(name.split("/")): value for name, value in flat.items()})


def _save(given: dict[str, np.ndarray], folder: Path) -> None:
    """As train.py builds its state and utils/ckpt_util.py saves it."""
    import optax
    from flax.training import checkpoints, train_state

    class TrainState(train_state.TrainState):
        ema_params: Any

    optimizer = optax.adamw(learning_rate=1e-4, weight_decay=0, b2=0.95)
    state = TrainState.create(apply_fn=None, params=_tree(given, "raw"), ema_params=_tree(given, "ema"), tx=optimizer)
    checkpoints.save_checkpoint_multiprocess(str(folder.resolve()), state.replace(step=300), 300, keep=3)


def _loss(given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    import jax
    import jax.numpy as jnp
    import meanflow

    batch = {name.removeprefix("batch_"): jnp.asarray(v) for name, v in given.items() if name.startswith("batch_")}
    model, params = _model(bool(given["batch_weighted"])), _tree(given, "raw")
    t, r = (batch[name].reshape(-1, 1, 1, 1) for name in ("t", "r"))
    own = meanflow.MeanFlow.u_fn

    batch["dropped"] = batch["dropped"].astype(jnp.float32)

    def drawing(own: Any, value: Any) -> Any:
        """`own`, but `value` where its shape is asked for: flax draws too, to check the shapes of parameters."""
        return lambda key, shape=(), *a, **k: value if tuple(shape) == value.shape else own(key, shape, *a, **k)

    def loss(zero: Any) -> Any:
        with (
            mock.patch.object(meanflow.MeanFlow, "u_fn", lambda self, *a, **k: own(self, *a, **k) + zero),
            mock.patch.object(meanflow.MeanFlow, "sample_tr", lambda self, bz: (t, r)),
            mock.patch.object(jax.random, "normal", drawing(jax.random.normal, batch["x1"])),
            # a label is dropped where this is small, and then the first ones as often
            mock.patch.object(jax.random, "uniform", drawing(jax.random.uniform, 1.0 - batch["dropped"])),
        ):
            rngs = {"gen": jax.random.key(SEED)}
            return model.apply({"params": params}, batch["x0"], batch["y"], method=model.forward, rngs=rngs)[0]

    value, gradient = jax.value_and_grad(loss)(jnp.zeros_like(batch["x0"]))
    return {"loss": np.asarray(value), "residual": np.asarray(gradient) * len(gradient) / 2}


if __name__ == "__main__":
    checkout, task, source, target = sys.argv[1:]
    sys.path[0] = checkout
    content = dict(np.load(source))
    if task == "save":
        _save(content, Path(target))
    else:
        np.savez(target, **{"init": _init, "loss": _loss}[task](content))
