"""Each way in which a file of these formats can be wrong is told by itself, before a weight is read."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from qwenimage_core import LoadError
from qwenimage_core.loading.checkpoint import Checkpoint
from tests.formats.conftest import open_model
from tests.formats.writers import json_tensor, write_gguf

Rewrite = Callable[..., tuple[Path, Path]]
WEIGHT = "transformer_blocks.0.attn.to_q.weight"
LAYER = WEIGHT.removesuffix("weight")
STATE = f"{WEIGHT}.quant_state.bitsandbytes__nf4"


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("scaled fp8, rows", {f"{LAYER}weight_scale": None}, f"no scale for its tensor '{WEIGHT}'"),
        ("scaled fp8, rows", {f"{LAYER}weight_scale": torch.ones(7)}, "does not fit its weight"),
        ("scaled fp8, rows", {f"{LAYER}weight_scale": torch.ones(64).int()}, "does not fit its weight"),
        ("scaled fp8, rows", {WEIGHT: None}, "do not fit the transformer"),
        ("scaled fp8, comfy_quant", {f"{LAYER}comfy_quant": json_tensor({"format": "nvfp4"})}, "'nvfp4'"),
        ("scaled fp8, comfy_quant", {f"{LAYER}comfy_quant": torch.zeros(3).byte()}, "is damaged"),
        ("plain fp8", {"scaled_fp8": torch.zeros(2)}, "no scale for its tensor"),
        ("nf4", {f"{WEIGHT}.absmax": None}, f"no tensor {WEIGHT}.absmax"),
        ("nf4, double", {f"{WEIGHT}.nested_absmax": None}, f"no tensor {WEIGHT}.nested_absmax"),
        ("nf4", {f"{WEIGHT}.absmax": torch.ones(63)}, "float32 of 64 for shape"),
        ("nf4", {STATE: json_tensor({"shape": [64, 64]})}, "is damaged"),
        ("nf4", {STATE: json_tensor({"shape": [64, -1], "blocksize": 64})}, "is damaged"),
        ("nf4", {STATE: None}, "do not fit the transformer"),
    ],
)
def test_parts_of_weights(
    rewrite: Rewrite, tmp_path: Path, name: str, change: dict[str, Any], says: str
) -> None:
    stored = rewrite(name)[0]
    (file,) = (stored / "transformer").glob("*.safetensors")
    tensors = {n: t for n, t in (load_file(file) | change).items() if t is not None}
    save_file(tensors, tmp_path / file.name)
    (tmp_path / "config.json").write_bytes((file.parent / "config.json").read_bytes())
    with pytest.raises(LoadError, match=re.escape(says)):
        open_part(tmp_path)


def open_part(folder: Path) -> None:
    from qwenimage_core import ModelConfig
    from qwenimage_core.loading.components import find_components

    find_components([ModelConfig(path=folder)], needed=())


GOOD: dict[str, tuple[list[int], str | int, bytes]] = {
    "a": ([32, 2], "Q8_0", bytes(68)),
    "b": ([4], "F32", bytes(16)),
}


def test_a_good_file(tmp_path: Path) -> None:
    write_gguf(tmp_path / "x.gguf", GOOD)
    checkpoint = Checkpoint.open(tmp_path / "x.gguf")
    assert checkpoint.shapes == {"a": (2, 32), "b": (4,)}
    assert checkpoint.nbytes == 84
    assert checkpoint.metadata["general.architecture"] == "qwen_image"


@pytest.mark.parametrize(
    ("records", "options", "says"),
    [
        (GOOD, {"version": 1}, "version that is not known"),
        (GOOD, {"version": 3 << 24}, "little-endian"),
        (GOOD, {"architecture": "clip"}, "take the whole text encoder as safetensors"),
        (GOOD, {"architecture": "llama"}, "'qwen_image': the transformer of Qwen-Image, 'qwen2vl'"),
        (GOOD, {"architecture": None}, "GGUF of another model"),
        ({"a": ([32], 99, bytes(34))}, {}, "GGUF type 99 in a"),
        ({"a": ([33], "Q8_0", bytes(34))}, {}, "rows of whole blocks of 32"),
        ({"a": ([32, 3], "Q8_0", bytes(68))}, {}, "is cut off: the download is incomplete"),
        (
            {"a": ([128], "F32", bytes(64)), "b": ([4], "F32", bytes(1024))},
            {},
            "an overlap before its tensor 'b'",
        ),
    ],
)
def test_gguf_headers(tmp_path: Path, records: Any, options: Any, says: str) -> None:
    write_gguf(tmp_path / "x.gguf", records, **options)
    with pytest.raises(LoadError, match=re.escape(says)):
        Checkpoint.open(tmp_path / "x.gguf")


@pytest.mark.parametrize("part", [0.02, 0.3, 0.9])
def test_gguf_cut_off(tmp_path: Path, part: float) -> None:
    file = tmp_path / "x.gguf"
    write_gguf(file, GOOD)
    file.write_bytes(file.read_bytes()[: int(file.stat().st_size * part)])
    with pytest.raises(LoadError, match=r"is cut off"):
        Checkpoint.open(file)


def test_no_gguf(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"version https://git-lfs")
    with pytest.raises(LoadError, match="is no GGUF file"):
        Checkpoint.open(tmp_path / "x.gguf")


def test_a_gguf_that_is_cut_off_during_the_run(rewrite: Rewrite, tmp_path: Path) -> None:
    stored = rewrite("GGUF Q8_0")[0]
    pipe = open_model(stored)
    component = pipe.components["transformer"][0]
    file = component.checkpoint.files[0]
    whole = file.read_bytes()
    try:
        file.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(LoadError, match="became shorter"):
            component.load()
    finally:
        file.write_bytes(whole)
