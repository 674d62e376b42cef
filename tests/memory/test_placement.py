"""Wherever weights wait, the picture is the same: bit for bit, unless the placement itself rounds them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from qwenimage_core import LoadError, MemoryLimitError, ModelConfig, QwenImagePipeline
from qwenimage_core.loading.placement import GIB
from qwenimage_core.memory.measure import give_back, in_use
from tests.memory.conftest import ON_DISK, Open

Fields = dict[str, Any]


def transformer(pipe: QwenImagePipeline) -> Any:
    return pipe.components["transformer"][0]


@pytest.fixture(scope="module")
def expected(open_placed: Open) -> torch.Tensor:
    fields: Fields = {
        "height": 64,
        "width": 48,
        "num_inference_steps": 3,
        "seed": 1,
        "progress_bar_cmd": iter,
    }
    return open_placed()("a red circle", **fields, output_type="latent")


@pytest.mark.parametrize(
    "placement",
    [
        {**ON_DISK, "stay": 0},
        {"offload_dtype": "float32", "offload_device": "cpu"},
        {"offload_dtype": "disk", "offload_device": "disk"},
        {
            "offload_dtype": "disk",
            "offload_device": "disk",
            "onload_dtype": "float32",
            "onload_device": "cpu",
        },
    ],
    ids=["streamed from disk", "all in memory", "read for its stage", "kept for its stage"],
)
def test_exact_placements(
    open_placed: Open, small: Fields, expected: torch.Tensor, placement: Fields
) -> None:
    pipe = open_placed(**placement)
    assert torch.equal(pipe(**small), expected)
    assert torch.equal(pipe(**small), expected), "and again, after everything has left"


@pytest.mark.parametrize("prepared", range(6))
def test_any_number_of_blocks_may_stay(
    open_placed: Open, small: Fields, expected: torch.Tensor, prepared: int
) -> None:
    assert torch.equal(open_placed(**ON_DISK, stay=prepared)(**small), expected)


def test_every_step_reads_what_does_not_stay(open_placed: Open, small: Fields) -> None:
    """Each block once, also where guidance runs both branches; the modulation weights are read once a run."""
    pipe = open_placed(**ON_DISK, stay=2)
    component = transformer(pipe)
    small["num_inference_steps"] = 4
    pipe(**small)
    blocks = sum(component.stored_bytes(leaf.name) for unit in component.blocks.units for leaf in unit.leaves)
    once = sum(component.stored_bytes(leaf.name) for unit in component.once.units for leaf in unit.leaves)
    moving = blocks * 3 // 5
    # what was read ahead for a step that never came is at most one block more
    assert 4 * moving <= component.blocks.bytes_read <= 4 * moving + blocks // 5
    assert component.once.bytes_read == once
    pipe(**small)
    assert component.once.bytes_read == once, "the same schedule needs no modulation weights again"


def test_eight_bit_storage_computes_with_the_rounded_weights(
    open_placed: Open, folder: Path, small: Fields, tmp_path: Path
) -> None:
    """The published low-memory form: the same as a checkpoint whose weights were rounded to eight bits."""
    rounded = Path(shutil.copytree(folder, tmp_path / "rounded"))
    for part in ("transformer", "text_encoder", "vae"):
        for file in (rounded / part).glob("*.safetensors"):
            tensors = load_file(file)
            save_file({n: as_stored(part, n, t) for n, t in tensors.items()}, file)
    held = open_placed(
        offload_dtype="disk",
        offload_device="disk",
        onload_dtype="float8_e4m3fn",
        onload_device="cpu",
        preparing_dtype="float8_e4m3fn",
    )
    assert torch.equal(held(**small), open_placed(rounded)(**small))


def as_stored(part: str, name: str, tensor: torch.Tensor) -> torch.Tensor:
    """Blocks are rounded; what is always in memory, and the modulation that is read once, stay as they are."""
    block = name.startswith(("transformer_blocks.", "model.layers.", "model.embed_tokens", "visual.blocks."))
    if part == "vae" or not block or "_mod." in name:
        return tensor
    return tensor.to(torch.float8_e4m3fn).to(tensor.dtype)


def test_components_leave_after_their_stage(open_placed: Open, small: Fields) -> None:
    pipe = open_placed(**ON_DISK, stay=1)
    seen: list[dict[str, bool]] = []
    pipe(**small, step_callback=lambda _: seen.append({n: c[0].loaded for n, c in pipe.components.items()}))
    assert seen == [{"transformer": True, "text_encoder": False, "vae": False}] * 3
    assert not any(several[0].loaded for several in pipe.components.values())
    assert all(several[0].resident_bytes() == 0 for several in pipe.components.values())


def test_a_list_of_prompts_reads_the_text_encoder_once(
    open_placed: Open, small: Fields, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = open_placed(offload_dtype="disk", offload_device="disk")
    checkpoint, names = pipe.components["text_encoder"][0].checkpoint, []
    read = checkpoint.read
    monkeypatch.setattr(checkpoint, "read", lambda name, **how: (names.append(name), read(name, **how))[1])
    small["prompt"] = ["one", "two", "three"]
    assert len(pipe(**small)) == 3
    assert names.count("model.norm.weight") == 1


def test_a_limit_is_kept(open_placed: Open, small: Fields) -> None:
    """Fewer blocks stay where the limit is lower, down to a refusal that says what would do."""
    used = in_use(torch.device("cpu"))
    if used is None:
        pytest.skip("this system does not say what memory is in use")
    counts = []
    for spare in (4, 0.9, 0.6):
        pipe = open_placed(**ON_DISK, preparing_dtype="float32", preparing_device="cpu", vram_limit=1.0)
        component = transformer(pipe)
        whole = sum(unit.nbytes(torch.float32) for unit in component.blocks.units)
        give_back(torch.device("cpu"))  # as the budget does before it looks
        used = in_use(torch.device("cpu")) or 0
        object.__setattr__(component.placement, "limit", int(used + spare * whole))
        counts.append(component.budget(component))
    assert counts[0] == 5 and counts[0] > counts[1] > counts[2] >= 0


def test_a_limit_that_cannot_be_kept_is_refused(open_placed: Open, small: Fields) -> None:
    pipe = open_placed(**ON_DISK, vram_limit=0.001)
    with pytest.raises(MemoryLimitError) as error:
        pipe(**small)
    assert "does not fit" in error.value.what and "GiB or more" in str(error.value.expected)
    assert not any(several[0].loaded for several in pipe.components.values()), "told before anything is read"
    assert 0.001 < float(str(error.value.expected).split()[0]) < 64 * GIB


def test_the_peak_is_reported(open_placed: Open, small: Fields) -> None:
    small.pop("prompt")
    managed = open_placed(**ON_DISK).generate("x", **small)
    assert managed.peak_bytes is None or managed.peak_bytes > 10 * 2**20
    assert open_placed().generate("x", **small).peak_bytes is None


def test_a_file_that_is_cut_off_during_the_run(
    open_placed: Open, folder: Path, small: Fields, tmp_path: Path
) -> None:
    damaged = Path(shutil.copytree(folder, tmp_path / "damaged"))
    file = next((damaged / "transformer").glob("*.safetensors"))

    def cut(report: Any) -> None:
        with file.open("r+b") as stream:
            stream.truncate(file.stat().st_size // 3)

    pipe = open_placed(damaged, **ON_DISK, stay=0)
    with pytest.raises(LoadError, match="became shorter"):
        pipe(**small, step_callback=cut)


def test_a_device_that_is_not_there(folder: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    config = ModelConfig(
        path=folder / "vae",
        offload_dtype="disk",
        offload_device="disk",
        onload_device="cuda",
        onload_dtype="bfloat16",
    )
    with pytest.raises(LoadError, match="device that is not there"):
        QwenImagePipeline.from_pretrained(
            model_configs=[config], tokenizer_config=ModelConfig(path=folder / "tokenizer"), device="cpu"
        )


def test_settings_that_nothing_heeds(folder: Path, open_placed: Open) -> None:
    with pytest.raises(LoadError, match="vram_limit has no effect"):
        open_placed(vram_limit=8.0)
    with pytest.raises(LoadError, match="holds no weights"):
        QwenImagePipeline.from_pretrained(
            model_configs=[ModelConfig(path=folder / "vae")],
            tokenizer_config=ModelConfig(path=folder / "tokenizer", **ON_DISK),
        )
