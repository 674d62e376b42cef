"""The request field of the plugin, and what can be told wrong before anything is loaded."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import Field, ValidationError, model_validator

from qwenimage_blockwise_controlnet.annotators import KNOWN
from qwenimage_core.errors import RequestError
from qwenimage_core.request import Columns, FieldsModel, Picture


class ControlNetInput(FieldsModel):
    """One ControlNet with the picture that guides it. Progress falls from 1 (the first step) to 0 (the last)."""

    controlnet_id: int = Field(
        0, ge=0, description="which of the loaded ControlNets, in the order of loading"
    )
    scale: float = Field(1.0, allow_inf_nan=False, description="strength; 0 is as if it were absent")
    start: float = Field(
        1.0, ge=0, le=1, description="progress at which it begins to act; 1 is the first step"
    )
    end: float = Field(0.0, ge=0, le=1, description="progress down to which it acts; 0 is the last step")
    image: Picture = Field(None, description="what guides: edges, depth, or the picture to repaint a part of")
    inpaint_image: Picture | None = Field(None, description="of other families: give the picture as image")
    inpaint_mask: Picture | None = Field(
        None, description="for an inpaint ControlNet: white is repainted, black stays"
    )
    processor_id: str | None = Field(
        None,
        description="annotator that makes the map of image (canny, depth, ...); none if image is a map already",
    )

    def __init__(self, **given: Any) -> None:
        try:
            super().__init__(**given)
        except ValidationError as error:
            raise _request_error(error) from None

    @model_validator(mode="after")
    def _can_act(self) -> Self:
        if self.image is None:
            raise RequestError("A ControlNetInput needs image: the picture that guides.")
        if self.inpaint_image is not None:
            raise RequestError(
                "inpaint_image does nothing here: Qwen-Image's inpaint ControlNet reads the picture from image.",
                mend="give the picture as image and the mask as inpaint_mask",
            )
        if self.start < self.end:
            raise RequestError(
                "A ControlNetInput begins after it ends, so it would never act.",
                got=f"start={self.start:g}, end={self.end:g}",
                expected="start at least end: progress falls from 1 (the first step) to 0 (the last)",
            )
        if self.processor_id is not None and self.processor_id not in KNOWN:
            raise RequestError(
                "There is no such annotator.",
                got=f"processor_id={self.processor_id!r}",
                expected=", ".join(KNOWN),
            )
        return self


def _request_error(error: ValidationError) -> RequestError:
    """Its first fault in our words, whether it was found by us or by the types."""
    fault = error.errors(include_url=False)[0]
    own = fault.get("ctx", {}).get("error")
    if isinstance(own, RequestError):
        return own
    name = str(fault["loc"][0]) if fault["loc"] else "value"
    fields = ControlNetInput.model_fields
    return RequestError(
        f"`{name}` of a ControlNetInput is wrong.",
        got=repr(fault["input"])[:80],
        expected=str(own or fault["msg"]) if name in fields else ", ".join(fields),
    )


class Fields(FieldsModel):
    blockwise_controlnet_inputs: Annotated[list[ControlNetInput] | None, Columns("blockwise_controlnet_")] = (
        Field(None, description="ControlNets that act, each with its picture; what they add is summed")
    )

    @model_validator(mode="after")
    def _blockwise_controlnet_inputs_are_some(self) -> Self:
        if self.blockwise_controlnet_inputs is not None and not self.blockwise_controlnet_inputs:
            raise RequestError(
                "blockwise_controlnet_inputs is an empty list.",
                mend="give a ControlNetInput, or leave it out",
            )
        return self
