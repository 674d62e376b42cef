"""A step of the transformer whose blocks come from disk, at the published width with 4 blocks.

Against the longer of its two parts (computing with all weights in memory; reading all blocks and doing nothing else),
and against DiffSynth-Studio's disk offload of the same file. Weights are random, stored in bfloat16 (or in the dtype
that is named), computed in float32, for a picture of 384 x 384 (or with the side that is named:
`bench_streaming.py float8_e4m3fn 256`) and 32 text tokens; modulation is a table on our side and part of the step on
theirs. Reading takes its time from the cores that compute, however large the picture is, so that a small one shows more
of it. Writes about 3 GB into a temporary folder, needs 10 GB of memory.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from diffsynth.core.vram.disk_map import DiskMap
from diffsynth.core.vram.layers import AutoWrappedLinear, AutoWrappedModule, enable_vram_management
from diffsynth.models import qwen_image_dit as dit
from diffsynth.pipelines.qwen_image import model_fn_qwen_image
from safetensors.torch import save_file
from timing import finish, machine, report, seconds
from torch import Tensor

from qwenimage_core.layout import NOISE, PROMPT, Grid, Layout, Segment
from qwenimage_core.loading.checkpoint import Checkpoint
from qwenimage_core.loading.component import Component
from qwenimage_core.loading.placement import DISK, Place, Placement
from qwenimage_core.loading.recognise import TRANSFORMER
from qwenimage_core.loading.units import units
from qwenimage_core.models.rope import rope_tables
from qwenimage_core.models.transformer import QwenImageTransformer, TransformerConfig

BLOCKS, TEXT, TIMESTEP, ROUNDS = 4, 32, 500.0, 5
SIDE = int(sys.argv[2]) // 16 if len(sys.argv) > 2 else 24  # of the picture, in tokens
OVER_THE_LONGER_PART, OVER_PEER, KEPT = 1.10, 0.6, 0.67
CONFIG = TransformerConfig(num_layers=BLOCKS)
GRID = Grid(height=SIDE, width=SIDE)


def write(folder: Path, dtype: torch.dtype) -> Path:
    """Random weights of a scale that keeps activations near 1, tensor by tensor in the published names."""
    with torch.device("meta"):
        shapes = {name: t.shape for name, t in QwenImageTransformer(CONFIG).state_dict().items()}
    draw = torch.Generator().manual_seed(0)
    tensors = {}
    for name, shape in shapes.items():
        wide = (
            torch.ones(shape) if len(shape) == 1 else torch.randn(shape, generator=draw) * shape[-1] ** -0.5
        )
        # one-dimensional ones stay exact, as in published eight-bit files
        tensors[name] = wide.to(torch.bfloat16 if len(shape) == 1 else dtype)
    save_file(tensors, folder / "model.safetensors")
    return folder / "model.safetensors"


def opened(file: Path, *, stay: int) -> Component:
    """Our transformer: `stay` blocks in memory, the others on disk."""
    disk, computing = Place(DISK, None), Place("cpu", torch.float32)
    component = Component(
        TRANSFORMER, Checkpoint.open(file), placement=Placement(disk, disk, computing, computing)
    )
    component.load(prepared=stay)
    return component


def ours(component: Component, x: Tensor, text: Tensor) -> Callable[[], Tensor]:
    module = component.module
    texts = Segment(name=PROMPT, owner="benchmark", kind="text", tokens=TEXT)
    noise = Segment(name=NOISE, owner="benchmark", kind="image", tokens=GRID.tokens, grid=GRID)
    rope = rope_tables(torch.tensor(Layout((texts, noise)).positions()), CONFIG.axes_dims_rope)
    table = module.modulation_table([TIMESTEP])
    component.once.rest()
    tokens = module.embed_text(text)
    return lambda: module(x, tokens, rope, table, noise_tokens=GRID.tokens, activation="quick_gelu")


def reading(component: Component) -> Callable[[], None]:
    def read() -> None:
        for number in range(BLOCKS):
            component.blocks.take(number)

    return read


def theirs(file: Path, x: Tensor, text: Tensor) -> Callable[[], Tensor]:
    with torch.device("meta"):
        peer = dit.QwenImageDiT(num_layers=BLOCKS)
    peer.pos_embed = dit.QwenEmbedRope(theta=10000, axes_dim=[16, 56, 56], scale_rope=True)
    computing = {"computation_dtype": torch.float32, "computation_device": "cpu"}
    on_disk = {
        f"{state}_{part}": "disk"
        for state in ("offload", "onload", "preparing")
        for part in ("dtype", "device")
    }
    maps = {torch.nn.Linear: AutoWrappedLinear, dit.RMSNorm: AutoWrappedModule}
    enable_vram_management(
        peer, maps, vram_config={**on_disk, **computing}, disk_map=DiskMap(str(file), "cpu"), vram_limit=None
    )
    for module in peer.modules():
        if hasattr(module, "onload"):
            module.onload()
    latents = x.view(SIDE, SIDE, 16, 2, 2).permute(2, 0, 3, 1, 4).reshape(1, 16, 2 * SIDE, 2 * SIDE)

    def step() -> Tensor:
        velocity = model_fn_qwen_image(
            dit=peer,
            latents=latents,
            timestep=torch.tensor([TIMESTEP]),
            prompt_emb=text,
            prompt_emb_mask=torch.ones(1, TEXT, dtype=torch.long),
            height=16 * SIDE,
            width=16 * SIDE,
        )
        return velocity.view(16, SIDE, 2, SIDE, 2).permute(1, 3, 0, 2, 4).reshape(x.shape)

    return step


def kept_share() -> float:
    """At full size, of all weights in one dtype: what the modulation table leaves."""
    with torch.device("meta"):
        whole = QwenImageTransformer(TransformerConfig())
    once = {leaf.name for unit in units(whole, TRANSFORMER.once, torch.float32) for leaf in unit.leaves}
    sizes = {name: parameter.numel() for name, parameter in whole.named_parameters()}
    return 1 - sum(sizes[name] for name in once) / sum(sizes.values())


@torch.no_grad()
def main() -> None:
    print(machine(), f"{16 * SIDE} x {16 * SIDE}")
    dtype = getattr(torch, sys.argv[1]) if len(sys.argv) > 1 else torch.bfloat16
    torch.manual_seed(0)
    x, text = torch.randn(1, GRID.tokens, 64), torch.randn(1, TEXT, CONFIG.joint_attention_dim)
    with tempfile.TemporaryDirectory() as folder:
        file = write(Path(folder), dtype)
        resident, streamed = opened(file, stay=BLOCKS), opened(file, stay=0)
        steps = {
            "compute": ours(resident, x, text),
            "read": reading(opened(file, stay=0)),
            "streamed": ours(streamed, x, text),
            "peer": theirs(file, x, text),
        }
        assert torch.equal(steps["streamed"](), steps["compute"]())
        torch.testing.assert_close(steps["streamed"](), steps["peer"](), atol=1e-3, rtol=0)
        found = {name: [] for name in steps}  # type: dict[str, list[float]]
        for _ in range(ROUNDS):
            for name, step in steps.items():
                found[name].append(seconds(step))
        took = {name: statistics.median(times) for name, times in found.items()}
        print(", ".join(f"{name} {time:.2f} s" for name, time in took.items()))
        over_part = took["streamed"] / max(took["compute"], took["read"])
        over_peer = took["streamed"] / took["peer"]
        finish(
            report("streamed step over the longer of computing and reading", over_part, OVER_THE_LONGER_PART),
            report("streamed step over DiffSynth-Studio's disk offload", over_peer, OVER_PEER),
            report("weights in memory during the loop over all weights, 60 blocks", kept_share(), KEPT),
        )


if __name__ == "__main__":
    main()
