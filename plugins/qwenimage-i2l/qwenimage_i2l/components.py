"""The models that i2L brings: two picture encoders and three hypernetworks, recognised by their tensors. No torch.

A hypernetwork has 4 groups of as many blocks as the transformer has; block `group * depth + n` makes the LoRA of some
layers of transformer block n.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from qwenimage_core import ComponentSpec

if TYPE_CHECKING:
    from torch import nn

Shapes = Mapping[str, tuple[int, ...]]
Config = Mapping[str, Any]

SIGLIP2 = "siglip2_image_encoder"
DINOV3 = "dinov3_image_encoder"
GROUPS = (
    ("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"),
    ("img_mlp.net.2", "img_mod.1"),
    ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out"),
    ("txt_mlp.net.2", "txt_mod.1"),
)
FINE_TOKENS = 37 * 37  # of a picture of 1024 x 1024 in the text encoder; one of 224 x 224 has 64

_ENCODERS = "DiffSynth-Studio/General-Image-Encoders"
_I2L = "DiffSynth-Studio/Qwen-Image-i2L"
BIAS_FILE: Mapping[str, Any] = {"model_id": _I2L, "origin_file_pattern": "Qwen-Image-i2L-Bias.safetensors"}


def network_kind(network: str) -> str:
    """The component of the network `style`, `coarse` or `fine`."""
    return f"i2l_{network}"


# --- hypernetworks ------------------------------------------------------------------------------------------------


def block_count(shapes: Shapes) -> int:
    return len({match[1] for name in shapes if (match := re.match(r"blocks\.(\d+)\.", name))})


def layer_names(blocks: int) -> Iterator[tuple[int, int, str]]:
    """(block, its layer, path of the transformer's layer) of a hypernetwork with this many blocks."""
    depth = blocks // len(GROUPS)
    for block in range(depth * len(GROUPS)):
        for layer, name in enumerate(GROUPS[block // depth]):
            yield block, layer, f"transformer_blocks.{block % depth}.{name}"


def residual_tokens(shapes: Shapes) -> int:
    """How many text tokens a hypernetwork reads; 0 if none."""
    entry, exit_ = (
        shapes.get(f"blocks.0.proj_residual.{part}.weight", (0, 0)) for part in ("proj_in", "proj_out")
    )
    return exit_[1] // entry[0] if entry[0] else 0


def _is_network(network: str, shapes: Shapes) -> bool | str:
    blocks, tokens = block_count(shapes), residual_tokens(shapes)
    if blocks % len(GROUPS):
        return f"{blocks} blocks, which is no multiple of {len(GROUPS)}"
    expected = {
        f"blocks.{block}.layers.{layer}.proj_{side}.proj_{end}.weight"
        for block, layer, _ in layer_names(blocks)
        for side in "ab"
        for end in ("in", "out")
    }
    if tokens:
        expected |= {
            f"blocks.{b}.proj_residual.proj_{end}.weight" for b in range(blocks) for end in ("in", "out")
        }
    if expected != set(shapes):
        return f"other layers than the {len(expected)} tensors of an i2L network of Qwen-Image"
    found = "style" if not tokens else "fine" if tokens >= FINE_TOKENS else "coarse"
    return found == network or f"it is the {found} network ({tokens} text tokens)"


def _build_network(config: Config | None, shapes: Shapes) -> nn.Module:
    from qwenimage_i2l.network import LoraNetwork

    return LoraNetwork(shapes)


def _network(network: str) -> ComponentSpec:
    return ComponentSpec(
        name=network_kind(network),
        signature=tuple(
            f"blocks.*.layers.*.proj_{side}.proj_{end}.weight" for side in "ab" for end in ("in", "out")
        ),
        recognise=partial(_is_network, network),
        build=_build_network,
        published=(_I2L, f"Qwen-Image-i2L-{network.capitalize()}.safetensors"),
    )


# --- picture encoders ---------------------------------------------------------------------------------------------


def _build_siglip2(config: Config | None, shapes: Shapes) -> nn.Module:
    from qwenimage_i2l.encoders import build_siglip2

    return build_siglip2(config, {_siglip2_name(name): shape for name, shape in shapes.items()})


def _siglip2_name(name: str) -> str:
    return name.removeprefix("vision_model.")


def _build_dinov3(config: Config | None, shapes: Shapes) -> nn.Module:
    from qwenimage_i2l.encoders import build_dinov3

    return build_dinov3(config, {_dinov3_name(name): shape for name, shape in shapes.items()})


def _dinov3_name(name: str) -> str:
    return f"model.{name}" if name.startswith("layer.") else name


COMPONENTS = (
    ComponentSpec(
        name=SIGLIP2,
        signature=(
            "embeddings.patch_embedding.weight",
            "embeddings.position_embedding.weight",
            "encoder.layers.*.self_attn.q_proj.weight",
            "encoder.layers.*.mlp.fc1.weight",
            "post_layernorm.weight",
            "head.probe",
        ),
        rename=_siglip2_name,
        build=_build_siglip2,
        published=(_ENCODERS, "SigLIP2-G384/model.safetensors"),
    ),
    ComponentSpec(
        name=DINOV3,
        signature=(
            "embeddings.cls_token",
            "embeddings.register_tokens",
            "embeddings.patch_embeddings.weight",
            "model.layer.*.attention.q_proj.weight",
            "model.layer.*.layer_scale1.lambda1",
            "norm.weight",
        ),
        rename=_dinov3_name,
        build=_build_dinov3,
        published=(_ENCODERS, "DINOv3-7B/model.safetensors"),
    ),
    *(_network(network) for network in ("style", "coarse", "fine")),
)
PUBLISHED = {spec.kind: spec.published for spec in COMPONENTS if spec.published}
