"""Blockwise ControlNets against DiffSynth-Studio, live on equal weights: final latents, and the picture."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import qwenimage_blockwise_controlnet
import qwenimage_eligen
from qwenimage_blockwise_controlnet import ControlNetInput
from qwenimage_blockwise_controlnet.model import BlockwiseControlNet
from qwenimage_core import ModelConfig, QwenImagePipeline
from qwenimage_core.testing import write_tiny_checkpoint
from tests.plugin_cases import CONTROLNET, EDGES, SEED_OF_WEIGHTS

from .peers import assert_drawn_alike, diffsynth_pipeline, draw, side_nets, tanh_gelu

pytest.importorskip("diffsynth")


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[QwenImagePipeline, Any]:
    """Ours and theirs on a tiny model with two ControlNets."""
    folder = write_tiny_checkpoint(tmp_path_factory.mktemp("base") / "model", seed=SEED_OF_WEIGHTS)
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


@pytest.mark.parametrize("case", CONTROLNET.given)
def test_pictures_and_latents_equal_diffsynth(case: str, both: tuple[QwenImagePipeline, Any]) -> None:
    from diffsynth.utils.controlnet import ControlNetInput as TheirInput

    ours, theirs = both
    _, fields = CONTROLNET.request(case)
    inputs = fields.pop("inputs")
    drawn = draw(theirs, **fields, blockwise_controlnet_inputs=[TheirInput(**given) for given in inputs])
    fields["blockwise_controlnet_inputs"] = [ControlNetInput(**given) for given in inputs]
    assert_drawn_alike(case, ours, fields, *drawn)


def test_the_comparison_would_notice_a_missing_controlnet(both: tuple[QwenImagePipeline, Any]) -> None:
    ours, _ = both
    plain = ours(**CONTROLNET.shared, output_type="latent")
    guided = ours(**CONTROLNET.shared, blockwise_controlnet_inputs=[EDGES], output_type="latent")
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
