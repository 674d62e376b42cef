"""What is decided without other processes: who draws what, which queries see which keys, what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from qwenimage_core import ModelConfig, QwenImagePipeline
from qwenimage_core.attention import Grouped, Groups, Masked
from qwenimage_core.errors import RequestError
from qwenimage_core.parallel.attention import of_queries
from qwenimage_core.parallel.data import share
from qwenimage_core.parallel.group import Group
from qwenimage_core.parallel.launch import checked
from qwenimage_core.parallel.tensor import shard
from qwenimage_core.testing import write_tiny_checkpoint


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("base"))


@pytest.mark.parametrize("prompts", [1, 2, 3, 5])
@pytest.mark.parametrize("world", [2, 3, 4])
def test_shares_in_order_are_the_whole(model: Path, prompts: int, world: int) -> None:
    pipe = QwenImagePipeline.from_pretrained(str(model), device="cpu")
    names = [f"prompt {n}" for n in range(prompts)]
    plans = pipe.plans(names, seed=7, num_images_per_prompt=3, height=32, width=32)
    if prompts * 3 < world:
        with pytest.raises(RequestError, match="3 for 4 processes"):
            share(plans, 0, world)
        return
    shares = [share(plans, rank, world) for rank in range(world)]
    drawn = [(plan.prompt, seed) for own in shares for plan in own for seed in plan.seeds]
    assert drawn == [(name, seed) for name in names for seed in (7, 8, 9)]
    numbers = [sum(len(plan.seeds) for plan in own) for own in shares]
    assert max(numbers) - min(numbers) <= (3 if prompts >= world else 1)
    if prompts >= world:
        assert all(any(plan is whole for whole in plans) for own in shares for plan in own)


def test_attention_of_some_queries_is_that_part_of_all() -> None:
    draw = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 2, 2, 7, 8, generator=draw).unbind(0)
    sees = torch.ones(7, 7, dtype=torch.bool)
    sees[:3, 5:] = sees[5:, :3] = False
    everything, front, back = torch.arange(7), torch.arange(5), torch.tensor([3, 4, 5, 6])
    queries = (torch.arange(3), torch.tensor([3, 4]), torch.tensor([5, 6]))
    groups = Groups(
        tuple(zip(queries, (front, everything, back), strict=True)), torch.argsort(torch.cat(queries))
    )
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=sees)
    for attend in (Masked(sees, sees[5:]), Grouped(groups, groups, 7)):
        for own in ([0, 4, 6], [1, 2], [3, 5], list(range(7))):
            part = of_queries(attend, torch.tensor(own))
            assert part is not None
            torch.testing.assert_close(part(q[:, :, own], k, v), expected[:, :, own])
    assert of_queries(None, everything) is None
    with pytest.raises(RequestError, match="does not know this attention"):
        of_queries(F.scaled_dot_product_attention, everything)


def test_a_way_that_is_none_and_a_process_that_is_alone_are_refused() -> None:
    with pytest.raises(RequestError, match="no such way"):
        checked("pipeline")
    with pytest.raises(RequestError, match="torchrun"):
        checked("sequence")


def test_tensor_parallel_refuses_what_it_cannot_cut(model: Path) -> None:
    pipe = QwenImagePipeline.from_pretrained(str(model), device="cpu")
    with pytest.raises(RequestError, match="2 heads for 3 processes"):
        shard(pipe.components["transformer"][0], 3, torch.device("cpu"))
    places = dict.fromkeys(("offload_dtype", "offload_device", "onload_dtype", "onload_device"), "disk")
    streamed = QwenImagePipeline.from_pretrained(
        model_configs=[
            ModelConfig(path=model / "transformer", **places),
            *(ModelConfig(path=model / part) for part in ("text_encoder", "vae")),
        ],
        tokenizer_config=ModelConfig(path=model / "tokenizer"),
        device="cpu",
        vram_limit=1.0,
    )
    with pytest.raises(RequestError, match="weights that come and go"):
        shard(streamed.components["transformer"][0], 2, torch.device("cpu"))
    group = Group("tensor", rank=0, world=2, device=torch.device("cpu"))
    preset = QwenImagePipeline.from_pretrained(str(model), device="cpu", memory="8gb")
    with pytest.raises(RequestError, match="memory preset"):
        group.attach(preset)


def test_sequence_parallel_refuses_fewer_tokens_than_processes(model: Path) -> None:
    pipe = QwenImagePipeline.from_pretrained(str(model), device="cpu")
    group = Group("sequence", rank=0, world=400, device=torch.device("cpu"))
    with pytest.raises(RequestError, match="fewer tokens than processes"):
        group.attach(pipe)("a cat", height=32, width=32, num_inference_steps=1, progress_bar_cmd=iter, seed=1)
