"""Options: their sources and order, what is refused, and what --print_config says."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer
import yaml

import qwenimage_blockwise_controlnet
import qwenimage_edit
import qwenimage_eligen
import qwenimage_in_context_control
import qwenimage_layered
from qwenimage_core.errors import RequestError
from qwenimage_core.recipes import all_recipes, find_recipe
from qwenimage_core.registry import PluginRegistry
from qwenimage_training import commands
from qwenimage_training.arguments import TrainingArguments
from qwenimage_training.settings import TARGETS, merged, read_config, validated

PLUGINS = [
    qwenimage_blockwise_controlnet,
    qwenimage_edit,
    qwenimage_eligen,
    qwenimage_in_context_control,
    qwenimage_layered,
]
# every published option that this run understands, with its published default
PUBLISHED = {
    "dataset_base_path": "",
    "dataset_metadata_path": None,
    "dataset_repeat": 1,
    "dataset_num_workers": 0,
    "data_file_keys": "image,video",
    "height": None,
    "width": None,
    "max_pixels": 1048576,
    "model_paths": None,
    "model_id_with_origin_paths": None,
    "extra_inputs": None,
    "learning_rate": 1e-4,
    "num_epochs": 1,
    "trainable_models": None,
    "find_unused_parameters": False,
    "weight_decay": 0.01,
    "task": "sft",
    "output_path": "./models",
    "remove_prefix_in_ckpt": "pipe.dit.",
    "save_steps": None,
    "lora_base_model": None,
    "lora_target_modules": "q,k,v,o,ffn.0,ffn.2",
    "lora_rank": 32,
    "lora_checkpoint": None,
    "preset_lora_path": None,
    "preset_lora_model": None,
    "use_gradient_checkpointing": False,
    "use_gradient_checkpointing_offload": False,
    "gradient_accumulation_steps": 1,
    "tokenizer_path": None,
    "processor_path": None,
    "fp8_models": None,
    "zero_cond_t": False,
    "initialize_model_on_cpu": False,
}


def test_published_options_have_their_published_defaults() -> None:
    arguments = TrainingArguments()
    assert {name: getattr(arguments, name) for name in PUBLISHED} == PUBLISHED


def test_later_sources_win() -> None:
    recipe = find_recipe("qwen-image-edit-2511", PluginRegistry.discover(PLUGINS))
    values = merged("lora", recipe, {"num_epochs": 3, "lora_rank": 8}, {"lora_rank": 16})
    arguments = validated(values)
    assert (arguments.learning_rate, arguments.num_epochs, arguments.lora_rank) == (1e-4, 3, 16)
    assert arguments.lora_target_modules.split(",") == list(TARGETS)
    assert (arguments.extra_inputs, arguments.data_file_keys) == ("edit_image", "image,edit_image")
    assert arguments.zero_cond_t is True
    assert arguments.model_id_with_origin_paths is not None
    assert arguments.model_id_with_origin_paths.startswith("Qwen/Qwen-Image-Edit-2511:transformer/")


def test_the_modes_are_the_published_ones() -> None:
    full, lora = (validated(merged(mode, None, {}, {})) for mode in ("full", "lora"))
    assert (full.learning_rate, full.num_epochs, full.trainable_models) == (1e-5, 2, "dit")
    assert (lora.learning_rate, lora.num_epochs, lora.lora_rank, lora.lora_base_model) == (1e-4, 5, 32, "dit")
    assert all(a.max_pixels == 1048576 and a.use_gradient_checkpointing for a in (full, lora))


def test_models_that_are_given_take_the_place_of_the_recipe_s() -> None:
    recipe = find_recipe("qwen-image", PluginRegistry.discover())
    arguments = validated(merged("full", recipe, {}, {"model": "tiny"}))
    assert (arguments.model, arguments.model_id_with_origin_paths) == ("tiny", None)


def test_every_published_form_of_every_recipe_gives_arguments() -> None:
    registry = PluginRegistry.discover(PLUGINS)
    forms = [(r, f.mode) for _, r in all_recipes(registry).values() for f in r.training]
    assert len(forms) > 20
    for recipe, mode in forms:
        validated(merged(mode, recipe, {}, {}))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"learning_rat": 1}, "did you mean `learning_rate`"),
        ({"learning_rate": "fast"}, "--learning_rate"),
        ({"lora_rank": 4}, "do nothing without lora_base_model"),
        ({"preset_lora_path": "a.safetensors"}, "belong together"),
        ({"save_steps": 3, "gradient_accumulation_steps": 2}, "multiple of gradient_accumulation_steps"),
        ({"model_paths": "a.safetensors"}, "no JSON list"),
        ({"resume": True, "save_state": False}, "save_state"),
    ],
)
def test_bad_values_are_refused(values, said: str) -> None:
    with pytest.raises(RequestError, match=said):
        validated(values)


def test_config_files_say_the_same(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("lora_base_model: dit\nlora_rank: 7\nmodel_paths: [a, [b, c]]\n")
    (tmp_path / "a.toml").write_text(
        'lora_base_model = "dit"\nlora_rank = 7\nmodel_paths = ["a", ["b", "c"]]\n'
    )
    found = [validated(read_config(tmp_path / f"a.{kind}")) for kind in ("yaml", "toml")]
    assert found[0] == found[1]
    assert found[0].local_models == ["a", ["b", "c"]]


def train(*words: str) -> None:
    """The command as the plugin adds it."""
    app = typer.Typer()
    app.callback()(lambda: None)
    commands(app)
    app(["train", *words], standalone_mode=False)


def test_print_config_gives_a_config_that_says_the_same(tmp_path: Path, capsys) -> None:
    train("--recipe", "qwen-image", "--mode", "lora", "--lora_rank", "8", "--print_config")
    shown = capsys.readouterr().out
    assert yaml.safe_load(shown)["lora_rank"] == 8
    (tmp_path / "again.yaml").write_text(shown)
    train("--config", str(tmp_path / "again.yaml"), "--print_config")
    assert yaml.safe_load(capsys.readouterr().out) == yaml.safe_load(shown)


def test_published_words_are_understood_as_they_stand(tmp_path: Path, capsys) -> None:
    """A published command, with the script's name taken away."""
    command = """
    --dataset_base_path data/diffsynth_example_dataset/qwen_image/Qwen-Image
    --dataset_metadata_path data/diffsynth_example_dataset/qwen_image/Qwen-Image/metadata.csv
    --max_pixels 1048576 --dataset_repeat 50
    --model_id_with_origin_paths
    Qwen/Qwen-Image:transformer/diffusion_pytorch_model*.safetensors,Qwen/Qwen-Image:text_encoder/model*.safetensors,Qwen/Qwen-Image:vae/diffusion_pytorch_model.safetensors
    --learning_rate 1e-4 --num_epochs 5 --remove_prefix_in_ckpt pipe.dit.
    --output_path ./models/train/Qwen-Image_lora --lora_base_model dit
    --lora_target_modules
    to_q,to_k,to_v,add_q_proj,add_k_proj,add_v_proj,to_out.0,to_add_out,img_mlp.net.2,img_mod.1,txt_mlp.net.2,txt_mod.1
    --lora_rank 32 --use_gradient_checkpointing --dataset_num_workers 8 --find_unused_parameters
    """
    train(*command.split(), "--print_config")
    by_hand = yaml.safe_load(capsys.readouterr().out)
    recipe = ["--recipe", "qwen-image", "--mode", "lora"]
    train(
        *recipe,
        *command.split()[:4],
        "--dataset_repeat",
        "50",
        "--dataset_num_workers",
        "8",
        "--print_config",
    )
    by_recipe = yaml.safe_load(capsys.readouterr().out)
    differing = {
        name for name in by_hand.keys() | by_recipe.keys() if by_hand.get(name) != by_recipe.get(name)
    }
    assert differing == {"output_path", "activation"}, "the recipe is the published command"


def test_switches_can_be_taken_back(capsys) -> None:
    train("--mode", "full", "--model", "tiny", "--no_use_gradient_checkpointing", "--print_config")
    assert yaml.safe_load(capsys.readouterr().out)["use_gradient_checkpointing"] is False


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--quant_options", "Qwen/Qwen-Image:x:bitsandbytes_nf4"], "--fp8_models"),
        (["--enable_tensorboard_log"], "--log_with tensorboard"),
        (["--resume_from_checkpoint", "a.safetensors"], "--model_paths"),
    ],
)
def test_published_options_that_do_not_exist_say_what_does_their_work(words: list[str], said: str) -> None:
    with pytest.raises(RequestError, match="does not exist here") as caught:
        train("--model", "tiny", "--mode", "lora", *words)
    assert said in str(caught.value)
