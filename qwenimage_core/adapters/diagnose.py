"""Why a LoRA does not fit, in words: which tensors are strangers, what they look like, whose they probably are."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from difflib import SequenceMatcher

from qwenimage_core.errors import AdapterError

SHOWN = 5

_FAMILY = "a transformer of this family with other modules, or of another size"
# First match wins. Dots and underscores both separate, because flattened names have only the latter.
_OWNERS = (
    (r"(double_blocks|single_blocks|single_transformer_blocks)[._]\d", "FLUX or HunyuanVideo"),
    (r"(language_model[._]layers|visual[._]blocks)[._]\d", "the text encoder (Qwen2.5-VL)"),
    (r"lora_te|text_encoder|text_model", "a text encoder"),
    (r"controlnet", "a ControlNet"),
    (r"(^|[._])blocks[._]\d+[._](self_attn|cross_attn|ffn)", "Wan"),
    (
        r"(input_blocks|down_blocks|middle_block|mid_block|output_blocks|up_blocks)[._]",
        "a Stable Diffusion UNet",
    ),
    (r"joint_blocks[._]\d", "Stable Diffusion 3"),
    (r"img_mlp[._](gate_layer|out|proj)", "Qwen-Image-2.1"),
    (r"transformer_blocks[._]\d", _FAMILY),
)

_PLAIN_WEIGHT = re.compile(r"(?!.*(lora|lokr|hada)).*\.(weight|bias|gamma)")


def owner(keys: Collection[str]) -> str | None:
    """Which model or component these keys most likely belong to."""
    return next((name for pattern, name in _OWNERS if any(re.search(pattern, key) for key in keys)), None)


def explain_strangers(
    source: str,
    strangers: Sequence[str],
    total: int,
    examples: Sequence[str],
    modules: Collection[str] | None,
) -> AdapterError:
    """The error for names (keys of a file, or layers) that match nothing, or for no names at all.

    `examples` are names that would do; `modules` are the paths of the model at hand."""
    if not strangers:
        return AdapterError(f"{source} is empty: it changes no layer.", mend="download or save it again")
    layers = {re.split(r"\.(lora|lokr|hada|alpha)", name)[0]: name for name in reversed(strangers)}
    first = list(reversed(layers.values()))  # one name a layer
    shown = ", ".join(first[:SHOWN]) + (", ..." if len(first) > SHOWN else "")
    problem = "are unknown" if modules is None else "match nothing in this model"
    return AdapterError(
        f"{source}: {len(strangers)} of its {total} names {problem}.",
        got=shown,
        expected=f"names such as {_nearest(strangers[0], examples)}",
        mend=_advice(strangers, modules),
    )


def _nearest(key: str, examples: Sequence[str]) -> str:
    """The known form most like the key, compared without the numbers of blocks."""
    plain = re.sub(r"\d+", "0", key)
    return max(examples, key=lambda example: SequenceMatcher(None, plain, example, autojunk=False).ratio())


def _advice(strangers: Sequence[str], modules: Collection[str] | None) -> str:
    if all(_PLAIN_WEIGHT.fullmatch(key) for key in strangers):
        return "these are weights, not a change to weights: load the file as a model, not as a LoRA"
    name = owner(strangers)
    if (
        name == _FAMILY
        and modules is not None
        and (wanted := _blocks(strangers)) > (blocks := _blocks(modules))
    ):
        return f"this LoRA was made for a transformer of at least {wanted} blocks, this one has {blocks}"
    return f"it looks made for {name}" if name else "`qwenimage lora formats` lists what can be read"


def _blocks(names: Collection[str]) -> int:
    numbers = [int(n) for name in names for n in re.findall(r"transformer_blocks[._](\d+)[._]", name)]
    return max(numbers, default=-1) + 1
