"""The LoRA of pictures together with other plugins against DiffSynth-Studio, live on equal weights.

The peer makes such a LoRA in one run and loads its file for another: it is given the file of ours, whose tensors
test_i2l.py holds to the peer's own.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from qwenimage_core import QwenImagePipeline
from qwenimage_core.adapters.convert import save_lora
from tests.composition.conftest import PLUGINS
from tests.composition.models import CONTROLNETS, LIGHTNING, Family, open_pipe, write_models
from tests.composition.pairs import FIELDS, PROMPT, SMALL, Plugin

from .peers import assert_drawn_alike, diffsynth_pipeline, draw, tanh_gelu

pytest.importorskip("diffsynth")

STRENGTH = (
    0.05  # changes weights by about as much as they are: a random LoRA of unit gain is twenty times as large
)
OTHERS: dict[Plugin, Family] = {
    "edit": "edit-2509",
    "layered": "layered",
    "eligen": "edit-2509",
    "blockwise-controlnet": "edit-2509",
    "in-context-control": "edit-2509",
    "lightning": "edit-2509",
}

Both = Callable[[Family, bool], tuple[QwenImagePipeline, Any]]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Both:
    """Ours, and theirs with the LoRA of the pictures and, where asked for, a Lightning file in its weights."""
    models = tmp_path_factory.mktemp("models")

    @cache
    def make(family: Family, lightning: bool) -> tuple[QwenImagePipeline, Any]:
        from diffsynth.diffusion import FlowMatchScheduler

        base = write_models(models / str(lightning), family)
        ours = open_pipe(base, PLUGINS)
        ours.prompts.positions = "flat"  # as the peer under transformers 5
        theirs = tanh_gelu(diffsynth_pipeline(base))
        theirs.blockwise_controlnet = controlnet(base / CONTROLNETS[0])
        (adapter,) = ours.plan(PROMPT, **SMALL, **FIELDS["i2l"](base)).adapters
        file = base / "lora.safetensors"
        save_lora(adapter.read(ours.components["transformer"][0].module), file, "diffsynth")
        theirs.load_lora(theirs.dit, str(file), alpha=STRENGTH)
        if lightning:
            theirs.load_lora(theirs.dit, str(base / LIGHTNING[family]))
            theirs.scheduler = FlowMatchScheduler("Qwen-Image-Lightning")
        return ours, theirs

    return make


def controlnet(file: Path) -> Any:
    from diffsynth.models.qwen_image_controlnet import QwenImageBlockWiseControlNet
    from diffsynth.pipelines.qwen_image import QwenImageBlockwiseMultiControlNet

    net = QwenImageBlockWiseControlNet(num_layers=2, additional_in_dim=0, dim=64)
    net.load_state_dict(load_file(file))
    return QwenImageBlockwiseMultiControlNet([net])


@pytest.mark.parametrize("other", OTHERS)
def test_pictures_and_latents_equal_diffsynth(other: Plugin, both: Both) -> None:
    from diffsynth.utils.controlnet import ControlNetInput as TheirInput

    ours, theirs = both(OTHERS[other], other == "lightning")
    base = ours.components["transformer"][0].checkpoint.files[0].parents[1]
    given = FIELDS[other](base)
    shared = {"prompt": PROMPT, **SMALL, "num_inference_steps": 4}
    shared |= {"cfg_scale": 1.0} if other == "lightning" else {}
    peers = {name: value for name, value in given.items() if name != "lightning"}
    if inputs := peers.pop("blockwise_controlnet_inputs", None):
        peers["blockwise_controlnet_inputs"] = [TheirInput(**i) for i in inputs]
    if masks := peers.pop("eligen_entity_masks", None):
        peers["eligen_entity_masks"] = [mask.convert("RGB") for mask in masks]
    images, latents = draw(theirs, **shared, **peers)
    mine = {**shared, **given, **FIELDS["i2l"](base), "i2l_strength": STRENGTH}
    assert_drawn_alike(f"i2l, {other}", ours, mine, images, latents)
