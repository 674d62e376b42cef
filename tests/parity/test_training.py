"""The loss of flow matching and its gradients against DiffSynth-Studio's own code, on equal weights, noise and
timestep: within 1e-5 in float32, for every variant that both train."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

import qwenimage_blockwise_controlnet
import qwenimage_edit
import qwenimage_eligen
import qwenimage_in_context_control
import qwenimage_layered
from qwenimage_core import ModelConfig, QwenImagePipeline
from qwenimage_core.latents import pack
from qwenimage_core.testing import write_tiny_checkpoint
from qwenimage_training.data.rows import Row
from qwenimage_training.encoded import VelocityModel, encode_sample
from qwenimage_training.objectives.sft import FlowMatching
from qwenimage_training.sample import Planner

from .peers import diffsynth_pipeline, side_nets, tanh_gelu

pytest.importorskip("diffsynth")

SIZE = (96, 64)
PLACES = (3, 420, 998)  # entries of the table of 1000: near pure noise, in the middle, near the picture
PLUGINS = [
    qwenimage_blockwise_controlnet,
    qwenimage_edit,
    qwenimage_eligen,
    qwenimage_in_context_control,
    qwenimage_layered,
]


def picture(seed: int = 0, mode: str = "RGB", size: tuple[int, int] = SIZE) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1] // 8, size[0] // 8, 4), dtype=np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).convert(mode)


def disc(bounds: tuple[int, int, int, int]) -> Image.Image:
    mask = Image.new("RGB", SIZE)
    ImageDraw.Draw(mask).ellipse(bounds, fill="white")
    return mask


ENTITIES = {
    "eligen_entity_prompts": ["a red circle", "a blue square with a long description"],
    "eligen_entity_masks": [disc((4, 4, 44, 60)), disc((50, 20, 90, 60))],
}
INPAINT = {
    "blockwise_controlnet_image": picture(2),
    "blockwise_controlnet_inpaint_mask": disc((10, 10, 60, 60)),
    "blockwise_controlnet_controlnet_id": 1,
}
LAYERS = {"layer_input_image": picture(2, "RGBA"), "layer_num": 2}
# variant of the checkpoint, the target, and the row's columns that become inputs
CASES: dict[str, tuple[str, Any, dict[str, Any]]] = {
    "base": ("base", picture(), {}),
    "edit": ("edit", picture(), {"edit_image": picture(1)}),
    "edit-2509": ("edit-2509", picture(), {"edit_image": [picture(1), picture(2, size=(64, 128))]}),
    "edit-2511": ("edit-2511", picture(), {"edit_image": [picture(1)]}),
    "eligen": ("base", picture(), ENTITIES),
    "controlnet": ("base", picture(), {"blockwise_controlnet_image": picture(2)}),
    "controlnet inpaint": ("base", picture(), INPAINT),
    "in-context control": ("base", picture(), {"context_image": picture(3)}),
    "layered": ("layered", [picture(i, "RGBA") for i in range(3)], LAYERS),
    "layered control": ("layered", [picture(1, "RGBA")], {**LAYERS, "layer_num": 0}),
}


class Both:
    """Ours and theirs on one checkpoint, with two ControlNets where it takes them."""

    def __init__(self, folder: Path, variant: str) -> None:
        write_tiny_checkpoint(folder, variant=variant, seed=2)  # type: ignore[arg-type]
        files, side = side_nets(folder) if variant == "base" else ([], None)
        parts = [folder / name for name in ("transformer", "text_encoder", "vae")]
        self.ours = QwenImagePipeline.from_pretrained(
            model_configs=[ModelConfig(path=path) for path in (*parts, *files)],
            tokenizer_config=ModelConfig(path=folder / "tokenizer"),
            processor_config=ModelConfig(path=folder / "processor"),
            torch_dtype=torch.float32,
            device="cpu",
            plugins=PLUGINS,
        )
        self.ours.prompts.positions = "flat"  # as the peer counts under transformers 5
        self.theirs = tanh_gelu(diffsynth_pipeline(folder))
        self.theirs.scheduler.set_timesteps(1000, training=True)
        self.variant = variant
        modules = {"dit": (self.ours.components["transformer"][0].load(whole=True), self.theirs.dit)}
        if side is not None:
            self.theirs.blockwise_controlnet = side
            nets = self.ours.components["blockwise_controlnet"]
            modules |= {
                f"controlnet {i}": (net.load(whole=True), side.models[i]) for i, net in enumerate(nets)
            }
        self.modules = modules
        for pair in modules.values():
            for module in pair:
                module.requires_grad_(True)

    def gradients(self, which: int) -> dict[str, torch.Tensor]:
        """By name, of those weights that got any; then they are forgotten."""
        found = {}
        for name, pair in self.modules.items():
            for weight, parameter in pair[which].named_parameters():
                if parameter.grad is not None:
                    found[f"{name}.{weight}"] = parameter.grad
                    parameter.grad = None
        return found

    def loss(self, target: Any, columns: dict[str, Any], place: int, noise_FZhw: torch.Tensor) -> float:
        planner = Planner(self.ours, columns, FlowMatching().fixed)
        sample = planner.plan(Row(0, "a cat on a mat", {"image": target, **columns}), "row")
        encoded = encode_sample(sample, dtype=torch.float32, device=torch.device("cpu"))
        transformer: Any = self.ours.components["transformer"][0].module
        velocity = VelocityModel(transformer, checkpointing=True, offload=False)
        noise_1NC = pack(noise_FZhw[None])
        loss_1 = FlowMatching().losses_at(velocity, [encoded], [place], [noise_1NC])
        loss_1.mean().backward()
        return loss_1.item()

    def their_loss(
        self,
        target: Any,
        columns: dict[str, Any],
        place: int,
        noise_FZhw: torch.Tensor,
        patch: pytest.MonkeyPatch,
    ) -> float:
        """Their units in their order, as their training script runs them, then their loss with draws of ours."""
        from diffsynth.diffusion.loss import FlowMatchSFTLoss

        first = target[0] if isinstance(target, list) else target
        shared: dict[str, Any] = {
            "cfg_scale": 1,
            "rand_device": "cpu",
            "use_gradient_checkpointing": False,
            "use_gradient_checkpointing_offload": False,
            "edit_image_auto_resize": True,
            "zero_cond_t": self.variant == "edit-2511",
            "input_image": target,
            "height": first.height,
            "width": first.width,
            **their_inputs(columns),
        }
        state = shared, {"prompt": "a cat on a mat"}, {"negative_prompt": ""}
        with torch.no_grad():
            for unit in self.theirs.units:
                state = self.theirs.unit_runner(unit, self.theirs, *state)
        shared, positive, _ = state
        patch.setattr(torch, "randint", lambda *_, **__: torch.tensor([place]))
        patch.setattr(torch, "randn_like", lambda _: noise_FZhw)
        loss = FlowMatchSFTLoss(self.theirs, **shared, **positive)
        patch.undo()
        loss.backward()
        return loss.item()


def their_inputs(columns: dict[str, Any]) -> dict[str, Any]:
    from diffsynth.utils.controlnet import ControlNetInput

    prefix = "blockwise_controlnet_"
    control = {k.removeprefix(prefix): v for k, v in columns.items() if k.startswith(prefix)}
    rest = {k: v for k, v in columns.items() if not k.startswith(prefix)}
    return rest | ({"blockwise_controlnet_inputs": [ControlNetInput(**control)]} if control else {})


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Any:
    made: dict[str, Both] = {}

    def make(variant: str) -> Both:
        if variant not in made:
            made[variant] = Both(tmp_path_factory.mktemp("models") / variant, variant)
        return made[variant]

    return make


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradients_equal_diffsynth(
    case: str, place: int, both: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    variant, target, columns = CASES[case]
    pair = both(variant)
    frames = len(target) if isinstance(target, list) else 1
    noise_FZhw = torch.randn(
        frames, 16, SIZE[1] // 8, SIZE[0] // 8, generator=torch.Generator().manual_seed(5)
    )
    ours = pair.loss(target, columns, place, noise_FZhw)
    theirs = pair.their_loss(target, columns, place, noise_FZhw, monkeypatch)
    found, expected = pair.gradients(0), pair.gradients(1)
    assert abs(ours - theirs) <= 1e-5
    assert set(found) <= set(expected)
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    for name, gradient in expected.items():
        # the peer computes the text half of the last block, which nobody reads: its gradients are zero
        difference = float((found.get(name, torch.zeros(())) - gradient).abs().max())
        assert difference <= min(1e-5, 1e-4 * largest), name


def test_the_comparison_would_notice_the_next_entry_of_the_table(
    both: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise_FZhw = torch.randn(1, 16, SIZE[1] // 8, SIZE[0] // 8, generator=torch.Generator().manual_seed(5))
    pair = both("base")
    ours = pair.loss(picture(), {}, 421, noise_FZhw)
    assert abs(ours - pair.their_loss(picture(), {}, 420, noise_FZhw, monkeypatch)) > 1e-4


def test_the_table_equals_diffsynth(both: Any) -> None:
    scheduler = both("base").theirs.scheduler
    sigmas, weights = FlowMatching().table
    torch.testing.assert_close(torch.tensor(sigmas) * 1000, scheduler.timesteps, rtol=0, atol=1e-3)
    expected = [float(scheduler.training_weight(t)) for t in scheduler.timesteps]
    assert weights == pytest.approx(expected, abs=1e-4)


def test_rounded_timesteps_equal_diffsynth_in_bfloat16(both: Any) -> None:
    """What its pipeline, which is always in bfloat16, makes of each entry: level, what the model is told, weight."""
    scheduler = both("base").theirs.scheduler
    rounding = FlowMatching(bf16_timesteps=True)
    for place in range(0, 1000, 7):
        t = scheduler.timesteps[place].to(torch.bfloat16)
        zero, one = torch.zeros(1), torch.ones(1)
        sigma, told, weight = rounding.level(place)
        assert sigma == pytest.approx(float(scheduler.add_noise(zero, one, t)), abs=1e-5)
        assert told == float(t) / 1000
        assert weight == pytest.approx(float(scheduler.training_weight(t)), abs=1e-4)
