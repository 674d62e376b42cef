"""The same LoRA file does the same here as in both peers, live; and what is written here, they read.

Weights are random and small; every kind of linear layer of a block is adapted, with two ranks and, where the format has
it, an alpha that is not the rank.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from qwenimage_core.adapters.convert import save_lora
from qwenimage_core.adapters.files import load_lora
from qwenimage_core.adapters.formats import BY_NAME, WRITABLE
from qwenimage_core.adapters.lora import Adapter, attached
from qwenimage_core.layout import NOISE, Grid, Layout, Segment
from qwenimage_core.models.rope import rope_tables
from qwenimage_core.models.transformer import QwenImageTransformer, TransformerConfig

diffusers = pytest.importorskip("diffusers")

CONFIG = TransformerConfig(
    num_layers=2,
    num_attention_heads=2,
    attention_head_dim=32,
    joint_attention_dim=24,
    axes_dims_rope=(4, 14, 14),
)
GRID, TEXT, TIME = Grid(height=3, width=4), 5, 731.25

# Keys as their writers write them, by hand: down, up, alpha.
KEYS = {
    "diffusers": ("transformer.{}.lora_A.weight", "transformer.{}.lora_B.weight", None),
    "comfyui": ("diffusion_model.{}.lora_A.weight", "diffusion_model.{}.lora_B.weight", None),
    "comfyui-alpha": (
        *(
            "diffusion_model.{}.lora_down.weight",
            "diffusion_model.{}.lora_up.weight",
            "diffusion_model.{}.alpha",
        ),
    ),
    "diffsynth": ("{}.lora_A.default.weight", "{}.lora_B.default.weight", None),
    "bare": ("{}.lora_A.weight", "{}.lora_B.weight", None),
    "lightx2v": ("{}.lora_down.weight", "{}.lora_up.weight", "{}.alpha"),
    "kohya": ("lora_unet_{}.lora_down.weight", "lora_unet_{}.lora_up.weight", "lora_unet_{}.alpha"),
}
READ_BY_DIFFUSERS = ("diffusers", "comfyui", "comfyui-alpha", "diffsynth", "lightx2v", "kohya")
READ_BY_DIFFSYNTH = ("comfyui", "comfyui-alpha", "diffsynth", "bare", "lightx2v")


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    model = QwenImageTransformer(CONFIG)
    for name, parameter in model.named_parameters():
        if "norm" not in name or "norm_out" in name:
            torch.nn.init.normal_(parameter, std=0.12)
    return model.state_dict()


@pytest.fixture
def changes(state: dict[str, torch.Tensor]) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """{module: (down, up)} for every linear layer of the blocks; feed-forward layers have another rank."""
    found = {}
    for key, value in state.items():
        module = key.removesuffix(".weight")
        if module.startswith("transformer_blocks.") and value.ndim == 2 and key.endswith(".weight"):
            rank = 3 if "mlp" in module else 4
            found[module] = (torch.randn(rank, value.shape[1]) * 0.1, torch.randn(value.shape[0], rank) * 0.1)
    assert len(found) == 2 * 14
    return found


def write_by_hand(path: Path, form: str, changes: dict[str, tuple[torch.Tensor, torch.Tensor]]) -> Path:
    tensors = {}
    for module, pair in changes.items():
        name = module.replace(".", "_") if form == "kohya" else module
        tensors |= {key.format(name): tensor for key, tensor in zip(KEYS[form][:2], pair, strict=True)}
        if KEYS[form][2]:
            tensors[KEYS[form][2].format(name)] = torch.tensor(1.5)
    save_file(tensors, path)
    return path


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(1, GRID.tokens, 64, generator=generator), torch.randn(1, TEXT, 24, generator=generator)


@torch.no_grad()
def ours(state, path=None, strength=1.0, mode="hot", activation="gelu_tanh") -> torch.Tensor:
    model = QwenImageTransformer(CONFIG).eval()
    model.load_state_dict(state)
    noise = Segment(name=NOISE, owner="test", kind="image", tokens=GRID.tokens, grid=GRID)
    layout = Layout((Segment(name="prompt", owner="test", kind="text", tokens=TEXT), noise))
    rope = rope_tables(torch.tensor(layout.positions()), CONFIG.axes_dims_rope)
    x, text = inputs()
    adapters = [Adapter(name="lora", weights=path, strength=strength, mode=mode)] if path else []
    with attached(model, adapters):
        return model(
            x,
            model.embed_text(text),
            rope,
            model.modulation(TIME),
            noise_tokens=GRID.tokens,
            activation=activation,
        )


def diffusers_pipeline(state: dict[str, torch.Tensor]):
    names = [name for name in CONFIG.__dataclass_fields__ if name != "activation"]
    peer = diffusers.QwenImageTransformer2DModel(**{name: getattr(CONFIG, name) for name in names}).eval()
    peer.load_state_dict(state)
    return diffusers.QwenImagePipeline(
        scheduler=None, vae=None, text_encoder=None, tokenizer=None, transformer=peer
    )


@torch.no_grad()
def diffusers_velocity(pipeline) -> torch.Tensor:
    x, text = inputs()
    shapes = [[(1, GRID.height, GRID.width)]]
    return pipeline.transformer(
        hidden_states=x,
        encoder_hidden_states=text,
        timestep=torch.tensor([TIME / 1000]),
        img_shapes=shapes,
        return_dict=False,
    )[0]


def with_diffusers(state, path, strength=1.0) -> torch.Tensor:
    pipeline = diffusers_pipeline(state)
    pipeline.load_lora_weights(path, adapter_name="lora")
    pipeline.set_adapters("lora", strength)
    return diffusers_velocity(pipeline)


@torch.no_grad()
def with_diffsynth(state, path, strength=1.0) -> torch.Tensor:
    """DiffSynth-Studio's loader on a transformer put together from its own modules at small width."""
    pytest.importorskip("diffsynth")
    from diffsynth.models import qwen_image_dit as dit
    from diffsynth.pipelines.qwen_image import QwenImagePipeline, model_fn_qwen_image

    width, inner = CONFIG.width, CONFIG.joint_attention_dim
    peer = dit.QwenImageDiT(num_layers=0)
    peer.pos_embed = dit.QwenEmbedRope(theta=10000, axes_dim=list(CONFIG.axes_dims_rope), scale_rope=True)
    peer.time_text_embed = dit.TimestepEmbeddings(
        256, width, diffusers_compatible_format=True, scale=1000, align_dtype_to_timestep=False
    )
    peer.txt_norm = dit.RMSNorm(inner, eps=1e-6)
    peer.img_in, peer.txt_in = torch.nn.Linear(CONFIG.in_channels, width), torch.nn.Linear(inner, width)
    peer.transformer_blocks = torch.nn.ModuleList(
        dit.QwenImageTransformerBlock(dim=width, num_attention_heads=2, attention_head_dim=32)
        for _ in range(2)
    )
    peer.norm_out, peer.proj_out = (
        dit.AdaLayerNorm(width, single=True),
        torch.nn.Linear(width, CONFIG.in_channels),
    )
    peer.load_state_dict(state)
    QwenImagePipeline(device="cpu", torch_dtype=torch.float32).load_lora(
        peer.eval(), str(path), alpha=strength
    )
    x, text = inputs()
    x = x.view(1, GRID.height, GRID.width, 16, 2, 2).permute(0, 3, 1, 4, 2, 5)  # -> (1, 16, h, 2, w, 2)
    found = model_fn_qwen_image(
        dit=peer,
        latents=x.reshape(1, 16, 2 * GRID.height, 2 * GRID.width),
        timestep=torch.tensor([TIME]),
        prompt_emb=text,
        prompt_emb_mask=torch.ones(1, TEXT, dtype=torch.long),
        height=16 * GRID.height,
        width=16 * GRID.width,
    )
    found = found.view(1, 16, GRID.height, 2, GRID.width, 2).permute(0, 2, 4, 1, 3, 5)
    return found.reshape(1, GRID.tokens, 64)


def assert_same_and_visible(found: torch.Tensor, expected: torch.Tensor, without: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=0)
    assert (found - without).abs().mean() > 0.02


@pytest.mark.parametrize("mode", ["hot", "merged"])
@pytest.mark.parametrize("form", READ_BY_DIFFUSERS)
def test_file_does_what_it_does_in_diffusers(tmp_path, state, changes, form, mode):
    path = write_by_hand(tmp_path / "lora.safetensors", form, changes)
    expected = with_diffusers(state, path, 0.75)
    assert_same_and_visible(ours(state, path, 0.75, mode), expected, ours(state))


@pytest.mark.parametrize("mode", ["hot", "merged"])
@pytest.mark.parametrize("form", READ_BY_DIFFSYNTH)
def test_file_does_what_it_does_in_diffsynth(tmp_path, state, changes, form, mode):
    path = write_by_hand(tmp_path / "lora.safetensors", form, changes)
    expected = with_diffsynth(state, path, 0.75)
    assert_same_and_visible(
        ours(state, path, 0.75, mode, "quick_gelu"), expected, ours(state, activation="quick_gelu")
    )


@pytest.mark.parametrize("form", WRITABLE)
@pytest.mark.parametrize("source", ["lightx2v", "diffsynth"])
def test_converted_files_do_the_same_in_diffusers(tmp_path, state, changes, source, form):
    """With an alpha in the source (lightx2v) and without (diffsynth)."""
    path = write_by_hand(tmp_path / "lora.safetensors", source, changes)
    save_lora(load_lora(path), tmp_path / "out.safetensors", form)
    assert_same_and_visible(
        with_diffusers(state, tmp_path / "out.safetensors"), ours(state, path), ours(state)
    )


@pytest.mark.parametrize("form", [form for form in WRITABLE if form in READ_BY_DIFFSYNTH])
@pytest.mark.parametrize("source", ["lightx2v", "diffsynth"])
def test_converted_files_do_the_same_in_diffsynth(tmp_path, state, changes, source, form):
    path = write_by_hand(tmp_path / "lora.safetensors", source, changes)
    save_lora(load_lora(path), tmp_path / "out.safetensors", form)
    found = with_diffsynth(state, tmp_path / "out.safetensors")
    without = ours(state, activation="quick_gelu")
    assert_same_and_visible(found, ours(state, path, activation="quick_gelu"), without)


@pytest.mark.parametrize("rslora", [False, True])
def test_file_that_diffusers_saved_with_its_metadata(tmp_path, state, rslora):
    from diffusers.training_utils import _collate_lora_metadata
    from peft import LoraConfig, get_peft_model_state_dict

    pipeline = diffusers_pipeline(state)
    config = LoraConfig(
        r=4,
        lora_alpha=6,
        target_modules=["to_q", "img_mod.1", "net.2"],
        rank_pattern={"to_q": 2},
        alpha_pattern={"img_mod.1": 1},
        init_lora_weights=False,
        use_rslora=rslora,
    )
    pipeline.transformer.add_adapter(config)
    diffusers.QwenImagePipeline.save_lora_weights(
        tmp_path,
        transformer_lora_layers=get_peft_model_state_dict(pipeline.transformer),
        **_collate_lora_metadata({"transformer": pipeline.transformer}),
    )
    path = tmp_path / "pytorch_lora_weights.safetensors"
    assert load_lora(path).format == "diffusers"
    assert_same_and_visible(ours(state, path), diffusers_velocity(pipeline), ours(state))


def test_layers_adapted_for_training_as_diffsynth_does_make_its_format(tmp_path, state):
    """DiffSynth-Studio injects with peft into the bare transformer and saves what is trainable."""
    from peft import LoraConfig, inject_adapter_in_model

    model = QwenImageTransformer(CONFIG)
    model.load_state_dict(state)
    config = LoraConfig(r=4, lora_alpha=4, target_modules=["to_q", "img_mod.1"], init_lora_weights=False)
    trained = {k: v for k, v in inject_adapter_in_model(config, model).state_dict().items() if "lora_" in k}
    save_file(trained, tmp_path / "lora.safetensors")
    assert load_lora(tmp_path / "lora.safetensors").format == "diffsynth"
    assert len(load_file(tmp_path / "lora.safetensors")) == 2 * 2 * 2
    expected = with_diffsynth(state, tmp_path / "lora.safetensors")
    found = ours(state, tmp_path / "lora.safetensors", activation="quick_gelu")
    assert_same_and_visible(found, expected, ours(state, activation="quick_gelu"))


def test_written_files_carry_the_torch_mark_the_peers_look_for(tmp_path, changes, state):
    path = write_by_hand(tmp_path / "lora.safetensors", "bare", changes)
    save_lora(load_lora(path), tmp_path / "out.safetensors")
    with safe_open(tmp_path / "out.safetensors", "pt") as opened:
        assert opened.metadata()["format"] == "pt"
    assert {form for form in WRITABLE if not BY_NAME[form].alpha} == {"comfyui", "diffsynth"}
