"""Blockwise ControlNets against DiffSynth-Studio, live on equal weights: final latents, and the picture."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from PIL import Image, ImageDraw

import qwenimage_blockwise_controlnet
import qwenimage_eligen
from qwenimage_blockwise_controlnet import ControlNetInput
from qwenimage_blockwise_controlnet.model import BlockwiseControlNet
from qwenimage_core import ModelConfig, QwenImagePipeline
from qwenimage_core.testing import write_tiny_checkpoint
from tests.cases import HEIGHT, WIDTH, mask, picture

from .peers import assert_drawn_alike, diffsynth_pipeline, draw, side_nets, tanh_gelu

pytest.importorskip("diffsynth")

SHARED: dict[str, Any] = {
    "prompt": "a red circle and a blue square",
    "negative_prompt": "blurred",
    "height": HEIGHT,
    "width": WIDTH,
    "num_inference_steps": 5,
    "seed": 7,
    "progress_bar_cmd": iter,
}
EDGES = {"controlnet_id": 0, "image": picture().transpose(Image.Transpose.ROTATE_180)}
INPAINT = {"controlnet_id": 1, "image": picture(), "inpaint_mask": mask().convert("RGB")}
AREA = Image.new("RGB", (WIDTH, HEIGHT))
ImageDraw.Draw(AREA).ellipse((8, 30, 80, 120), fill="white")
ENTITIES = {"eligen_entity_prompts": ["a circle", "sky"], "eligen_entity_masks": [AREA, AREA.rotate(180)]}

# Our fields; `inputs` become ControlNetInputs of either side.
CASES: dict[str, dict[str, Any]] = {
    "edges": {"inputs": [EDGES]},
    "without guidance": {"inputs": [EDGES], "cfg_scale": 1.0, "negative_prompt": ""},
    "inpaint": {"inputs": [INPAINT]},
    "inpaint, the mask of another size": {
        "inputs": [INPAINT | {"inpaint_mask": mask().convert("RGB").resize((66, 88))}]
    },
    "inpaint, with the latents kept too": {
        "inputs": [INPAINT],
        "input_image": picture(),
        "inpaint_mask": mask(),
    },
    "both, scaled": {"inputs": [EDGES | {"scale": 0.6}, INPAINT | {"scale": 1.3}]},
    "the same twice": {"inputs": [EDGES, EDGES | {"scale": -0.4, "image": picture()}]},
    "the first half of the steps": {"inputs": [EDGES | {"end": 0.5}]},
    "windows apart": {"inputs": [EDGES | {"start": 0.3}, INPAINT | {"start": 0.8, "end": 0.2}]},
    "two steps": {"inputs": [EDGES | {"end": 0.5}], "num_inference_steps": 2},
    "from a picture": {"inputs": [EDGES], "input_image": picture(), "denoising_strength": 0.6},
    "with entities": {"inputs": [EDGES, INPAINT], **ENTITIES},
    "with entities on both branches": {"inputs": [EDGES], **ENTITIES, "eligen_enable_on_negative": True},
}


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[QwenImagePipeline, Any]:
    """Ours and theirs on a tiny model with two ControlNets."""
    folder = write_tiny_checkpoint(tmp_path_factory.mktemp("base") / "model", seed=2)
    files, side = side_nets(folder)
    ours = QwenImagePipeline.from_pretrained(
        model_configs=[
            ModelConfig(path=path)
            for path in (*(folder / name for name in ("transformer", "text_encoder", "vae")), *files)
        ],
        tokenizer_config=ModelConfig(path=folder / "tokenizer"),
        torch_dtype=torch.float32,
        device="cpu",
        plugins=[qwenimage_blockwise_controlnet, qwenimage_eligen],
    )
    theirs = tanh_gelu(diffsynth_pipeline(folder))
    theirs.blockwise_controlnet = side
    return ours, theirs


@pytest.mark.parametrize("case", CASES)
def test_pictures_and_latents_equal_diffsynth(case: str, both: tuple[QwenImagePipeline, Any]) -> None:
    from diffsynth.utils.controlnet import ControlNetInput as TheirInput

    ours, theirs = both
    fields = {**SHARED, **CASES[case]}
    inputs = fields.pop("inputs")
    drawn = draw(theirs, **fields, blockwise_controlnet_inputs=[TheirInput(**given) for given in inputs])
    fields["blockwise_controlnet_inputs"] = [ControlNetInput(**given) for given in inputs]
    assert_drawn_alike(case, ours, fields, *drawn)


def test_the_comparison_would_notice_a_missing_controlnet(both: tuple[QwenImagePipeline, Any]) -> None:
    ours, _ = both
    plain = ours(**SHARED, output_type="latent")
    guided = ours(**SHARED, blockwise_controlnet_inputs=[EDGES], output_type="latent")
    assert (plain - guided).abs().max() > 0.05


@pytest.mark.parametrize("more", [0, 4])
def test_full_size_names_and_shapes_equal_diffsynth(more: int) -> None:
    from diffsynth.models.qwen_image_controlnet import QwenImageBlockWiseControlNet

    with torch.device("meta"):
        peer, net = (
            QwenImageBlockWiseControlNet(additional_in_dim=more),
            BlockwiseControlNet(channels=64 + more),
        )
    shapes = {name: tensor.shape for name, tensor in peer.state_dict().items()}
    assert {name: tensor.shape for name, tensor in net.state_dict().items()} == shapes
    assert len(shapes) == 362
