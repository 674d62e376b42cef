"""Presets see what a file holds: weights wait as stored, are decoded to compute, and take the bytes of the plan."""

from __future__ import annotations

import gc
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from qwenimage_core import MemoryLimitError, ModelConfig, QwenImagePipeline
from qwenimage_core.hooks import hookimpl
from qwenimage_core.memory.measure import give_back, in_use
from qwenimage_core.memory.plan import named
from qwenimage_core.memory.sizes import SLOTS, Sizes
from qwenimage_core.testing import write_tiny_checkpoint
from qwenimage_core.values import LOW_MEMORY, Recipe
from tests.formats.conftest import PARTS, QUIET, open_model
from tests.formats.writers import FORMATS

CPU = torch.device("cpu")
FIELDS: dict[str, Any] = {
    "prompt": "a red circle",
    "height": 32,
    "width": 48,
    "num_inference_steps": 2,
    "seed": 1,
}


@pytest.fixture(scope="module", params=["scaled fp8, rows", "GGUF Q8_0", "GGUF Q4_K", "nf4, double"])
def folders(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A deep model whose transformer is stored in a format, and the same with what it decodes to."""
    stored = write_tiny_checkpoint(tmp_path_factory.mktemp("stored"), layers=12)
    dense = Path(shutil.copytree(stored, tmp_path_factory.mktemp("dense") / "model"))
    (file,) = (stored / "transformer").glob("*.safetensors")
    tensors = load_file(file)
    file.unlink()
    save_file(FORMATS[request.param](tensors, file.with_suffix("")), dense / "transformer" / file.name)
    return stored, dense


def within(folder: Path, memory: int | str) -> QwenImagePipeline:
    return QwenImagePipeline.from_pretrained(
        model_configs=[ModelConfig(path=folder / part) for part in PARTS],
        tokenizer_config=ModelConfig(path=folder / "tokenizer"),
        device="cpu",
        memory=memory,
    )


def now(pipe: QwenImagePipeline) -> dict[str, int]:
    return {name: component.resident_bytes() for name, component in named(pipe.components)}


def set_room(pipe: QwenImagePipeline, room: int) -> None:
    """Let the next request have this many bytes beside what is in use now."""
    keeper = pipe.keeper
    assert keeper.machine is not None
    give_back(CPU)
    used = (in_use(CPU) or 0) - sum(now(pipe).values())
    keeper.machine = replace(keeper.machine, limit=used + room)


def least_room(pipe: QwenImagePipeline) -> int:
    gc.collect()  # models of other tests are in use no longer
    set_room(pipe, 0)
    with pytest.raises(MemoryLimitError) as error:
        pipe.plan(**FIELDS)
    assert error.value.least is not None
    return error.value.least - pipe.keeper.used + 2**18


@pytest.mark.skipif(in_use(CPU) is None, reason="this system does not say what memory is in use")
def test_the_same_picture_in_the_bytes_of_the_plan(folders: tuple[Path, Path]) -> None:
    stored, dense = folders
    expected, pipe = open_model(dense)(**FIELDS, **QUIET), within(stored, "auto")
    component, keeper = pipe.components["transformer"][0], pipe.keeper
    sizes = Sizes.of("transformer", component)
    least, found = least_room(pipe), []
    for part in range(6):
        resident: list[dict[str, int]] = []
        set_room(pipe, least + sizes.whole * part // 2)
        (plan,) = pipe.plans(**FIELDS, **QUIET, step_callback=lambda _, to=resident: to.append(now(pipe)))
        planned = {share.component: share for share in keeper.stages([plan])[1].shares}
        assert torch.equal(pipe.run(plan)[0], expected)
        share = planned["transformer"]
        # what the plan counts beside it: weights on their way, and what decoding takes
        beside = SLOTS * sizes.staging + sizes.decoding if share.buffers else 0
        for bytes_now in resident:
            assert sum(bytes_now.values()) <= sum(share.nbytes for share in planned.values())
            assert 0.95 * (share.nbytes - beside) <= bytes_now["transformer"] <= share.nbytes - beside
        found.append((str(component.placement.preparing), share.blocks))
    assert len(resident) == 2
    assert found[-1] == ("cpu float32", 12), "decoded once, where there is room"
    assert len({blocks for place, blocks in found if place == "cpu stored"}) > 1, found


def recipe_of(folder: Path) -> Any:
    """A plugin with a recipe for a model in a folder."""
    models = tuple({"path": folder / part} for part in PARTS)
    recipe = Recipe(name="mine", summary="", models=models, tokenizer={"path": folder / "tokenizer"})
    return SimpleNamespace(NAME="mine", recipes=hookimpl(lambda: [recipe]))


def test_a_low_memory_recipe_leaves_such_weights_as_they_are(folders: tuple[Path, Path]) -> None:
    """The text encoder, stored in float32, is kept in eight bits; the transformer would be rounded a second time."""
    stored, dense = folders
    fields = FIELDS | QUIET
    pipe = QwenImagePipeline.from_recipe("mine", low_memory=True, device="cpu", plugins=[recipe_of(stored)])
    places = {kind: several[0].placement.onload.dtype for kind, several in pipe.components.items()}
    assert places["text_encoder"] == torch.float8_e4m3fn and places["transformer"] is None
    plain = QwenImagePipeline.from_pretrained(
        model_configs=[
            ModelConfig(
                path=dense / "transformer",
                offload_dtype="disk",
                offload_device="disk",
                computation_dtype="bfloat16",
            ),
            *(ModelConfig(path=dense / part, **LOW_MEMORY) for part in PARTS[1:]),
        ],
        tokenizer_config=ModelConfig(path=dense / "tokenizer"),
        device="cpu",
    )
    assert torch.equal(pipe(**fields), plain(**fields))
