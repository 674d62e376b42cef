"""What a transformer's config.json, or its tensor shapes alone, say about it. No torch."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, Self

from qwenimage_core.errors import LoadError

Activation = Literal["gelu_tanh", "quick_gelu"]

# Written by the hub's exporter and read by nobody: no published forward pass depends on it.
_WITHOUT_EFFECT = frozenset({"pooled_projection_dim"})


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """Sizes and options of the double-stream transformer; the defaults are Qwen-Image's (20.43 billion
    parameters).

    `activation` is the feed-forward's: `gelu_tanh` as published, `quick_gelu` (x * sigmoid(1.702 x)) as
    assumed by weights that were trained with DiffSynth-Studio.
    """

    num_layers: int = 60
    num_attention_heads: int = 24
    attention_head_dim: int = 128
    joint_attention_dim: int = 3584
    in_channels: int = 64
    out_channels: int = 16
    patch_size: int = 2
    axes_dims_rope: tuple[int, int, int] = (16, 56, 56)
    zero_cond_t: bool = False
    use_additional_t_cond: bool = False
    use_layer3d_rope: bool = False
    guidance_embeds: bool = False
    activation: Activation = "gelu_tanh"

    def __post_init__(self) -> None:
        if self.guidance_embeds:
            raise LoadError(
                "this transformer asks for a guidance embedding, which no published member of the family has",
                got="guidance_embeds = true",
                expected="false",
            )
        if self.activation not in ("gelu_tanh", "quick_gelu"):
            raise LoadError(
                "unknown feed-forward activation", got=self.activation, expected="gelu_tanh or quick_gelu"
            )
        axes = self.axes_dims_rope
        if len(axes) != 3 or any(dim % 2 or dim < 0 for dim in axes) or sum(axes) != self.attention_head_dim:
            raise LoadError(
                "the rotary axes do not share out the head's channels",
                got=f"axes_dims_rope = {axes}",
                expected=f"three even numbers that sum to attention_head_dim = {self.attention_head_dim}",
            )

    @property
    def width(self) -> int:
        """Channels of a token in either stream."""
        return self.num_attention_heads * self.attention_head_dim

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> Self:
        """From the keys of `transformer/config.json`; a key that could change the maths and is not known is
        an error."""
        known = {field.name for field in fields(cls)}
        given = {key: value for key, value in config.items() if not key.startswith("_")}
        strangers = sorted(set(given) - known - _WITHOUT_EFFECT)
        if strangers:
            raise LoadError(
                "transformer/config.json has options this transformer does not know",
                got=", ".join(strangers),
                expected=f"only {', '.join(sorted(known))}",
                mend="check that the folder holds a Qwen-Image transformer, or update qwenimage-core",
            )
        options = {key: value for key, value in given.items() if key in known}
        if "axes_dims_rope" in options:
            options["axes_dims_rope"] = tuple(options["axes_dims_rope"])
        if options.get("out_channels", 0) is None:  # the exporter's way to say "as many as come in"
            options["out_channels"] = options.get("in_channels", 64)
        return cls(**options)

    @classmethod
    def from_shapes(
        cls,
        shapes: Mapping[str, Sequence[int]],
        *,
        zero_cond_t: bool = False,
        activation: Activation = "gelu_tanh",
    ) -> Self:
        """From tensor names and shapes, for checkpoints with no config.json.

        Shapes tell the number of blocks, all widths, the head count (through the width of `norm_q`) and
        whether there is an additional timestep embedding. They cannot tell, and this takes from the family:
        patches of 2 x 2, rotary axes in the proportions 16/56/56 of 128, three-dimensional layer positions
        exactly where there is an additional timestep embedding. They cannot tell either, so the caller says:
        `zero_cond_t` (Edit-2511 has the shapes of Qwen-Image) and `activation`.
        """
        numbers = (re.match(r"transformer_blocks\.(\d+)\.", name) for name in shapes)
        blocks = {int(number[1]) for number in numbers if number}
        width, in_channels = _shape(shapes, "img_in.weight", 2)
        head_dim = _shape(shapes, "transformer_blocks.0.attn.norm_q.weight", 1)[0]
        if blocks != set(range(len(blocks))):
            missing = sorted(set(range(max(blocks))) - blocks)
            raise LoadError(
                "blocks are missing from the middle of this transformer",
                got=f"{len(blocks)} blocks, but number {missing[0]} is not among them",
                expected="blocks numbered from 0 without a gap",
                mend="give all shards of the checkpoint",
            )
        if head_dim % 16 or width % head_dim:
            raise LoadError(
                "the head width does not fit the family's rotary proportions 16/56/56 of 128",
                got=f"head width {head_dim}, token width {width}",
                expected="a head width that is a multiple of 16 and divides the token width",
                mend="put a config.json beside the weights, with axes_dims_rope in it",
            )
        layered = "time_text_embed.addition_t_embedding.weight" in shapes
        return cls(
            num_layers=len(blocks),
            num_attention_heads=width // head_dim,
            attention_head_dim=head_dim,
            joint_attention_dim=_shape(shapes, "txt_in.weight", 2)[1],
            in_channels=in_channels,
            out_channels=_shape(shapes, "proj_out.weight", 2)[0] // 4,
            axes_dims_rope=(head_dim // 8, head_dim * 7 // 16, head_dim * 7 // 16),
            use_additional_t_cond=layered,
            use_layer3d_rope=layered,
            zero_cond_t=zero_cond_t,
            activation=activation,
        )


def _shape(shapes: Mapping[str, Sequence[int]], name: str, ndim: int) -> tuple[int, ...]:
    found = shapes.get(name)
    if found is None or len(found) != ndim:
        raise LoadError(
            f"these tensors are not a Qwen-Image transformer: {name}",
            got="missing" if found is None else f"shape {tuple(found)}",
            expected=f"a tensor of {ndim} dimensions",
        )
    return tuple(found)
