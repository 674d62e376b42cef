"""Lightning against DiffSynth-Studio, live on equal weights: final latents, and the picture."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import qwenimage_lightning
from qwenimage_core import QwenImagePipeline
from qwenimage_core.testing import write_tiny_checkpoint
from tests.cases import assert_pictures_equal
from tests.plugin_cases import LIGHTNING, LIGHTNING_FILE, SEED_OF_WEIGHTS, write_lightning

from .peers import diffsynth_pipeline, tanh_gelu

pytest.importorskip("diffsynth")


@pytest.mark.parametrize("case", LIGHTNING.given)
def test_pictures_and_latents_equal_diffsynth(case: str, tmp_path: Path) -> None:
    from diffsynth.diffusion import FlowMatchScheduler

    _, fields = LIGHTNING.request(case)
    steps = fields.pop("num_inference_steps")
    folder = write_tiny_checkpoint(tmp_path / "model", seed=SEED_OF_WEIGHTS)
    file = write_lightning(tmp_path / LIGHTNING_FILE.format(steps))
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
