"""The description of a loaded model, and the refusal of components that do not belong together."""

import pytest

from qwenimage_core.errors import LoadError
from qwenimage_core.models.backbone import BackboneDescription
from qwenimage_core.models.transformer_config import TransformerConfig
from qwenimage_core.models.vae import VAEConfig


def test_the_published_model():
    backbone = BackboneDescription.of_qwen_image(TransformerConfig(), VAEConfig(), 3584)
    assert (backbone.blocks, backbone.streams, backbone.token_width) == (60, 2, 3072)
    assert (backbone.size_multiple, backbone.packed_channels, backbone.image_channels) == (16, 64, 3)
    assert (backbone.position_rule, backbone.prompt_template) == ("image_index", "t2i")


def test_a_layered_model():
    transformer = TransformerConfig(use_additional_t_cond=True, use_layer3d_rope=True, zero_cond_t=True)
    backbone = BackboneDescription.of_qwen_image(transformer, VAEConfig(input_channels=4), 3584)
    assert (backbone.position_rule, backbone.image_channels) == ("layer3d", 4)
    assert backbone.additional_t and backbone.zero_cond_t


def test_components_of_different_models_are_refused():
    with pytest.raises(LoadError, match="text encoder do not belong"):
        BackboneDescription.of_qwen_image(TransformerConfig(), VAEConfig(), 64)
    with pytest.raises(LoadError, match="VAE do not belong"):
        BackboneDescription.of_qwen_image(TransformerConfig(in_channels=16), VAEConfig(), 3584)
