"""The text encoder against transformers' whole Qwen2.5-VL: tiny random weights, and names and shapes at full size."""

import hashlib

import pytest
import torch
from PIL import Image
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from qwenimage_core.errors import LoadError, RequestError
from qwenimage_core.loading.bundle import load_tokenizer
from qwenimage_core.loading.recognise import TEXT_ENCODER, TEXT_ENCODER_ALONE
from qwenimage_core.models.prompt_templates import EDIT, EDIT_PLUS, T2I
from qwenimage_core.models.prompt_tokens import PromptTokenizer
from qwenimage_core.models.text_encoder import PromptEncoder, TextEncoder


@pytest.fixture(scope="module")
def tokenizer(tokenizer_folder):
    return PromptTokenizer(load_tokenizer(tokenizer_folder))


@pytest.fixture(scope="module")
def config(tokenizer):
    return {
        "model_type": "qwen2_5_vl",
        "image_token_id": tokenizer.image_id,
        "text_config": {
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "vocab_size": 700,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "rms_norm_eps": 1e-6,
            "bos_token_id": None,
            "eos_token_id": None,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [4, 6, 6]},
        },
        "vision_config": {
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_heads": 2,
            "out_hidden_size": 64,
            "fullatt_block_indexes": [1],
        },
    }


@pytest.fixture(scope="module")
def whole(config):
    """transformers' own model, head and all; weights large enough for positions to matter."""
    torch.manual_seed(0)
    whole = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(**config)).eval()
    for name, parameter in whole.named_parameters():
        if "norm" not in name and "ln_q" not in name:
            torch.nn.init.normal_(parameter, std=0.2)
    return whole


def loaded(config, whole, vision=True):
    """Ours with the weights of `whole`, renamed as the loader renames them."""
    ours = TextEncoder(config, vision=vision).eval()
    rename = (TEXT_ENCODER if vision else TEXT_ENCODER_ALONE).rename
    named = {rename(name): tensor for name, tensor in whole.state_dict().items()}
    ours.load_state_dict({name: tensor for name, tensor in named.items() if name is not None})
    return ours


def pictures():
    generator = torch.Generator().manual_seed(1)
    for height, width in ((84, 140), (112, 56)):
        noise = torch.randint(0, 256, (height, width, 3), dtype=torch.uint8, generator=generator)
        yield Image.fromarray(noise.numpy())


@torch.no_grad()
def reference(whole, prepared, preparation, *, kinds: bool):
    """Last hidden state of transformers' model, system part cut; `kinds` tells it which tokens are pictures."""
    tokens = prepared.prompt
    ids = torch.tensor([tokens.ids])
    inputs = {}
    if prepared.pictures:
        inputs["pixel_values"] = torch.cat([preparation.patches(picture) for picture in prepared.pictures])
        inputs["image_grid_thw"] = torch.tensor([(1, 2 * r, 2 * c) for r, c in tokens.grids])
    if kinds:
        inputs["mm_token_type_ids"] = (ids == tokens.image_id).int()
    found = whole(input_ids=ids, attention_mask=torch.ones_like(ids), output_hidden_states=True, **inputs)
    return found.hidden_states[-1][0, tokens.dropped :]


@pytest.mark.parametrize(("template", "count"), [(T2I, 0), (EDIT, 1), (EDIT_PLUS, 2)])
def test_the_condition_equals_transformers_own(tokenizer, config, whole, template, count):
    ours = loaded(config, whole)
    encoder = PromptEncoder(tokenizer, lambda: ours)
    prepared = encoder.prepare("make the circle red", template, list(pictures())[:count])
    text_LD = encoder.run(prepared)

    assert text_LD.shape == (prepared.tokens, 64)
    expected = reference(whole, prepared, encoder.preparation, kinds=True)
    torch.testing.assert_close(text_LD, expected, atol=1e-5, rtol=0)


def test_flat_positions_are_what_transformers_5_falls_back_to(tokenizer, config, whole):
    ours = loaded(config, whole)
    flat, true = (
        PromptEncoder(tokenizer, lambda: ours, positions="flat"),
        PromptEncoder(tokenizer, lambda: ours),
    )
    prepared = flat.prepare("a", EDIT_PLUS, list(pictures()))
    expected = reference(whole, prepared, flat.preparation, kinds=False)
    torch.testing.assert_close(flat.run(prepared), expected, atol=1e-5, rtol=0)
    assert (true.run(prepared) - expected).abs().max() > 1e-2


def test_without_the_vision_tower_words_work_and_pictures_are_refused(tokenizer, config, whole):
    full, half = loaded(config, whole), loaded(config, whole, vision=False)
    assert not any(name.startswith("visual") for name in half.state_dict())
    encoder = PromptEncoder(tokenizer, lambda: half)
    torch.testing.assert_close(
        encoder.encode("a red circle"), PromptEncoder(tokenizer, lambda: full).encode("a red circle")
    )
    with pytest.raises(RequestError, match="vision tower") as caught:
        encoder.encode("a", EDIT, list(pictures())[:1])
    assert "vision=True" in caught.value.mend


def test_frequencies_stay_float32_and_whole_whatever_happens_to_the_weights(config, whole):
    expected = whole.model.language_model.rotary_emb.inv_freq
    expected_vision = whole.model.visual.rotary_pos_emb.inv_freq
    with torch.device("meta"):
        ours = TextEncoder(config)
    ours = ours.to_empty(device="cpu").to(torch.bfloat16)
    assert ours.model.embed_tokens.weight.dtype == torch.bfloat16
    torch.testing.assert_close(ours.model.rotary_emb.inv_freq, expected, atol=0, rtol=0)
    torch.testing.assert_close(ours.visual.rotary_pos_emb.inv_freq, expected_vision, atol=0, rtol=0)


def test_the_encoder_is_not_touched_before_a_prompt_is_run(tokenizer):
    def load():
        raise AssertionError("loaded")

    prepared = PromptEncoder(tokenizer, load).prepare("a red circle")
    assert prepared.tokens > 5


def test_a_tokenizer_of_another_model_is_refused(tokenizer, config):
    other = TextEncoder({**config, "image_token_id": tokenizer.image_id + 1}, vision=False)
    with pytest.raises(LoadError, match="tokenizer does not belong"):
        PromptEncoder(tokenizer, lambda: other).encode("a")


def test_a_config_of_another_model_is_refused(config):
    with pytest.raises(LoadError, match=r"Qwen2\.5-VL"):
        TextEncoder({**config, "model_type": "qwen3_vl"})


def test_full_size_names_and_shapes_are_the_published_ones():
    """DiffSynth-Studio knows the published files by a digest of all names and shapes; the head is in the files."""
    with torch.device("meta"):
        ours = TextEncoder()
        whole = Qwen2_5_VLForConditionalGeneration(ours.config)
    shapes = {name: tuple(tensor.shape) for name, tensor in ours.state_dict().items()}
    named = {TEXT_ENCODER.rename(name): tuple(tensor.shape) for name, tensor in whole.state_dict().items()}
    assert named.pop(None) == (152064, 3584)
    assert named == shapes

    lines = []
    for name, shape in {**shapes, "lm_head.weight": (152064, 3584)}.items():
        lines += [name, f"{name}:{'_'.join(map(str, shape))}"]
    assert len(lines) == 2 * 729
    assert hashlib.md5(",".join(sorted(lines)).encode()).hexdigest() == "8004730443f55db63092006dd9f7110e"
