"""A third of the transformer acts through a table that is made once: as exact as computing it in every step."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from qwenimage_core import AdapterError, QwenImagePipeline
from qwenimage_core.adapters.convert import save_lora
from qwenimage_core.adapters.weights import LoraWeights, LowRank
from tests.memory.conftest import Open

Fields = dict[str, Any]


@pytest.fixture
def modulating_lora(tmp_path: Path) -> Path:
    draw = torch.Generator().manual_seed(0)
    changes = {
        f"transformer_blocks.{block}.{name}.1": LowRank(
            torch.randn(4, 64, generator=draw), torch.randn(384, 4, generator=draw), alpha=4.0
        )
        for block in range(5)
        for name in ("img_mod", "txt_mod")
    }
    save_lora(LoraWeights(changes), tmp_path / "modulating.safetensors")
    return tmp_path / "modulating.safetensors"


def step_by_step(pipe: QwenImagePipeline, fields: Fields) -> torch.Tensor:
    """The same run with each step's modulation computed by itself, from weights in memory."""
    module = pipe.components["transformer"][0].load(whole=True)
    plan = pipe.plan(**fields)

    class Steps:
        def step(self, index: int) -> Any:
            times = torch.tensor([1000 * plan.sigmas[index]])
            zero = any(branch.layout.zero_slices for branch in plan.branches)
            return module.modulation(times, plan.options.addition_t, zero)

    pipe._table = lambda module, plan: Steps()  # type: ignore[method-assign,assignment,return-value]
    return pipe.run(plan)[0]


def runs(small: Fields) -> Iterator[Fields]:
    yield small
    yield small | {"num_inference_steps": 5, "cfg_scale": 1.0}
    yield small | {"input_image": Image.new("RGB", (48, 64), "blue"), "denoising_strength": 0.6}


def test_the_table_equals_each_step_by_itself(open_placed: Open, small: Fields) -> None:
    for fields in runs(small):
        assert torch.equal(open_placed()(**fields), step_by_step(open_placed(), fields))


def test_modulation_weights_are_not_in_memory_during_the_loop(open_placed: Open, small: Fields) -> None:
    pipe = open_placed()
    component = pipe.components["transformer"][0]
    share: list[float] = []
    pipe(
        **small,
        step_callback=lambda _: share.append(component.resident_bytes() / component.checkpoint.nbytes),
    )
    assert (
        share and max(share) <= 0.75
    )  # at full size 0.67: there, what is beside the blocks is next to nothing
    blocks = [p for n, p in component.skeleton.named_parameters() if "_mod." in n]
    assert blocks and all(parameter.is_meta for parameter in blocks)


def test_another_schedule_has_another_table(open_placed: Open, small: Fields) -> None:
    pipe = open_placed()
    pipe(**small)
    second = pipe(**{**small, "num_inference_steps": 2})
    assert torch.equal(second, open_placed()(**{**small, "num_inference_steps": 2}))


def test_adapters_of_the_modulation_act(open_placed: Open, small: Fields, modulating_lora: Path) -> None:
    pipe = open_placed()
    plain = pipe(**small)
    name = pipe.load_lora(modulating_lora, strength=0.2)
    weak = pipe(**small)
    pipe.clear_lora(name)
    assert torch.equal(pipe(**small), plain)
    pipe.load_lora(modulating_lora, strength=1.0)
    strong = pipe(**small)
    assert not torch.allclose(weak, plain, atol=1e-4) and not torch.allclose(strong, weak, atol=1e-4)
    merged = open_placed()
    merged.load_lora(modulating_lora, mode="merged")
    assert torch.allclose(merged(**small), strong, atol=1e-4)


def test_merging_into_weights_that_come_and_go_is_refused(open_placed: Open, modulating_lora: Path) -> None:
    pipe = open_placed(offload_dtype="disk", offload_device="disk")
    with pytest.raises(AdapterError, match="come and go"):
        pipe.load_lora(modulating_lora, mode="merged")
    pipe.load_lora(modulating_lora)
    assert not pipe.components["transformer"][0].loaded, "a side branch needs no weights to be attached"


def test_weights_in_training_are_never_remembered(open_placed: Open, small: Fields) -> None:
    pipe = open_placed()
    module = pipe.components["transformer"][0].load(whole=True)
    first = pipe(**small)
    with torch.no_grad():
        module.transformer_blocks[0].img_mod[1].weight.mul_(3)
    assert not torch.allclose(pipe(**small), first, atol=1e-4)
