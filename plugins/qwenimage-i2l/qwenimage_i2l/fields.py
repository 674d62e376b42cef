"""The request fields of i2L, and what can be told wrong before anything is loaded."""

from __future__ import annotations

import os
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import BeforeValidator, Field, PlainSerializer, model_validator

from qwenimage_core import ModelConfig
from qwenimage_core.errors import RequestError
from qwenimage_core.request import FieldsModel, Picture
from qwenimage_i2l.pictures import check_pictures

if TYPE_CHECKING:
    from qwenimage_core.adapters.weights import LoraWeights

NETWORKS = ("style", "coarse", "fine")
BIAS = "bias"
MODES = "style, coarse, fine, coarse+fine or coarse+fine+bias"


def as_mode(value: Any) -> Any:
    """The parts of a mode in their order, joined by "+": `fine+coarse` is `coarse+fine`. ValueError for others."""
    parts = value.split("+") if isinstance(value, str) else []
    known = [part for part in (*NETWORKS, BIAS) if part in parts]
    if len(known) != len(parts) or known in ([], [BIAS]):
        raise ValueError(
            f"{value!r} is no mode; choose {MODES}: each part once, joined by +, bias beside others only"
        )
    return "+".join(known)


def as_model_config(value: Any) -> Any:
    """The ModelConfig of a LoRA file that is given as such, as a path or as a dictionary. ValueError for others."""
    if value is None or isinstance(value, ModelConfig):
        return value
    if isinstance(value, dict):
        return ModelConfig(**value)
    if isinstance(value, str | os.PathLike) and str(value):
        return ModelConfig(path=value)
    raise ValueError(f"a LoRA file or its ModelConfig is needed, not {type(value).__name__}")


Mode = Annotated[str, BeforeValidator(as_mode)]
LoraFile = Annotated[
    Any,
    BeforeValidator(as_model_config),
    PlainSerializer(lambda value: value and value.model_dump(mode="json", exclude_unset=True)),
]


class Fields(FieldsModel):
    i2l_images: list[Picture] | None = Field(
        None, description="pictures to make a LoRA of, for this request alone"
    )
    i2l_mode: Mode = Field(
        "style", description=f"which networks make it, and whether the published bias is added: {MODES}"
    )
    i2l_strength: float = Field(1.0, ge=-10, le=10, description="strength of the LoRA that is made")
    i2l_bias: LoraFile | None = Field(
        None, description="the bias as a LoRA file or ModelConfig; left out: the published one"
    )

    @model_validator(mode="after")
    def _i2l_fields_can_act(self) -> Self:
        if self.i2l_images is None:
            given = [f for f in ("i2l_mode", "i2l_strength", "i2l_bias") if f in self.model_fields_set]
            if idle := [f for f in given if getattr(self, f) != Fields.model_fields[f].default]:
                verb = "do" if len(idle) > 1 else "does"
                raise RequestError(
                    f"{' and '.join(idle)} {verb} nothing without i2l_images.",
                    mend="give the pictures to make a LoRA of, or leave it out",
                )
            return self
        check_pictures(self.i2l_images)
        if self.i2l_bias is not None and not self.i2l_biased:
            raise RequestError(
                "i2l_bias does nothing: i2l_mode has no bias in it.",
                got=f"i2l_mode={self.i2l_mode!r}",
                mend=f"say i2l_mode={self.i2l_mode + '+' + BIAS!r}, or leave i2l_bias out",
            )
        return self

    @property
    def i2l_networks(self) -> tuple[str, ...]:
        """The networks of the mode, in the order in which their LoRAs are joined."""
        return networks_of(self.i2l_mode)

    @property
    def i2l_biased(self) -> bool:
        return BIAS in self.i2l_mode.split("+")

    @cached_property
    def i2l_made(self) -> list[LoraWeights]:
        """Holds the LoRA of this request once it is made, so that several prompts share it."""
        return []


def networks_of(mode: str) -> tuple[str, ...]:
    return tuple(part for part in mode.split("+") if part != BIAS)
