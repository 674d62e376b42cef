"""One process of torchrun: draws every case with one pipeline and keeps the latents.

worker.py PARALLEL MODEL LORA FOLDER; alone (no torchrun) with PARALLEL "none".
"""

from __future__ import annotations

import atexit
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import save_file

import qwenimage_edit
import qwenimage_eligen
from qwenimage_core import QwenImagePipeline
from qwenimage_core.adapters.lora import Adapter
from qwenimage_core.adapters.weights import Kronecker, LoraWeights
from qwenimage_core.context import Context
from qwenimage_core.errors import QwenImageError
from qwenimage_core.hooks import hookimpl
from qwenimage_core.inputs import encode
from qwenimage_core.registry import PluginRegistry
from qwenimage_core.request import FieldsModel
from qwenimage_core.values import Residual
from qwenimage_core.velocity import bind


class Push:
    """A residual in which every noise token depends on all others, so that a share of them would not do."""

    NAME = "push"

    class Fields(FieldsModel):
        push: float | None = None

    @hookimpl
    def request_fields(self) -> type[FieldsModel]:
        return self.Fields

    @hookimpl
    def residual_inject(self, ctx: Context) -> Sequence[Residual]:
        def delta(block: int, step: int, tokens: torch.Tensor, *inputs: Any) -> torch.Tensor:
            return ctx.request.push * torch.tanh(tokens.cumsum(dim=1).roll(3, dims=1))

        return [Residual(name="push", delta=delta)]


def gradient() -> Image.Image:
    return Image.merge("RGB", [Image.linear_gradient("L").rotate(90 * i).resize((64, 48)) for i in range(3)])


def cases() -> dict[str, dict[str, Any]]:
    """An odd number of tokens of every kind somewhere, guidance everywhere but in `odd`."""
    left = Image.new("L", (48, 80))
    left.paste(255, (0, 0, 24, 80))
    reference = {"edit_image": gradient(), "edit_image_auto_resize": False}
    entities = {
        "eligen_entity_prompts": ["a cat", "a tall dog"],
        "eligen_entity_masks": [left, left.rotate(180)],
    }
    return {
        "plain": {},
        "odd": {"cfg_scale": 1.0, "prompt": "seven"},
        "reference": reference,
        "entities": entities,
        "residual": {"push": 0.5, **reference},
        "lora": {"lora": True, **reference, **entities},
    }


def refusals(pipe: QwenImagePipeline, lora: str) -> list[str]:
    """Which of these are errors: a LoRA merged into weights, a Kronecker product, gradients."""
    pipe.clear_lora()
    found = []
    try:
        pipe.load_lora(lora, mode="merged")
    except QwenImageError:
        found.append("merged")
    pipe.clear_lora()
    product = Kronecker(torch.randn(8, 8), torch.randn(8, 8), alpha=None)
    pipe.adapters.load(
        Adapter(name="product", weights=LoraWeights({"transformer_blocks.0.attn.to_k": product}))
    )
    try:
        pipe("a red circle", height=32, width=32, num_inference_steps=1, progress_bar_cmd=iter)
    except QwenImageError:
        found.append("product")
    pipe.clear_lora()
    transformer = pipe.components["transformer"][0].module
    plan = pipe.plan("a red circle", height=32, width=32, num_inference_steps=1, seed=1)
    inputs = encode(plan, dtype=torch.float32, device=torch.device("cpu"))
    try:
        bind(transformer, plan, inputs)(inputs.latents_BNC, 0)
    except QwenImageError:
        found.append("gradients")
    return found


def keep_threads(file: Path) -> None:
    """Which threads of gloo are still there (Linux says)."""
    tasks = Path("/proc/self/task")
    names = [(task / "comm").read_text().strip() for task in tasks.iterdir()] if tasks.exists() else []
    file.write_text(json.dumps([name for name in names if "gloo" in name]))


def main(parallel: str, model: str, lora: str, folder: str) -> None:
    rank = os.environ.get("RANK", "0")
    # registered before the group is joined, so that it runs after all that a pipeline does at the exit
    atexit.register(keep_threads, Path(folder) / f"{parallel}-{rank}-threads.json")
    plugins: Any = PluginRegistry.discover([qwenimage_edit, qwenimage_eligen, Push()], disable_all=True)
    pipe = QwenImagePipeline.from_pretrained(
        model, device="cpu", plugins=plugins, parallel=None if parallel == "none" else parallel
    )
    found = {}
    for name, case in cases().items():
        if case.pop("lora", False):
            pipe.load_lora(lora)
        fields = {
            "prompt": "a red circle",
            "height": 80,
            "width": 48,
            "num_inference_steps": 2,
            "seed": 1,
            **case,
        }
        found[name] = pipe(**fields, output_type="latent", progress_bar_cmd=iter).contiguous()
        found[f"{name} picture"] = pipe(**fields, output_type="tensor", progress_bar_cmd=iter).contiguous()
    blocks = pipe.components["transformer"][0].module.transformer_blocks
    held = sum(getattr(p, "_local_tensor", p).numel() for p in blocks[0].attn.parameters())
    drawn = pipe.plans("no seed given", height=32, width=32, num_inference_steps=1)[0].seeds[0]
    refused = refusals(pipe, lora) if parallel != "none" else []
    save_file(found, Path(folder) / f"{parallel}-{rank}.safetensors")
    (Path(folder) / f"{parallel}-{rank}.json").write_text(
        json.dumps({"held": held, "seed": drawn, "refused": refused})
    )
    if parallel == "tensor":  # the other way ends without it, as after an error
        assert pipe.group is not None
        pipe.group.leave()


if __name__ == "__main__":
    main(*sys.argv[1:])
