"""The request fields of editing, and what can be told wrong before anything is loaded."""

from __future__ import annotations

from functools import cached_property
from typing import Annotated, Any, Self

from pydantic import Discriminator, Field, Tag, model_validator

from qwenimage_core.errors import RequestError
from qwenimage_core.request import FieldsModel, Picture
from qwenimage_edit.references import Reference


def _kind(value: Any) -> str:
    return "pictures" if isinstance(value, list | tuple) else "picture"


Pictures = Annotated[
    Annotated[Picture, Tag("picture")] | Annotated[list[Picture], Tag("pictures")], Discriminator(_kind)
]


class Fields(FieldsModel):
    edit_image: Pictures | None = Field(
        None, description="picture to edit (Edit, Lowres-Fix), or a list of them (Edit-2509, 2511)"
    )
    edit_image_auto_resize: bool = Field(
        True, description="scale each picture to about a megapixel, as the models were trained"
    )
    edit_rope_interpolation: bool = Field(
        False, description="spread a picture of low resolution over the drawn one (Lowres-Fix)"
    )
    zero_cond_t: bool | None = Field(
        None, description="modulate pictures at time zero (Edit-2511); left out: as the checkpoint says"
    )

    @model_validator(mode="after")
    def _edit_fields_can_act(self) -> Self:
        if self.edit_image is None:
            idle = {
                "edit_image_auto_resize": not self.edit_image_auto_resize,
                "edit_rope_interpolation": self.edit_rope_interpolation,
                "zero_cond_t": self.zero_cond_t is not None,
            }
            if given := [name for name, set_ in idle.items() if set_]:
                verb = "do" if len(given) > 1 else "does"
                raise RequestError(
                    f"{' and '.join(given)} {verb} nothing without edit_image.",
                    mend="give the picture to edit, or leave it out",
                )
        elif isinstance(self.edit_image, list) and (not self.edit_image or None in self.edit_image):
            raise RequestError(
                "edit_image has no pictures in it."
                if not self.edit_image
                else "A picture of edit_image is missing.",
                got=self.edit_image,
                expected="a picture, or a list of at least one",
            )
        return self

    @cached_property
    def edit_references(self) -> tuple[Reference, ...]:
        """The pictures at the sizes the model takes; resized once a request, none without `edit_image`."""
        if self.edit_image is None:
            return ()
        several = isinstance(self.edit_image, list)
        pictures = self.edit_image if isinstance(self.edit_image, list) else [self.edit_image]
        return tuple(
            Reference.of(picture, resize=self.edit_image_auto_resize, several=several) for picture in pictures
        )
