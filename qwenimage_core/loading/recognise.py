"""What a checkpoint is: a table of known components, told apart by their tensors' names and shapes.

Neither file names nor checksums decide. A plugin adds rows by handing over `ComponentSpec` objects. No torch at import.
"""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from qwenimage_core.errors import LoadError, QwenImageWarning
from qwenimage_core.loading.gguf_file import llama_name

if TYPE_CHECKING:
    from torch import Tensor, nn

    from qwenimage_core.loading.checkpoint import Checkpoint

Shapes = Mapping[str, tuple[int, ...]]
Config = Mapping[str, Any]

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")
_LORA = re.compile(r"lora_(A|B|up|down)\b|lora\.(up|down)\b|lokr_|hada_")


@dataclass(frozen=True, kw_only=True)
class ComponentSpec:
    """One known component: how its checkpoint is recognised, and how its module is built and filled.

    `rename` gives a file's tensor its name in the module, None for one that is not needed. A checkpoint is this
    component when, renamed, it has every name of `signature` (numbers written "*") and `recognise`, given all shapes as
    they are in the file, says True; any other answer is the reason why not. At least one of the two is needed.
    `build` makes the module from the content of config.json (None where there is none) and the shapes; it runs on the
    meta device, so what needs values (positions, frequencies) must not be a buffer. `convert` reshapes one tensor of
    the file (by its name there) into the module's; it also sees meta tensors.
    `blocks` and `once` name modules by path, numbers written "*": blocks run one after the other and may be streamed,
    and what is in `once` is needed once in a run and not kept in memory for the rest of it. What is in `later` only
    some requests need: it is read when it first runs. `denoises`: the component computes in every step; others are done
    when the loop begins, but for the VAE.
    `kind` is the name that the component has in the pipeline (default: `name`), `many` allows several of one kind.
    `published` is the model id and file pattern that bring it.
    """

    name: str
    build: Callable[[Config | None, Shapes], nn.Module]
    kind: str = ""
    signature: tuple[str, ...] = ()
    recognise: Callable[[Shapes], bool | str] | None = None
    rename: Callable[[str], str | None] | None = None
    convert: Callable[[str, Tensor], Tensor] | None = None
    blocks: tuple[str, ...] = ()
    once: tuple[str, ...] = ()
    later: tuple[str, ...] = ()
    denoises: bool = False
    many: bool = False
    published: tuple[str, str] | None = None

    def __post_init__(self) -> None:
        if not self.signature and self.recognise is None:
            raise LoadError(
                f"The component {self.name!r} cannot be recognised.", expected="signature or recognise"
            )
        object.__setattr__(self, "kind", self.kind or self.name)

    def names(self, shapes: Shapes) -> set[str]:
        """The names that the module would see, with numbers written "*"."""
        renamed = (name if self.rename is None else self.rename(name) for name in shapes)
        return {_NUMBER.sub("*", name) for name in renamed if name is not None}

    def missing(self, shapes: Shapes) -> list[str]:
        """The part of the signature that these tensors lack."""
        names = self.names(shapes)
        return [name for name in self.signature if name not in names]

    def refusal(self, shapes: Shapes) -> str | None:
        """Why a checkpoint is not this component; None if it is."""
        if missing := self.missing(shapes):
            return "no tensor " + _some(missing)
        answer = True if self.recognise is None else self.recognise(shapes)
        return None if answer is True else answer or f"not recognised as {self.name}"


def recognise(checkpoint: Checkpoint, specs: Sequence[ComponentSpec]) -> ComponentSpec:
    """The one component that a checkpoint holds. Raises LoadError where none fits, or several do."""
    shapes = checkpoint.shapes
    refusals = {spec.name: spec.refusal(shapes) for spec in specs}
    fitting = [spec for spec in specs if refusals[spec.name] is None]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise LoadError(
            f"{checkpoint.files[0]} fits more than one component.",
            got=", ".join(spec.name for spec in fitting),
            expected="one",
            mend="switch off one of the plugins that bring them",
        )
    if any(_LORA.search(name) for name in shapes):
        raise LoadError(
            f"{checkpoint.files[0]} is a LoRA, not a component.",
            got=_looks_like(shapes),
            mend="give it to load_lora instead of model_configs",
        )
    raise _unknown(checkpoint, specs, refusals)


def _unknown(
    checkpoint: Checkpoint, specs: Sequence[ComponentSpec], refusals: Mapping[str, str | None]
) -> LoadError:
    """No component fits: name the nearest, what it lacks and what is strange in it."""
    shapes = checkpoint.shapes
    signed = [spec for spec in specs if spec.signature]
    share = {spec.name: 1 - len(spec.missing(shapes)) / len(spec.signature) for spec in signed}
    nearest = max(signed, key=lambda spec: share[spec.name], default=None)
    if nearest is None or share[nearest.name] == 0:
        expected = "the tensors of one of " + ", ".join(spec.name for spec in specs)
    else:
        expected = f"the nearest known component is the {nearest.name}: {refusals[nearest.name]}"
        roots = {name.split(".")[0] for name in nearest.signature}
        if strange := [name for name in shapes if name.split(".")[0] not in roots]:
            expected += f"; not part of it: {_some(strange)}"
    return LoadError(
        f"{checkpoint.files[0]} holds no component known here.",
        got=_looks_like(shapes),
        expected=expected,
        mend="check the file, or install the plugin that brings this component",
    )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _looks_like(shapes: Shapes) -> str:
    groups = Counter(name.split(".")[0] for name in shapes)
    shown = ", ".join(f"{group} ({count})" for group, count in groups.most_common(6))
    return f"{len(shapes)} tensors: {shown or 'none'}{', ...' if len(groups) > 6 else ''}"


# --- the core's own components ------------------------------------------------------------------------------------


def _build_transformer(config: Config | None, shapes: Shapes) -> nn.Module:
    from qwenimage_core.models.transformer import QwenImageTransformer, TransformerConfig

    if config is not None:
        return QwenImageTransformer(TransformerConfig.from_dict(config))
    shapes = {transformer_name(name): shape for name, shape in shapes.items()}
    warnings.warn(
        "no config.json beside the transformer's weights: its sizes are read from its tensors, but whether it is an "
        "Edit-2511 (zero_cond_t) cannot be; put the model's transformer/config.json beside them",
        QwenImageWarning,
        stacklevel=2,
    )
    return QwenImageTransformer(TransformerConfig.from_shapes(shapes))


def transformer_name(name: str) -> str:
    """Files made for ComfyUI put a prefix before every name."""
    return name.removeprefix("model.").removeprefix("diffusion_model.")


def _build_text_encoder(config: Config | None, shapes: Shapes) -> nn.Module:
    from qwenimage_core.models.text_encoder import PUBLISHED_CONFIG, TextEncoder

    vision = any(name.startswith(("visual.", "model.visual.")) for name in shapes)
    return TextEncoder(PUBLISHED_CONFIG if config is None else config, vision=vision)


def _text_encoder_name(name: str) -> str | None:
    name = llama_name(name) or name
    for prefix, short in (
        ("lm_head.", None),
        ("model.visual.", "visual."),
        ("model.language_model.", "model."),
    ):
        if name.startswith(prefix):
            return None if short is None else short + name.removeprefix(prefix)
    return name


def _text_encoder_name_alone(name: str) -> str | None:
    renamed = _text_encoder_name(name)
    return None if renamed is None or renamed.startswith("visual.") else renamed


def _build_vae(config: Config | None, shapes: Shapes) -> nn.Module:
    from qwenimage_core.models.vae import QwenImageVAE, VAEConfig

    return QwenImageVAE(VAEConfig.from_shapes(shapes) if config is None else VAEConfig.from_dict(config))


def _vae_name(name: str) -> str | None:
    return None if ".time_conv." in name else name  # never run for a single frame


def _vae_tensor(name: str, tensor: Tensor) -> Tensor:
    from qwenimage_core.models.vae import flatten_tensor

    return flatten_tensor(name, tensor)


TRANSFORMER = ComponentSpec(
    name="transformer",
    signature=(
        "img_in.weight",
        "txt_in.weight",
        "txt_norm.weight",
        "time_text_embed.timestep_embedder.linear_1.weight",
        "transformer_blocks.*.img_mod.*.weight",
        "transformer_blocks.*.txt_mod.*.weight",
        "transformer_blocks.*.attn.to_q.weight",
        "transformer_blocks.*.attn.add_q_proj.weight",
        "transformer_blocks.*.attn.norm_q.weight",
        "transformer_blocks.*.img_mlp.net.*.proj.weight",
        "transformer_blocks.*.txt_mlp.net.*.proj.weight",
        "norm_out.linear.weight",
        "proj_out.weight",
    ),
    build=_build_transformer,
    rename=transformer_name,
    blocks=("transformer_blocks.*",),
    once=("transformer_blocks.*.img_mod", "transformer_blocks.*.txt_mod"),
    denoises=True,
    published=("Qwen/Qwen-Image", "transformer/diffusion_pytorch_model*.safetensors"),
)
TEXT_ENCODER = ComponentSpec(
    name="text_encoder",
    signature=(
        "model.embed_tokens.weight",
        "model.layers.*.self_attn.q_proj.bias",
        "model.layers.*.self_attn.o_proj.weight",
        "model.layers.*.mlp.gate_proj.weight",
        "model.norm.weight",
    ),
    build=_build_text_encoder,
    rename=_text_encoder_name,
    blocks=("model.embed_tokens", "model.layers.*"),
    later=("visual.patch_embed", "visual.blocks.*", "visual.merger"),
    published=("Qwen/Qwen-Image", "text_encoder/model*.safetensors"),
)
VAE = ComponentSpec(
    name="vae",
    signature=(
        "encoder.conv_in.weight",
        "encoder.down_blocks.*.norm1.gamma",
        "encoder.mid_block.attentions.*.to_qkv.weight",
        "quant_conv.weight",
        "post_quant_conv.weight",
        "decoder.conv_in.weight",
        "decoder.up_blocks.*.resnets.*.norm1.gamma",
        "decoder.conv_out.weight",
    ),
    recognise=lambda shapes: (
        len(shapes["encoder.conv_in.weight"]) == 5 or "encoder.conv_in.weight is no 5-D kernel"
    ),
    build=_build_vae,
    rename=_vae_name,
    convert=_vae_tensor,
    published=("Qwen/Qwen-Image", "vae/diffusion_pytorch_model.safetensors"),
)
# Without its vision tower, which only pictures in the prompt need: 1.35 GB less at full size.
TEXT_ENCODER_ALONE = replace(
    TEXT_ENCODER,
    build=lambda config, shapes: _build_text_encoder(config, {}),
    rename=_text_encoder_name_alone,
)
CORE_COMPONENTS = (TRANSFORMER, TEXT_ENCODER, VAE)
