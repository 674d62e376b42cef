"""Files: read with what their metadata says, converted without changing what they do, written whole or not at all."""

from __future__ import annotations

import itertools
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoKrConfig, LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn

from qwenimage_core.adapters.convert import INTERCHANGE, convert, save_lora
from qwenimage_core.adapters.files import DIFFUSERS_METADATA, load_lora
from qwenimage_core.adapters.formats import BY_NAME, WRITABLE
from qwenimage_core.adapters.parse import parse
from qwenimage_core.adapters.weights import Kronecker, LoraWeights, LowRank
from qwenimage_core.errors import AdapterError, LoadError

TO_Q, MOD = "transformer_blocks.0.attn.to_q", "transformer_blocks.1.img_mod.1"


def example(alpha=None, dtype=torch.float32):
    torch.manual_seed(0)
    return LoraWeights(
        {
            TO_Q: LowRank(torch.randn(4, 10).to(dtype), torch.randn(6, 4).to(dtype), alpha),
            MOD: LowRank(torch.randn(2, 10).to(dtype), torch.randn(36, 2).to(dtype), alpha),
        },
        metadata={"trigger": "sks", "format": "pt"},
    )


def deltas(weights):
    return {name: change.delta_OI() for name, change in weights.modules.items()}


def same(one, other, **tolerance):
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], **tolerance)


# --- round trips --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("first", "second"), list(itertools.product(WRITABLE, repeat=2)))
@settings(max_examples=8, deadline=None)
@given(alphas=st.tuples(*[st.none() | st.floats(0.01, 100)] * 2), ranks=st.tuples(*[st.integers(1, 5)] * 2))
def test_round_trip_over_all_pairs(tmp_path_factory, first, second, alphas, ranks):
    """A file of one format, converted to another and back, changes every weight as it did, and says which it is."""
    torch.manual_seed(sum(ranks))
    original = LoraWeights(
        {
            name: LowRank(torch.randn(rank, 10), torch.randn(6, rank), alpha)
            for name, rank, alpha in zip((TO_Q, MOD), ranks, alphas, strict=True)
        }
    )
    folder, weights = tmp_path_factory.mktemp("loras"), original
    for step, form in enumerate((first, second, first)):
        save_lora(weights, folder / f"{step}.safetensors", form)
        weights = load_lora(folder / f"{step}.safetensors")
        assert weights.format == form
        for name, layer in original.modules.items():
            # Rounding of a product is relative to its terms, which may cancel.
            terms = layer.scale * layer.up_OR.abs() @ layer.down_RI.abs()
            assert ((weights.modules[name].delta_OI() - layer.delta_OI()).abs() <= 1e-6 * terms).all()
        if BY_NAME[first].alpha and BY_NAME[second].alpha:
            for name, layer in original.modules.items():
                assert weights.modules[name].rank == layer.rank
                assert weights.modules[name].scale == pytest.approx(layer.scale, rel=1e-6)


def test_keys_are_those_other_programs_expect():
    expected = {
        "diffusers": f"transformer.{TO_Q}.lora_A.weight",
        "comfyui": f"diffusion_model.{TO_Q}.lora_A.weight",
        "comfyui-alpha": f"diffusion_model.{TO_Q}.lora_down.weight",
        "diffsynth": f"{TO_Q}.lora_A.default.weight",
        "lightx2v": f"{TO_Q}.lora_down.weight",
        "kohya": "lora_unet_transformer_blocks_0_attn_to_q.lora_down.weight",
    }
    assert set(expected) == set(WRITABLE)
    for form, key in expected.items():
        assert key in convert(example(), form).tensors


def test_alpha_is_carried_where_there_is_a_place_for_it():
    for form in ("lightx2v", "kohya", "comfyui-alpha"):
        tensors = convert(example(alpha=1.0), form).tensors
        assert [v.item() for k, v in tensors.items() if k.endswith(".alpha")] == [1.0, 1.0]
        assert torch.equal(
            next(v for k, v in tensors.items() if "lora_down" in k), example().modules[TO_Q].down_RI
        )
    config = json.loads(convert(example(alpha=1.0), "diffusers").metadata[DIFFUSERS_METADATA])
    assert config["transformer.lora_alpha"] == 1
    assert set(config["transformer.rank_pattern"].items()) < {(TO_Q, 4), (MOD, 2)}


def test_formats_that_expect_an_alpha_get_the_rank_where_there_was_none():
    tensors = convert(example(), "kohya").tensors
    assert {k: v.item() for k, v in tensors.items() if k.endswith(".alpha")} == {
        "lora_unet_transformer_blocks_0_attn_to_q.alpha": 4,
        "lora_unet_transformer_blocks_1_img_mod_1.alpha": 2,
    }


@pytest.mark.parametrize(
    ("alpha", "said"), [(0.5, "exact: the scale is a power of two"), (3.0, "rounded to bfloat16")]
)
def test_folding_is_said(alpha, said):
    weights = example(alpha, torch.bfloat16)
    converted = convert(weights, "diffsynth")
    assert said in converted.notes[0]
    tolerance = (
        {"atol": 0, "rtol": 0} if "exact" in said else {"atol": 0.05, "rtol": 0.02}
    )  # 8 bits of mantissa
    same(deltas(parse(converted.tensors)), deltas(weights), **tolerance)
    assert not any(key.endswith("alpha") for key in converted.tensors)


def test_nothing_is_said_where_nothing_was_folded():
    assert convert(example(alpha=None), "diffsynth").notes == ()
    assert convert(example(alpha=1.0), "kohya").notes == ()


def test_metadata_is_kept_but_for_a_scale_that_no_longer_holds():
    """diffusers' metadata states an alpha; left beside folded tensors it would be applied twice."""
    there = convert(example(alpha=1.0), "diffusers")
    weights = LoraWeights(example(alpha=1.0).modules, metadata=there.metadata)
    assert convert(weights, "comfyui").metadata == {"trigger": "sks", "format": "pt"}


def test_interchange_format_is_writable():
    assert INTERCHANGE in WRITABLE


def test_lokr_cannot_be_written_as_lora(tmp_path):
    weights = LoraWeights({TO_Q: Kronecker(torch.ones(2, 2), torch.ones(3, 5))})
    with pytest.raises(AdapterError, match="Kronecker"):
        save_lora(weights, tmp_path / "a.safetensors", "comfyui")


def test_unknown_target_lists_the_known():
    with pytest.raises(AdapterError, match="No LoRA format 'peft'") as caught:
        convert(example(), "peft")
    assert "diffusers, comfyui" in caught.value.expected


def test_kohya_cannot_name_layers_of_other_models():
    weights = LoraWeights(
        {"language_model.layers.0.mlp.up_proj": LowRank(torch.ones(1, 2), torch.ones(3, 1))}
    )
    with pytest.raises(AdapterError, match="published transformer") as caught:
        convert(weights, "kohya")
    assert "up_proj" in caught.value.got


# --- reading ------------------------------------------------------------------------------------------------


def save_with(path, weights, metadata, form="diffusers"):
    row = BY_NAME[form]
    tensors = {
        row.key(name, role): tensor
        for name, layer in weights.modules.items()
        for role, tensor in (("down", layer.down_RI), ("up", layer.up_OR))
    }
    save_file(tensors, path, metadata)
    return path


def test_diffusers_metadata_states_alpha(tmp_path):
    config = {"transformer.lora_alpha": 8, "transformer.r": 4, "transformer.alpha_pattern": {"img_mod.1": 1}}
    path = save_with(tmp_path / "a.safetensors", example(), {DIFFUSERS_METADATA: json.dumps(config)})
    weights = load_lora(path)
    assert (weights.modules[TO_Q].scale, weights.modules[MOD].scale) == (2, 0.5)
    assert weights.metadata[DIFFUSERS_METADATA] == json.dumps(config)


def test_rank_stabilised_scale(tmp_path):
    config = {"transformer.lora_alpha": 8, "transformer.use_rslora": True}
    path = save_with(tmp_path / "a.safetensors", example(), {DIFFUSERS_METADATA: json.dumps(config)})
    assert load_lora(path).modules[TO_Q].scale == 8 / 4**0.5


@pytest.mark.parametrize("rslora", [False, True])
def test_folder_that_peft_saved(tmp_path, rslora):
    """The oracle is peft: its own saved file, and the change its own layer makes."""
    torch.manual_seed(0)
    model = get_peft_model(
        nn.ModuleDict({"img_in": nn.Linear(6, 5)}),
        LoraConfig(r=4, lora_alpha=12, target_modules=["img_in"], use_rslora=rslora, init_lora_weights=False),
    )
    model.save_pretrained(tmp_path / "peft")
    weights = load_lora(tmp_path / "peft", ["img_in"])
    assert weights.format == "peft"
    expected = model.base_model.model["img_in"].get_delta_weight("default").detach()
    torch.testing.assert_close(weights.modules["img_in"].delta_OI(), expected)


def test_dora_in_the_metadata_is_refused(tmp_path):
    config = json.dumps({"transformer.lora_alpha": 8, "transformer.use_dora": True})
    path = save_with(tmp_path / "a.safetensors", example(), {DIFFUSERS_METADATA: config})
    with pytest.raises(AdapterError, match="is a DoRA"):
        load_lora(path)


def test_other_kinds_that_peft_saves_are_not_read_with_a_wrong_scale(tmp_path):
    config = LoKrConfig(r=2, alpha=4, target_modules=["img_in"], decompose_factor=2)
    get_peft_model(nn.ModuleDict({"img_in": nn.Linear(64, 64)}), config).save_pretrained(tmp_path / "peft")
    with pytest.raises(AdapterError, match="saved by peft as LOKR"):
        load_lora(tmp_path / "peft", ["img_in"])


@pytest.mark.parametrize("text", ["{", "[1]"])
def test_damaged_metadata(tmp_path, text):
    path = save_with(tmp_path / "a.safetensors", example(), {DIFFUSERS_METADATA: text})
    with pytest.raises(AdapterError, match="adapter configuration"):
        load_lora(path)


def test_pickles_are_refused_unread(tmp_path):
    torch.save({f"{TO_Q}.lora_A.weight": torch.ones(1)}, tmp_path / "lora.pt")
    with pytest.raises(LoadError, match="pickle"):
        load_lora(tmp_path / "lora.pt")
    (tmp_path / "lora.pt").rename(tmp_path / "lora.safetensors")
    with pytest.raises(LoadError, match="no safetensors file"):
        load_lora(tmp_path / "lora.safetensors")


def test_truncated_file(tmp_path):
    path = tmp_path / "a.safetensors"
    save_lora(example(), path)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(LoadError, match="cut off"):
        load_lora(path)


# --- writing ------------------------------------------------------------------------------------------------


def test_a_write_that_fails_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    save_lora(example(), path)
    old = path.read_bytes()

    def full(tensors, target, metadata):
        target.write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(OSError, match="no space"):
        save_lora(example(alpha=2.0), path)
    assert path.read_bytes() == old
    assert list(tmp_path.iterdir()) == [path]


def test_transposed_tensors_are_written_as_they_read(tmp_path):
    """i2L and training hand over views; safetensors stores only contiguous tensors."""
    down = torch.randn(10, 4).T
    save_lora(LoraWeights({TO_Q: LowRank(down, torch.ones(6, 4))}), tmp_path / "a.safetensors")
    assert torch.equal(load_file(tmp_path / "a.safetensors")[f"diffusion_model.{TO_Q}.lora_A.weight"], down)
