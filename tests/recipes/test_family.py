"""Every published member of the family is a recipe, with the files and the settings it was published with.

Written down from the published examples (DiffSynth-Studio, examples/qwen_image/model_inference) and model cards.
"""

from __future__ import annotations

import fnmatch
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from qwenimage_core.cli.main import main
from qwenimage_core.recipes import all_recipes
from qwenimage_core.registry import PluginRegistry
from qwenimage_core.values import Recipe

OWNED = all_recipes(PluginRegistry.discover())


class Published(NamedTuple):
    """Owner, the files beside the shared ones (transformer, LoRA or side network), steps, guidance, width, height."""

    owner: str
    files: tuple[str, ...]
    steps: int
    cfg: float
    width: int
    height: int


SHARDS = "transformer/diffusion_pytorch_model*.safetensors"
BASE, STUDIO = f"Qwen/Qwen-Image:{SHARDS}", "DiffSynth-Studio/Qwen-Image"
ENCODERS = tuple(
    f"DiffSynth-Studio/General-Image-Encoders:{name}/model.safetensors"
    for name in ("SigLIP2-G384", "DINOv3-7B")
)
I2L = f"{STUDIO}-i2L:Qwen-Image-i2L"
EDIT = f"Qwen/Qwen-Image-Edit:{SHARDS}"
LAYERED_VAE = "Qwen/Qwen-Image-Layered:vae/diffusion_pytorch_model.safetensors"


def studio(name: str) -> str:
    return f"{STUDIO}-{name}:model.safetensors"


def net(name: str) -> str:
    return studio(f"Blockwise-ControlNet-{name}")


CORE, NETS = "qwenimage-core", "blockwise-controlnet"
FAMILY = {
    "qwen-image": Published(CORE, (BASE,), 40, 4, 1328, 1328),
    "qwen-image-2512": Published(CORE, (f"Qwen/Qwen-Image-2512:{SHARDS}",), 40, 4, 1328, 1328),
    "qwen-image-edit": Published("edit", (EDIT,), 40, 4, 1024, 1328),
    "qwen-image-edit-2509": Published("edit", (f"Qwen/Qwen-Image-Edit-2509:{SHARDS}",), 40, 4, 1024, 1328),
    "qwen-image-edit-2511": Published("edit", (f"Qwen/Qwen-Image-Edit-2511:{SHARDS}",), 40, 4, 896, 1152),
    "qwen-image-edit-2511-lightning": Published(
        "lightning",
        (
            f"Qwen/Qwen-Image-Edit-2511:{SHARDS}",
            "lightx2v/Qwen-Image-Edit-2511-Lightning:"
            "Qwen-Image-Edit-2511-Lightning-4steps-V1.0-bf16.safetensors",
        ),
        4,
        1,
        896,
        1152,
    ),
    "qwen-image-layered": Published(
        "layered", (f"Qwen/Qwen-Image-Layered:{SHARDS}", LAYERED_VAE), 50, 4, 864, 480
    ),
    "qwen-image-layered-control": Published(
        "layered", (f"{STUDIO}-Layered-Control:{SHARDS}", LAYERED_VAE), 30, 4, 1024, 1024
    ),
    "eligen": Published("eligen", (BASE, studio("EliGen")), 30, 4, 1024, 1024),
    "eligen-v2": Published("eligen", (BASE, studio("EliGen-V2")), 40, 4, 1024, 1024),
    "eligen-poster": Published("eligen", (BASE, studio("EliGen-Poster")), 40, 4, 1280, 784),
    "qwen-image-distill-full": Published(
        CORE, (f"{STUDIO}-Distill-Full:diffusion_pytorch_model*.safetensors",), 15, 1, 1328, 1328
    ),
    "qwen-image-distill-lora": Published(CORE, (BASE, studio("Distill-LoRA")), 15, 1, 1328, 1328),
    "blockwise-controlnet-canny": Published(NETS, (BASE, net("Canny")), 30, 4, 1328, 1328),
    "blockwise-controlnet-depth": Published(NETS, (BASE, net("Depth")), 30, 4, 1328, 1328),
    "blockwise-controlnet-inpaint": Published(NETS, (BASE, net("Inpaint")), 40, 4, 1328, 1328),
    "in-context-control-union": Published(
        "in-context-control", (BASE, studio("In-Context-Control-Union")), 30, 4, 1024, 1024
    ),
    "qwen-image-edit-lowres-fix": Published("edit", (EDIT, studio("Edit-Lowres-Fix")), 40, 4, 768, 1024),
    "i2l-style": Published("i2l", (BASE, *ENCODERS, f"{I2L}-Style.safetensors"), 50, 4, 1024, 1024),
    "i2l-coarse-fine-bias": Published(
        "i2l",
        (BASE, *ENCODERS, *(f"{I2L}-{part}.safetensors" for part in ("Coarse", "Fine", "Bias"))),
        50,
        4,
        1024,
        1024,
    ),
}
SHARED = {
    "Qwen/Qwen-Image:text_encoder/model*.safetensors",
    "Qwen/Qwen-Image:vae/diffusion_pytorch_model.safetensors",
}


def files(recipe: Recipe) -> set[str]:
    """Every file of weights, as `model_id:pattern`."""
    given = (value for value in recipe.given.values() if isinstance(value, dict) and "model_id" in value)
    return {f"{m['model_id']}:{m['origin_file_pattern']}" for m in (*recipe.models, *recipe.loras, *given)}


@pytest.mark.parametrize("name", FAMILY)
def test_a_member_is_a_recipe_as_published(name: str) -> None:
    member = FAMILY[name]
    owner, recipe = OWNED[name]
    assert owner == member.owner
    shared = SHARED if LAYERED_VAE not in member.files else SHARED - {next(f for f in SHARED if ":vae" in f)}
    assert files(recipe) == {*member.files, *shared}
    settings = {**recipe.defaults, **recipe.example}
    found = [settings[n] for n in ("num_inference_steps", "cfg_scale", "width", "height")]
    assert found == [member.steps, member.cfg, member.width, member.height]
    assert recipe.tokenizer == {"model_id": "Qwen/Qwen-Image", "origin_file_pattern": "tokenizer/"}
    sees = owner in ("edit", "i2l") or "-edit-" in name
    processor = {"model_id": "Qwen/Qwen-Image-Edit", "origin_file_pattern": "processor/"}
    assert recipe.processor == (processor if sees else None), (
        "only what the text encoder sees needs preparing"
    )


def test_weights_compute_as_they_were_trained() -> None:
    """DiffSynth-Studio trains with the sigmoid form of GELU; whoever brings weights of its own decides."""
    for name, (_, recipe) in OWNED.items():
        theirs = any(file.startswith("DiffSynth-Studio/") for file in files(recipe))
        assert recipe.options.activation == ("quick_gelu" if theirs else "gelu_tanh"), name
        assert bool(recipe.options.zero_cond_t) == ("2511" in name), name


def test_the_lineage_leads_to_qwen_image() -> None:
    for name in OWNED:
        ancestors = [name]
        while (parent := OWNED[ancestors[-1]][1].based_on) is not None:
            assert parent not in ancestors
            ancestors.append(parent)
        assert ancestors[-1] == "qwen-image"


def test_every_pattern_finds_published_files(hub: Path) -> None:
    for _, recipe in OWNED.values():
        for file in files(recipe):
            folder, _, pattern = file.partition(":")
            names = [
                path.relative_to(hub / folder).as_posix() for path in (hub / folder).rglob("*.safetensors")
            ]
            assert fnmatch.filter(names, pattern), file


@pytest.mark.parametrize("name", OWNED)
def test_show_tells_everything_and_its_json_round_trips(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = OWNED[name][1]
    assert main(["recipes", "show", name, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown == json.loads(json.dumps(asdict(recipe)))
    assert rebuilt(shown) == rebuilt(asdict(recipe)) == recipe
    assert main(["recipes", "show", name]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{name}: {recipe.summary}")
    assert [line.split()[2] for line in lines if line.startswith("  low memory ")] == list(recipe.low_memory)
    assert not [line for line in lines if "model_id" in line], "files to fetch read as the hub names them"
    trained = [line.split()[1].rstrip(":") for line in lines if line.startswith("  train ")]
    assert trained == [form.mode for form in recipe.training]
    assert not [line for line in lines if line != line.rstrip() or line.endswith(":")], "no empty ends"


def rebuilt(shown: dict[str, Any]) -> Recipe:
    """The recipe that a dictionary describes; lists where JSON has no tuples."""
    from qwenimage_core.values import TrainingForm, TransformerOptions

    made = {
        **shown,
        "models": tuple(shown["models"]),
        "loras": tuple(shown["loras"]),
        "options": TransformerOptions(**shown["options"]),
        "training": tuple(TrainingForm(**form) for form in shown["training"]),
    }
    return Recipe(**made)
