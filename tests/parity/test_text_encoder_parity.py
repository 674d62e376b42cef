"""The text condition against both peers' pipelines: equal weights, tokenizer and pictures, their own code to encode.

The system prefix is 34 and 64 tokens in the peers, and so it is with the tokenizer here.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from qwenimage_core.loading.bundle import load_tokenizer
from qwenimage_core.loading.recognise import TEXT_ENCODER
from qwenimage_core.models.prompt_templates import EDIT, EDIT_PLUS, T2I
from qwenimage_core.models.prompt_tokens import PromptTokenizer
from qwenimage_core.models.text_encoder import PromptEncoder, TextEncoder
from qwenimage_core.testing.tokenizer import write_tokenizer

transformers = pytest.importorskip("transformers")
diffusers = pytest.importorskip("diffusers")

PROMPT = "make the red circle blue, {and} larger"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("hub") / "tokenizer"
    write_tokenizer(path)
    return path


@pytest.fixture(scope="module")
def whole(folder: Path) -> Any:
    tokenizer = PromptTokenizer(load_tokenizer(folder))
    config = transformers.Qwen2_5_VLConfig(
        image_token_id=tokenizer.image_id,
        text_config={
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "vocab_size": 700,
            "rms_norm_eps": 1e-6,
            "bos_token_id": None,
            "eos_token_id": None,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [4, 6, 6]},
        },
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_heads": 2,
            "out_hidden_size": 64,
            "fullatt_block_indexes": [1],
        },
    )
    torch.manual_seed(0)
    whole = transformers.Qwen2_5_VLForConditionalGeneration(config).eval()
    for name, parameter in whole.named_parameters():
        if "norm" not in name and "ln_q" not in name:
            torch.nn.init.normal_(parameter, std=0.2)
    return whole


@pytest.fixture(scope="module")
def encoder(folder: Path, whole: Any) -> PromptEncoder:
    """Ours, with the positions that the peers get from transformers 5."""
    ours = TextEncoder(whole.config.to_dict()).eval()
    named = {TEXT_ENCODER.rename(name): tensor for name, tensor in whole.state_dict().items()}
    ours.load_state_dict({name: tensor for name, tensor in named.items() if name is not None})
    return PromptEncoder(PromptTokenizer(load_tokenizer(folder)), lambda: ours, positions="flat")


@pytest.fixture(scope="module")
def processor(folder: Path) -> Any:
    """The published processor, with the picture part that needs no torchvision."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    pictures = transformers.Qwen2VLImageProcessorPil(min_pixels=56 * 56, max_pixels=12_845_056)
    videos = transformers.Qwen2VLVideoProcessor()
    return transformers.Qwen2VLProcessor(pictures, tokenizer, videos)


def pictures() -> list[Image.Image]:
    random = np.random.default_rng(0)
    return [
        Image.fromarray(random.integers(0, 256, (h, w, 3), dtype=np.uint8))
        for h, w in ((384, 384), (352, 448))
    ]


def test_prefixes_have_the_peers_lengths(folder):
    tokenizer = PromptTokenizer(load_tokenizer(folder))
    assert [tokenizer.count_dropped(template) for template in (T2I, EDIT, EDIT_PLUS)] == [34, 64, 64]


@torch.no_grad()
def test_plain_prompt_equals_diffusers(encoder, whole, processor):
    pipe = diffusers.QwenImagePipeline(None, None, whole, processor.tokenizer, None)
    expected, _ = pipe._get_qwen_prompt_embeds(PROMPT, device="cpu")
    torch.testing.assert_close(encoder.encode(PROMPT)[None], expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_prompt_with_one_picture_equals_diffusers(encoder, whole, processor):
    pipe = diffusers.QwenImageEditPipeline(None, None, whole, processor.tokenizer, processor, None)
    picture = pictures()[0]
    expected, _ = pipe._get_qwen_prompt_embeds([PROMPT], image=[picture], device="cpu")
    torch.testing.assert_close(encoder.encode(PROMPT, EDIT, [picture])[None], expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_prompt_with_pictures_equals_diffusers(encoder, whole, processor):
    pipe = diffusers.QwenImageEditPlusPipeline(None, None, whole, processor.tokenizer, processor, None)
    expected, _ = pipe._get_qwen_prompt_embeds([PROMPT], image=pictures(), device="cpu")
    torch.testing.assert_close(
        encoder.encode(PROMPT, EDIT_PLUS, pictures())[None], expected, atol=1e-5, rtol=0
    )


@torch.no_grad()
def test_all_three_equal_diffsynth(encoder, whole, processor):
    pytest.importorskip("diffsynth")
    from diffsynth.pipelines.qwen_image import QwenImageUnit_PromptEmbedder

    def text_encoder(**inputs: Any) -> Any:
        return whole.model(**inputs).hidden_states

    pipe = SimpleNamespace(
        tokenizer=processor.tokenizer, processor=processor, text_encoder=text_encoder, device="cpu"
    )
    unit = QwenImageUnit_PromptEmbedder()
    one, two = pictures()[0], pictures()  # of the size to which DiffSynth-Studio itself would bring them
    for found, expected in (
        (encoder.encode(PROMPT), unit.encode_prompt(pipe, [PROMPT])),
        (encoder.encode(PROMPT, EDIT, [one]), unit.encode_prompt_edit(pipe, [PROMPT], one)),
        (encoder.encode(PROMPT, EDIT_PLUS, two), unit.encode_prompt_edit_multi(pipe, [PROMPT], two)),
    ):
        torch.testing.assert_close(found, expected[0], atol=1e-5, rtol=0)


def test_full_size_names_and_shapes_equal_diffsynth():
    pytest.importorskip("diffsynth")
    from diffsynth.models.qwen_image_text_encoder import QwenImageTextEncoder

    with torch.device("meta"):
        ours, peer = TextEncoder(), QwenImageTextEncoder()
    theirs = {TEXT_ENCODER.rename(name): tensor.shape for name, tensor in peer.state_dict().items()}
    assert theirs.pop(None) == (152064, 3584)
    assert {name: tensor.shape for name, tensor in ours.state_dict().items()} == theirs
    assert peer.config.text_config.rms_norm_eps == ours.config.text_config.rms_norm_eps
    assert peer.config.vision_config.fullatt_block_indexes == ours.config.vision_config.fullatt_block_indexes
