"""Every key format that LoRA files of this family come in, as one table. Adding a format is adding a row.

A key is prefix + module path + ending. The table names the combinations that known tools write; reading (`parse.py`)
accepts any known prefix with any known ending, because tools mix them.

Supported beside plain LoRA: LoKr exactly as its Kronecker product; LoHa exactly, because the elementwise product of two
rank-r matrices is one LoRA of rank r². Not supported: DoRA, whose change depends on the norm of the weight it is added
to, so it is neither a plain sum nor independent of other adapters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class KeyFormat:
    """One row: `parts` maps a tensor's role to the ending of its key, where `*` stands for an adapter's name.

    `flat`: the dots of the module path are written as underscores. `scale` says what the change is multiplied with.
    `writable` formats can be chosen in `convert`; `alpha` says where they put an alpha ("" = it must be folded).
    """

    name: str
    written_by: str
    prefix: str
    parts: Mapping[str, str]
    scale: str
    flat: bool = False
    writable: bool = False

    @property
    def alpha(self) -> str:
        return "tensor" if "alpha" in self.parts else "metadata" if "metadata" in self.scale else ""

    def key(self, module: str, role: str) -> str:
        """The key of one tensor, e.g. `transformer.img_in.lora_A.weight`."""
        path = module.replace(".", "_") if self.flat else module
        return self.prefix + path + self.parts[role].replace("*", "default")

    def example(self) -> str:
        return self.key("transformer_blocks.0.attn.to_q", next(iter(self.parts)))


_AB = {"down": ".lora_A.weight", "up": ".lora_B.weight"}
_AB_NAMED = {"down": ".lora_A.*.weight", "up": ".lora_B.*.weight"}
_DOWN_UP = {"down": ".lora_down.weight", "up": ".lora_up.weight", "alpha": ".alpha"}
_OLD = {"down": ".lora.down.weight", "up": ".lora.up.weight"}
_LOKR_NAMES = ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")
_LOKR = {name: f".lokr_{name}" for name in _LOKR_NAMES} | {"alpha": ".alpha"}
_LOHA_NAMES = ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")
_LOHA = {f"hada_{name}": f".hada_{name}" for name in _LOHA_NAMES} | {"alpha": ".alpha"}
_DORA = {
    "dora": ".dora_scale",
    "dora_peft": ".lora_magnitude_vector",
    "dora_named": ".lora_magnitude_vector.*",
}
_BY_ALPHA = "alpha / rank (else 1)"
_BY_METADATA = "lora_alpha / r in metadata (else 1)"

# `comfyui` has no alpha although ComfyUI would read one: diffusers drops an alpha beside lora_A and lora_B.
FORMATS = (
    KeyFormat("diffusers", "diffusers, peft", "transformer.", _AB, _BY_METADATA, writable=True),
    KeyFormat("comfyui", "ComfyUI, ai-toolkit", "diffusion_model.", _AB, "1", writable=True),
    KeyFormat("comfyui-alpha", "ComfyUI, ai-toolkit", "diffusion_model.", _DOWN_UP, _BY_ALPHA, writable=True),
    KeyFormat("diffsynth", "DiffSynth-Studio, i2L", "", _AB_NAMED, "1", writable=True),
    KeyFormat("diffsynth-raw", "DiffSynth-Studio (raw)", "pipe.dit.", _AB_NAMED, "1"),
    KeyFormat("bare", "DiffSynth-Studio (renamed)", "", _AB, "1"),
    KeyFormat("lightx2v", "LightX2V Lightning", "", _DOWN_UP, _BY_ALPHA, writable=True),
    KeyFormat("kohya", "musubi-tuner, kohya", "lora_unet_", _DOWN_UP, _BY_ALPHA, flat=True, writable=True),
    KeyFormat("peft", "peft", "base_model.model.", _AB, _BY_METADATA),
    KeyFormat("old-diffusers", "diffusers, before peft", "", _OLD, "1"),
    KeyFormat(
        "lokr",
        "LyCORIS, SimpleTuner",
        "lycoris_",
        _LOKR,
        "alpha / rank (1 if both are full)",
        flat=True,
    ),
    KeyFormat("loha", "LyCORIS, SimpleTuner", "lycoris_", _LOHA, _BY_ALPHA, flat=True),
    KeyFormat("dora", "kohya, peft; refused", "", _DORA, "depends on the weight's norm"),
)

BY_NAME = {row.name: row for row in FORMATS}
WRITABLE = tuple(row.name for row in FORMATS if row.writable)

FLAT_PREFIXES = ("lora_unet_", "lycoris_", "lora_transformer_", "lora_te_")
DOTTED_PREFIXES = (
    *("base_model.model.", "diffusion_model.", "transformer.", "pipe.dit.", "dit.", "model."),
    *("text_encoder.", "pipe.text_encoder.", "controlnet."),
)
TRANSFORMER_PREFIXES = DOTTED_PREFIXES[:6]

_BLOCK_MODULES = (
    *("img_mod.1", "txt_mod.1", "attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0", "attn.add_q_proj"),
    *("attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out", "img_mlp.net.0.proj", "img_mlp.net.2"),
    *("txt_mlp.net.0.proj", "txt_mlp.net.2"),
)
_TOP_MODULES = (
    *("img_in", "txt_in", "proj_out", "norm_out.linear"),
    *("time_text_embed.timestep_embedder.linear_1", "time_text_embed.timestep_embedder.linear_2"),
)


def published_modules(layers: int) -> list[str]:
    """Paths of the linear layers of the published transformer with this many blocks."""
    return [
        *_TOP_MODULES,
        *(f"transformer_blocks.{n}.{name}" for n in range(layers) for name in _BLOCK_MODULES),
    ]
