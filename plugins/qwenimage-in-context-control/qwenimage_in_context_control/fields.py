"""The request field of in-context control."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

from pydantic import Field

from qwenimage_core.images import is_transparent
from qwenimage_core.request import FieldsModel, Picture


class Fields(FieldsModel):
    if TYPE_CHECKING:  # of the core's request, which this becomes a part of
        width: int
        height: int

    context_image: Picture | None = Field(
        None, description="control picture (edges, depth, pose, brush mask) of the drawn picture's aspect"
    )

    @cached_property
    def context_resized(self) -> Any:
        """The control picture at the target's size, bicubically; resized once a request, None without one."""
        from PIL.Image import Resampling

        picture = self.context_image
        if picture is None:
            return None
        plain = picture.convert("RGBA" if is_transparent(picture) else "RGB")
        return plain.resize((self.width, self.height), Resampling.BICUBIC)
