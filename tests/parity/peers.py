"""The peers' pipelines on the same tiny checkpoint, in float32 on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from qwenimage_core.loading.shards import read_json
from qwenimage_core.models.transformer_config import TransformerConfig
from qwenimage_core.models.vae import VAEConfig
from tests.cases import assert_pictures_equal
from tests.composition.models import BLOCKS, WIDTH, write_controlnets


def diffusers_pipeline(folder: Path, name: str = "QwenImagePipeline", **parts: Any) -> Any:
    """A diffusers pipeline of a hub-layout folder; `parts` are components its model_index.json does not list."""
    import diffusers

    pipe = getattr(diffusers, name).from_pretrained(folder, torch_dtype=torch.float32, **parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def diffsynth_pipeline(folder: Path) -> Any:
    """DiffSynth-Studio's pipeline, with its modules at the sizes of the checkpoint. Its transformer keeps its own
    activation (sigmoid GELU): compare with `activation="quick_gelu"`, or use `tanh_gelu` on its blocks."""
    import transformers
    from diffsynth.models.qwen_image_vae import QwenImageVAE
    from diffsynth.pipelines.qwen_image import QwenImagePipeline

    pipe = QwenImagePipeline(device="cpu", torch_dtype=torch.float32)
    pipe.tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "tokenizer")
    images = transformers.Qwen2VLImageProcessorPil(min_pixels=56 * 56, max_pixels=12_845_056)
    pipe.processor = transformers.Qwen2VLProcessor(
        images, pipe.tokenizer, transformers.Qwen2VLVideoProcessor()
    )
    whole = transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained(folder / "text_encoder").eval()
    pipe.text_encoder = _TextEncoder(whole)
    config = TransformerConfig.from_dict(read_json(folder / "transformer" / "config.json"))
    pipe.dit = diffsynth_transformer(config)
    pipe.dit.load_state_dict(_weights(folder / "transformer"))
    vae = VAEConfig.from_dict(read_json(folder / "vae" / "config.json"))
    pipe.vae = QwenImageVAE(base_dim=vae.base_dim, image_channels=vae.input_channels).eval()
    pipe.vae.load_state_dict(_weights(folder / "vae"))
    return pipe


class _TextEncoder(torch.nn.Module):
    """Gives the hidden states as a list, as DiffSynth-Studio's own wrapper does."""

    def __init__(self, whole: torch.nn.Module) -> None:
        super().__init__()
        self.whole = whole

    def forward(self, **inputs: Any) -> Any:
        return self.whole.model(**inputs).hidden_states


def diffsynth_transformer(config: TransformerConfig) -> torch.nn.Module:
    """DiffSynth-Studio's transformer at small width, made of its own modules."""
    from diffsynth.models import qwen_image_dit as dit

    width, inner, layered = config.width, config.joint_attention_dim, config.use_layer3d_rope
    peer = dit.QwenImageDiT(num_layers=0, use_layer3d_rope=layered, use_additional_t_cond=layered)
    rope = dit.QwenEmbedLayer3DRope if layered else dit.QwenEmbedRope
    peer.pos_embed = rope(theta=10000, axes_dim=list(config.axes_dims_rope), scale_rope=True)
    peer.time_text_embed = dit.TimestepEmbeddings(
        256,
        width,
        diffusers_compatible_format=True,
        scale=1000,
        align_dtype_to_timestep=False,
        use_additional_t_cond=layered,
    )
    peer.txt_norm = dit.RMSNorm(inner, eps=1e-6)
    peer.img_in, peer.txt_in = torch.nn.Linear(config.in_channels, width), torch.nn.Linear(inner, width)
    heads, head_dim = config.num_attention_heads, config.attention_head_dim
    peer.transformer_blocks = torch.nn.ModuleList(
        dit.QwenImageTransformerBlock(dim=width, num_attention_heads=heads, attention_head_dim=head_dim)
        for _ in range(config.num_layers)
    )
    peer.norm_out = dit.AdaLayerNorm(width, single=True)
    peer.proj_out = torch.nn.Linear(width, config.in_channels)
    return peer.eval()


def tanh_gelu(pipe: Any) -> Any:
    """Give DiffSynth-Studio's feed-forwards the published activation."""
    for module in pipe.dit.modules():
        if type(module).__name__ == "ApproximateGELU":
            module.forward = lambda x, proj=module.proj: torch.nn.functional.gelu(proj(x), approximate="tanh")
    return pipe


def draw(pipe: Any, **fields: Any) -> tuple[list[Image.Image], torch.Tensor]:
    """Pictures of DiffSynth-Studio's pipeline, one a layer, and their final latents: (pictures, Z, H/8, W/8)."""
    final: list[torch.Tensor] = []
    decode = pipe.vae.decode

    def noted(z: torch.Tensor, **options: Any) -> torch.Tensor:
        final.append(z)
        with pytest.MonkeyPatch.context() as inside:
            inside.setattr(pipe.vae, "decode", decode)  # which calls itself for every tile
            return decode(z, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipe.vae, "decode", noted)
        images = pipe(**fields)
    return images if isinstance(images, list) else [images], torch.cat(final)


def assert_drawn_alike(
    case: str, ours: Any, fields: Any, images: list[Image.Image], latents: torch.Tensor
) -> None:
    """Our pipeline's final latents and pictures of a request against those of `draw`."""
    found = ours(**fields, output_type="latent").reshape(latents.shape)
    print(f"{case}: latents differ by {(found - latents).abs().max():.1e} of {latents.abs().max():.1f}")
    torch.testing.assert_close(found, latents, atol=1e-4, rtol=0)
    drawn = ours(**fields)
    for one, other in zip(drawn if isinstance(drawn, list) else [drawn], images, strict=True):
        assert_pictures_equal(one, other)


def side_nets(folder: Path) -> tuple[list[Path], Any]:
    """Files of two random ControlNets of ours, of 64 and 68 channels, in a folder; and DiffSynth-Studio's module of
    them."""
    from diffsynth.models.qwen_image_controlnet import QwenImageBlockWiseControlNet
    from diffsynth.pipelines.qwen_image import QwenImageBlockwiseMultiControlNet

    files = write_controlnets(folder)
    nets = [
        QwenImageBlockWiseControlNet(num_layers=BLOCKS, additional_in_dim=more, dim=WIDTH) for more in (0, 4)
    ]
    for net, file in zip(nets, files, strict=True):
        net.load_state_dict(load_file(file))
    return files, QwenImageBlockwiseMultiControlNet(nets)


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    return {k: v for file in sorted(folder.glob("*.safetensors")) for k, v in load_file(file).items()}
