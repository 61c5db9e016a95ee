"""Make the files of this folder with jax and flax: `python make.py` (made with jax 0.10.2, flax 0.12.8, orbax 0.12.8).

`network.msgpack` is a training state as flax.serialization writes it, and `outputs.npz` what the network gives, with
raw and averaged weights. `orbax.zip` holds the same weights as Orbax writes them: in one database (`orbax`), each in a
folder (`zarr`), and as orbax-checkpoint 0.4.4 wrote them with jax 0.4.27 (`orbax_0_4`, saved by hand).
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from flax import serialization
from flax.training import train_state

HERE = Path(__file__).parent


class Network(nn.Module):
    """One layer of every kind whose weights have other axes in torch."""

    @nn.compact
    def __call__(self, x: jax.Array, t: jax.Array, h: jax.Array, y: jax.Array) -> jax.Array:
        n = len(x)
        condition = nn.Dense(8, name="times")(jnp.stack([t, h], axis=1)) + nn.Embed(4, 8, name="label")(y)
        x = nn.Conv(8, (3, 3), name="enter")(x) + condition[:, None, None]
        x = nn.gelu(nn.GroupNorm(2, name="norm")(x), approximate=False)
        tokens = x.reshape(n, 16, 8)
        normal = nn.LayerNorm(name="blocks_0_norm")(tokens)
        tokens = tokens + nn.MultiHeadDotProductAttention(num_heads=2, name="blocks_0_attention")(normal, normal)
        down = nn.Conv(10, (2, 2), strides=(2, 2), name="down")(tokens.reshape(n, 4, 4, 8))
        up = nn.ConvTranspose(6, (2, 2), strides=(2, 2), name="up")(nn.silu(down))
        return nn.Conv(3, (1, 1), name="leave")(up)


class State(train_state.TrainState):
    """A training state with averaged weights beside the raw ones."""

    ema_params: dict


def main() -> None:
    network, rng = Network(), np.random.default_rng(0)
    x = rng.standard_normal((3, 4, 4, 3)).astype(np.float32)
    r, t, y = np.float32([0.1, 0.2, 0.3]), np.float32([0.4, 0.8, 0.3]), np.int64([0, 2, 3])
    params = network.init(jax.random.key(0), x, t, t - r, y)["params"]
    params = jax.tree.map(lambda leaf: leaf + 0.3 * rng.standard_normal(leaf.shape).astype(np.float32), params)
    ema = jax.tree.map(lambda leaf: 0.9 * leaf, params)
    state = State.create(apply_fn=network.apply, params=params, ema_params=ema, tx=optax.adamw(1e-3)).replace(step=700)
    (HERE / "network.msgpack").write_bytes(serialization.to_bytes(state))
    outputs = {key: network.apply({"params": p}, x, t, t - r, y) for key, p in (("raw", params), ("ema", ema))}
    images = {key: np.asarray(value).transpose(0, 3, 1, 2) for key, value in {"x": x, **outputs}.items()}
    np.savez(HERE / "outputs.npz", r=r, t=t, y=y, **images)
    with tempfile.TemporaryDirectory() as folder:
        for name, database in (("orbax", True), ("zarr", False)):
            checkpointer = ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=database))
            checkpointer.save(f"{folder}/{name}/700", {"params": params, "ema_params": ema, "step": 700})
        shutil.make_archive(str(HERE / "orbax"), "zip", folder)


if __name__ == "__main__":
    main()
