"""Components are told by structure: whatever the file is called, and with a useful word when nothing fits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from qwenimage_core.errors import LoadError
from qwenimage_core.loading.checkpoint import Checkpoint
from qwenimage_core.loading.recognise import CORE_COMPONENTS, TRANSFORMER, VAE, ComponentSpec, recognise
from qwenimage_core.testing.checkpoints import write_tiny_checkpoint


def saved(path: Path, *names: str, shape: tuple[int, ...] = (2,)) -> Checkpoint:
    save_file({name: torch.zeros(shape) for name in names}, path)
    return Checkpoint.open(path)


def refused(checkpoint: Checkpoint, *more: ComponentSpec) -> LoadError:
    with pytest.raises(LoadError) as caught:
        recognise(checkpoint, (*CORE_COMPONENTS, *more))
    return caught.value


def plugin_spec(name: str = "controlnet", **options: object) -> ComponentSpec:
    options.setdefault("signature", ("controlnet_blocks.*.y_rms.weight", "img_in.weight"))
    return ComponentSpec(name=name, build=lambda config, shapes: nn.Linear(1, 1), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("variant", ["base", "layered"])
@pytest.mark.parametrize("part", ["transformer", "text_encoder", "vae"])
def test_published_layouts_are_recognised(tmp_path: Path, variant: str, part: str) -> None:
    folder = write_tiny_checkpoint(tmp_path, variant=variant, shards=2)  # type: ignore[arg-type]
    assert recognise(Checkpoint.open(folder / part), CORE_COMPONENTS).kind == part


def test_the_file_name_does_not_matter(tiny: Path, tmp_path: Path) -> None:
    odd = tmp_path / "text_encoder.safetensors"
    odd.write_bytes((tiny / "vae" / "diffusion_pytorch_model.safetensors").read_bytes())
    assert recognise(Checkpoint.open(odd), CORE_COMPONENTS) is VAE


def test_later_names_of_the_text_encoder(tiny: Path, tmp_path: Path) -> None:
    later = {}
    for name, tensor in load_file(tiny / "text_encoder" / "model.safetensors").items():
        head, _, rest = name.partition(".")
        later[
            {"model": "model.language_model.", "visual": "model.visual.", "lm_head": "lm_head."}[head] + rest
        ] = tensor
    save_file(later, tmp_path / "model.safetensors")
    assert recognise(Checkpoint.open(tmp_path / "model.safetensors"), CORE_COMPONENTS).kind == "text_encoder"


def test_a_miss_names_the_nearest_with_what_is_missing_and_strange(tiny: Path, tmp_path: Path) -> None:
    weights = load_file(tiny / "transformer" / "diffusion_pytorch_model.safetensors")
    del weights["proj_out.weight"], weights["txt_norm.weight"]
    weights["single_blocks.0.linear1.weight"] = torch.zeros(1)
    save_file(weights, tmp_path / "x.safetensors")
    error = refused(Checkpoint.open(tmp_path / "x.safetensors"))
    assert "holds no component known here" in error.what
    assert error.got is not None and error.got.startswith(
        "76 tensors: transformer_blocks (64), time_text_embed (4)"
    )
    assert error.expected == (
        "the nearest known component is the transformer: no tensor txt_norm.weight, proj_out.weight; "
        "not part of it: single_blocks.0.linear1.weight"
    )
    assert error.mend is not None and "install the plugin" in error.mend


def test_something_else_altogether(tmp_path: Path) -> None:
    error = refused(saved(tmp_path / "x.safetensors", "unet.down.0.weight", "clip.weight"))
    assert error.got in ("2 tensors: unet (1), clip (1)", "2 tensors: clip (1), unet (1)")
    assert error.expected == "the tensors of one of transformer, text_encoder, vae"


def test_shapes_count_too(tiny: Path, tmp_path: Path) -> None:
    weights = load_file(tiny / "vae" / "diffusion_pytorch_model.safetensors")
    flat = {name: t[:, :, -1].contiguous() if t.ndim == 5 else t for name, t in weights.items()}
    save_file(flat, tmp_path / "x.safetensors")
    error = refused(Checkpoint.open(tmp_path / "x.safetensors"))
    assert error.expected == "the nearest known component is the vae: encoder.conv_in.weight is no 5-D kernel"


@pytest.mark.parametrize("name", ["blocks.0.attn.to_q.lora_A.weight", "lora_unet_x.lora_down.weight"])
def test_a_lora_is_called_one(tmp_path: Path, name: str) -> None:
    error = refused(saved(tmp_path / "x.safetensors", name))
    assert "is a LoRA, not a component" in error.what
    assert error.mend is not None and "load_lora" in error.mend


def test_plugins_add_components(tmp_path: Path) -> None:
    spec = plugin_spec()
    checkpoint = saved(
        tmp_path / "x.safetensors", "controlnet_blocks.0.y_rms.weight", "img_in.weight", "img_in.bias"
    )
    assert recognise(checkpoint, (*CORE_COMPONENTS, spec)) is spec
    assert spec.kind == "controlnet", "the kind is the name unless another one is given"


def test_plugin_recognises_by_its_own_rule(tmp_path: Path) -> None:
    checkpoint = saved(tmp_path / "x.safetensors", "w", shape=(68, 4))
    deep = plugin_spec("deep", signature=(), recognise=lambda shapes: len(shapes) > 5 or "too few tensors")
    wide = plugin_spec("wide", signature=("w",), recognise=lambda shapes: shapes["w"] == (68, 4))
    assert recognise(checkpoint, (*CORE_COMPONENTS, deep, wide)) is wide
    error = refused(checkpoint, plugin_spec("wide", signature=("w",), recognise=lambda shapes: "not 64 wide"))
    assert error.expected is not None and error.expected.startswith(
        "the nearest known component is the wide: not 64 wide"
    )


def test_two_plugins_that_claim_one_file(tmp_path: Path) -> None:
    checkpoint = saved(tmp_path / "x.safetensors", "controlnet_blocks.0.y_rms.weight", "img_in.weight")
    error = refused(checkpoint, plugin_spec("one"), plugin_spec("two"))
    assert "fits more than one component" in error.what
    assert error.got == "one, two"


def test_a_component_that_fits_everything_is_refused() -> None:
    with pytest.raises(LoadError, match="'x' cannot be recognised"):
        plugin_spec("x", signature=())


def test_signatures_hold_for_the_published_sizes() -> None:
    """The full-size layouts are recognised as well, from names and shapes alone."""
    from qwenimage_core.models.vae import VAEConfig, published_shapes
    from qwenimage_core.testing.checkpoints import transformer_config, transformer_shapes

    config = transformer_config(60) | {
        "num_attention_heads": 24,
        "attention_head_dim": 128,
        "joint_attention_dim": 3584,
    }
    shapes = transformer_shapes(json.loads(json.dumps(config)))
    assert len(shapes) == 1933
    assert TRANSFORMER.refusal(shapes) is None and VAE.refusal(shapes) is not None
    shapes = published_shapes(VAEConfig(input_channels=4))
    assert len(shapes) == 194
    assert VAE.refusal(shapes) is None and TRANSFORMER.refusal(shapes) is not None
