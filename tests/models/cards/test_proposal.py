"""Proposed cards: shipped cards are recognised by what their repositories write, others are filled as far as known."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mfdiag.models.cards.card_files import load_card, shipped_cards
from mfdiag.models.cards.proposal import Proposal, propose
from mfdiag.models.cards.recognition import Recognise, size_in
from mfdiag.models.checkpoint import load_model
from mfdiag.models.formats.pickles import TensorHeader
from mfdiag.models.inspection import inspect_checkpoint
from mfdiag.models.networks.mlp import MLP

Tensors = dict[str, TensorHeader]

_REPOSITORY = re.compile(r"\b[\w.-]+/[\w.-]+\b")


def headers(**shapes: tuple[int, ...]) -> Tensors:
    """Headers by name, in which __ stands for a dot."""
    return {name.replace("__", "."): TensorHeader(shape, "float32") for name, shape in shapes.items()}


def transformer(depth: int, width: int, patch: int, channels: int, side: int, embedding: str, classes: int) -> Tensors:
    blocks = {f"blocks.{i}.attn.qkv.weight": TensorHeader((3 * width, width), "float32") for i in range(depth)}
    return blocks | headers(
        pos_embed=(1, (side // patch) ** 2, width),
        x_embedder__proj__weight=(width, channels, patch, patch),
        t_embedder__mlp__0__weight=(width, 256),
        **{f"y_embedder__{embedding}__weight": (classes + 1, width)},
        final_layer__linear__weight=(patch * patch * channels, width),
    )


def sit(depth: int = 12, width: int = 768, patch: int = 4, classes: int = 1000) -> Tensors:
    return transformer(depth, width, patch, 4, 32, "embedding_table", classes) | headers(
        r_embedder__mlp__0__weight=(width, 256)
    )


def swaystar() -> Tensors:
    """Its position embedding is computed in each call."""
    tensors = transformer(28, 1152, 1, 32, 16, "embedding_table", 1000) | headers(r_embedder__mlp__0__weight=(1, 256))
    return {name: header for name, header in tensors.items() if name != "pos_embed"}


def lightning() -> Tensors:
    return transformer(28, 1152, 1, 32, 16, "embedding_table", 1000) | headers(
        blocks__0__norm1__weight=(1152,),
        blocks__0__mlp__w12__weight=(6144, 1152),
        final_layer__norm_final__weight=(1152,),
        feat_rope__freqs_cos=(256, 72),
    )


def haidog(**more: tuple[int, ...]) -> Tensors:
    own = transformer(12, 512 if "w_embedder__mlp__0__weight" in more else 384, 2, 3, 32, "embedding", 10)
    return own | headers(r_embedder__mlp__0__weight=(512, 256), **more)


SONG = headers(
    map_layer0__weight=(512, 256),
    map_layer1__weight=(512, 512),
    enc__32x32_conv__weight=(128, 3, 3, 3),
    dec__8x8_block0__conv0__weight=(256, 512, 3, 3),
)
TORCHCFM = headers(
    time_embed__0__weight=(512, 128),
    input_blocks__0__0__weight=(128, 3, 3, 3),
    middle_block__0__in_layers__0__weight=(256,),
    out__0__weight=(128,),
)
GUIDED = headers(
    time_embed__0__weight=(768, 192),
    input_blocks__0__0__weight=(192, 3, 3, 3),
    middle_block__0__in_layers__0__weight=(768,),
    out__0__weight=(192,),
)
TOKENS = headers(
    x_embedder__proj__weight=(768, 4, 2, 2),
    h_embedder__mlp__0__weight=(768, 256),
    omega_embedder__mlp__0__weight=(768, 256),
    cfg_t_start_embedder__mlp__0__weight=(768, 256),
    y_embedder__embedding__weight=(1001, 768),
    u_heads__0__attn_scale=(768,),
)


RECTIFIED = headers(
    init_conv__weight=(64, 3, 7, 7),
    time_mlp__1__weight=(256, 64),
    dest_time_mlp__1__weight=(256, 64),
    downs__0__0__branch__block1__proj__weight=(64, 64, 3, 3),
    final_conv__weight=(3, 64, 1, 1),
)
DM1 = headers(
    backbone__vit__pos_embed=(1, 121, 128),
    backbone__vit__patch_embed__embed__0__weight=(128, 3, 8, 8),
    compress__weight=(1, 128, 128),
    time_embedding__1__weight=(32, 16),
    r_embedding__1__weight=(32, 16),
    mlp_mean__layers__0__weight=(768, 197),
)
FACM = lightning() | headers(blocks__0__attn__q_norm__weight=(72,))
MEANAUDIO = headers(
    audio_input_proj__0__weight=(448, 20, 7),
    text_input_proj__0__weight=(448, 1024),
    text_cond_proj__0__weight=(448, 512),
    t_embed__mlp__0__weight=(448, 256),
    r_embed__mlp__0__weight=(448, 256),
    joint_blocks__0__latent_block__attn__qkv__weight=(1344, 448),
    empty_string_feat_c=(512,),
)
MEANVC = headers(
    timbre_encoder__vp_proj__weight=(256, 256),
    cache_embed__weight=(512, 80),
    t_time_embed__time_mlp__0__weight=(512, 256),
    r_time_embed__time_mlp__0__weight=(512, 256),
    **{f"transformer_blocks__{i}__attn__to_q__weight": (128, 512) for i in range(4)},
    transformer_blocks__0__ff__ff__2__weight=(512, 1024),
)
MP1 = headers(
    obs_encoder__extractor__mlp__0__weight=(64, 3),
    obs_encoder__extractor__final_projection__0__weight=(64, 256),
    model__diffusion_step_encoder__1__weight=(512, 128),
    model__diffusion_step_encoder_rs__1__weight=(512, 128),
    model__down_modules__0__0__blocks__0__block__0__weight=(512, 26, 5),
)


def below(prefix: str, tensors: Tensors) -> Tensors:
    return {f"{prefix}.{name}": header for name, header in tensors.items()}


FLAX = headers(
    x_embedder__proj__kernel=(4, 4, 4, 768),
    t_embedder__mlp__layers_0___flax_linear__kernel=(256, 768),
    h_embedder__mlp__layers_0___flax_linear__kernel=(256, 768),
    y_embedder__embedding_table___flax_embedding__embedding=(1001, 768),
    final_layer__linear___flax_linear__kernel=(768, 64),
    **{f"blocks__layers_{i}__attn__qkv___flax_linear__kernel": (768, 2304) for i in range(12)},
)

FILES: dict[str, tuple[dict[str, Tensors], list[str]]] = {
    "meanflow-jax": ({key: below("net", FLAX) for key in ("params", "ema_params")}, ["step", "opt_state"]),
    "zhuyu-meanflow": ({"model": sit(), "ema": sit()}, ["args", "steps"]),
    "zhuyu-meanflow-cifar10": (
        {key: SONG | headers(map_layer0_s__weight=(1, 1), map_layer1_s__weight=(1, 1)) for key in ("model", "ema")},
        ["args", "steps"],
    ),
    "py-meanflow": (
        {"model": below("net", SONG) | below("net_ema", SONG) | below("net_ema1", SONG)},
        ["optimizer", "lr_schedule", "epoch", "args"],
    ),
    "haidog-meanflow": (
        {
            "": haidog(
                w_embedder__mlp__0__weight=(512, 256),
                blocks__0__attn__q_norm__weight=(64,),
                final_layer_u__linear__weight=(12, 512),
                final_layer_v__linear__weight=(12, 512),
            )
        },
        [],
    ),
    "haidog-meanflow-2025": ({"": haidog(blocks__0__norm1__g=(1,), final_layer__norm_final__g=(1,))}, []),
    "dmf": (
        {
            key: transformer(28, 1152, 2, 4, 32, "embedding_table", 1000) | headers(logvar_linear__weight=(1, 256))
            for key in ("model", "ema")
        },
        ["args", "steps", "opt"],
    ),
    "mf-rae": (
        {
            key: headers(
                pos_embed=(1, 256, 1152),
                x_embedder__proj__weight=(2048, 768, 1, 1),
                s_embedder__proj__weight=(1152, 768, 1, 1),
                t_embedder__W=(256,),
                r_embedder__W=(256,),
                y_embedder__embedding_table__weight=(1001, 1152),
                final_layer__linear__weight=(768, 2048),
            )
            for key in ("model", "ema")
        },
        ["opt", "scheduler"],
    ),
    "imeanflow": (
        {
            "": below(
                "net",
                TOKENS | headers(**{f"shared_blocks__{i}__attn_scale": (768,) for i in range(4)}, time_tokens=(4, 768)),
            )
        },
        [],
    ),
    "pmf": (
        {
            "": below(
                "net",
                TOKENS
                | headers(
                    **{f"shared_blocks__{i}__attn_scale": (768,) for i in range(8)},
                    time_tokens=(1, 4, 768),
                    pos_embed=(1, 256, 768),
                ),
            )
        },
        [],
    ),
    "re-meanflow": (
        {
            key: headers(
                unet__emb_noise_t__weight=(768, 192),
                unet__emb_noise_r__weight=(768, 192),
                unet__emb_label__weight=(768, 1000),
                unet__enc__64x64_conv__weight=(192, 5, 3, 3),
                unet__out_conv__weight=(4, 192, 3, 3),
            )
            for key in ("model", "ema")
        },
        ["args", "opt", "epoch", "train_steps"],
    ),
    "fastgen": (
        {f"model.{key}": below("model", SONG | headers(map_label__weight=(512, 10))) for key in ("net", "ema_9999")},
        ["optimizer", "iteration"],
    ),
    "splitmeanflow": (
        {
            key: transformer(8, 256, 4, 1, 28, "embedding", 10)
            | headers(
                t_embedder__single_embedder__mlp__0__weight=(1, 1), t_embedder__interval_embedder__0__weight=(1, 1)
            )
            for key in ("model", "ema")
        },
        ["optimizer", "step", "config"],
    ),
    "modular-meanflow": (
        {
            key: transformer(8, 256, 4, 1, 28, "embedding", 10)
            | headers(r_embedder__mlp__0__weight=(256, 256), blocks__0__norm1__g=(1,), final_layer__norm_final__g=(1,))
            for key in ("model", "ema_model")
        },
        ["optimizer", "step", "config"],
    ),
    "swaystar-meanflow": ({"model": swaystar(), "ema": swaystar()}, ["args", "steps"]),
    "sit": (
        {key: transformer(28, 1152, 2, 4, 32, "embedding_table", 1000) for key in ("model", "ema")},
        ["opt", "args.path_type"],
    ),
    "dit": ({key: transformer(28, 1152, 2, 4, 32, "embedding_table", 1000) for key in ("model", "ema")}, ["opt"]),
    "lightningdit": ({"model": lightning(), "ema": lightning()}, ["opt", "config"]),
    "rectified-flow": (
        {
            "model": below("model", RECTIFIED),
            "ema_model": below("online_model.model", RECTIFIED) | below("ema_model.model", RECTIFIED),
        },
        ["optimizer"],
    ),
    "facm": (
        {"model": FACM, "emas": below("ema_models.0.ema_model", FACM) | below("ema_models.1.ema_model", FACM)},
        ["args", "opt", "epoch", "step"],
    ),
    "soflow": (
        {
            key: below(
                "network",
                transformer(12, 768, 4, 4, 32, "embedding_table", 1000)
                | headers(s_embedder__mlp__0__weight=(768, 256)),
            )
            for key in ("model", "ema_model")
        },
        ["optimizer", "finished_steps", "finished_epochs"],
    ),
    "meanaudio": (
        {
            "weights": MEANAUDIO,
            "ema": below("ema_models.0.ema_model", MEANAUDIO) | below("ema_models.1.ema_model", MEANAUDIO),
        },
        ["it", "optimizer", "scheduler"],
    ),
    "meanvc": (
        {"model_state_dict": MEANVC, "ema_model_state_dict": below("ema_model", MEANVC)},
        ["optimizer_state_dict", "scheduler_state_dict", "step"],
    ),
    "dm1": ({"model": below("network", DM1), "ema": below("network", DM1)}, ["epoch", "optimizer", "lr_scheduler"]),
    "mp1": ({"model": MP1, "ema_model": MP1}, ["optimizer"]),
    "torchcfm": ({"net_model": TORCHCFM, "ema_model": TORCHCFM}, ["sched", "optim", "step"]),
    "flow-matching": (
        {
            "model": below("model", GUIDED | headers(label_emb__weight=(1001, 768)))
            | {f"shadow_params.{i}": TensorHeader((1,), "float32") for i in range(3)}
        },
        ["optimizer", "lr_schedule", "epoch", "scaler", "args"],
    ),
}


def proposed(sets: dict[str, Tensors], entries: list[str] = [], **plain_values: Any) -> Proposal:  # noqa: B006
    proposal = propose(
        "file.pt", sets, dict.fromkeys(entries) | {key.replace("__", "."): v for key, v in plain_values.items()}
    )
    assert proposal is not None
    return proposal


def as_card(proposal: Proposal, folder: Path) -> Any:
    (folder / "my.yaml").write_text(proposal.text)
    return load_card(str(folder / "my.yaml"))


def test_every_shipped_card_is_recognised_by_its_files() -> None:
    assert FILES.keys() == {name.removesuffix(".yaml") for name in shipped_cards()}


@pytest.mark.parametrize("name", FILES)
def test_each_repositorys_files_are_recognised(name: str, tmp_path: Path) -> None:
    sets, entries = FILES[name]
    proposal = proposed(sets, entries)
    assert proposal.recognised == f"{name}.yaml" and proposal.unknown == {} and proposal.about
    card, shipped = as_card(proposal, tmp_path), load_card(f"{name}.yaml")
    assert (card.weights, card.network, card.conditioning) == (shipped.weights, shipped.network, shipped.conditioning)
    assert proposal.averages == OTHER_AVERAGES.get(name, [])
    assert ("call.arguments" in proposal.unconfirmed) == (card.call.arguments != [])


OTHER_AVERAGES = {
    "py-meanflow": ["model.net_ema1"],
    "facm": ["emas.ema_models.0"],
    "meanaudio": ["ema.ema_models.0"],
}


@pytest.mark.parametrize("name", ["mp1", "dit", "zhuyu-meanflow"])
def test_a_repositorys_weights_are_recognised_one_level_deeper(name: str, tmp_path: Path) -> None:
    """As its trainer may nest them, beside what the released code exports."""
    sets, entries = FILES[name]
    proposal = proposed({f"state_dicts.{key}": tensors for key, tensors in sets.items()}, entries)
    assert proposal.recognised == f"{name}.yaml" and proposal.differs
    weights = as_card(proposal, tmp_path).weights
    assert weights.raw is not None and weights.raw.startswith("state_dicts.")
    assert weights.ema is not None and weights.ema.startswith("state_dicts.")


def test_a_file_with_the_shipped_sizes_needs_no_own_card() -> None:
    proposal = proposed(*FILES["zhuyu-meanflow"])
    assert not proposal.differs and yaml.safe_load(proposal.text) == {"extends": "zhuyu-meanflow.yaml"}


def test_sizes_and_settings_of_the_file_go_into_an_own_card(tmp_path: Path) -> None:
    tensors = sit(28, 1152, 2, 10)
    plain_values = {"time_sampler": "logit_normal", "time_mu": 0.5, "time_sigma": 2.0, "ratio_r_not_equal_t": 0.75}
    plain_values |= {"weighting": "uniform", "adaptive_p": 1.0}
    proposal = proposed({"ema": tensors}, ["steps"], **{f"args__{key}": value for key, value in plain_values.items()})
    assert yaml.safe_load(proposal.text) == {
        "extends": "zhuyu-meanflow.yaml",
        "weights": {"raw": "ema", "ema": None},
        "network": {"factory": "sit:SiT_XL_2"},
        "conditioning": {"classes": 10, "null": 10},
        "objective": {"weighting": "none", "times": "logit_normal:0.5,2,0.75"},
    }
    card = as_card(proposal, tmp_path)
    assert card.conditioning.classes == 10 and card.data.shape == (4, 32, 32) and card.objective.estimator == "meanflow"


def test_what_no_file_tells_is_named_where_sizes_differ(tmp_path: Path) -> None:
    shipped, other = (
        proposed({"": haidog(blocks__0__norm1__g=(1,), final_layer__norm_final__g=(1,)) | more})
        for more in ({}, headers(x_embedder__proj__weight=(64, 3, 2, 2)))
    )
    assert shipped.unknown == {} and list(other.unknown) == ["network.arguments.num_heads"]
    assert "num_heads: the values of haidog-meanflow-2025.yaml are assumed" in other.text
    assert as_card(other, tmp_path).network.arguments["dim"] == 64


def test_every_field_is_one_line(tmp_path: Path) -> None:
    sets, entries = FILES["mf-rae"]
    smaller = headers(s_embedder__proj__weight=(32, 768, 1, 1), x_embedder__proj__weight=(48, 8, 1, 1))
    proposal = proposed({key: tensors | smaller for key, tensors in sets.items()}, entries)
    assert "  arguments: {in_channels: 8, hidden_size: [32, 48]}  # not in the file; depth, num_heads:" in proposal.text
    assert as_card(proposal, tmp_path).network.arguments["hidden_size"] == [32, 48]


def test_a_size_that_no_factory_has_is_named(tmp_path: Path) -> None:
    proposal = proposed({"model": sit(3, 64, 2), "ema": sit(3, 64, 2)})
    assert "none of sit:SiT_XL_2" in proposal.unknown["network.factory"] and "# network:" in proposal.text
    assert as_card(proposal, tmp_path).network.factory == "sit:SiT_B_4"


FOREIGN = transformer(2, 64, 2, 3, 16, "table", 10)


def test_an_unknown_file_gets_what_it_tells(tmp_path: Path) -> None:
    proposal = proposed({"net": below("module", FOREIGN), "net_ema": below("module", FOREIGN)}, args__time_mu=-0.4)
    assert proposal.recognised is None
    card = as_card(proposal, tmp_path)
    assert (card.weights.raw, card.weights.ema, card.weights.strip) == ("net", "net_ema", ["module"])
    assert (card.conditioning.kind, card.conditioning.classes, card.conditioning.null) == ("index", 10, 10)
    assert card.data.shape == (3, 16, 16) and card.call.arguments == ["x", "r", "t", "y"]
    assert {"network.arguments", "convention.direction", "output.prediction", "objective.weighting", "guidance"} <= set(
        proposal.unknown
    )
    assert "args.time_mu=-0.4" in proposal.unknown["objective.times"]
    for field in proposal.unknown:
        assert any(
            field.rpartition(".")[2] in line and "not in the file" in line for line in proposal.text.splitlines()
        )


def test_a_file_of_averaged_weights_alone_is_said_to_be_one(tmp_path: Path) -> None:
    weights, path = MLP(dim=2).state_dict(), tmp_path / "average.pt"
    for state, alone in (
        ({"n_averaged": torch.tensor(3), **{f"module.{name}": value for name, value in weights.items()}}, True),
        ({"ema": weights}, True),
        ({"model": weights, "ema": weights}, False),
    ):
        torch.save(state, path)
        proposal = inspect_checkpoint(path).proposal
        assert proposal is not None and ("# the file has averaged weights alone" in proposal.text) == alone


@pytest.mark.parametrize(
    ("tensors", "plain_values", "expected"),
    [
        (headers(label_emb__weight=(10, 8)), {}, ("index", 10, None)),
        (headers(label_emb__weight=(10, 8)), {"args.num_classes": 9}, ("index", 9, 9)),
        (headers(label_emb__weight=(1001, 8)), {}, ("index", 1000, 1000)),
        (headers(model__map_label__weight=(512, 10)), {}, ("one_hot", 10, None)),
        (headers(y_proj__weight=(8, 10)), {"args.num_classes": 10}, ("one_hot", 10, None)),
        (headers(xy_emb__weight=(10, 8)), {}, ("none", 0, None)),
    ],
)
def test_labels(tensors: Tensors, plain_values: dict[str, Any], expected: tuple[Any, ...], tmp_path: Path) -> None:
    proposal = propose("f", {"": tensors}, plain_values)
    assert proposal is not None
    card = as_card(proposal, tmp_path)
    assert (card.conditioning.kind, card.conditioning.classes, card.conditioning.null) == expected


@pytest.mark.parametrize(
    ("tensors", "plain_values", "expected"),
    [
        (headers(conv__weight=(8, 3, 3, 3)), {"args.img_resolution": 32}, (3, 32, 32)),
        (headers(conv__weight=(8, 3, 3, 3)), {}, None),
        (headers(pos_embed=(1, 9, 8), embed__weight=(8, 4, 2, 2)), {}, (4, 6, 6)),
        (headers(fc__weight=(8, 2)), {"args.img_resolution": 32}, None),
    ],
)
def test_data_shape(tensors: Tensors, plain_values: dict[str, Any], expected: Any, tmp_path: Path) -> None:
    proposal = propose("f", {"": tensors}, plain_values)
    assert proposal is not None and as_card(proposal, tmp_path).data.shape == expected


@given(st.integers(0, 20), st.integers(1, 20), st.integers(1, 20))
def test_formulas_are_computed_from_left_to_right(count: int, length: int, other: int) -> None:
    tensors = {f"b.{i}.w": TensorHeader((length, other**2), "float32") for i in range(count)} | {
        "v": TensorHeader((length,), "float32")
    }
    assert size_in(tensors, "count(b.*.w)") == count
    assert size_in(tensors, "v[0] - 1 * 3 + 2") == (length - 1) * 3 + 2
    assert size_in(tensors, "v[0] / 2") == length // 2
    assert size_in(tensors, "sqrt(b.0.w[1]) * v[0]") == (other * length if count else None)
    assert size_in(tensors, "v[1]") is None


@pytest.mark.parametrize(
    "formula", ["", "v", "v[0", "v[0] ** 2", "import os", "count(a b)", "v[0] - ", "__import__('os')"]
)
def test_other_formulas_are_refused(formula: str) -> None:
    with pytest.raises(ValueError, match="expected a formula"):
        Recognise(tensors=["v"], sizes={"data.scale": formula})


def test_names_of_the_file_cannot_add_lines_to_the_card(tmp_path: Path) -> None:
    evil = "x\nnetwork: {factory: 'evil:run'}\n#"
    proposal = proposed({evil: FOREIGN}, **{"args__time_mu": evil, f"args__model{evil}": 3, "args__model": evil})
    card = as_card(proposal, tmp_path)
    assert card.network.factory == "network.py:build" and card.weights.raw == evil


def write(path: Path, arrange: Callable[[dict[str, Tensor]], Any]) -> Path:
    torch.manual_seed(0)
    torch.save(arrange(MLP(2, hidden=4, depth=1).state_dict()), path)
    return path


@pytest.mark.parametrize(
    "arrange",
    [
        lambda state: state,
        lambda state: {"net": {f"module.{name}": value for name, value in state.items()}, "steps": 3},
        lambda state: {"model": {f"{p}.{name}": v for p in ("net", "net_ema") for name, v in state.items()}},
        lambda state: {"model": state, "ema": state, "args": argparse.Namespace(lr=0.1)},
    ],
)
def test_the_proposed_places_load(tmp_path: Path, arrange: Callable[..., Any]) -> None:
    proposal = inspect_checkpoint(write(tmp_path / "file.pt", arrange)).proposal
    assert proposal is not None
    (tmp_path / "network.py").write_text(
        "from mfdiag.models.networks.mlp import MLP\n\ndef build(): return MLP(2, hidden=4, depth=1)\n"
    )
    (tmp_path / "my.yaml").write_text(proposal.text)
    card = load_card(str(tmp_path / "my.yaml"))
    for weights in ["raw", *(["ema"] if card.weights.ema else [])]:
        loaded = load_model(tmp_path / "file.pt", model=str(tmp_path / "my.yaml"), weights=weights)
        assert sum(p.numel() for p in loaded.module.parameters()) == 30


def templates() -> list[tuple[str, str, str]]:
    """(card, field, text) of every text that a shipped card fills from its files."""
    texts = []
    for name, path in shipped_cards().items():
        for field, cases in (yaml.safe_load(path.read_text())["recognise"].get("texts") or {}).items():
            texts += [(name, field, text) for text in ([cases] if isinstance(cases, str) else cases.values())]
    return texts


@pytest.mark.parametrize(("name", "field", "text"), templates())
def test_texts_filled_with_numbers_are_valid(name: str, field: str, text: str, tmp_path: Path) -> None:
    section, _, last = field.rpartition(".")
    value = re.sub(r"\{args\.\w*(max)?\w*\}", lambda match: "0.75" if match.group(1) else "0.5", text)
    own = {section: {last: value}} if section else {last: value}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump({"extends": name, **own}))
    assert "{" not in value and load_card(str(tmp_path / "own.yaml"))


def test_conventions_that_no_file_shows_are_listed(tmp_path: Path) -> None:
    proposal = proposed(*FILES["zhuyu-meanflow"])
    assert proposal.unconfirmed["convention.direction"] == "D0"
    assert proposal.unconfirmed["data.scale"] == "0.18125"
    assert "objective.weighting" in proposal.unconfirmed and "not confirmed by the file" in proposal.text
    assert as_card(proposal, tmp_path)
    weighted = proposed(*FILES["zhuyu-meanflow"], args__weighting="uniform")
    assert "objective.weighting" not in weighted.unconfirmed


def test_repositories_with_the_same_tensors_are_named(tmp_path: Path) -> None:
    tensors = haidog(blocks__0__norm1__g=(1,), final_layer__norm_final__g=(1,))
    bare = proposed({"": tensors})
    assert bare.recognised == "haidog-meanflow-2025.yaml" and "primepake/modular_meanflow" in bare.candidates[0]
    assert "direction D1" in bare.text and as_card(bare, tmp_path)
    modular = proposed({"model": tensors, "ema_model": tensors}, ["optimizer", "step", "config"])
    assert modular.recognised == "modular-meanflow.yaml" and modular.candidates == []
    assert as_card(modular, tmp_path).weights.ema == "ema_model"
    other = proposed({"net": tensors, "ema_model": tensors}, ["optimizer"])
    assert other.recognised is None and "convention.direction" in other.unknown
    assert "primepake/modular_meanflow" in other.candidates[0] and "haidog" in other.candidates[1]


def test_a_position_embedding_in_the_file_tells_two_repositories_apart() -> None:
    assert proposed(*FILES["zhuyu-meanflow"]).recognised == "zhuyu-meanflow.yaml"
    assert proposed(*FILES["swaystar-meanflow"]).recognised == "swaystar-meanflow.yaml"


def test_weights_of_sit_and_dit_are_told_apart_by_arguments_alone() -> None:
    bare = proposed({"": transformer(28, 1152, 2, 4, 32, "embedding_table", 1000)})
    assert bare.recognised == "dit.yaml" and any("sit.yaml" in candidate for candidate in bare.candidates)
    assert sum("willisma/SiT" in candidate for candidate in bare.candidates) == 1


@pytest.mark.parametrize("name", FILES)
def test_each_repository_is_named_once(name: str) -> None:
    """Whether its own card fits the file, or another card says that its files are alike."""
    proposal = proposed(*FILES[name])
    named = [repository for text in proposal.candidates for repository in set(_REPOSITORY.findall(text))]
    assert sorted(named) == sorted(set(named)), proposal.candidates


def test_two_cards_that_fit_are_both_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cards = {}
    for name, direction in (("one.yaml", "D0"), ("two.yaml", "D1")):
        cards[name] = tmp_path / name
        cards[name].write_text(
            f"about: {name}\nnetwork: {{factory: a:b}}\nconvention: {{direction: {direction}}}\n"
            "recognise: {tensors: [w]}\n"
        )
    monkeypatch.setattr("mfdiag.models.cards.proposal.shipped_cards", lambda: cards)
    proposal = proposed({"": headers(w=(2, 2))})
    assert proposal.recognised == "one.yaml" and proposal.candidates == ["two.yaml (two.yaml)"]


def test_recognition_looks_below_lightning_and_wrappers(tmp_path: Path) -> None:
    wrapped = {f"network.{name.replace('blocks.', 'blocks._orig_mod.')}": header for name, header in sit().items()}
    proposal = proposed({"state_dict": wrapped})
    assert proposal.recognised == "zhuyu-meanflow.yaml"
    card = as_card(proposal, tmp_path)
    assert (card.weights.raw, card.weights.strip) == ("state_dict", ["network"])
