"""Whether a Lightning file, the loaded model and the request belong together."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from qwenimage_core.errors import QwenImageWarning, RequestError
from qwenimage_lightning.recognise import PUBLISHED_STEPS, LightningFile, lora_file

if TYPE_CHECKING:
    from qwenimage_core.context import Context

ZERO_COND_T_FAMILY = "Qwen-Image-Edit-2511"


def check_request(ctx: Context) -> None:
    """Raises RequestError, with the reason, for what does not belong together. Reads no more than the file's header."""
    lightning = ctx.request.lightning
    if lightning is None:
        return
    _check_guidance(ctx)
    if lightning is not True:
        file = LightningFile(lora_file(lightning))
        _check_lora(file)
        _check_steps(ctx, file)
        _check_size(ctx, file)
        _check_family(ctx, file)
        _check_base_dtype(ctx, file)


def _check_guidance(ctx: Context) -> None:
    if ctx.request.cfg_scale != 1:
        raise RequestError(
            "Lightning runs without guidance: it was distilled to give the guided velocity in one pass.",
            got=f"cfg_scale={ctx.request.cfg_scale:g}",
            expected="cfg_scale=1",
            mend="leave cfg_scale out, or leave lightning out",
        )
    if ctx.request.exponential_shift_mu is not None:
        raise RequestError(
            "Lightning has a schedule of its own, with a fixed shift of 3.",
            got=f"exponential_shift_mu={ctx.request.exponential_shift_mu:g}",
            mend="leave exponential_shift_mu out",
        )


def _check_lora(file: LightningFile) -> None:
    if not file.is_lora:
        raise RequestError(
            f"{file.path.name} is no LoRA: it holds a model's weights.",
            got=", ".join(list(file.checkpoint.shapes)[:3]),
            mend="give it as the transformer in model_configs, and lightning=True for its schedule",
        )


def _check_steps(ctx: Context, file: LightningFile) -> None:
    allowed = PUBLISHED_STEPS if file.steps is None else (file.steps,)
    if ctx.steps not in allowed:
        said = "by its name or metadata" if file.steps else "as all published Lightning files"
        expected = " or ".join(map(str, allowed))
        raise RequestError(
            f"{file.path.name} is for {expected} steps, {said}.",
            got=f"num_inference_steps={ctx.steps}",
            expected=expected,
            mend="leave num_inference_steps out, or give the file for that number of steps",
        )


def _check_size(ctx: Context, file: LightningFile) -> None:
    blocks, width = ctx.backbone.blocks, ctx.backbone.token_width
    if file.blocks != blocks or file.width not in (None, width):
        raise RequestError(
            f"{file.path.name} was made for another transformer.",
            got=f"{file.blocks} blocks" + (f" of width {file.width}" if file.width else ""),
            expected=f"{blocks} blocks of width {width}",
        )


def _check_family(ctx: Context, file: LightningFile) -> None:
    """Most bases look alike; those that can be told apart are: Layered, and Edit-2511 with pictures at time zero."""
    base, family, mend = None, file.family, "load the base that the file was distilled from"
    zero, said_by = _pictures_at_time_zero(ctx)
    if ctx.backbone.additional_t or ctx.backbone.position_rule == "layer3d":
        base, mend = "Qwen-Image-Layered", f"{mend}, or give lightning=True: its schedule alone"
    elif family is not None and zero != (family == ZERO_COND_T_FAMILY):
        other = "another model, without pictures at time zero"
        base = other if family == ZERO_COND_T_FAMILY else ZERO_COND_T_FAMILY
        mend += f"; {said_by} says zero_cond_t={zero}, which is true of Edit-2511 alone"
    if base is not None:
        raise RequestError(
            f"{file.path.name} is for {family or 'Qwen-Image and its Edit models'}; loaded is {base}.",
            expected=f"a Lightning file for {base}"
            if family != ZERO_COND_T_FAMILY
            else f"the weights of {family}",
            mend=mend,
        )


def _pictures_at_time_zero(ctx: Context) -> tuple[bool, str]:
    """As the request says, else the recipe, else the checkpoint; and which of them said it."""
    asked = getattr(ctx.request, "zero_cond_t", None)
    said = {
        "the request": asked,
        "the recipe": ctx.options.zero_cond_t,
        "config.json": ctx.backbone.zero_cond_t,
    }
    return next((bool(value), by) for by, value in said.items() if value is not None)


def _check_base_dtype(ctx: Context, file: LightningFile) -> None:
    """A plain cast to float8 moves the weights more than a few steps forgive. Scaled float8 does not."""
    component = ctx.components["transformer"][0]
    float8 = sorted(kind for kind in component.stored_dtypes() if kind.startswith("float8"))
    if file.for_fp8_base and not float8:
        raise RequestError(
            f"{file.path.name} was distilled on a base in float8.",
            got="weights in " + ", ".join(sorted(component.stored_dtypes())),
            mend="load the base it was distilled on: the other one gives pictures with a grid over them",
        )
    if float8 and not file.for_fp8_base:
        warnings.warn(
            f"{component.checkpoint.files[0]} is stored or kept in {float8[0]}, cast without scales: with "
            f"{file.path.name}, which was distilled on 16 bits, pictures may show a grid; use the weights in bfloat16 "
            "or scaled fp8 and place them in bfloat16 or as stored",
            QwenImageWarning,
            stacklevel=2,
        )
