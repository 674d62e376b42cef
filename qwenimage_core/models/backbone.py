"""What plugins and the planner may know about the loaded model. No torch.

Nothing outside `models/` assumes a number of blocks, two streams, a 16-channel VAE or Qwen2.5-VL: it asks
here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from qwenimage_core.errors import LoadError
from qwenimage_core.layout import PositionRule
from qwenimage_core.models.prompt_templates import T2I

if TYPE_CHECKING:
    from qwenimage_core.models.transformer_config import TransformerConfig
    from qwenimage_core.models.vae import VAEConfig


@dataclass(frozen=True, kw_only=True)
class BackboneDescription:
    """One loaded model in numbers.

    `token_width` is that of the transformer's streams, `text_width` that of the encoder's hidden state.
    `additional_t`: the transformer has an additional timestep embedding and needs its row. `zero_cond_t`:
    image segments after the noise are modulated at time zero. `prompt_template` names the template of a plain
    prompt.
    """

    name: str
    blocks: int
    streams: int
    token_width: int
    text_width: int
    patch_size: int
    latent_channels: int
    image_channels: int
    vae_scale: int
    vae_width: int
    rope_axes: tuple[int, ...]
    position_rule: PositionRule
    zero_cond_t: bool
    additional_t: bool
    prompt_template: str

    @property
    def size_multiple(self) -> int:
        """Sides of pictures are multiples of this many pixels: one token."""
        return self.vae_scale * self.patch_size

    @property
    def packed_channels(self) -> int:
        """Channels of one packed latent token."""
        return self.latent_channels * self.patch_size**2

    @classmethod
    def of_qwen_image(
        cls, transformer: TransformerConfig, vae: VAEConfig, text_width: int
    ) -> BackboneDescription:
        """From the configs of the three components. Raises LoadError where they do not belong together."""
        packed = vae.z_dim * transformer.patch_size**2
        if (transformer.in_channels, transformer.out_channels) != (packed, vae.z_dim):
            raise LoadError(
                "transformer and VAE do not belong together",
                got=f"the transformer takes {transformer.in_channels} and gives {transformer.out_channels} channels",
                expected=f"{packed} and {vae.z_dim}, from the VAE's {vae.z_dim} latent channels",
            )
        if transformer.joint_attention_dim != text_width:
            raise LoadError(
                "transformer and text encoder do not belong together",
                got=f"the text encoder gives {text_width} channels",
                expected=f"{transformer.joint_attention_dim}, which the transformer takes",
            )
        return cls(
            name="qwen-image",
            blocks=transformer.num_layers,
            streams=2,
            token_width=transformer.width,
            text_width=text_width,
            patch_size=transformer.patch_size,
            latent_channels=vae.z_dim,
            image_channels=vae.input_channels,
            vae_scale=vae.scale,
            vae_width=vae.base_dim,
            rope_axes=transformer.axes_dims_rope,
            position_rule="layer3d" if transformer.use_layer3d_rope else "image_index",
            zero_cond_t=transformer.zero_cond_t,
            additional_t=transformer.use_additional_t_cond,
            prompt_template=T2I.name,
        )
