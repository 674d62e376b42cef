"""Compiled blocks: no break in the graph, nothing compiled again for another prompt, the same picture."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import qwenimage_edit
import qwenimage_eligen
from qwenimage_core import ModelConfig, QwenImagePipeline, compile_blocks
from qwenimage_core.adapters.convert import save_lora
from qwenimage_core.adapters.weights import LoraWeights, LowRank
from qwenimage_core.cli.main import main
from qwenimage_core.cli.session import open_session
from qwenimage_core.errors import RequestError
from qwenimage_core.picture_files import read_metadata
from qwenimage_core.registry import PluginRegistry
from qwenimage_core.testing import write_tiny_checkpoint

Fields = dict[str, Any]

WHITE = Image.new("RGB", (64, 64), "white")
LEFT = Image.new("L", (48, 64))
LEFT.paste(255, (0, 0, 24, 64))
SMALL: Fields = {
    "height": 64,
    "width": 48,
    "num_inference_steps": 2,
    "seed": 1,
    "progress_bar_cmd": iter,
    "output_type": "latent",
}
ENTITIES: Fields = {"eligen_entity_prompts": ["a cat"], "eligen_entity_masks": [LEFT]}
REFERENCE: Fields = {"edit_image": WHITE, "edit_image_auto_resize": False}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("edit"), variant="edit-2511", layers=3)


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    draw = torch.Generator().manual_seed(0)
    changes = {
        f"transformer_blocks.{block}.attn.to_q": LowRank(
            torch.randn(4, 64, generator=draw), torch.randn(64, 4, generator=draw), alpha=1.0
        )
        for block in range(3)
    }
    save_lora(LoraWeights(changes), tmp_path / "lora.safetensors")
    return tmp_path / "lora.safetensors"


class Counter:
    """A backend that runs the graph as it is, and counts."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: Any) -> Callable[..., Any]:
        self.graphs += 1
        return graph.forward


def opened(folder: Path, **placement: str) -> QwenImagePipeline:
    return QwenImagePipeline.from_pretrained(
        model_configs=[
            ModelConfig(path=folder / part, **placement) for part in ("transformer", "text_encoder", "vae")
        ],
        tokenizer_config=ModelConfig(path=folder / "tokenizer"),
        processor_config=ModelConfig(path=folder / "processor"),
        plugins=[qwenimage_edit, qwenimage_eligen],
        device="cpu",
    )


@pytest.fixture
def counted(folder: Path) -> tuple[QwenImagePipeline, Counter]:
    torch._dynamo.reset()
    pipe, counter = opened(folder), Counter()
    compile_blocks(pipe, backend=counter)
    return pipe, counter


@pytest.mark.parametrize("kind", [{}, {**REFERENCE, **ENTITIES}], ids=["plain", "reference and entity"])
def test_another_prompt_or_size_compiles_nothing(
    counted: tuple[QwenImagePipeline, Counter], folder: Path, kind: Fields
) -> None:
    pipe, counter = counted
    first = pipe("a red circle", **SMALL, **kind)
    torch.testing.assert_close(first, opened(folder)("a red circle", **SMALL, **kind), atol=1e-5, rtol=0)
    graphs = counter.graphs
    assert 0 < graphs <= 8, "two kinds of blocks, and two branches that may differ in structure"
    for prompt in ("a much longer prompt, with many more words than the first", "x", "two words"):
        pipe(prompt, **SMALL, **kind)
    if "eligen_entity_masks" not in kind:  # its mask has the size of the picture
        pipe("x", **{**SMALL, "height": 96}, **kind)
    assert counter.graphs == graphs


def test_an_adapter_is_compiled_once(
    counted: tuple[QwenImagePipeline, Counter], folder: Path, lora: Path
) -> None:
    pipe, counter = counted
    plain = pipe("a red circle", **SMALL)
    pipe.load_lora(lora, name="one")
    with_lora = pipe("a red circle", **SMALL)
    assert not torch.allclose(plain, with_lora, atol=1e-4)
    graphs = counter.graphs
    pipe("another, longer prompt", **SMALL)
    pipe.clear_lora()
    torch.testing.assert_close(pipe("a red circle", **SMALL), plain)
    pipe.load_lora(lora, name="again", strength=0.5)
    pipe("a red circle", **SMALL)
    assert counter.graphs == graphs
    eager = opened(folder)
    eager.load_lora(lora)
    torch.testing.assert_close(with_lora, eager("a red circle", **SMALL), atol=1e-5, rtol=0)


def test_streamed_weights_compile_once(folder: Path) -> None:
    torch._dynamo.reset()
    states, parts = ("offload", "onload"), ("dtype", "device")
    pipe = opened(folder, **{f"{state}_{part}": "disk" for state in states for part in parts})
    pipe.components["transformer"][0].budget = lambda component: 0
    counter = Counter()
    compile_blocks(pipe, backend=counter)
    first = pipe("a red circle", **SMALL)
    graphs = counter.graphs
    assert torch.equal(pipe("a red circle", **SMALL), first)
    assert counter.graphs == graphs
    torch.testing.assert_close(first, opened(folder)("a red circle", **SMALL), atol=1e-5, rtol=0)


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile's own backend needs a C++ compiler")
def test_with_the_compiler_itself(folder: Path) -> None:
    torch._dynamo.reset()
    pipe = opened(folder)
    compile_blocks(pipe)
    torch.testing.assert_close(
        pipe("a red circle", **SMALL), opened(folder)("a red circle", **SMALL), atol=1e-4, rtol=0
    )


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile's own backend needs a C++ compiler")
def test_on_the_command_line(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same picture but for rounding; `again` compiles too, and makes it bit for bit."""
    monkeypatch.chdir(tmp_path)
    words = ["generate", "a circle", "-m", str(folder), "--height", "32", "--width", "32", "--seed", "1"]
    words += ["--num-inference-steps", "2"]
    torch._dynamo.reset()
    assert main([*words, "--compile", "-o", "compiled.png"]) == 0
    assert main([*words, "-o", "plain.png"]) == 0
    assert main(["again", "compiled.png"]) == 0
    compiled, plain, again = (
        np.asarray(Image.open(f"{name}.png"), dtype=int) for name in ("compiled", "plain", "compiled-again")
    )
    assert np.abs(compiled - plain).max() <= 1 and plain.std() > 5
    assert (compiled == again).all()
    assert [read_metadata(f"{name}.png").model.compiled for name in ("compiled", "plain")] == [True, False]


def test_without_a_compiler(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CXX", "none-such")
    assert main(["generate", "a circle", "-m", str(folder), "--compile", "--device", "cpu"]) == 1
    error = capsys.readouterr().err
    assert "needs a C++ compiler" in error and "no none-such here (named by CXX)" in error
    assert len(error.splitlines()) < 10 and not list(tmp_path.iterdir())


def test_not_with_a_transformer_that_is_shared() -> None:
    registry = PluginRegistry.discover(disable_all=True)
    with pytest.raises(RequestError, match="shared between processes"):
        open_session("tiny", registry, dtype=None, device=None, loras=(), parallel="tensor", compiled=True)
