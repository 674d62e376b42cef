"""The family's picture autoencoder (published as `AutoencoderKLQwenImage`), in its exact two-dimensional form.

The published model is a causal video autoencoder: each 3-D convolution pads time with zeros *in front only*. A
picture is one frame, so every temporal slice of a kernel but the last one multiplies zeros. This module therefore holds
the last slice only and runs 2-D convolutions; the result is the same to rounding, at less than half the time.
`published_shapes`, `from_published` and `to_published` translate between this form and the 5-D tensors of the files.

Shapes: B pictures, C colour channels (3, or 4 with alpha), H x W pixels, Z latent channels, h x w = H/8 x W/8 latent
pixels.
Inside a stage: F feature maps, x_BFHW.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qwenimage_core.errors import LoadError

PUBLISHED_MEAN = (
    -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
    0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
)  # fmt: skip
PUBLISHED_STD = (
    2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
    3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160,
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class VAEConfig:
    """Sizes of one VAE, under the key names of the published `vae/config.json` (its spelling `temperal` included)."""

    base_dim: int = 96
    z_dim: int = 16
    dim_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    temperal_downsample: tuple[bool, ...] = (False, True, True)
    input_channels: int = 3
    latents_mean: tuple[float, ...] = PUBLISHED_MEAN
    latents_std: tuple[float, ...] = PUBLISHED_STD

    def __post_init__(self) -> None:
        stages = len(self.dim_mult)
        if len(self.temperal_downsample) != stages - 1:
            raise LoadError(
                "the VAE's temporal flags do not match its stages",
                got=f"{len(self.temperal_downsample)} in temperal_downsample",
                expected=f"{stages - 1}, one between each two of the {stages} stages of dim_mult",
            )
        for key in ("latents_mean", "latents_std"):
            if len(getattr(self, key)) != self.z_dim:
                raise LoadError(
                    f"VAE config: wrong length of {key}", got=len(getattr(self, key)), expected=self.z_dim
                )
        if any(std <= 0 for std in self.latents_std):
            raise LoadError("VAE config: latents_std must be positive", got=min(self.latents_std))
        if self.input_channels not in (3, 4):
            raise LoadError(
                "VAE config: unknown input_channels", got=self.input_channels, expected="3 (RGB) or 4 (RGBA)"
            )

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> VAEConfig:
        """Read a `config.json`; keys of bookkeeping (leading underscore) are left out, unknown ones are an error."""
        known = {key: value for key, value in config.items() if not key.startswith("_")}
        if known.pop("attn_scales", []):
            raise LoadError(
                "this VAE has attention inside its stages (attn_scales), which no published member of the family has",
                got=config["attn_scales"],
                expected="[]",
            )
        if known.pop("dropout", 0.0):
            raise LoadError("VAE config: dropout is not supported", got=config["dropout"], expected=0.0)
        unknown = sorted(set(known) - set(cls.__dataclass_fields__))
        if unknown:
            raise LoadError(
                "VAE config: unknown keys",
                got=", ".join(unknown),
                expected=", ".join(cls.__dataclass_fields__),
                mend="check that the file is the config.json of an AutoencoderKLQwenImage",
            )
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in known.items()}
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """The `config.json` of this VAE, readable by the published class."""
        values = {key: getattr(self, key) for key in self.__dataclass_fields__}
        lists = {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}
        return {"_class_name": "AutoencoderKLQwenImage", "attn_scales": [], "dropout": 0.0, **lists}

    @classmethod
    def from_shapes(cls, shapes: Mapping[str, tuple[int, ...]]) -> VAEConfig:
        """Read the sizes from a published state dict's names and shapes.

        The latent statistics are not in any shape: the published ones are taken, which needs the published 16 channels.
        """
        try:
            base, channels = shapes["encoder.conv_in.weight"][:2]
            z_dim = shapes["post_quant_conv.weight"][0]
            last = 1 + max(
                int(name.split(".")[2]) for name in shapes if name.startswith("encoder.down_blocks.")
            )
            widths, resamplers, time_convs = [], [], []
            for i in range(last):
                prefix = f"encoder.down_blocks.{i}."
                if prefix + "resample.1.weight" in shapes:
                    resamplers.append(i)
                    time_convs.append(prefix + "time_conv.weight" in shapes)
                    widths.append(shapes[prefix + "resample.1.weight"][0])
            widths.append(shapes["encoder.norm_out.gamma"][0])
        except (KeyError, ValueError, IndexError) as error:
            raise LoadError(
                "these tensors are not those of the family's VAE",
                got=f"missing {error}",
                expected="AutoencoderKLQwenImage",
            ) from error
        if z_dim != len(PUBLISHED_MEAN):
            raise LoadError(
                "the latent statistics of this VAE are unknown",
                got=f"{z_dim} latent channels",
                expected=f"{len(PUBLISHED_MEAN)}, or a config.json with latents_mean and latents_std",
                mend="put the VAE's config.json beside its weights",
            )
        return cls(
            base_dim=base,
            z_dim=z_dim,
            dim_mult=tuple(width // base for width in widths),
            num_res_blocks=resamplers[0] if resamplers else last,
            temperal_downsample=tuple(time_convs),
            input_channels=channels,
        )

    @property
    def scale(self) -> int:
        """Picture pixels a latent pixel, along each side (8)."""
        return 2 ** (len(self.dim_mult) - 1)


class ChannelNorm(nn.Module):
    """x / |x| * sqrt(F) * gamma, with |x| over the feature maps of one pixel; in float32 for half types as
    published."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.scale = dim**0.5
        self.gamma = nn.Parameter(torch.ones(dim, 1, 1))

    def forward(self, x_BFHW: Tensor) -> Tensor:
        dtype = x_BFHW.dtype
        x_BFHW = F.normalize(x_BFHW.float() if dtype.itemsize < 4 else x_BFHW, dim=1).to(dtype)
        return x_BFHW * (self.scale * self.gamma)


class ResBlock(nn.Module):
    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.norm1 = ChannelNorm(in_dim)
        self.conv1 = nn.Conv2d(in_dim, out_dim, 3, padding=1)
        self.norm2 = ChannelNorm(out_dim)
        self.conv2 = nn.Conv2d(out_dim, out_dim, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(in_dim, out_dim, 1) if in_dim != out_dim else nn.Identity()

    def forward(self, x_BFHW: Tensor) -> Tensor:
        inner = self.conv1(F.silu(self.norm1(x_BFHW)))
        inner = self.conv2(F.silu(self.norm2(inner)))
        return inner + self.conv_shortcut(x_BFHW)


class PixelAttention(nn.Module):
    """Single-head self-attention over the pixels of the coarsest stage."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = ChannelNorm(dim)
        self.to_qkv = nn.Conv2d(dim, dim * 3, 1)
        self.proj = nn.Conv2d(dim, dim, 1)

    def forward(self, x_BFHW: Tensor) -> Tensor:
        qkv = self.to_qkv(self.norm(x_BFHW)).flatten(2).transpose(1, 2).unsqueeze(1)  # (B, 1 head, H*W, 3F)
        q, k, v = (part.contiguous() for part in qkv.chunk(3, dim=-1))
        out = F.scaled_dot_product_attention(q, k, v).squeeze(1).transpose(1, 2)  # (B, F, H*W)
        return x_BFHW + self.proj(out.reshape(x_BFHW.shape))


class MidBlock(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.resnets = nn.ModuleList([ResBlock(dim, dim), ResBlock(dim, dim)])
        self.attentions = nn.ModuleList([PixelAttention(dim)])

    def forward(self, x_BFHW: Tensor) -> Tensor:
        return self.resnets[1](self.attentions[0](self.resnets[0](x_BFHW)))


class Downsample(nn.Module):
    """Zeros on the right and at the bottom only, then a 3 x 3 convolution of stride 2."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        # Index 1 of the published Sequential holds the weights; index 0 (padding) has none.
        self.resample = nn.ModuleList([nn.Identity(), nn.Conv2d(dim, dim, 3, stride=2)])

    def forward(self, x_BFHW: Tensor) -> Tensor:
        return self.resample[1](F.pad(x_BFHW, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Each pixel doubled along both sides, then a 3 x 3 convolution to half the feature maps."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.resample = nn.ModuleList([nn.Identity(), nn.Conv2d(dim, dim // 2, 3, padding=1)])

    def forward(self, x_BFHW: Tensor) -> Tensor:
        return self.resample[1](F.interpolate(x_BFHW, scale_factor=2.0, mode="nearest-exact"))


class UpBlock(nn.Module):
    def __init__(self, in_dim: int, out_dim: int, blocks: int, upsample: bool) -> None:
        super().__init__()
        self.resnets = nn.ModuleList([ResBlock(out_dim if i else in_dim, out_dim) for i in range(blocks)])
        self.upsamplers = nn.ModuleList([Upsample(out_dim)] if upsample else [])

    def forward(self, x_BFHW: Tensor) -> Tensor:
        for layer in (*self.resnets, *self.upsamplers):
            x_BFHW = layer(x_BFHW)
        return x_BFHW


class Encoder(nn.Module):
    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        widths = [config.base_dim * mult for mult in (1, *config.dim_mult)]
        self.conv_in = nn.Conv2d(config.input_channels, widths[0], 3, padding=1)
        layers: list[nn.Module] = []
        for stage, (in_dim, out_dim) in enumerate(pairwise(widths)):
            layers += [ResBlock(out_dim if i else in_dim, out_dim) for i in range(config.num_res_blocks)]
            if stage < len(config.dim_mult) - 1:
                layers.append(Downsample(out_dim))
        self.down_blocks = nn.ModuleList(layers)
        self.mid_block = MidBlock(widths[-1])
        self.norm_out = ChannelNorm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], config.z_dim * 2, 3, padding=1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x_BFHW = self.conv_in(x_BCHW)
        for layer in self.down_blocks:
            x_BFHW = layer(x_BFHW)
        return self.conv_out(F.silu(self.norm_out(self.mid_block(x_BFHW))))


class Decoder(nn.Module):
    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        widths = [config.base_dim * mult for mult in (config.dim_mult[-1], *reversed(config.dim_mult))]
        self.conv_in = nn.Conv2d(config.z_dim, widths[0], 3, padding=1)
        self.mid_block = MidBlock(widths[0])
        self.up_blocks = nn.ModuleList()
        for stage, (in_dim, out_dim) in enumerate(pairwise(widths)):
            entering = in_dim // 2 if stage else in_dim  # each upsampler halves the feature maps
            last = stage == len(config.dim_mult) - 1
            self.up_blocks.append(UpBlock(entering, out_dim, config.num_res_blocks + 1, upsample=not last))
        self.norm_out = ChannelNorm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], config.input_channels, 3, padding=1)

    def forward(self, z_BZhw: Tensor) -> Tensor:
        x_BFHW = self.mid_block(self.conv_in(z_BZhw))
        for block in self.up_blocks:
            x_BFHW = block(x_BFHW)
        return self.conv_out(F.silu(self.norm_out(x_BFHW)))


class QwenImageVAE(nn.Module):
    """Pictures to latents and back. Parameter names are the published ones, shapes their last temporal slice."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.quant_conv = nn.Conv2d(config.z_dim * 2, config.z_dim * 2, 1)
        self.post_quant_conv = nn.Conv2d(config.z_dim, config.z_dim, 1)
        self.decoder = Decoder(config)

    def posterior(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance (each x_BZhw) of the latents, *not* normalised; log-variance clamped to -30..20."""
        self._check(x_BCHW, self.config.input_channels, "a picture", multiple=self.config.scale)
        mean_BZhw, logvar_BZhw = self.quant_conv(self.encoder(x_BCHW)).chunk(2, dim=1)
        return mean_BZhw, logvar_BZhw.clamp(-30.0, 20.0)

    def encode(self, x_BCHW: Tensor) -> Tensor:
        """Pictures in [-1, 1] to normalised latents: the posterior's mean, shifted and scaled by the
        config's statistics."""
        mean, std = self._statistics(x_BCHW)
        return (self.posterior(x_BCHW)[0] - mean) / std

    def decode(self, z_BZhw: Tensor) -> Tensor:
        """Normalised latents to pictures around [-1, 1], not clamped."""
        self._check(z_BZhw, self.config.z_dim, "latents")
        mean, std = self._statistics(z_BZhw)
        return self.decoder(self.post_quant_conv(z_BZhw * std + mean))

    def _statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation by latent channel, (1, Z, 1, 1) each."""
        mean, std = (
            torch.tensor(values, dtype=like.dtype, device=like.device).view(1, -1, 1, 1)
            for values in (self.config.latents_mean, self.config.latents_std)
        )
        return mean, std

    @staticmethod
    def _check(x: Tensor, channels: int, what: str, multiple: int = 1) -> None:
        if x.ndim != 4 or x.shape[1] != channels or x.shape[2] % multiple or x.shape[3] % multiple:
            sides = f", sides multiples of {multiple}" if multiple > 1 else ""
            raise ValueError(
                f"the VAE takes {what} of shape (B, {channels}, height, width){sides}; got {tuple(x.shape)}"
            )


def published_shapes(config: VAEConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor of the published file, by name: 5-D convolutions and the temporal ones that a picture never runs."""
    with torch.device("meta"):
        flat = QwenImageVAE(config).state_dict()
    shapes = {name: _published_shape(name, tuple(tensor.shape)) for name, tensor in flat.items()}
    shapes.update(_time_conv_shapes(config))
    return dict(sorted(shapes.items()))


def from_published(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Published tensors to this module's: last temporal slice of each kernel; `time_conv` left out."""
    return {
        name: flatten_tensor(name, tensor) for name, tensor in tensors.items() if ".time_conv." not in name
    }


def flatten_tensor(name: str, tensor: Tensor) -> Tensor:
    """One published tensor in this module's shape. A view, so nothing is copied until it is loaded."""
    if name.endswith(".gamma"):
        return tensor.reshape(-1, 1, 1)
    return tensor[:, :, -1] if tensor.ndim == 5 else tensor


def to_published(state: Mapping[str, Tensor], config: VAEConfig) -> dict[str, Tensor]:
    """This module's tensors in the published shapes; temporal slices and layers a picture never runs are zeros."""
    published = {}
    for name, shape in published_shapes(config).items():
        like = state["encoder.conv_in.weight"]
        if ".time_conv." in name:
            published[name] = like.new_zeros(shape)
        elif len(shape) == 5:
            published[name] = like.new_zeros(shape)
            published[name][:, :, -1] = state[name]
        else:
            published[name] = state[name].reshape(shape).contiguous()
    return published


def _published_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    if name.endswith(".gamma"):
        return shape if ".attentions." in name else (*shape, 1)
    two_dimensional = (".resample.1.", ".to_qkv.", ".proj.")  # in the published model too
    if not name.endswith(".weight") or any(part in name for part in two_dimensional):
        return shape
    out_dim, in_dim, height, width = shape
    return (out_dim, in_dim, height, height, width)  # kernels are cubes: 3 x 3 x 3 or 1 x 1 x 1


def _time_conv_shapes(config: VAEConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    for stage, temporal in enumerate(config.temperal_downsample):
        if not temporal:
            continue
        width = config.base_dim * config.dim_mult[stage]
        down = f"encoder.down_blocks.{(config.num_res_blocks + 1) * (stage + 1) - 1}.time_conv"
        yield f"{down}.weight", (width, width, 3, 1, 1)
        yield f"{down}.bias", (width,)
        # The decoder mirrors the encoder: its flags and its widths run backwards.
        mirrored = len(config.temperal_downsample) - 1 - stage
        width = config.base_dim * config.dim_mult[len(config.dim_mult) - 1 - mirrored]
        up = f"decoder.up_blocks.{mirrored}.upsamplers.0.time_conv"
        yield f"{up}.weight", (2 * width, width, 3, 1, 1)
        yield f"{up}.bias", (2 * width,)
