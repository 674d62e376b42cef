"""What a preset chooses for the full-size model on machines that are not here, and that it is kept on this one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from qwenimage_core import LoadError, MemoryLimitError, ModelConfig, QwenImagePipeline
from qwenimage_core.adapters.lora import Adapter
from qwenimage_core.cli.main import main
from qwenimage_core.errors import AdapterError
from qwenimage_core.loading.placement import GIB, Place, Placement
from qwenimage_core.memory.plan import stages_of
from qwenimage_core.memory.presets import Machine, choose, parse
from qwenimage_core.memory.sizes import OVERHEAD, Sizes, Work
from qwenimage_core.picture_files import read_metadata
from tests.memory.conftest import ON_DISK, Open

Fields = dict[str, Any]
BF16, FP32 = torch.bfloat16, torch.float32
WORK = Work(encode=GIB // 10, denoise=GIB, decode=2 * GIB)


def model(computes: torch.dtype = BF16, stored: float = 2) -> list[Sizes]:
    """Qwen-Image in numbers of values, as published: 20.43, 8.29 and 0.127 billion less what is used once; `stored` in
    bytes a value."""
    layers, tokens = (226_550_000,) * 60, (545_000_000, *(233_000_000,) * 28)
    transformer = Sizes(
        "transformer", 41_000_000, layers, once=(56_640_000,) * 120, denoises=True, computes=computes
    )
    text_encoder = Sizes("text_encoder", 4_000, tokens, later=(20_000_000,) * 33, computes=computes)
    weights = [
        replace(part, in_file=tuple(int(stored * count) for count in part.blocks))
        for part in (transformer, text_encoder)
    ]
    return [*weights, Sizes("vae", 127_000_000, computes=computes)]


def cuda(gigabytes: float, host: float = 0) -> Machine:
    return Machine("cuda:0", int(gigabytes * GIB), 0, int(host * GIB))


def peak(parts: list[Sizes], placements: dict[str, Placement], work: Work = WORK) -> int:
    return max(s.nbytes for s in stages_of([(p, placements[p.name]) for p in parts], work))


def test_all_stays_where_all_fits() -> None:
    """27.3 GB of transformer, 14.2 of text encoder, the VAE and the decoder's work: below 42 GiB."""
    placements = choose(model(), WORK, cuda(42))
    assert {p.offload for p in placements.values()} == {Place("cuda:0", BF16)}
    assert not any(p.leaves or p.streams for p in placements.values())


def test_components_leave_after_their_stage_where_only_one_fits() -> None:
    placements = choose(model(), WORK, cuda(32))
    assert not any(p.streams for p in placements.values())
    assert {p.offload for p in placements.values()} == {Place("disk", None)}
    assert {p.onload for p in placements.values()} == {Place("cuda:0", BF16)}
    assert peak(model(), placements) <= 32 * GIB


@pytest.mark.parametrize(("gigabytes", "streamed"), [(8, 2), (16, 1), (24, 1)])
def test_what_does_not_fit_its_stage_is_streamed(gigabytes: int, streamed: int) -> None:
    placements = choose(model(), WORK, cuda(gigabytes))
    assert [name for name, p in placements.items() if p.streams] == ["transformer", "text_encoder"][:streamed]
    assert placements["transformer"].onload == Place("disk", None)
    assert gigabytes * GIB * 0.9 < peak(model(), placements) <= gigabytes * GIB, "and the limit is used"


def test_blocks_come_from_host_memory_where_there_is_room() -> None:
    """First those that every step needs: 27.2 GB; then the text encoder's, 14.1 GB."""
    for host, expected in ((20, ["disk", "cpu"]), (30, ["cpu", "disk"]), (48, ["cpu", "cpu"])):
        placements = choose(model(), WORK, cuda(8, host))
        assert [placements[name].onload.device for name in ("transformer", "text_encoder")] == expected
    assert placements["transformer"].onload.dtype == BF16
    on_cpu = choose(model(FP32), WORK, Machine("cpu", 16 * GIB))
    assert on_cpu["transformer"].onload == Place("disk", None), "there, host memory is what is to be saved"


def test_blocks_stay_as_they_are_stored_where_that_is_narrower() -> None:
    eight_bit = choose(model(BF16, 1), WORK, cuda(8))["transformer"]
    assert (eight_bit.preparing, eight_bit.computation) == (Place("cuda:0", None), Place("cuda:0", BF16))
    on_cpu = choose(model(FP32, 2), WORK, Machine("cpu", 8 * GIB))["transformer"]
    assert (on_cpu.preparing.dtype, on_cpu.computation.dtype) == (None, FP32)
    wide = choose(model(BF16, 4), WORK, cuda(8, 48))["transformer"]
    assert (wide.preparing.dtype, wide.onload.dtype) == (BF16, BF16)


def test_a_limit_that_cannot_be_kept_says_what_would_do() -> None:
    with pytest.raises(MemoryLimitError) as error:
        choose(model(), WORK, cuda(2))
    least = float(str(error.value.expected).split()[0])
    placements = choose(model(), WORK, cuda(least + 0.01))
    assert peak(model(), placements) <= (least + 0.01) * GIB


def test_what_is_in_use_before_counts() -> None:
    taken = Machine("cuda:0", 42 * GIB, 10 * GIB)
    assert any(p.leaves for p in choose(model(), WORK, taken).values())


@pytest.mark.parametrize(
    ("memory", "limit"),
    [
        ("8gb", 8 * GIB),
        ("1.5gb", 3 * GIB // 2),
        ("24GB", 24 * GIB),
        (10**9, 10**9),
        ("1000", 1000),
        ("auto", None),
    ],
)
def test_amounts(memory: str | int, limit: int | None) -> None:
    assert parse(memory) == limit


@pytest.mark.parametrize("memory", ["8", "much", "-1gb", 0, -5, True, ""])
def test_no_amounts(memory: Any) -> None:
    if memory == "8":
        memory = "8 giga"
    with pytest.raises(LoadError, match="no amount of memory"):
        parse(memory)


# --- on this machine ------------------------------------------------------------------------------------------------


def within(folder: Path, memory: str | int, **more: Any) -> QwenImagePipeline:
    return QwenImagePipeline.from_pretrained(str(folder), memory=memory, device="cpu", **more)


def tighten(pipe: QwenImagePipeline, room: int) -> None:
    """As if no more than `room` bytes were left beside what is in use."""
    machine = pipe.keeper.machine
    assert machine is not None
    object.__setattr__(machine, "limit", machine.used + room)


def test_the_picture_is_the_same(folder: Path, small: Fields, open_placed: Open) -> None:
    expected = open_placed()(**small)
    pipe = within(folder, "auto")
    assert torch.equal(pipe(**small), expected)
    assert not pipe.components["transformer"][0].placement.streams
    generation = pipe.generate(**small)
    assert generation.peak_bytes is None or generation.peak_bytes > 10 * 2**20


def test_placements_follow_the_request(folder: Path, small: Fields, open_placed: Open) -> None:
    """The same limit lets everything stay for a small picture, and not for a large one."""
    pipe, larger = within(folder, "auto"), small | {"height": 160, "width": 160}
    parts = [Sizes.of(name, several[0]) for name, several in pipe.components.items()]
    whole, vae = sum(part.whole for part in parts), parts[-1].whole
    work = Work.of(pipe.plans(**larger), pipe.components)
    tighten(pipe, OVERHEAD + (whole + vae) // 2 + work.decode)
    pipe.plans(**small)
    assert not pipe.components["vae"][0].placement.leaves
    pipe.plans(**larger)
    assert pipe.components["vae"][0].placement.leaves
    pipe.plans(**small)
    assert not pipe.components["vae"][0].placement.leaves


def test_refused_before_anything_is_read(folder: Path, small: Fields) -> None:
    pipe = within(folder, "auto")
    tighten(pipe, 1000)
    with pytest.raises(MemoryLimitError, match="does not fit"):
        pipe.plans(**small)
    assert not any(several[0].loaded for several in pipe.components.values())


def test_other_words_about_placement_are_an_error(folder: Path) -> None:
    with pytest.raises(LoadError, match="cannot be given as well") as error:
        within(folder, "8gb", vram_limit=3.0)
    assert "vram_limit=3" in str(error.value.got)
    with pytest.raises(LoadError, match="cannot be given as well"):
        QwenImagePipeline.from_pretrained(
            model_configs=[ModelConfig(path=folder / "vae", **ON_DISK)],
            tokenizer_config=ModelConfig(path=folder / "tokenizer"),
            memory="8gb",
        )


def test_a_lora_is_not_merged_into_weights_that_may_leave(folder: Path) -> None:
    pipe = within(folder, "auto")
    with pytest.raises(AdapterError, match="come and go"):
        pipe.adapters.load(Adapter(name="x", weights="x.safetensors", mode="merged"))


def test_the_command_line_prints_plan_and_peak(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["a circle", "-m", str(folder), "--height", "32", "--width", "32", "--num-inference-steps", "2"]
    assert main(["generate", *words, "--memory", "8gb", "-o", "a.png"]) == 0
    said = capsys.readouterr().err
    assert "expected peak memory" in said and "\npeak memory: " in said and "limit 8.00 GiB" in said
    assert read_metadata(Path("a.png")).model.memory == "8gb"
    assert main(["again", "a.png", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["peak_bytes"] > 0 and "expected" not in err
    assert main(["generate", *words, "--memory", "lots"]) == 1
    assert "no amount of memory" in capsys.readouterr().err


def test_placements_may_change_between_requests(folder: Path, small: Fields, open_placed: Open) -> None:
    """As presets do it: from resident to streamed and back, with nothing left over from before."""
    pipe = open_placed(folder)
    expected = pipe(**small)
    component = pipe.components["transformer"][0]
    resident, disk = component.placement, Place("disk", None)
    for _ in range(2):
        component.place(Placement(disk, disk, resident.computation, resident.computation))
        component.budget = lambda component: 1
        assert torch.equal(pipe(**small), expected)
        blocks = sum(component.stored_bytes(leaf.name) for u in component.blocks.units for leaf in u.leaves)
        # four of five blocks in each of three steps, and what was read ahead for a fourth
        assert 12 * blocks // 5 <= component.blocks.bytes_read <= 13 * blocks // 5
        component.place(resident)
        component.budget = pipe.keeper.budget
        assert torch.equal(pipe(**small), expected)
        assert component.blocks.bytes_read == 0
