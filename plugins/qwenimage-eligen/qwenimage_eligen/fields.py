"""The request fields of EliGen, and what can be told wrong before anything is loaded."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from qwenimage_core.errors import RequestError
from qwenimage_core.images import is_transparent
from qwenimage_core.request import FieldsModel, Picture


class Fields(FieldsModel):
    eligen_entity_prompts: list[str] | None = Field(None, description="one prompt an entity")
    eligen_entity_masks: list[Picture] | None = Field(
        None,
        description="one mask an entity, of any size: the entity belongs where it is brighter than mid-grey",
    )
    eligen_enable_on_negative: bool = Field(
        False, description="mask the negative branch too, with the negative prompt in place of every entity"
    )

    @model_validator(mode="after")
    def _eligen_pairs(self) -> Self:
        prompts, masks = self.eligen_entity_prompts, self.eligen_entity_masks
        if prompts is None and masks is None:
            if self.eligen_enable_on_negative:
                raise RequestError(
                    "eligen_enable_on_negative does nothing without entities.",
                    mend="give eligen_entity_prompts and eligen_entity_masks, or leave it out",
                )
            return self
        if not prompts or not masks or len(prompts) != len(masks):
            raise RequestError(
                "EliGen needs a mask for each entity prompt, and a prompt for each mask.",
                got=f"{len(prompts or ())} eligen_entity_prompts and {len(masks or ())} eligen_entity_masks",
                expected="two lists of the same length, at least 1",
            )
        for number, mask in enumerate(masks, 1):
            if mask is None or is_transparent(mask):
                raise RequestError(
                    f"Mask {number} of eligen_entity_masks is "
                    + ("missing." if mask is None else "partly transparent, so its area is not certain."),
                    got=None if mask is None else f"a picture of mode {mask.mode}",
                    expected="a picture without transparency, white where the entity belongs",
                )
        return self
