"""Lightning: pictures in 4 or 8 steps without guidance. The LoRA, its schedule, its step count and guidance scale 1 are
one object, recognised from the file; what does not belong together is refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from qwenimage_core.hooks import hookimpl
from qwenimage_core.schedule import few_step
from qwenimage_core.values import Condition, Recipe
from qwenimage_lightning.fields import Fields, as_lightning
from qwenimage_lightning.recipes import RECIPES

if TYPE_CHECKING:
    from qwenimage_core.context import Context

NAME = "lightning"
HOOK_API = ">=1.0,<2"


@hookimpl
def request_fields() -> type[Fields]:
    return Fields


@hookimpl
def request_defaults(given: Mapping[str, Any]) -> Mapping[str, Any]:
    """Guidance off and the file's own number of steps, unless the caller asks for something else."""
    from qwenimage_lightning.recognise import told_steps

    try:
        lightning = as_lightning(given["lightning"])
    except ValueError:
        return {}  # validation says what is wrong with it
    return {"cfg_scale": 1.0, "num_inference_steps": told_steps(lightning)} if lightning else {}


@hookimpl
def recipes() -> Sequence[Recipe]:
    return RECIPES


@hookimpl
def check_request(ctx: Context) -> None:
    from qwenimage_lightning.check import check_request as check

    check(ctx)


@hookimpl
def condition(ctx: Context) -> Condition | None:
    """The few-step schedule, and the LoRA where one is given."""
    lightning = ctx.request.lightning
    if lightning is None:
        return None
    if lightning is True:
        return Condition(schedule=few_step)
    from qwenimage_core import Adapter
    from qwenimage_lightning.recognise import lora_file

    path = lora_file(lightning)
    return Condition(schedule=few_step, adapters=(Adapter(name=path.stem, weights=path),))
