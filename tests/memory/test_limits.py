"""A limit is kept, or refused before anything is read with the least that would do: for any sizes in numbers, and for
every kind of run on this machine."""

from __future__ import annotations

import gc
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file

import qwenimage_blockwise_controlnet
import qwenimage_edit
from qwenimage_blockwise_controlnet.model import new_controlnet, save_controlnet
from qwenimage_core import MemoryLimitError, ModelConfig, QwenImagePipeline
from qwenimage_core.loading.placement import GIB, Placement
from qwenimage_core.memory.measure import in_use
from qwenimage_core.memory.plan import stages_of
from qwenimage_core.memory.presets import Machine, choose
from qwenimage_core.memory.sizes import Sizes, Work
from qwenimage_core.pipeline import Generation
from qwenimage_core.testing import write_tiny_checkpoint

Fields = dict[str, Any]
CPU = torch.device("cpu")

counts = st.integers(0, 10**9)
blocks = st.lists(st.integers(1, 10**9), max_size=6).map(tuple)


@st.composite
def components(draw: st.DrawFn) -> list[Sizes]:
    """A transformer, a text encoder and a VAE, and up to two ControlNets, of any sizes and forms."""
    names = ["transformer", "text_encoder", "vae"] + [
        f"controlnet/{i}" for i in range(draw(st.integers(0, 2)))
    ]
    found = []
    for name in names:
        each = () if name == "vae" else draw(blocks)
        stored = draw(st.sampled_from((0.5, 1.0, 2.0, 4.0)))
        part = Sizes(name, draw(counts), each, denoises=name.startswith(("transformer", "controlnet")))
        in_file = tuple(int(stored * count) for count in each)
        found.append(replace(part, in_file=in_file, staging=draw(counts), decoding=draw(counts)))
    return found


@st.composite
def works(draw: st.DrawFn) -> Work:
    return Work(draw(counts), draw(counts), draw(counts), pictures=draw(st.booleans()))


def placed(parts: list[Sizes], placements: dict[str, Placement]) -> list[tuple[Sizes, Placement]]:
    return [(part, placements[part.name]) for part in parts]


@settings(max_examples=200, deadline=None)
@given(
    components(),
    works(),
    st.integers(1, 40 * 10**9),
    st.sampled_from((0, 3 * 10**9)),
    st.sampled_from((0, 20 * 10**9)),
)
def test_what_is_chosen_fits_and_what_is_refused_cannot(
    parts: list[Sizes], work: Work, limit: int, used: int, host: int
) -> None:
    machine = Machine("cuda:0", limit, used, host)
    try:
        placements = choose(parts, work, machine)
    except MemoryLimitError as error:
        assert error.least is not None and error.least > limit
        told = float(str(error.expected).split()[0])
        for enough in (error.least, int(told * GIB)):
            choose(parts, work, replace(machine, limit=enough))
        with pytest.raises(MemoryLimitError):
            choose(parts, work, replace(machine, limit=error.least - 1))
        return
    for stage in stages_of(placed(parts, placements), work, used):
        assert used + stage.nbytes <= limit, stage


# --- on this machine ------------------------------------------------------------------------------------------------

PICTURE = Image.effect_noise((64, 64), 60).convert("RGB")
RUNS: dict[str, Fields] = {
    "plain": {"cfg_scale": 1.0},
    "guided": {"cfg_scale": 4.0, "negative_prompt": "grey"},
    "two pictures": {"num_images_per_prompt": 2},
    "two prompts": {"prompt": ["a red circle", "a blue square, much longer than the other"]},
    "tiled": {"tiled": True, "tile_size": 8, "tile_stride": 6, "height": 128},
    "image to image": {"input_image": PICTURE, "denoising_strength": 0.6, "height": 64, "width": 64},
    "edit": {"edit_image": PICTURE, "edit_image_auto_resize": False},
    "controlnet": {"blockwise_controlnet_inputs": [{"image": PICTURE}], "height": 64, "width": 64},
    "lora": {},
}


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Deep enough that its weights are more than what a process takes now and then."""
    folder = write_tiny_checkpoint(tmp_path_factory.mktemp("deep"), variant="edit-2509", layers=12)
    net = new_controlnet(blocks=12, channels=64, width=64)
    with torch.no_grad():
        for number, parameter in enumerate(net.parameters()):
            parameter.normal_(0, 0.05, generator=torch.Generator().manual_seed(number))
    save_controlnet(net, folder / "controlnet.safetensors")
    return folder


def opened(folder: Path, memory: str | int | None) -> QwenImagePipeline:
    names = ("transformer", "text_encoder", "vae", "controlnet.safetensors")
    return QwenImagePipeline.from_pretrained(
        model_configs=[ModelConfig(path=folder / name) for name in names],
        tokenizer_config=ModelConfig(path=folder / "tokenizer"),
        processor_config=ModelConfig(path=folder / "processor"),
        device="cpu",
        plugins=[qwenimage_edit, qwenimage_blockwise_controlnet],
        memory=memory,
    )


@pytest.mark.skipif(in_use(CPU) is None, reason="this system does not say what memory is in use")
@pytest.mark.parametrize("kind", RUNS)
def test_a_run_keeps_its_limit_or_is_refused_before(
    deep: Path, kind: str, small: Fields, tmp_path: Path
) -> None:
    fields = small | RUNS[kind]
    lora = write_lora(tmp_path / "lora.safetensors") if kind == "lora" else None
    expected = draw(opened(deep, None), fields, lora)
    refused = kept = 0
    gc.collect()  # pipelines of other tests are in use no longer
    pipe = opened(deep, 1)
    with pytest.raises(MemoryLimitError) as error:
        draw(pipe, fields, lora)
    assert error.value.least is not None and not any(c[0].loaded for c in pipe.components.values())
    for spare in (-24, 0, 1, 3, 64):
        limit = error.value.least + int(spare * 2**20)
        pipe = opened(deep, limit)
        try:
            generation = draw(pipe, fields, lora)
        except MemoryLimitError as refusal:
            assert refusal.least is not None and refusal.least > limit
            assert not any(c[0].loaded for c in pipe.components.values()), "refused while it ran"
            refused += 1
            continue
        kept += 1
        assert generation.peak_bytes is not None and generation.peak_bytes <= limit
        assert all(map(torch.equal, generation.images, expected.images))
    assert refused and kept


def draw(pipe: QwenImagePipeline, fields: Fields, lora: Path | None) -> Generation:
    if lora is not None:
        pipe.load_lora(lora)
    return pipe.generate(**fields)


def write_lora(file: Path) -> Path:
    layer, draw = "transformer_blocks.3.attn.to_q", torch.Generator().manual_seed(0)
    shapes = {f"{layer}.lora_A.weight": (8, 64), f"{layer}.lora_B.weight": (64, 8)}
    save_file({name: torch.randn(shape, generator=draw) for name, shape in shapes.items()}, file)
    return file
