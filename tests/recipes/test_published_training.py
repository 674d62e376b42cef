"""Every published training command (DiffSynth-Studio, examples/qwen_image/model_training/{full,lora}/*.sh) is the
training form of a recipe, which test_training.py runs; those of FireRed have no recipe, and one of them is run here.

What the scripts say is written down here a second time: models, columns, what is trained. They give paths, workers and
(but for ControlNets in full) repeats as well, which are not part of a form.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml
from safetensors import safe_open

from qwenimage_core.cli.main import main

from .test_training import picture

SHARDS = "transformer/diffusion_pytorch_model*.safetensors"
TEXT_ENCODER = "Qwen/Qwen-Image:text_encoder/model*.safetensors"
VAE = "vae/diffusion_pytorch_model.safetensors"
STUDIO = "DiffSynth-Studio/Qwen-Image"
TARGETS = (
    "to_q,to_k,to_v,add_q_proj,add_k_proj,add_v_proj,to_out.0,to_add_out,"
    "img_mlp.net.2,img_mod.1,txt_mlp.net.2,txt_mod.1"
)
Options = dict[str, str | None]  # None: a switch
COMMON: Options = {
    "max_pixels": "1048576",
    "use_gradient_checkpointing": None,
    "find_unused_parameters": None,
}
FULL: Options = {"learning_rate": "1e-5", "num_epochs": "2", "remove_prefix_in_ckpt": "pipe.dit."}
FULL |= {"trainable_models": "dit"}
LORA: Options = {"learning_rate": "1e-4", "num_epochs": "5", "remove_prefix_in_ckpt": "pipe.dit."}
LORA |= {"lora_base_model": "dit", "lora_target_modules": TARGETS, "lora_rank": "32"}
NET: Options = {"learning_rate": "1e-3", "dataset_repeat": "400", "trainable_models": "blockwise_controlnet"}
NET |= {"remove_prefix_in_ckpt": "pipe.blockwise_controlnet.models.0."}
DISTILL: Options = {"data_file_keys": "image", "height": "1328", "width": "1328", "task": "direct_distill"}
DISTILL |= {"extra_inputs": "seed,rand_device,num_inference_steps,cfg_scale"}


def columns(pictures: str, others: str = "", first: str = "") -> Options:
    """`data_file_keys` and `extra_inputs`; `first` and `others` are the inputs that are no pictures."""
    return {
        "data_file_keys": f"image,{pictures}",
        "extra_inputs": ",".join(filter(None, (first, pictures, others))),
    }


EDIT = columns("edit_image")
LAYERED = columns("layer_input_image", first="layer_num")
CONTROL = columns("blockwise_controlnet_image")
INPAINT = columns("blockwise_controlnet_image,blockwise_controlnet_inpaint_mask")
ENTITIES = columns("eligen_entity_masks", "eligen_entity_prompts")
BOTH: dict[str, tuple[str, str, Options]] = {  # recipe -> transformer, repository of the VAE, columns
    "qwen-image": (f"Qwen/Qwen-Image:{SHARDS}", "", {}),
    "qwen-image-2512": (f"Qwen/Qwen-Image-2512:{SHARDS}", "", {}),
    "qwen-image-distill-full": (f"{STUDIO}-Distill-Full:diffusion_pytorch_model*.safetensors", "", {}),
    "qwen-image-edit": (f"Qwen/Qwen-Image-Edit:{SHARDS}", "", EDIT),
    "qwen-image-edit-2509": (f"Qwen/Qwen-Image-Edit-2509:{SHARDS}", "", EDIT),
    "qwen-image-edit-2511": (f"Qwen/Qwen-Image-Edit-2511:{SHARDS}", "", {**EDIT, "zero_cond_t": None}),
    "qwen-image-layered": (f"Qwen/Qwen-Image-Layered:{SHARDS}", "-Layered", LAYERED),
    "qwen-image-layered-control": (f"{STUDIO}-Layered-Control:{SHARDS}", "-Layered", LAYERED),
}
ONLY_LORA: dict[str, tuple[str, str, Options]] = {
    "qwen-image-distill-lora": (f"Qwen/Qwen-Image:{SHARDS}", "", DISTILL),
    "eligen": (f"Qwen/Qwen-Image:{SHARDS}", "", ENTITIES),
    "eligen-poster": (
        f"Qwen/Qwen-Image:{SHARDS}",
        "",
        {**ENTITIES, "lora_checkpoint": f"{STUDIO}-EliGen-V2"},
    ),
    "in-context-control-union": (
        f"Qwen/Qwen-Image:{SHARDS}",
        "",
        {
            **columns("context_image"),
            "lora_rank": "64",
            "lora_checkpoint": f"{STUDIO}-In-Context-Control-Union",
        },
    ),
    "qwen-image-layered-control-v2": (
        f"{STUDIO}-Layered-Control:{SHARDS}",
        "-Layered",
        {**columns("layer_input_image,context_image", first="layer_num"), "lora_rank": "64"},
    ),
}
NETS = {"canny": ("Canny", CONTROL), "depth": ("Depth", CONTROL), "inpaint": ("Inpaint", INPAINT)}


def commands() -> dict[tuple[str, str], Options]:
    """(recipe, mode) -> the options of its script."""
    found = {}
    for mode, own, rows in (("full", FULL, BOTH), ("lora", LORA, {**BOTH, **ONLY_LORA})):
        for name, (transformer, vae, more) in rows.items():
            models = {
                "model_id_with_origin_paths": f"{transformer},{TEXT_ENCODER},Qwen/Qwen-Image{vae}:{VAE}"
            }
            found[name, mode] = {**COMMON, **own, **models, **more}
        for name, (net, more) in NETS.items():
            models = found["qwen-image", mode]["model_id_with_origin_paths"]
            both = {
                "model_id_with_origin_paths": f"{models},{STUDIO}-Blockwise-ControlNet-{net}:model.safetensors"
            }
            trained = NET if mode == "full" else {}
            found[f"blockwise-controlnet-{name}", mode] = {**COMMON, **own, **both, **more, **trained}
    found["qwen-image-distill-lora", "lora"].pop("max_pixels")
    return found


COMMANDS = commands()


def words(options: Options) -> list[str]:
    return [word for name, value in options.items() for word in (f"--{name}", value) if word is not None]


def configured(given: list[str], capsys: pytest.CaptureFixture[str]) -> dict:
    assert main(["train", *given, "--print_config"]) == 0
    return yaml.safe_load(capsys.readouterr().out)


@pytest.mark.parametrize(("name", "mode"), COMMANDS, ids=map("-".join, COMMANDS))
def test_a_published_command_is_the_form_of_a_recipe(
    name: str, mode: str, capsys: pytest.CaptureFixture[str]
) -> None:
    published = configured(words(COMMANDS[name, mode]), capsys)
    ours = configured(["--recipe", name, "--mode", mode], capsys)
    assert ours.pop("activation") in ("gelu_tanh", "quick_gelu")  # which a script does not know
    if "lora_checkpoint" in published:  # a script names where it was downloaded to
        published["lora_checkpoint"] += ":model.safetensors"
    assert published == ours


def test_every_form_is_a_published_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "list", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    names = [entry["name"] for entry in (listed["recipes"] if isinstance(listed, dict) else listed)]
    forms = set()
    for name in names:
        assert main(["recipes", "show", name, "--json"]) == 0
        forms |= {(name, form["mode"]) for form in json.loads(capsys.readouterr().out)["training"]}
    assert forms - COMMANDS.keys() <= {("eligen-v2", "lora")}, "the script of EliGen is that of V2 as well"
    assert COMMANDS.keys() <= forms


@pytest.mark.parametrize("mode", ["full", "lora"])
def test_a_model_without_a_recipe_is_trained_as_published(
    mode: str, hub: Path, offline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FireRed-Image-Edit, in the layout of Edit-2509; only the work is less."""
    models = offline / "models"
    shutil.copytree(hub / "Qwen" / "Qwen-Image-Edit-2509", models / "FireRedTeam" / "FireRed-Image-Edit-1.0")
    (models / "Qwen").symlink_to(hub / "Qwen", target_is_directory=True)
    monkeypatch.setenv("QWENIMAGE_MODEL_BASE_PATH", str(models))
    data = offline / "data"
    data.mkdir()
    columns = {"edit_image": [picture(data, "one.png"), picture(data, "other.png")]}
    row = {"image": picture(data, "a.png"), "prompt": "a cat", **columns, "edit_image_auto_resize": False}
    (data / "metadata.json").write_text(json.dumps([row]))
    options = dict(COMMANDS["qwen-image-edit-2509", mode])
    given = str(options["model_id_with_origin_paths"])
    options["model_id_with_origin_paths"] = given.replace(
        "Qwen/Qwen-Image-Edit-2509", "FireRedTeam/FireRed-Image-Edit-1.0"
    )
    options |= {"extra_inputs": "edit_image,edit_image_auto_resize", "num_epochs": "1"}
    options |= {
        "dataset_base_path": "data",
        "dataset_metadata_path": "data/metadata.json",
        "output_path": "out",
    }
    assert main(["train", *words(options)]) == 0
    with safe_open(offline / "out" / "epoch-0.safetensors", "pt") as file:
        assert any("lora" in name for name in file.keys()) == (mode == "lora")  # noqa: SIM118
