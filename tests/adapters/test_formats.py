"""Every row of the table reads the keys its writer writes, and nothing is left unread in silence."""

from __future__ import annotations

import pytest
import torch

from qwenimage_core.adapters.formats import BY_NAME, FORMATS, WRITABLE, published_modules
from qwenimage_core.adapters.parse import parse
from qwenimage_core.adapters.weights import Kronecker, LowRank
from qwenimage_core.errors import AdapterError

TO_Q = "transformer_blocks.0.attn.to_q"
TO_OUT = "transformer_blocks.0.attn.to_out.0"
MOD = "transformer_blocks.11.img_mod.1"
DOWN, UP = torch.randn(4, 10), torch.randn(6, 4)


def lora(*key_pairs, **alphas):
    """{down key: DOWN, up key: UP, ...} for pairs of keys."""
    tensors = {key: tensor for pair in key_pairs for key, tensor in zip(pair, (DOWN, UP), strict=True)}
    return tensors | {key: torch.tensor(value) for key, value in alphas.items()}


def check(weights, name, *, modules, scale, rank=4):
    assert weights.format == name
    assert set(weights.modules) == set(modules)
    for change in weights.modules.values():
        assert isinstance(change, LowRank)
        assert (change.rank, change.shape) == (rank, (6, 10))
        assert change.scale == scale
        torch.testing.assert_close(change.delta_OI(), scale * UP @ DOWN)


def test_diffusers():
    to_q, mod = "transformer.transformer_blocks.0.attn.to_q", "transformer.transformer_blocks.11.img_mod.1"
    tensors = lora(
        (f"{to_q}.lora_A.weight", f"{to_q}.lora_B.weight"), (f"{mod}.lora_A.weight", f"{mod}.lora_B.weight")
    )
    check(parse(tensors), "diffusers", modules=[TO_Q, MOD], scale=1)


def test_comfyui():
    tensors = lora((f"diffusion_model.{TO_Q}.lora_A.weight", f"diffusion_model.{TO_Q}.lora_B.weight"))
    check(parse(tensors), "comfyui", modules=[TO_Q], scale=1)


def test_comfyui_reads_an_alpha_beside_lora_a():
    tensors = lora(
        (f"diffusion_model.{TO_Q}.lora_A.weight", f"diffusion_model.{TO_Q}.lora_B.weight"),
        **{f"diffusion_model.{TO_Q}.alpha": 2.0},
    )
    check(parse(tensors), "comfyui", modules=[TO_Q], scale=0.5)


def test_comfyui_alpha():
    tensors = lora(
        (f"diffusion_model.{TO_Q}.lora_down.weight", f"diffusion_model.{TO_Q}.lora_up.weight"),
        **{f"diffusion_model.{TO_Q}.alpha": 1.0},
    )
    check(parse(tensors), "comfyui-alpha", modules=[TO_Q], scale=0.25)


def test_diffsynth():
    tensors = lora((f"{TO_OUT}.lora_A.default.weight", f"{TO_OUT}.lora_B.default.weight"))
    check(parse(tensors), "diffsynth", modules=[TO_OUT], scale=1)


def test_diffsynth_with_a_doubled_adapter_name():
    tensors = lora((f"{TO_Q}.lora_A.default_0.default.weight", f"{TO_Q}.lora_B.default_0.default.weight"))
    check(parse(tensors), "diffsynth", modules=[TO_Q], scale=1)


def test_diffsynth_raw():
    tensors = lora((f"pipe.dit.{TO_Q}.lora_A.default.weight", f"pipe.dit.{TO_Q}.lora_B.default.weight"))
    check(parse(tensors), "diffsynth-raw", modules=[TO_Q], scale=1)


def test_bare():
    tensors = lora((f"{TO_Q}.lora_A.weight", f"{TO_Q}.lora_B.weight"))
    check(parse(tensors), "bare", modules=[TO_Q], scale=1)


def test_lightx2v():
    tensors = lora((f"{TO_Q}.lora_down.weight", f"{TO_Q}.lora_up.weight"), **{f"{TO_Q}.alpha": 0.5})
    check(parse(tensors), "lightx2v", modules=[TO_Q], scale=0.125)


def test_kohya():
    stems = {
        "lora_unet_transformer_blocks_0_attn_to_out_0": TO_OUT,
        "lora_unet_transformer_blocks_11_img_mod_1": MOD,
        "lora_unet_transformer_blocks_3_attn_add_q_proj": "transformer_blocks.3.attn.add_q_proj",
        "lora_unet_transformer_blocks_3_attn_to_add_out": "transformer_blocks.3.attn.to_add_out",
        "lora_unet_transformer_blocks_0_img_mlp_net_0_proj": "transformer_blocks.0.img_mlp.net.0.proj",
        "lora_unet_time_text_embed_timestep_embedder_linear_1": "time_text_embed.timestep_embedder.linear_1",
        "lora_unet_norm_out_linear": "norm_out.linear",
        "lora_unet_img_in": "img_in",
    }
    tensors = lora(
        *((f"{stem}.lora_down.weight", f"{stem}.lora_up.weight") for stem in stems),
        **{f"{stem}.alpha": 8.0 for stem in stems},
    )
    check(parse(tensors), "kohya", modules=stems.values(), scale=2)


def test_kohya_names_are_those_of_the_model_at_hand():
    modules = ["language_model.layers.0.self_attn.q_proj", "language_model.layers.0.mlp.up_proj"]
    stem = "lora_te_language_model_layers_0_self_attn_q_proj"
    tensors = lora((f"{stem}.lora_down.weight", f"{stem}.lora_up.weight"))
    assert set(parse(tensors, modules).modules) == {modules[0]}


def test_peft():
    tensors = lora((f"base_model.model.{TO_Q}.lora_A.weight", f"base_model.model.{TO_Q}.lora_B.weight"))
    check(parse(tensors), "peft", modules=[TO_Q], scale=1)


def test_old_diffusers():
    tensors = lora((f"transformer.{TO_Q}.lora.down.weight", f"transformer.{TO_Q}.lora.up.weight"))
    weights = parse(tensors)
    check(weights, "old-diffusers (prefix 'transformer.')", modules=[TO_Q], scale=1)


@pytest.mark.parametrize("prefix", ["lycoris_transformer_blocks_0_attn_to_q", f"diffusion_model.{TO_Q}"])
def test_lokr(prefix):
    left, right_a, right_b = torch.randn(2, 5), torch.randn(3, 1), torch.randn(1, 2)
    tensors = {"lokr_w1": left, "lokr_w2_a": right_a, "lokr_w2_b": right_b, "alpha": torch.tensor(0.5)}
    weights = parse({f"{prefix}.{key}": value for key, value in tensors.items()})
    change = weights.modules[TO_Q]
    assert isinstance(change, Kronecker)
    assert weights.format.startswith("lokr")
    torch.testing.assert_close(change.delta_OI(), 0.5 * torch.kron(left, right_a @ right_b))


def test_lokr_of_two_full_factors_ignores_alpha_as_its_writer_does():
    tensors = {"lokr_w1": torch.randn(2, 5), "lokr_w2": torch.randn(3, 2), "alpha": torch.tensor(1e10)}
    change = parse({f"lycoris_transformer_blocks_0_attn_to_q.{k}": v for k, v in tensors.items()}).modules[
        TO_Q
    ]
    torch.testing.assert_close(change.delta_OI(), torch.kron(tensors["lokr_w1"], tensors["lokr_w2"]))


def test_loha():
    a1, b1, a2, b2 = torch.randn(6, 2), torch.randn(2, 10), torch.randn(6, 2), torch.randn(2, 10)
    tensors = {"hada_w1_a": a1, "hada_w1_b": b1, "hada_w2_a": a2, "hada_w2_b": b2, "alpha": torch.tensor(1.0)}
    weights = parse({f"lycoris_transformer_blocks_0_attn_to_q.{k}": v for k, v in tensors.items()})
    assert weights.format == "loha"
    torch.testing.assert_close(weights.modules[TO_Q].delta_OI(), 0.5 * (a1 @ b1) * (a2 @ b2))


@pytest.mark.parametrize(
    "key", [f"{TO_Q}.dora_scale", f"base_model.model.{TO_Q}.lora_magnitude_vector.weight"]
)
def test_dora_is_refused_by_name(key):
    tensors = lora((f"{TO_Q}.lora_A.weight", f"{TO_Q}.lora_B.weight")) | {key: torch.ones(6)}
    with pytest.raises(AdapterError, match="is a DoRA") as caught:
        parse(tensors)
    assert caught.value.got == key
    assert "plain LoRA" in caught.value.mend


def test_every_row_of_the_table_is_read_as_itself():
    """A row added to the table without being reachable by the reader fails here."""
    for row in FORMATS:
        if {"down", "up"} <= set(row.parts):
            tensors = {row.key(TO_Q, "down"): DOWN, row.key(TO_Q, "up"): UP}
            assert parse(tensors).format == row.name


def test_tools_mix_prefixes_and_endings():
    for prefix in (
        "transformer.",
        "diffusion_model.",
        "base_model.model.",
        "pipe.dit.",
        "dit.",
        "model.",
        "",
    ):
        for down, up in ((".lora_A", ".lora_B"), (".lora_down", ".lora_up"), (".lora.down", ".lora.up")):
            for modules in (None, published_modules(1)):
                key = prefix + TO_Q
                weights = parse({f"{key}{down}.weight": DOWN, f"{key}{up}.weight": UP}, modules)
                assert list(weights.modules) == [TO_Q]


def test_metadata_alpha_gives_way_to_an_alpha_tensor():
    pair = (f"{TO_Q}.lora_down.weight", f"{TO_Q}.lora_up.weight")
    with_tensor = parse(lora(pair, **{f"{TO_Q}.alpha": 2.0}), alpha_of=lambda name, rank: 99.0)
    without = parse(lora(pair), alpha_of=lambda name, rank: 12.0)
    assert with_tensor.modules[TO_Q].scale == 0.5
    assert without.modules[TO_Q].scale == 3


def test_convolution_shaped_matrices_are_matrices():
    tensors = {
        f"{TO_Q}.lora_down.weight": DOWN[:, :, None, None],
        f"{TO_Q}.lora_up.weight": UP[:, :, None, None],
    }
    torch.testing.assert_close(parse(tensors).modules[TO_Q].delta_OI(), UP @ DOWN)


# --- what does not fit --------------------------------------------------------------------------------------


def test_partial_matches_list_the_first_five_strangers():
    good = lora((f"{TO_Q}.lora_A.weight", f"{TO_Q}.lora_B.weight"))
    wrong = [f"transformer_blocks.0.attn.qkv_{n}" for n in range(6)]
    bad = lora(*((f"{stem}.lora_A.weight", f"{stem}.lora_B.weight") for stem in wrong))
    with pytest.raises(AdapterError) as caught:
        parse(good | bad, published_modules(1), source="style.safetensors")
    error = caught.value
    assert error.what == "style.safetensors: 12 of its 14 names match nothing in this model."
    assert [name.split(".")[3] for name in error.got.split(", ")[:5]] == [f"qkv_{n}" for n in range(5)]
    assert error.got.endswith(", ...")


@pytest.mark.parametrize(
    ("stem", "owner"),
    [
        ("lora_unet_double_blocks_0_img_attn_qkv", "FLUX"),
        ("transformer.single_transformer_blocks.3.attn.to_q", "FLUX"),
        ("lora_te_text_model_encoder_layers_0_mlp_fc1", "text encoder"),
        ("language_model.layers.3.self_attn.q_proj", "Qwen2.5-VL"),
        ("diffusion_model.blocks.0.self_attn.q", "Wan"),
        ("lora_unet_down_blocks_1_attentions_0_proj_in", "Stable Diffusion UNet"),
        ("transformer_blocks.0.img_mlp.gate_layer", "Qwen-Image-2.1"),
    ],
)
def test_a_lora_of_another_model_is_told_whose_it_looks(stem, owner):
    tensors = lora((f"{stem}.lora_down.weight", f"{stem}.lora_up.weight"))
    with pytest.raises(AdapterError, match="2 of its 2 names match nothing") as caught:
        parse(tensors, published_modules(2))
    assert owner in caught.value.mend


def test_a_lora_for_a_deeper_transformer_says_so():
    stem = "transformer_blocks.59.attn.to_q"
    tensors = lora((f"{stem}.lora_A.weight", f"{stem}.lora_B.weight"))
    with pytest.raises(AdapterError) as caught:
        parse(tensors, published_modules(6))
    assert "at least 60 blocks, this one has 6" in caught.value.mend


def test_the_nearest_known_format_is_named():
    tensors = lora((f"diffusion_model.{TO_Q}.lora_X.weight", f"diffusion_model.{TO_Q}.lora_Y.weight"))
    with pytest.raises(AdapterError) as caught:
        parse(tensors)
    assert f"diffusion_model.{TO_Q}.lora_" in caught.value.expected


def test_full_weights_are_no_lora():
    with pytest.raises(AdapterError) as caught:
        parse({"transformer_blocks.0.attn.to_q.weight": UP, "transformer_blocks.0.attn.to_q.bias": UP[0]})
    assert "load the file as a model" in caught.value.mend


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({}, "is empty"),
        ({f"{TO_Q}.lora_A.weight": DOWN}, "do not make an adapter"),
        ({f"{TO_Q}.alpha": torch.tensor(1.0)}, "do not make an adapter"),
        ({f"{TO_Q}.lora_A.weight": DOWN, f"{TO_Q}.lora_B.weight": UP[:, :2]}, "do not fit each other"),
        ({f"{TO_Q}.lora_A.weight": DOWN[0], f"{TO_Q}.lora_B.weight": UP}, "not a matrix"),
        (
            {f"{TO_Q}.lora_A.weight": DOWN, f"{TO_Q}.lora_A.a.weight": DOWN, f"{TO_Q}.lora_B.weight": UP},
            "two adapters",
        ),
        (
            {f"{p}{TO_Q}.lora_{ab}.weight": t for p in ("", "dit.") for ab, t in (("A", DOWN), ("B", UP))},
            "two sets",
        ),
        (
            {
                f"{TO_Q}.lokr_w1": UP,
                f"{TO_Q}.lokr_w2_a": UP,
                f"{TO_Q}.lokr_w2_b": DOWN,
                f"{TO_Q}.lokr_t2": UP,
            },
            "Tucker",
        ),
    ],
)
def test_files_that_contradict_themselves(tensors, message):
    with pytest.raises(AdapterError, match=message):
        parse(tensors)


def test_bias_of_a_lora_is_not_dropped_in_silence():
    tensors = lora((f"{TO_Q}.lora_A.weight", f"{TO_Q}.lora_B.weight")) | {
        f"{TO_Q}.lora_B.bias": torch.ones(6)
    }
    with pytest.raises(AdapterError) as caught:
        parse(tensors)
    assert caught.value.got == f"{TO_Q}.lora_B.bias"


def test_error_text_stays_within_one_screen():
    stems = [f"double_blocks.{n}.img_attn.qkv" for n in range(500)]
    tensors = lora(*((f"{s}.lora_A.weight", f"{s}.lora_B.weight") for s in stems))
    with pytest.raises(AdapterError) as caught:
        parse(tensors, published_modules(60))
    assert len(str(caught.value)) < 1000


def test_names_are_unique_and_these_can_be_written():
    assert len(BY_NAME) == len(FORMATS)
    assert set(WRITABLE) == {"diffusers", "comfyui", "comfyui-alpha", "diffsynth", "lightx2v", "kohya"}
