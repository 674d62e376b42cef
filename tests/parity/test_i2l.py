"""i2L against DiffSynth-Studio, live on equal weights: preprocessing, both encoders, the networks, the joined LoRA, and
the picture that is drawn with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import qwenimage_i2l
from qwenimage_core import ModelConfig, QwenImagePipeline
from qwenimage_core.testing import write_tiny_checkpoint
from qwenimage_i2l.pictures import cropped
from tests.cases import assert_pictures_equal

from .peers import diffsynth_pipeline, diffusers_pipeline

pytest.importorskip("diffsynth")

WIDTH, TEXT_WIDTH = 64, 48
SIGLIP2 = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "image_size": 48,
    "patch_size": 16,
    "num_attention_heads": 16,
    "num_hidden_layers": 2,
    "hidden_act": "gelu_pytorch_tanh",
}
DINOV3 = {
    "hidden_size": 128,
    "intermediate_size": 96,
    "image_size": 224,
    "patch_size": 16,
    "num_attention_heads": 32,
    "num_hidden_layers": 2,
    "num_register_tokens": 4,
    "use_gated_mlp": True,
    "hidden_act": "silu",
    "query_bias": False,
    "value_bias": False,
}
NETWORKS: dict[str, dict[str, Any]] = {
    "style": {"compress_dim": 6, "use_residual": False},
    "coarse": {"compress_dim": 8, "residual_length": 64 + 7, "residual_mid_dim": 5},
    "fine": {"compress_dim": 8, "residual_length": 37 * 37 + 7, "residual_mid_dim": 3},
}
SHARED = {
    "prompt": "a red circle",
    "height": 64,
    "width": 48,
    "num_inference_steps": 3,
    "seed": 5,
    "progress_bar_cmd": iter,
}
# With the fine network one picture: the text encoder sees it large, and joining is the same for all networks.
CASES = [("style", 1), ("style", 3), ("coarse", 3), ("style+coarse", 3), ("fine", 1), ("coarse+fine", 1)]


def picture(seed: int, size: tuple[int, int]) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)


PICTURES = [picture(0, (700, 501)), picture(1, (1333, 1920)), picture(2, (96, 96))]


def liven(module: torch.nn.Module) -> torch.nn.Module:
    """Matrices of unit gain."""
    for parameter in module.parameters():
        if parameter.ndim > 1:
            parameter.data = torch.randn(parameter.shape) / parameter[0].numel() ** 0.5
    return module.requires_grad_(False).eval()


def their_encoder(kind: str) -> Any:
    """DiffSynth-Studio's encoder with its own preprocessing and forward, at small size and in float32."""
    import transformers
    from diffsynth.models import dinov3_image_encoder, siglip2_image_encoder

    if kind == "siglip2":
        whole, own = siglip2_image_encoder.Siglip2ImageEncoder, transformers.SiglipVisionModel
        config: Any = transformers.SiglipVisionConfig(**SIGLIP2)
        size = SIGLIP2["image_size"]
        processor: Any = transformers.SiglipImageProcessor(
            resample=2, image_mean=[0.5] * 3, image_std=[0.5] * 3, size={"height": size, "width": size}
        )
    else:
        whole, own = dinov3_image_encoder.DINOv3ImageEncoder, transformers.DINOv3ViTModel
        config = transformers.DINOv3ViTConfig(**DINOV3)
        processor = transformers.DINOv3ViTImageProcessor()

    class Small(whole):  # type: ignore[misc, valid-type]
        def __init__(self) -> None:
            own.__init__(self, config)
            self.processor = processor

        def forward(self, image: Image.Image) -> torch.Tensor:
            return whole.forward(self, image, torch_dtype=torch.float32, device="cpu")

    return liven(Small())


def their_network(**options: Any) -> Any:
    """QwenImageImage2LoRAModel of two transformer blocks, 64 wide, made of its own blocks."""
    from diffsynth.models.qwen_image_image2lora import LoRATrainerBlock, QwenImageImage2LoRAModel

    peer = QwenImageImage2LoRAModel(num_blocks=0, use_residual=options.get("use_residual", True))
    scale = WIDTH / 3072
    peer.blocks = torch.nn.ModuleList(
        LoRATrainerBlock(
            [(name, int(a * scale), int(b * scale)) for name, a, b in patterns],
            in_dim=SIGLIP2["hidden_size"] + DINOV3["hidden_size"],
            block_id=n,
            residual_dim=TEXT_WIDTH,
            **options,
        )
        for patterns in peer.lora_patterns
        for n in range(2)
    )
    return liven(peer)


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Their pipeline; its weights are in the folder `pipe.folder`, under the names of the hub."""
    torch.manual_seed(0)
    folder = write_tiny_checkpoint(tmp_path_factory.mktemp("base") / "model", seed=2)
    pipe = diffsynth_pipeline(folder)
    pipe.folder = folder
    pipe.siglip2_image_encoder, pipe.dinov3_image_encoder = their_encoder("siglip2"), their_encoder("dinov3")
    pipe.networks = {name: their_network(**options) for name, options in NETWORKS.items()}
    modules = {"siglip2": pipe.siglip2_image_encoder, "dinov3": pipe.dinov3_image_encoder, **pipe.networks}
    for name, module in modules.items():
        weights = {key.replace("model.layer.", "layer."): w for key, w in module.state_dict().items()}
        save_file(weights, folder.parent / f"{name}.safetensors")
    return pipe


@pytest.fixture(scope="module")
def ours(theirs: Any) -> QwenImagePipeline:
    parts = [theirs.folder / name for name in ("transformer", "text_encoder", "vae")]
    parts += [theirs.folder.parent / f"{name}.safetensors" for name in ("siglip2", "dinov3", *NETWORKS)]
    pipe = QwenImagePipeline.from_pretrained(
        model_configs=[ModelConfig(path=path) for path in parts],
        tokenizer_config=ModelConfig(path=theirs.folder / "tokenizer"),
        torch_dtype=torch.float32,
        device="cpu",
        plugins=[qwenimage_i2l],
    )
    pipe.prompts.positions = "flat"
    return pipe


@pytest.fixture(scope="module")
def their_lora(theirs: Any) -> Callable[..., dict[str, torch.Tensor]]:
    """What their two units make of pictures, as their example calls them."""
    from diffsynth.pipelines.qwen_image import QwenImageUnit_Image2LoRADecode as Decode
    from diffsynth.pipelines.qwen_image import QwenImageUnit_Image2LoRAEncode as Encode

    def make(mode: str, pictures: list[Image.Image]) -> dict[str, torch.Tensor]:
        for name, network in theirs.networks.items():
            setattr(theirs, f"image2lora_{name}", network if name in mode.split("+") else None)
        with torch.no_grad():
            return Decode().process(theirs, **Encode().process(theirs, image2lora_images=pictures))["lora"]

    return make


def our_lora(pipe: QwenImagePipeline, **fields: Any) -> dict[str, torch.Tensor]:
    """Our run-time adapter as the tensors of its file."""
    from qwenimage_core.adapters.convert import convert

    (adapter,) = pipe.plan(**SHARED, **fields).adapters
    return dict(convert(adapter.read(pipe.components["transformer"][0].module), "diffsynth").tensors)


def assert_same(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor], case: str) -> None:
    assert set(found) == set(expected)
    worst = max((found[name] - expected[name]).abs().max().item() for name in expected)
    largest = max(value.abs().max().item() for value in expected.values())
    print(f"{case}: {len(expected)} tensors of up to {largest:.1f} differ by {worst:.1e}")
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-5, rtol=0)


@pytest.mark.parametrize("side", [224, 1024])
def test_crops_equal_diffsynth(side: int) -> None:
    from diffsynth.core.data.operators import ImageCropAndResize

    for size in [(700, 501), (501, 700), (1333, 1920), (96, 96), (1024, 1024), (3001, 17), (1023, 1025)]:
        given = picture(3, size)
        expected = ImageCropAndResize(height=side, width=side)(given)
        assert np.array_equal(np.array(cropped(given, side)), np.array(expected)), size


@pytest.mark.parametrize("number", range(len(PICTURES)))
def test_embeddings_equal_diffsynth(number: int, theirs: Any, ours: QwenImagePipeline) -> None:
    from qwenimage_i2l.lora import embed

    square = cropped(PICTURES[number], 1024)
    with torch.no_grad():
        expected = [theirs.siglip2_image_encoder(square), theirs.dinov3_image_encoder(square)]
        (found,) = embed([square], lambda kind: ours.components[kind][0].module)
    torch.testing.assert_close(found, torch.cat(expected, dim=1), atol=1e-5, rtol=0)


@pytest.mark.parametrize("network", NETWORKS)
def test_networks_equal_diffsynth(network: str, theirs: Any, ours: QwenImagePipeline) -> None:
    """On equal embeddings: the hypernetwork alone."""
    tokens = NETWORKS[network].get("residual_length", 0)
    draw = torch.Generator().manual_seed(4)
    x_1X = torch.randn(1, SIGLIP2["hidden_size"] + DINOV3["hidden_size"], generator=draw)
    text_1TW = torch.randn(1, tokens, TEXT_WIDTH, generator=draw) * 20 if tokens else None
    with torch.no_grad():
        expected = theirs.networks[network](x_1X, None if text_1TW is None else text_1TW.flatten(1))
        made = ours.components[f"i2l_{network}"][0].module(x_1X, text_1TW)
    found = {f"{name}.lora_A.default.weight": layer.down_RI for name, layer in made.items()}
    found |= {f"{name}.lora_B.default.weight": layer.up_OR for name, layer in made.items()}
    assert_same(found, expected, network)


@pytest.mark.parametrize(("mode", "count"), CASES)
def test_loras_of_pictures_equal_diffsynth(
    mode: str, count: int, ours: QwenImagePipeline, their_lora: Callable[..., dict[str, torch.Tensor]]
) -> None:
    expected = their_lora(mode, PICTURES[:count])
    found = our_lora(ours, i2l_images=PICTURES[:count], i2l_mode=mode)
    assert_same(found, expected, f"{mode} of {count}")


def test_bias_and_picture_equal_diffsynth(
    theirs: Any,
    ours: QwenImagePipeline,
    their_lora: Callable[..., dict[str, torch.Tensor]],
    tmp_path: Path,
) -> None:
    """Their joined LoRA, written as their example does and loaded by them; ours made at run time."""
    from diffsynth.utils.lora import merge_lora

    bias_file, file = tmp_path / "bias.safetensors", tmp_path / "lora.safetensors"
    base = their_lora("coarse", PICTURES[:2])
    draw = torch.Generator().manual_seed(8)
    bias = {
        name: torch.randn(w.shape, generator=draw) * w.std()
        for name, w in their_lora("coarse", PICTURES[:1]).items()
    }
    save_file(bias, bias_file)
    expected = merge_lora([base, load_file(bias_file)])
    fields = {"i2l_images": PICTURES[:2], "i2l_mode": "coarse+bias", "i2l_bias": bias_file}
    assert_same(our_lora(ours, **fields), expected, "coarse+bias of 2")

    # their weights would have to be loaded again to be rid of a LoRA, so a small strength and last
    save_file({name: w.contiguous() for name, w in expected.items()}, file)
    theirs.load_lora(theirs.dit, str(file), alpha=0.05)
    from qwenimage_core.values import TransformerOptions

    ours.options = TransformerOptions(activation="quick_gelu")
    assert_pictures_equal(ours(**SHARED, **fields, i2l_strength=0.05), theirs(**SHARED))


def test_diffusers_loads_the_file(theirs: Any, ours: QwenImagePipeline, tmp_path: Path) -> None:
    """The file of the command, loaded by diffusers without conversion, draws what the run-time adapter draws."""
    from qwenimage_core.adapters.convert import save_lora
    from qwenimage_core.values import TransformerOptions

    fields: dict[str, Any] = {"i2l_images": PICTURES[:2], "i2l_mode": "style"}
    (adapter,) = ours.plan(**SHARED, **fields).adapters
    save_lora(
        adapter.read(ours.components["transformer"][0].module), tmp_path / "lora.safetensors", "diffsynth"
    )
    peer = diffusers_pipeline(theirs.folder)
    peer.load_lora_weights(tmp_path / "lora.safetensors", adapter_name="i2l")
    peer.set_adapters("i2l", 0.1)
    shared = {name: value for name, value in SHARED.items() if name not in ("seed", "progress_bar_cmd")}
    draw = torch.Generator().manual_seed(5)
    expected = peer(**shared, true_cfg_scale=1.0, generator=draw).images[0]
    ours.options = TransformerOptions()
    assert_pictures_equal(ours(**SHARED, **fields, cfg_scale=1.0, i2l_strength=0.1), expected)
    without = np.asarray(ours(**SHARED, cfg_scale=1.0), dtype=float)
    assert np.abs(without - np.asarray(expected)).mean() > 3
