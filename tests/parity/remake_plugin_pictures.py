"""Draw the stored pictures of the plugins with DiffSynth-Studio, in the peers' environment:

python -m tests.parity.remake_plugin_pictures
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from PIL import Image

from qwenimage_core.testing import write_tiny_checkpoint
from tests.plugin_cases import (
    LIGHTNING,
    LIGHTNING_FILE,
    PICTURES,
    SEED_OF_WEIGHTS,
    STORED,
    Stored,
    write_lightning,
)

from .peers import diffsynth_pipeline, draw, side_nets, tanh_gelu


def drawn_by_diffsynth(stored: Stored, folder: Path) -> list[Image.Image]:
    """Its pictures, one a layer, by a pipeline made for this case: it keeps positions and LoRAs of earlier runs."""
    from diffsynth.diffusion import FlowMatchScheduler
    from diffsynth.utils.controlnet import ControlNetInput

    variant, fields = stored.request()
    write_tiny_checkpoint(folder, variant=variant, seed=SEED_OF_WEIGHTS)
    pipe = tanh_gelu(diffsynth_pipeline(folder))
    more: dict[str, Any] = {}
    if inputs := fields.pop("inputs", None):
        _, pipe.blockwise_controlnet = side_nets(folder)
        more["blockwise_controlnet_inputs"] = [ControlNetInput(**given) for given in inputs]
    if stored.table is LIGHTNING:
        file = write_lightning(folder / LIGHTNING_FILE.format(fields["num_inference_steps"]))
        pipe.load_lora(pipe.dit, str(file))
        pipe.scheduler = FlowMatchScheduler("Qwen-Image-Lightning")
        more["cfg_scale"] = 1.0
    images, _ = draw(pipe, **fields, **more)
    return images


def remake_pictures() -> None:
    """Write all of them to tests/data/plugins, numbered from 1."""
    PICTURES.mkdir(parents=True, exist_ok=True)
    for old in PICTURES.glob("*.png"):
        old.unlink()
    for name, stored in STORED.items():
        with tempfile.TemporaryDirectory() as scratch:
            images = drawn_by_diffsynth(stored, Path(scratch) / "model")
        for number, image in enumerate(images, 1):
            image.save(PICTURES / f"{name}-{number}.png", optimize=True)


if __name__ == "__main__":
    remake_pictures()
