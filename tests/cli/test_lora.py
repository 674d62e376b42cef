"""`qwenimage lora`: what it says of a file, and that what it writes does the same."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from qwenimage_core.adapters.files import load_lora
from qwenimage_core.adapters.formats import FORMATS, WRITABLE
from qwenimage_core.cli.lora import app
from qwenimage_core.cli.main import main
from qwenimage_core.errors import AdapterError, LoadError

LAYERS = ("attn.to_q", "img_mod.1")


@pytest.fixture
def lightning(tmp_path):
    """A file as LightX2V writes it: rank 8, alpha 1, 3 blocks."""
    torch.manual_seed(0)
    tensors = {}
    for block in range(3):
        for layer, features_out in zip(LAYERS, (32, 192), strict=True):
            stem = f"transformer_blocks.{block}.{layer}"
            tensors[f"{stem}.lora_down.weight"] = torch.randn(8, 32).bfloat16()
            tensors[f"{stem}.lora_up.weight"] = torch.randn(features_out, 8).bfloat16()
            tensors[f"{stem}.alpha"] = torch.tensor(1.0)
    path = tmp_path / "lightning.safetensors"
    save_file(tensors, path, {"trigger": "[b]sks[/b]"})
    return path


def run(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def test_show(lightning):
    facts = json.loads(run("show", lightning, "--json").stdout)
    assert facts["file"] == str(lightning)
    assert facts["bytes"] == lightning.stat().st_size
    assert facts["digest"].startswith("sha256:")
    assert facts["format"] == "lightx2v"
    assert facts["base"] == "a transformer of the Qwen-Image family, at least 3 blocks, width 32"
    assert (facts["modules"], facts["ranks"], facts["alphas"]) == (6, {"8": 6}, {"1.0": 6})
    assert facts["parameters"] == 3 * (8 * 32 + 32 * 8 + 8 * 32 + 192 * 8)
    assert facts["dtypes"] == ["bfloat16"]
    assert facts["metadata"] == {"trigger": "[b]sks[/b]"}
    targets = {target.pop("type"): target for target in facts["targets"]}
    expected = {"count": 3, "ranks": [8], "scales": [0.125]}
    assert targets["transformer_blocks.*.attn.to_q"] == expected | {"shape": [32, 32]}
    assert targets["transformer_blocks.*.img_mod.1"] == expected | {"shape": [192, 32]}


def test_show_for_people(lightning):
    text = run("show", lightning).stdout
    for part in ("lightx2v", "transformer_blocks.*.attn.to_q", "0.125", "[b]sks[/b]", "bfloat16"):
        assert part in text


def test_show_of_a_lora_for_another_model(tmp_path):
    path = tmp_path / "flux.safetensors"
    stem = "transformer.single_transformer_blocks.0.attn.to_q"
    save_file({f"{stem}.lora_A.weight": torch.ones(1, 2), f"{stem}.lora_B.weight": torch.ones(2, 1)}, path)
    assert "FLUX" in json.loads(run("show", path, "--json").stdout)["base"]


@pytest.mark.parametrize("form", WRITABLE)
def test_convert_keeps_the_change_and_the_metadata(lightning, tmp_path, form):
    output = tmp_path / "out.safetensors"
    result = run("convert", lightning, "--to", form, "-o", output, "--json")
    said = json.loads(result.stdout)
    assert (said["from"], said["to"], said["modules"]) == ("lightx2v", form, 6)
    assert bool(said["notes"]) == (form in ("comfyui", "diffsynth"))
    before, after = load_lora(lightning), load_lora(output)
    for name, change in before.modules.items():
        assert torch.equal(after.modules[name].delta_OI(), change.delta_OI())
    with safe_open(output, "pt") as opened:
        assert opened.metadata()["trigger"] == "[b]sks[/b]"


def test_convert_says_what_was_folded(lightning, tmp_path):
    text = run("convert", lightning, "--to", "diffsynth", "-o", tmp_path / "out.safetensors").stdout
    assert "note: diffsynth has no place for alpha" in text


def test_convert_replaces_nothing_unasked(lightning, tmp_path):
    output = tmp_path / "out.safetensors"
    output.write_bytes(b"precious")
    refused = run("convert", lightning, "--to", "kohya", "-o", output)
    assert isinstance(refused.exception, AdapterError)
    assert output.read_bytes() == b"precious"
    assert run("convert", lightning, "--to", "kohya", "-o", output, "--overwrite").exit_code == 0
    assert len(load_file(output)) == 18


def test_convert_onto_itself(lightning):
    before = load_lora(lightning)
    assert run("convert", lightning, "--to", "lightx2v", "-o", lightning, "--overwrite").exit_code == 0
    assert load_lora(lightning).modules.keys() == before.modules.keys()


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        (("show", "nowhere.safetensors"), LoadError, "nowhere.safetensors"),
        (("convert", "{file}", "--to", "peft", "-o", "{folder}/o.safetensors"), AdapterError, "'peft'"),
        (("convert", "{file}", "--to", "kohya", "-o", "{folder}/o.bin"), AdapterError, "safetensors"),
        (
            ("convert", "{file}", "--to", "kohya", "-o", "{folder}/no/o.safetensors"),
            AdapterError,
            "no folder",
        ),
    ],
)
def test_mistakes(lightning, words, error, message):
    result = run(*(word.format(file=lightning, folder=lightning.parent) for word in words))
    assert result.exit_code == 1
    assert isinstance(result.exception, error)
    assert message in str(result.exception)
    assert [path.name for path in lightning.parent.iterdir()] == [lightning.name]


def test_formats_lists_every_row():
    rows = json.loads(run("formats", "--json").stdout)["formats"]
    assert [row["name"] for row in rows] == [row.name for row in FORMATS]
    assert {row["name"] for row in rows if row["writable"]} == set(WRITABLE)
    text = run("formats").stdout
    assert all(row.name in text for row in FORMATS)


def test_errors_of_the_whole_command_line(lightning, capsys):
    """Mounted in `qwenimage`, an error is words on stderr and exit code 1."""
    assert main(["lora", "convert", str(lightning), "--to", "gguf", "-o", "x.safetensors"]) == 1
    assert "expected: diffusers, comfyui" in capsys.readouterr().err


def test_importing_the_command_imports_no_torch():
    code = "import sys, qwenimage_core.cli.lora; sys.exit('torch' in sys.modules or 'peft' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
