"""Configs from config.json and from shapes alone."""

import pytest
import torch

from qwenimage_core.errors import LoadError
from qwenimage_core.models.transformer import QwenImageTransformer, TransformerConfig

# transformer/config.json as published with Qwen-Image (Edit-2511 adds zero_cond_t)
PUBLISHED = {
    "_class_name": "QwenImageTransformer2DModel",
    "_diffusers_version": "0.34.0.dev0",
    "attention_head_dim": 128,
    "axes_dims_rope": [16, 56, 56],
    "guidance_embeds": False,
    "in_channels": 64,
    "joint_attention_dim": 3584,
    "num_attention_heads": 24,
    "num_layers": 60,
    "out_channels": 16,
    "patch_size": 2,
    "pooled_projection_dim": 768,
}


def shapes(**options):
    with torch.device("meta"):
        transformer = QwenImageTransformer(TransformerConfig(**options))
    return {name: tuple(tensor.shape) for name, tensor in transformer.state_dict().items()}


TINY = {
    "num_layers": 2,
    "num_attention_heads": 3,
    "attention_head_dim": 32,
    "joint_attention_dim": 40,
    "axes_dims_rope": (4, 14, 14),
}


def test_the_published_config_is_the_default():
    assert TransformerConfig.from_dict(PUBLISHED) == TransformerConfig()
    assert TransformerConfig.from_dict({**PUBLISHED, "zero_cond_t": True}).zero_cond_t


def test_unknown_options_are_an_error_that_names_them():
    with pytest.raises(LoadError, match="does not know") as caught:
        TransformerConfig.from_dict({**PUBLISHED, "attention_bias": False})
    assert caught.value.got == "attention_bias"


@pytest.mark.parametrize(
    ("key", "value"), [("guidance_embeds", True), ("activation", "relu"), ("axes_dims_rope", [16, 56, 54])]
)
def test_options_that_cannot_be_run_are_errors(key, value):
    with pytest.raises(LoadError):
        TransformerConfig.from_dict({**PUBLISHED, key: value})


def test_shapes_tell_sizes_and_the_caller_tells_the_rest():
    found = TransformerConfig.from_shapes(shapes(**TINY), zero_cond_t=True, activation="quick_gelu")
    assert found == TransformerConfig(**TINY, zero_cond_t=True, activation="quick_gelu")


def test_shapes_of_a_layered_transformer_are_recognised():
    found = TransformerConfig.from_shapes(shapes(**TINY, use_additional_t_cond=True))
    assert found.use_additional_t_cond and found.use_layer3d_rope


def test_a_block_missing_from_the_middle_is_named():
    given = shapes(**{**TINY, "num_layers": 3})
    gap = {name: shape for name, shape in given.items() if not name.startswith("transformer_blocks.1.")}
    with pytest.raises(LoadError, match="missing from the middle") as caught:
        TransformerConfig.from_shapes(gap)
    assert "number 1" in caught.value.got


def test_tensors_of_another_model_and_other_rotary_proportions_are_refused():
    with pytest.raises(LoadError, match="not a Qwen-Image transformer"):
        TransformerConfig.from_shapes({"encoder.conv_in.weight": (96, 3, 3, 3, 3)})
    odd = shapes(**{**TINY, "attention_head_dim": 24, "axes_dims_rope": (8, 8, 8)})
    with pytest.raises(LoadError, match="proportions") as caught:
        TransformerConfig.from_shapes(odd)
    assert "config.json" in caught.value.mend
