"""The tiny models of the tests are what they say: the hub's layout, small, quick, and the same every time."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import get_args

import pytest
import torch
from safetensors.torch import load_file

from qwenimage_core.loading.checkpoint import Checkpoint
from qwenimage_core.models.prompt_templates import EDIT, T2I
from qwenimage_core.testing.checkpoints import (
    VARIANTS,
    Variant,
    text_encoder_config,
    text_encoder_shapes,
    transformer_config,
    transformer_shapes,
    write_tiny_checkpoint,
)
from qwenimage_core.testing.tokenizer import SPECIAL_TOKENS, tiny_tokenizer, token_ids


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def test_layout_is_that_of_the_hub(tmp_path: Path) -> None:
    files = contents(write_tiny_checkpoint(tmp_path, shards=2))
    for name in (
        "model_index.json",
        "scheduler/scheduler_config.json",
        "text_encoder/config.json",
        "text_encoder/model-00001-of-00002.safetensors",
        "text_encoder/model-00002-of-00002.safetensors",
        "text_encoder/model.safetensors.index.json",
        "tokenizer/merges.txt",
        "tokenizer/tokenizer_config.json",
        "tokenizer/vocab.json",
        "processor/preprocessor_config.json",
        "transformer/config.json",
        "transformer/diffusion_pytorch_model-00001-of-00002.safetensors",
        "transformer/diffusion_pytorch_model-00002-of-00002.safetensors",
        "transformer/diffusion_pytorch_model.safetensors.index.json",
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
    ):
        assert name in files
    assert sum(map(len, files.values())) < 8_000_000


def test_names_and_numbers_of_tensors_are_the_published_ones() -> None:
    full = {"num_attention_heads": 24, "attention_head_dim": 128, "joint_attention_dim": 3584}
    shapes = transformer_shapes(transformer_config(60, **full))
    assert len(shapes) == 1933
    assert sum(torch.Size(shape).numel() for shape in shapes.values()) == 20_430_401_088
    layered = transformer_shapes(transformer_config(60, use_additional_t_cond=True, **full))
    assert len(layered) == 1934 and layered["time_text_embed.addition_t_embedding.weight"] == (2, 3072)
    language = text_encoder_config(width=3584, layers=28, heads=28, vision_width=1280, vision_layers=32)
    assert len(text_encoder_shapes(language)) == 729


def test_equal_arguments_give_equal_bytes_and_seeds_differ(tmp_path: Path) -> None:
    first, again, other = (
        write_tiny_checkpoint(tmp_path / str(i), seed=seed) for i, seed in enumerate((3, 3, 4))
    )
    assert contents(first) == contents(again)
    name = "transformer/diffusion_pytorch_model.safetensors"
    assert not torch.equal(load_file(first / name)["img_in.weight"], load_file(other / name)["img_in.weight"])


def test_it_is_quick(tmp_path: Path) -> None:
    write_tiny_checkpoint(tmp_path / "warm")  # learns the tokenizer, once a process
    begin = time.process_time()
    write_tiny_checkpoint(tmp_path / "tiny")
    assert time.process_time() - begin < 1.0


@pytest.mark.parametrize("variant", get_args(Variant))
def test_every_variant_says_what_it_is(tmp_path: Path, variant: Variant) -> None:
    folder = write_tiny_checkpoint(tmp_path, variant=variant, layers=3)
    config = json.loads((folder / "transformer" / "config.json").read_text())
    assert config["num_layers"] == 3
    assert config.get("zero_cond_t", False) == (variant == "edit-2511")
    assert config.get("use_layer3d_rope", False) == (variant == "layered")
    index = json.loads((folder / "model_index.json").read_text())
    assert index["_class_name"] == VARIANTS[variant].pipeline
    assert ("processor" in index) == (variant != "base")
    channels = Checkpoint.open(folder / "vae").shapes["encoder.conv_in.weight"][1]
    assert channels == (4 if variant == "layered" else 3)
    json.dumps(config)


def test_templates_have_their_published_number_of_tokens() -> None:
    encode = tiny_tokenizer().encode
    assert len(encode(T2I.prefix).ids) == 34
    assert len(encode(EDIT.prefix).ids) == 64


def test_special_tokens_are_single_and_stand_in_the_published_order() -> None:
    ids = token_ids()
    assert [ids[token] for token in SPECIAL_TOKENS] == list(
        range(ids["<|endoftext|>"], ids["<|endoftext|>"] + 14)
    )
    assert ids["<|image_pad|>"] - ids["<|endoftext|>"] == 151655 - 151643
    assert ids["<|im_start|>"] - ids["<|endoftext|>"] == 151644 - 151643
    for token in SPECIAL_TOKENS:
        assert tiny_tokenizer().encode(token).ids == [ids[token]]


@pytest.mark.parametrize("text", ["A cat, 42 ☂ über\n\n  straße'll", "画一只猫", "\t<not a token>\r\n"])
def test_any_text_survives_the_tokenizer(text: str) -> None:
    assert tiny_tokenizer().decode(tiny_tokenizer().encode(text).ids, skip_special_tokens=False) == text
