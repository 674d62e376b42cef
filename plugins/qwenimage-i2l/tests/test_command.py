"""`qwenimage i2l`: the file it writes, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from qwenimage_core import QwenImagePipeline, discovery
from qwenimage_core.adapters.convert import convert
from qwenimage_core.cli.main import main

from .conftest import ENCODERS, NETWORKS, picture

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(
    published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Run]:
    """The command, in a folder with the pictures a.png and b.png; the plugin is installed, as far as metadata goes."""
    for name, seed in (("a", 0), ("b", 1)):
        picture(seed).save(tmp_path / f"{name}.png")
    monkeypatch.chdir(tmp_path)
    if not any(entry.name == "i2l" for entry in entry_points(group="qwenimage.plugins")):
        info = tmp_path / "site" / "qwenimage_i2l-0.1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: qwenimage-i2l\nVersion: 0.1.0\n")
        (info / "entry_points.txt").write_text("[qwenimage.plugins]\ni2l = qwenimage_i2l\n")
        monkeypatch.syspath_prepend(str(info.parent))
    discovery.refresh()

    def call(*words: str) -> tuple[int, str, str]:
        code = main(["i2l", *words])
        return code, *capsys.readouterr()

    yield call
    monkeypatch.undo()
    discovery.refresh()


@pytest.mark.parametrize("mode", ["style", "coarse+bias"])
def test_the_file_is_the_adapter_of_a_run(run: Run, mode: str, pipe: QwenImagePipeline) -> None:
    code, out, error = run("a.png", "b.png", "-o", "lora.safetensors", "--mode", mode, "--json")
    assert code == 0, error
    rank = 8 + 2 * ("bias" in mode)
    facts = {"output": "lora.safetensors", "mode": mode, "pictures": 2, "layers": 24, "rank": rank}
    assert json.loads(out) == facts
    (adapter,) = pipe.plan("x", i2l_images=["a.png", "b.png"], i2l_mode=mode).adapters
    expected = convert(adapter.read(pipe.components["transformer"][0].module), "diffsynth").tensors
    found = load_file("lora.safetensors")
    assert set(found) == set(expected)
    assert all(torch.equal(found[name], expected[name]) for name in found)


def test_weights_of_ones_own_and_another_dtype(run: Run, hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is asked of the hub where everything is given."""
    monkeypatch.delenv("QWENIMAGE_MODEL_BASE_PATH")
    files = [hub / "DiffSynth-Studio" / f"{name}.safetensors" for name in (*ENCODERS, NETWORKS[1])]
    given = [
        word
        for file in (*files, hub / "Qwen" / "Qwen-Image" / "text_encoder")
        for word in ("--weights", str(file))
    ]
    tokenizer = ["--tokenizer", str(hub / "Qwen" / "Qwen-Image" / "tokenizer")]
    code, out, error = run(
        "a.png", "-o", "x.safetensors", "--mode", "coarse", *given, *tokenizer, "--dtype", "bfloat16"
    )
    assert code == 0, error
    assert out == "x.safetensors: 24 layers of rank 4, coarse of 1 picture\n"
    assert {tensor.dtype for tensor in load_file("x.safetensors").values()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["none.png", "-o", "x.safetensors"], "there is no picture at none.png"),
        (["a.png", "-o", "x.bin"], "written as safetensors"),
        (["a.png", "-o", "there/x.safetensors"], "no folder there"),
        (["a.png", "-o", "kept.safetensors"], "--overwrite"),
        (["a.png", "-o", "x.safetensors", "--mode", "stile"], "choose style"),
        (["a.png", "-o", "x.safetensors", "--bias", "b"], "say --mode style+bias"),
        (["a.png", "-o", "x.safetensors", "--tokenizer", "t"], "no network of this mode reads text"),
        (["a.png", "-o", "x.safetensors", "--dtype", "int8"], "float32, bfloat16, float16"),
        (["a.png", "-o", "x.safetensors", "--weights", "kept.safetensors"], "kept.safetensors"),
    ],
)
def test_what_is_refused(run: Run, words: list[str], said: str) -> None:
    Path("kept.safetensors").write_bytes(b"kept")
    code, _, error = run(*words)
    assert (code, said in " ".join(error.split())) == (1, True), error
    assert not Path("x.safetensors").exists()
    assert Path("kept.safetensors").read_bytes() == b"kept"


def test_components_that_play_no_part(run: Run, hub: Path) -> None:
    fine = str(hub / "DiffSynth-Studio" / f"{NETWORKS[2]}.safetensors")
    code, _, error = run("a.png", "-o", "x.safetensors", "--weights", fine)
    assert (code, "play no part: i2l_fine" in error) == (1, True), error


def test_one_component_at_a_time_is_in_memory(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The peak is the largest of them, not their sum."""
    from qwenimage_core.loading.components import Component

    loaded: list[Component] = []
    most: list[int] = []
    load = Component.load

    def counted(self: Component) -> Any:
        loaded.append(self)
        module = load(self)
        most.append(len({id(component) for component in loaded if component.loaded}))
        return module

    monkeypatch.setattr(Component, "load", counted)
    code, _, error = run("a.png", "-o", "x.safetensors", "--mode", "style+coarse")
    assert code == 0, error
    assert len({component.spec.kind for component in loaded}) == 5
    assert max(most) == 1
