"""The request fields of layers, and what can be told wrong before anything is loaded."""

from __future__ import annotations

from functools import cached_property
from typing import Any, Self

from pydantic import Field, model_validator

from qwenimage_core.errors import RequestError
from qwenimage_core.request import FieldsModel, Picture

MAX_LAYERS = 20
"""The published demonstrations go up to 8; every layer is a whole picture more to denoise."""


class Fields(FieldsModel):
    layer_input_image: Picture | None = Field(
        None, description="picture with alpha to take apart, at the size that is drawn"
    )
    layer_num: int | None = Field(
        None, description=f"number of layers, 1 to {MAX_LAYERS}; 0 draws the one layer the prompt names"
    )

    @model_validator(mode="after")
    def _layered_fields_belong_together(self) -> Self:
        if self.layer_num is not None and not 0 <= self.layer_num <= MAX_LAYERS:
            raise RequestError(
                "There cannot be so many layers.",
                got=f"layer_num={self.layer_num}",
                expected=f"1 to {MAX_LAYERS}; 0 with Layered-Control, for the one layer that the prompt names",
                mend="take one of the layers apart again" if self.layer_num > 0 else None,
            )
        if (self.layer_input_image is None) != (self.layer_num is None):
            given, missing = ("layer_num", "layer_input_image")
            if self.layer_num is None:
                given, missing = missing, given
            raise RequestError(
                f"{given} needs {missing}.",
                mend="give the picture to take apart, with alpha"
                if missing == "layer_input_image"
                else "say into how many layers the picture is taken apart",
            )
        return self

    @cached_property
    def layer_input_rgba(self) -> Any:
        """The input with its alpha as a channel of its own; converted once a request."""
        return self.layer_input_image.convert("RGBA") if self.layer_input_image is not None else None
