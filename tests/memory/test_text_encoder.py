"""The text encoder comes only when it is needed: not for a known prompt, and without pictures not as a whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from qwenimage_core import QwenImagePipeline
from tests.memory.conftest import ON_DISK, Open

Fields = dict[str, Any]


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Any:
    """reads(pipe): the names of the text encoder's tensors that are read from now on."""

    def watch(pipe: QwenImagePipeline) -> list[str]:
        checkpoint, names = pipe.components["text_encoder"][0].checkpoint, list[str]()
        read = checkpoint.read
        monkeypatch.setattr(
            checkpoint, "read", lambda name, *a, **how: (names.append(name), read(name, *a, **how))[1]
        )
        return names

    return watch


@pytest.fixture
def lora(folder: Path, tmp_path: Path) -> Path:
    width = 48
    file = tmp_path / "style.safetensors"
    layer = "model.layers.0.self_attn.o_proj"
    draw = torch.Generator().manual_seed(0)
    weights = {f"{layer}.lora_{s}.weight": torch.randn(2, width, generator=draw) for s in "AB"}
    weights[f"{layer}.lora_B.weight"] = weights[f"{layer}.lora_B.weight"].T.contiguous()
    save_file(weights, file)
    return file


def test_a_known_prompt_needs_no_text_encoder(open_placed: Open, small: Fields, reads: Any) -> None:
    pipe = open_placed(**ON_DISK)
    first, names = pipe(**small), reads(pipe)
    assert torch.equal(pipe(**small | {"seed": 1}), first)
    pipe(**small | {"seed": 2, "width": 32})
    assert names == []
    pipe(**small | {"prompt": "a blue square"})
    assert names


def test_an_adapter_of_the_text_encoder_makes_it_compute(
    open_placed: Open, small: Fields, reads: Any, lora: Path
) -> None:
    pipe = open_placed(**ON_DISK)
    first, names = pipe(**small), reads(pipe)
    pipe.load_lora(lora, component="text_encoder")
    assert not torch.equal(pipe(**small), first)
    assert names
    pipe.clear_lora()
    assert torch.equal(pipe(**small), first)


@torch.no_grad()
def test_weights_that_changed_in_memory_make_it_compute(open_placed: Open) -> None:
    pipe = open_placed()
    first = pipe.prompts.encode("a red circle")
    assert pipe.prompts.encode("a red circle") is first
    pipe.components["text_encoder"][0].module.model.norm.weight.mul_(2)
    assert torch.allclose(pipe.prompts.encode("a red circle"), 2 * first)
    pipe.components["text_encoder"][0].release()
    assert torch.equal(pipe.prompts.encode("a red circle"), first)


def test_weights_in_training_are_never_remembered(open_placed: Open) -> None:
    pipe = open_placed()
    pipe.components["text_encoder"][0].load(whole=True).requires_grad_(True)
    assert pipe.prompts.encode("x") is not pipe.prompts.encode("x")
    assert pipe.prompts.run(pipe.prompts.prepare("x")).requires_grad


@pytest.mark.parametrize("placement", [{}, {"offload_dtype": "disk", "offload_device": "disk"}, ON_DISK])
def test_the_vision_tower_is_read_for_pictures_alone(
    open_placed: Open, reads: Any, placement: Fields
) -> None:
    pipe = open_placed(**placement)
    names = reads(pipe)
    pipe.prompts.encode("a red circle")
    assert names and not any("visual." in name for name in names)
    picture = Image.new("RGB", (64, 64), "red")
    seen = pipe.prompts.encode("what is this", "edit", [picture])
    component = pipe.components["text_encoder"][0]
    visual = {name for name in component.checkpoint.tensors if "visual." in name}
    assert visual <= set(names)
    whole = open_placed()
    whole.components["text_encoder"][0].load(whole=True)
    assert torch.equal(seen, whole.prompts.encode("what is this", "edit", [picture]))
    component.leave()
    names.clear()
    pipe.prompts.encode("what is this", "edit", [picture])
    assert visual <= set(names) if placement else names == [], "kept, unless it leaves after its stage"
