"""The request: every keyword of one generation, checked before anything is loaded or run.

The core's fields are here under their published names; plugins add theirs through `request_fields` (registry.py puts
the models together). Values that could not act are errors, never ignored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    model_validator,
)

from qwenimage_core.images import open_picture

SIZE_MULTIPLE = 16
MAX_SEED = 2**63 - 1

Picture = Annotated[
    Any, BeforeValidator(open_picture), PlainSerializer(lambda p: getattr(p, "filename", None))
]
"""A PIL picture; a path is opened, and what cannot be read is an error that says why."""


@dataclass(frozen=True)
class Columns:
    """Metadata of a list field that a row of training data fills from several columns: `Annotated[list[...],
    Columns("control_")]` makes one item of them, whose keywords are the columns' names without the prefix."""

    prefix: str


def _size(value: int) -> int:
    if value % SIZE_MULTIPLE:
        below = max(value // SIZE_MULTIPLE, 1) * SIZE_MULTIPLE
        raise ValueError(f"{value} is no multiple of {SIZE_MULTIPLE}; use {below} or {below + SIZE_MULTIPLE}")
    return value


Side = Annotated[int, Field(ge=SIZE_MULTIPLE, le=16384), AfterValidator(_size)]


class FieldsModel(BaseModel):
    """Base for request fields, the core's and a plugin's: unknown names are refused and values stay as given."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)


class CoreRequest(FieldsModel):
    """What the core understands. Sizes are pixels; tile sizes are latent pixels (8 pixels each)."""

    prompt: str | list[str] = Field("", description="what to draw; a list draws each prompt")
    negative_prompt: str = Field("", description="what guidance steers away from")
    cfg_scale: float = Field(4.0, ge=0, le=100, description="guidance scale; 1 switches guidance off")
    cfg_normalize: bool = Field(
        False, description="rescale guided velocity to the norm of the unguided, token by token"
    )
    input_image: Picture | None = Field(
        None, description="picture to start from (image to image), at the target's size"
    )
    denoising_strength: float = Field(1.0, gt=0, le=1, description="how much of input_image is redrawn")
    inpaint_mask: Picture | None = Field(None, description="white is redrawn, black keeps input_image")
    inpaint_blur_size: int | None = Field(
        None, ge=1, le=512, description="blur radius of the mask, latent pixels"
    )
    inpaint_blur_sigma: float | None = Field(
        None, gt=0, le=512, description="blur sigma of the mask, latent pixels"
    )
    height: Side = Field(1328, description="pixels, a multiple of 16")
    width: Side = Field(1328, description="pixels, a multiple of 16")
    seed: int | None = Field(
        None, ge=0, le=MAX_SEED, description="seed of the noise; drawn and recorded if not given"
    )
    rand_device: str = Field("cpu", description="device that draws the noise")
    num_inference_steps: int = Field(30, ge=1, le=1000, description="denoising steps")
    num_images_per_prompt: int = Field(
        1, ge=1, le=1024, description="pictures of each prompt, seeds counting up"
    )
    exponential_shift_mu: float | None = Field(
        None, ge=-10, le=10, description="shift of the schedule, instead of by size"
    )
    tiled: bool = Field(False, description="decode and encode in tiles, to save memory")
    tile_size: int = Field(128, ge=8, le=4096, description="side of a tile, latent pixels")
    tile_stride: int = Field(64, ge=1, le=4096, description="step from tile to tile, latent pixels")
    output_type: Literal["pil", "tensor", "latent"] = Field("pil", description="what comes back")
    progress_bar_cmd: Callable[[Iterable[Any]], Iterable[Any]] | None = Field(
        None, exclude=True, description="wraps the steps; tqdm if not given"
    )
    step_callback: Callable[[Any], None] | None = Field(
        None, exclude=True, description="called after each step with a StepReport"
    )

    @model_validator(mode="after")
    def _every_value_can_act(self) -> Self:
        given = self.model_fields_set
        if self.denoising_strength < 1 and self.input_image is None:
            raise ValueError("denoising_strength below 1 needs input_image: give the picture to start from")
        if self.input_image is not None and self.denoising_strength == 1 and self.inpaint_mask is None:
            raise ValueError(
                "input_image does nothing at denoising_strength 1: lower it, or give inpaint_mask"
            )
        if self.inpaint_mask is not None and self.input_image is None:
            raise ValueError("inpaint_mask needs input_image: give the picture whose black part is kept")
        blur = [f for f in ("inpaint_blur_size", "inpaint_blur_sigma") if getattr(self, f) is not None]
        if blur and self.inpaint_mask is None:
            raise ValueError(f"{' and '.join(blur)} need inpaint_mask: there is nothing to blur")
        if len(blur) == 1:
            raise ValueError(
                f"{blur[0]} alone does nothing: give inpaint_blur_size and inpaint_blur_sigma together"
            )
        tiles = {"tile_size", "tile_stride"} & given
        if tiles and not self.tiled:
            raise ValueError(f"{' and '.join(sorted(tiles))} do nothing without tiled=True")
        if self.tile_stride > self.tile_size:
            raise ValueError(
                f"tile_stride {self.tile_stride} is above tile_size {self.tile_size} and would leave gaps: "
                "use at most the size"
            )
        if self.cfg_scale == 1 and ("negative_prompt" in given and self.negative_prompt):
            raise ValueError("negative_prompt does nothing at cfg_scale 1: raise cfg_scale or leave it out")
        if self.cfg_scale == 1 and self.cfg_normalize:
            raise ValueError("cfg_normalize does nothing at cfg_scale 1: raise cfg_scale or leave it out")
        if isinstance(self.prompt, list) and not self.prompt:
            raise ValueError("prompt is an empty list: give at least one prompt")
        return self

    @property
    def prompts(self) -> list[str]:
        return self.prompt if isinstance(self.prompt, list) else [self.prompt]

    @property
    def guided(self) -> bool:
        """Whether the negative branch runs."""
        return self.cfg_scale != 1
