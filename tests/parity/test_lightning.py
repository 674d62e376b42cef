"""Lightning against DiffSynth-Studio, live on equal weights: final latents, and the picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import qwenimage_lightning
from qwenimage_core import QwenImagePipeline
from qwenimage_core.testing import write_tiny_checkpoint
from tests.cases import SHARED, assert_pictures_equal, picture

from .peers import diffsynth_pipeline, tanh_gelu

pytest.importorskip("diffsynth")

CASES: dict[str, dict[str, Any]] = {
    "4 steps": {"num_inference_steps": 4},
    "8 steps": {"num_inference_steps": 8},
    "from a picture": {"num_inference_steps": 4, "input_image": picture(), "denoising_strength": 0.7},
}


def lora(path: Path) -> Path:
    """With the published keys: down, up, and an alpha that is an eighth of the rank."""
    draw = torch.Generator().manual_seed(1)
    tensors = {}
    for block in range(2):
        for module, outer, inner in (
            ("attn.to_q", 64, 64),
            ("img_mlp.net.2", 64, 256),
            ("attn.add_v_proj", 64, 64),
        ):
            name = f"transformer_blocks.{block}.{module}"
            tensors[f"{name}.lora_down.weight"] = torch.randn(8, inner, generator=draw) * inner**-0.5
            tensors[f"{name}.lora_up.weight"] = torch.randn(outer, 8, generator=draw)
            tensors[f"{name}.alpha"] = torch.tensor(1.0)
    save_file(tensors, path)
    return path


@pytest.mark.parametrize("case", CASES)
def test_pictures_and_latents_equal_diffsynth(case: str, tmp_path: Path) -> None:
    from diffsynth.diffusion import FlowMatchScheduler

    fields = {**SHARED, **CASES[case]}
    steps = fields.pop("num_inference_steps")
    folder = write_tiny_checkpoint(tmp_path / "model", seed=2)
    file = lora(tmp_path / f"Qwen-Image-Lightning-{steps}steps-V1.0.safetensors")
    ours = QwenImagePipeline.from_pretrained(
        str(folder), torch_dtype=torch.float32, device="cpu", plugins=[qwenimage_lightning]
    )
    theirs = tanh_gelu(diffsynth_pipeline(folder))
    theirs.load_lora(theirs.dit, str(file))
    theirs.scheduler = FlowMatchScheduler("Qwen-Image-Lightning")
    final: list[torch.Tensor] = []
    decode = theirs.vae.decode
    theirs.vae.decode = lambda latents, **options: (final.append(latents), decode(latents, **options))[1]
    expected = theirs(**fields, num_inference_steps=steps, cfg_scale=1.0)
    latents = final.pop()[0]
    found = ours(**fields, lightning=file, output_type="latent")
    print(
        f"{case}: final latents of up to {latents.abs().max():.1f} differ by {(found - latents).abs().max():.1e}"
    )
    torch.testing.assert_close(found, latents, atol=1e-4, rtol=0)
    assert_pictures_equal(ours(**fields, lightning=file), expected)
    assert (ours(**fields, lightning=True, output_type="latent") - latents).abs().max() > 0.05, (
        "the LoRA acts"
    )
