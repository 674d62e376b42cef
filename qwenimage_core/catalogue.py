"""Names only: which first-party distribution brings which request field, command or model. For error messages.

The core imports none of them; a name that nobody here provides can thus be answered with the pip line that helps.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Extra:
    """One extra of qwenimage-core. `name` is the extra's name and, for plugins, the plugin's."""

    name: str
    distribution: str
    fields: tuple[str, ...] = ()
    commands: tuple[str, ...] = ()

    @property
    def pip(self) -> str:
        return f'pip install "qwenimage-core[{self.name}]"'


EXTRAS = (
    Extra(
        name="edit",
        distribution="qwenimage-edit",
        fields=("edit_image", "edit_image_auto_resize", "edit_rope_interpolation", "zero_cond_t"),
    ),
    Extra(name="layered", distribution="qwenimage-layered", fields=("layer_input_image", "layer_num")),
    Extra(
        name="eligen",
        distribution="qwenimage-eligen",
        fields=("eligen_entity_prompts", "eligen_entity_masks", "eligen_enable_on_negative"),
    ),
    Extra(
        name="blockwise-controlnet",
        distribution="qwenimage-blockwise-controlnet",
        fields=("blockwise_controlnet_inputs",),
    ),
    Extra(name="in-context-control", distribution="qwenimage-in-context-control", fields=("context_image",)),
    Extra(
        name="i2l",
        distribution="qwenimage-i2l",
        fields=("i2l_images", "i2l_mode", "i2l_strength", "i2l_bias"),
        commands=("i2l",),
    ),
    Extra(name="lightning", distribution="qwenimage-lightning", fields=("lightning",)),
    Extra(name="train", distribution="qwenimage-training", commands=("train",)),
    Extra(name="tiny", distribution="qwenimage-tiny"),
)

# What the peers call our fields: too far from ours for a spelling suggestion to find them.
PEER_NAMES = {
    "callback_on_step_end": "step_callback",
    "control_image": "blockwise_controlnet_inputs",
    "generator": "seed",
    "guidance_scale": "cfg_scale",
    "image": "input_image",
    "mask_image": "inpaint_mask",
    "mu": "exponential_shift_mu",
    "n_prompt": "negative_prompt",
    "num_steps": "num_inference_steps",
    "sampling_steps": "num_inference_steps",
    "steps": "num_inference_steps",
    "strength": "denoising_strength",
    "true_cfg_scale": "cfg_scale",
}


def extra_of_field(field: str) -> Extra | None:
    """The first-party extra that provides a request field."""
    return next((e for e in EXTRAS if field in e.fields), None)


def extra_of_command(command: str) -> Extra | None:
    """The first-party extra that provides a sub-command."""
    return next((e for e in EXTRAS if command in e.commands), None)


def extra_named(name: str) -> Extra | None:
    """The first-party extra of this name, or of the distribution of this name."""
    return next((e for e in EXTRAS if name in (e.name, e.distribution)), None)


def known_fields() -> tuple[str, ...]:
    """Every request field that some first-party plugin provides."""
    return tuple(f for e in EXTRAS for f in e.fields)
