"""At published size: the modules have exactly the tensors of the published files. Nothing is allocated.

The files themselves are not needed: DiffSynth-Studio recognises them by a fingerprint over all names and shapes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import pytest
import torch

from qwenimage_i2l.components import COMPONENTS

from .conftest import network_shapes

Shapes = Mapping[str, tuple[int, ...]]
FULL = {"depth": 60, "width": 3072, "embedding": 1536 + 4096, "text_width": 3584}


def fingerprint(shapes: Shapes) -> str:
    """DiffSynth-Studio's: the MD5 of every name, and of every name with its shape, sorted."""
    words = [f"{name}:{'_'.join(map(str, shape))}" for name, shape in shapes.items()]
    return hashlib.md5(",".join(sorted([*words, *shapes])).encode()).hexdigest()


def siglip2_shapes() -> Shapes:
    from transformers import SiglipVisionConfig, SiglipVisionModel

    return shapes_of(
        SiglipVisionModel(
            SiglipVisionConfig(
                hidden_size=1536,
                intermediate_size=6144,
                num_hidden_layers=40,
                num_attention_heads=16,
                image_size=384,
                patch_size=16,
            )
        )
    )


def dinov3_shapes() -> Shapes:
    from transformers import DINOv3ViTConfig, DINOv3ViTModel

    return shapes_of(
        DINOv3ViTModel(
            DINOv3ViTConfig(
                hidden_size=4096,
                intermediate_size=8192,
                num_hidden_layers=40,
                num_attention_heads=32,
                num_register_tokens=4,
                use_gated_mlp=True,
                query_bias=False,
                value_bias=False,
            )
        )
    )


def shapes_of(module: torch.nn.Module) -> Shapes:
    """In the names of the files."""
    state = module.state_dict()
    return {name.replace("model.layer.", "layer."): tuple(value.shape) for name, value in state.items()}


FILES = {
    "siglip2_image_encoder": (siglip2_shapes, "469c78b61e3e31bc9eec0d0af3d3f2f8"),
    "dinov3_image_encoder": (dinov3_shapes, "5722b5c873720009de96422993b15682"),
    "i2l_style": (lambda: network_shapes(0, compressed=64, **FULL), "0aad514690602ecaff932c701cb4b0bb"),
    "i2l_coarse": (
        lambda: network_shapes(71, compressed=128, middle=1024, **FULL),
        "a166c33455cdbd89c0888a3645ca5c0f",
    ),
    "i2l_fine": (
        lambda: network_shapes(1376, compressed=128, middle=64, **FULL),
        "a5476e691767a4da6d3a6634a10f7408",
    ),
}


@pytest.mark.parametrize("kind", FILES)
def test_published_files_are_recognised_and_fit(kind: str) -> None:
    make, published = FILES[kind]
    with torch.device("meta"):
        shapes = make()
        assert fingerprint(shapes) == published
        (spec,) = (spec for spec in COMPONENTS if spec.refusal(shapes) is None)
        module = spec.build(None, shapes)
    assert spec.kind == kind
    assert shapes_of(module) == shapes
