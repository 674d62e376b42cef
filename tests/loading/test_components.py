"""A component is checked against its module before memory is spent, and then holds exactly the file's values."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from qwenimage_core.errors import LoadError, QwenImageWarning
from qwenimage_core.loading.checkpoint import Checkpoint
from qwenimage_core.loading.components import Component, find_components
from qwenimage_core.loading.config import ModelConfig
from qwenimage_core.loading.recognise import (
    CORE_COMPONENTS,
    TEXT_ENCODER,
    TEXT_ENCODER_ALONE,
    TRANSFORMER,
    VAE,
    ComponentSpec,
    recognise,
)
from qwenimage_core.testing.checkpoints import write_tiny_checkpoint

SPECS = {spec.kind: spec for spec in CORE_COMPONENTS}
FILES = {
    "transformer": "transformer/diffusion_pytorch_model.safetensors",
    "text_encoder": "text_encoder/model.safetensors",
    "vae": "vae/diffusion_pytorch_model.safetensors",
}


def component(folder: Path, part: str, spec: ComponentSpec | None = None, **options: object) -> Component:
    return Component(spec or SPECS[part], Checkpoint.open(folder / part), **options)  # type: ignore[arg-type]


def changed(tiny: Path, folder: Path, part: str, change: Callable[[dict[str, Tensor]], None]) -> Path:
    """A copy of one component whose weights went through `change`."""
    shutil.copytree(tiny / part, folder / part)
    weights = load_file(folder / FILES[part])
    change(weights)
    save_file(weights, folder / FILES[part])
    return folder


def misfit(folder: Path, part: str) -> LoadError:
    with pytest.raises(LoadError) as caught:
        component(folder, part)
    assert f"do not fit the {part}" in caught.value.what
    return caught.value


# --- loading ------------------------------------------------------------------------------------------------------


def test_transformer_holds_the_files_values(tiny: Path) -> None:
    made = component(tiny, "transformer")
    assert not made.loaded and all(parameter.is_meta for parameter in made.skeleton.parameters())
    state = made.load(whole=True).state_dict()
    stored = load_file(tiny / FILES["transformer"])
    assert made.loaded and state.keys() == stored.keys()
    assert all(torch.equal(state[name], stored[name]) for name in stored)


def test_vae_keeps_the_last_temporal_slice_only(tiny: Path) -> None:
    state = component(tiny, "vae").module.state_dict()
    stored = load_file(tiny / FILES["vae"])
    kernels = [name for name, tensor in stored.items() if tensor.ndim == 5 and ".time_conv." not in name]
    assert len(kernels) > 30
    for name in kernels:
        assert torch.equal(state[name], stored[name][:, :, -1])
        assert state[name].untyped_storage().nbytes() == state[name].nbytes, (
            "the slices left out are not kept in memory"
        )
    assert not any(".time_conv." in name for name in state)


def test_text_encoder_without_head_and_with_or_without_vision(tiny: Path) -> None:
    stored = load_file(tiny / FILES["text_encoder"])
    full = component(tiny, "text_encoder").load(whole=True).state_dict()
    assert full.keys() == stored.keys() - {"lm_head.weight"}
    assert all(torch.equal(full[name], stored[name]) for name in full)
    alone = component(tiny, "text_encoder", TEXT_ENCODER_ALONE)
    assert alone.module.state_dict().keys() == {name for name in full if not name.startswith("visual.")}
    assert alone.bytes < component(tiny, "text_encoder").bytes


def test_rotary_frequencies_are_real_after_building_on_meta(tiny: Path) -> None:
    module = component(tiny, "text_encoder", dtype=torch.bfloat16).module
    for rotary, theta in ((module.model.rotary_emb, 1e6), (module.visual.rotary_pos_emb, 1e4)):
        assert not rotary.inv_freq.is_meta
        assert rotary.inv_freq.dtype == torch.float32
        ratios = rotary.inv_freq[1:] / rotary.inv_freq[:-1]
        width = 16 if theta == 1e6 else 8  # channels that the frequencies turn, two each
        assert torch.allclose(ratios, torch.tensor(theta ** (-2 / width)), rtol=1e-6)


def test_later_names_of_the_text_encoder_load_alike(tiny: Path, tmp_path: Path) -> None:
    def rename(weights: dict[str, Tensor]) -> None:
        for name in list(weights):
            head, _, rest = name.partition(".")
            if head != "lm_head":
                prefix = "model.visual." if head == "visual" else "model.language_model."
                weights[prefix + rest] = weights.pop(name)

    later = (
        component(changed(tiny, tmp_path, "text_encoder", rename), "text_encoder")
        .load(whole=True)
        .state_dict()
    )
    first = component(tiny, "text_encoder").load(whole=True).state_dict()
    assert later.keys() == first.keys()
    assert all(torch.equal(later[name], first[name]) for name in first)


@pytest.mark.parametrize("part", list(FILES))
def test_target_dtype_and_announced_bytes(tiny: Path, part: str) -> None:
    made = component(tiny, part, dtype=torch.bfloat16)
    announced = made.bytes
    parameters = list(made.module.parameters())
    assert {parameter.dtype for parameter in parameters} == {torch.bfloat16}
    assert announced == sum(parameter.nbytes for parameter in parameters)
    assert made.itemsize == 2
    assert made.parameters == announced // 2
    assert not any(parameter.requires_grad for parameter in parameters)
    assert not made.module.training


def test_shards_load_like_one_file(tmp_path: Path) -> None:
    one = write_tiny_checkpoint(tmp_path / "one")
    three = write_tiny_checkpoint(tmp_path / "three", shards=3)
    for part in ("transformer", "text_encoder"):
        first, second = (component(folder, part).load(whole=True).state_dict() for folder in (one, three))
        assert all(torch.equal(first[name], second[name]) for name in first)


def test_release_gives_memory_back_and_the_module_stays_the_same(tiny: Path) -> None:
    made = component(tiny, "vae")
    module = made.module
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    made.release()
    assert not made.loaded and all(parameter.is_meta for parameter in module.parameters())
    assert made.module is module
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


def test_single_tensors_can_be_read_for_streaming(tiny: Path) -> None:
    made = component(tiny, "transformer", dtype=torch.bfloat16)
    name = "transformer_blocks.1.img_mod.1.weight"
    read = made.read(name)
    assert not made.loaded
    assert torch.equal(read, load_file(tiny / FILES["transformer"])[name].bfloat16())


# --- config -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["base", "layered"])
def test_sizes_come_from_shapes_where_no_config_is(tmp_path: Path, variant: str) -> None:
    bare = write_tiny_checkpoint(tmp_path / "bare", variant=variant, with_config=False)  # type: ignore[arg-type]
    full = write_tiny_checkpoint(tmp_path / "full", variant=variant)  # type: ignore[arg-type]
    with pytest.warns(QwenImageWarning, match=r"no config\.json.*zero_cond_t"):
        transformer = component(bare, "transformer")
    assert transformer.config is None
    assert transformer.skeleton.config == component(full, "transformer").skeleton.config
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert component(bare, "vae").skeleton.config == component(full, "vae").skeleton.config


def test_zero_cond_t_is_read_from_the_config(tmp_path: Path) -> None:
    folder = write_tiny_checkpoint(tmp_path, variant="edit-2511")
    assert component(folder, "transformer").skeleton.config.zero_cond_t is True


def test_layered_has_four_channels_and_the_additional_embedding(tmp_path: Path) -> None:
    folder = write_tiny_checkpoint(tmp_path, variant="layered")
    transformer, vae = component(folder, "transformer"), component(folder, "vae")
    assert transformer.skeleton.config.use_layer3d_rope is True
    assert "time_text_embed.addition_t_embedding.weight" in transformer.module.state_dict()
    assert vae.skeleton.config.input_channels == 4
    assert vae.module.state_dict()["encoder.conv_in.weight"].shape[1] == 4


# --- what does not fit --------------------------------------------------------------------------------------------


def test_missing_unexpected_and_wrong_tensors_are_listed_before_loading(tiny: Path, tmp_path: Path) -> None:
    def change(weights: dict[str, Tensor]) -> None:
        for name in ("to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj"):
            del weights[f"transformer_blocks.0.attn.{name}.bias"]
        weights["transformer_blocks.0.attn.extra"] = torch.zeros(1)
        weights["img_in.weight"] = torch.zeros(64, 68)

    error = misfit(changed(tiny, tmp_path, "transformer", change), "transformer")
    assert error.got is not None
    missing, unexpected, wrong = error.got.split("; ")
    assert missing.startswith("6 missing: transformer_blocks.0.attn.")
    assert missing.endswith(", ...") and missing.count("transformer_blocks") == 5
    assert unexpected == "1 unexpected: transformer_blocks.0.attn.extra"
    assert wrong == "1 wrong: img_in.weight is (64, 68) instead of (64, 64)"
    assert error.expected == "77 tensors of the shapes that QwenImageTransformer has"
    assert error.mend is not None and "one model" in error.mend


def test_config_of_another_size(tiny: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny / "transformer", tmp_path / "transformer")
    path = tmp_path / "transformer" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_layers": 3}))
    error = misfit(tmp_path, "transformer")
    assert error.got is not None and error.got.startswith("32 missing: transformer_blocks.2.")


def test_text_encoder_without_its_config_asks_for_it(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "text_encoder").mkdir()
    shutil.copy(tiny / FILES["text_encoder"], tmp_path / "text_encoder")
    assert misfit(tmp_path, "text_encoder").mend == "put the config.json of this model beside its weights"


def test_quantised_integers_are_not_taken_for_weights(tiny: Path, tmp_path: Path) -> None:
    def change(weights: dict[str, Tensor]) -> None:
        weights["img_in.weight"] = weights["img_in.weight"].to(torch.int8)

    error = misfit(changed(tiny, tmp_path, "transformer", change), "transformer")
    assert error.got == "1 wrong: img_in.weight is torch.int8 instead of floating point"


def test_two_names_for_one_tensor(tiny: Path, tmp_path: Path) -> None:
    def change(weights: dict[str, Tensor]) -> None:
        weights["model.language_model.norm.weight"] = weights["model.norm.weight"].clone()

    error = misfit(changed(tiny, tmp_path, "text_encoder", change), "text_encoder")
    assert error.got == "1 unexpected: model.norm.weight (as model.language_model.norm.weight)"


# --- components of plugins ----------------------------------------------------------------------------------------


class Net(nn.Module):
    def __init__(self, buffer: bool = False) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 2)
        if buffer:
            self.register_buffer("table", torch.arange(4.0), persistent=False)


def net_spec(**options: object) -> ComponentSpec:
    options = {"build": lambda config, shapes: Net(), "signature": ("inner.weight",), **options}
    return ComponentSpec(name="net", **options)  # type: ignore[arg-type]


def test_plugin_renames_and_converts(tmp_path: Path) -> None:
    weight, bias = torch.arange(6.0).reshape(3, 2), torch.ones(2)
    save_file(
        {"net.inner.weight": weight, "net.inner.bias": bias, "optimizer": torch.ones(9)},
        tmp_path / "net.safetensors",
    )
    spec = net_spec(
        rename=lambda name: name.removeprefix("net.") if name.startswith("net.") else None,
        convert=lambda name, tensor: tensor.T if tensor.ndim == 2 else tensor,
    )
    checkpoint = Checkpoint.open(tmp_path / "net.safetensors")
    assert recognise(checkpoint, (*CORE_COMPONENTS, spec)) is spec
    module = Component(spec, checkpoint).module
    assert torch.equal(module.inner.weight, weight.T) and module.inner.weight.is_contiguous()
    assert torch.equal(module.inner.bias, bias)


def test_buffer_that_nothing_fills_is_refused(tmp_path: Path) -> None:
    save_file({"inner.weight": torch.ones(2, 3), "inner.bias": torch.ones(2)}, tmp_path / "net.safetensors")
    checkpoint = Checkpoint.open(tmp_path / "net.safetensors")
    with pytest.raises(LoadError, match="net has buffers that no file fills") as caught:
        Component(net_spec(build=lambda config, shapes: Net(buffer=True)), checkpoint)
    assert caught.value.got == "table"


# --- finding ------------------------------------------------------------------------------------------------------


def configs(folder: Path, *parts: str) -> list[ModelConfig]:
    return [ModelConfig(path=folder / FILES[part]) for part in parts]


def test_components_are_found_by_kind(tiny: Path) -> None:
    found = find_components(configs(tiny, "vae", "transformer", "text_encoder"), dtype=torch.bfloat16)
    assert list(found) == ["vae", "transformer", "text_encoder"]
    assert [part[0].spec for part in found.values()] == [VAE, TRANSFORMER, TEXT_ENCODER]
    assert all(part[0].dtype == torch.bfloat16 and not part[0].loaded for part in found.values())


def test_a_whole_model_in_one_config(tiny: Path) -> None:
    assert sorted(find_components([ModelConfig(path=tiny)])) == ["text_encoder", "transformer", "vae"]


def test_published_quick_start_with_files_put_by_hand(tmp_path: Path) -> None:
    write_tiny_checkpoint(tmp_path / "Qwen" / "Qwen-Image", shards=2)
    patterns = (
        "transformer/diffusion_pytorch_model*.safetensors",
        "text_encoder/model*.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
    )
    models = [
        ModelConfig(model_id="Qwen/Qwen-Image", origin_file_pattern=pattern, local_model_path=tmp_path)
        for pattern in patterns
    ]
    assert list(find_components(models)) == ["transformer", "text_encoder", "vae"]


def test_transformer_alone_lists_what_is_missing_and_how_to_bring_it(tiny: Path) -> None:
    with pytest.raises(LoadError) as caught:
        find_components(configs(tiny, "transformer"))
    error = caught.value
    assert error.what == "Components are missing: text_encoder, vae."
    assert (error.got, error.expected) == ("transformer", "transformer, text_encoder, vae")
    assert error.mend is not None
    for line in (
        'ModelConfig(model_id="Qwen/Qwen-Image", origin_file_pattern="text_encoder/model*.safetensors")',
        'ModelConfig(model_id="Qwen/Qwen-Image", origin_file_pattern="vae/diffusion_pytorch_model.safetensors")',
    ):
        assert line in error.mend
        eval(line)  # what is recommended is a valid ModelConfig


def test_parts_can_be_asked_for(tiny: Path) -> None:
    assert list(find_components(configs(tiny, "vae"), needed=("vae",))) == ["vae"]


def test_two_of_a_kind(tiny: Path) -> None:
    with pytest.raises(LoadError, match="Two components of the kind vae"):
        find_components(configs(tiny, "vae", "vae"), needed=())


def test_several_of_a_kind_where_allowed(tmp_path: Path) -> None:
    files = [tmp_path / f"{number}.safetensors" for number in range(2)]
    for number, file in enumerate(files):
        save_file({"inner.weight": torch.full((2, 3), float(number)), "inner.bias": torch.ones(2)}, file)
    specs = (*CORE_COMPONENTS, net_spec(many=True))
    found = find_components([ModelConfig(path=file) for file in files], specs=specs, needed=())
    assert [part.module.inner.weight[0, 0].item() for part in found["net"]] == [0, 1]
