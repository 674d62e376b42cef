"""The stock classes of the peers read the tiny models with nothing missing and nothing left over."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLQwenImage, QwenImagePipeline, QwenImageTransformer2DModel
from transformers import Qwen2_5_VLForConditionalGeneration

from qwenimage_core.loading.checkpoint import Checkpoint
from qwenimage_core.testing.checkpoints import Variant, write_tiny_checkpoint

CLASSES = {
    "transformer": QwenImageTransformer2DModel,
    "vae": AutoencoderKLQwenImage,
    "text_encoder": Qwen2_5_VLForConditionalGeneration,
}


def stock(folder: Path, part: str) -> torch.nn.Module:
    """The stock class with the weights of one folder, after checking what it says of them."""
    model, report = CLASSES[part].from_pretrained(str(folder / part), output_loading_info=True)
    assert not any(report.values()), report
    return model


@pytest.mark.parametrize("variant", ["base", "edit-2511", "layered"])
@pytest.mark.parametrize("part", list(CLASSES))
@pytest.mark.parametrize("shards", [1, 2])
def test_stock_classes_hold_the_files_values(
    tmp_path: Path, variant: Variant, part: str, shards: int
) -> None:
    folder = write_tiny_checkpoint(tmp_path, variant=variant, shards=shards)
    state = stock(folder, part).state_dict()
    checkpoint = Checkpoint.open(folder / part)
    assert len(state) == len(checkpoint.tensors)
    for name in checkpoint.tensors:
        head, _, rest = name.partition(".")
        there = {"visual": "model.visual.", "model": "model.language_model."}.get(head, head + ".") + rest
        assert torch.equal(state[there if part == "text_encoder" else name], checkpoint.read(name)), name


def test_stock_classes_at_full_size_have_these_names_and_shapes() -> None:
    from transformers import Qwen2_5_VLConfig

    from qwenimage_core.testing.checkpoints import (
        text_encoder_config,
        text_encoder_shapes,
        transformer_config,
        transformer_shapes,
    )

    def shapes_of(model: torch.nn.Module) -> dict[str, tuple[int, ...]]:
        return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}

    options: dict[str, Any] = {"use_additional_t_cond": True}
    with torch.device("meta"):
        transformer = QwenImageTransformer2DModel(**options)
        language = text_encoder_config(width=3584, layers=28, heads=28, vision_width=1280, vision_layers=32)
        # The published proportions, which the tiny model simplifies.
        language |= {"intermediate_size": 18944, "num_key_value_heads": 4, "vocab_size": 152064}
        language["text_config"] |= {
            "intermediate_size": 18944,
            "num_key_value_heads": 4,
            "vocab_size": 152064,
        }
        language["vision_config"] |= {"intermediate_size": 3420, "num_heads": 16}
        encoder = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(**language))
    full = {"num_attention_heads": 24, "attention_head_dim": 128, "joint_attention_dim": 3584}
    assert shapes_of(transformer) == transformer_shapes(transformer_config(60, **full, **options))
    renamed = {
        name.replace("model.language_model.", "model.").replace("model.visual.", "visual."): shape
        for name, shape in shapes_of(encoder).items()
    }
    assert renamed == text_encoder_shapes(language)


def test_stock_pipeline_draws_with_it(tmp_path: Path) -> None:
    pipe = QwenImagePipeline.from_pretrained(str(write_tiny_checkpoint(tmp_path)))
    pipe.set_progress_bar_config(disable=True)
    picture = pipe("a red circle", width=64, height=64, num_inference_steps=2, output_type="pt").images[0]
    assert picture.shape == (3, 64, 64)
    assert torch.isfinite(picture).all() and picture.std() > 0.05
