"""The request field of Lightning."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, PlainSerializer, PlainValidator

from qwenimage_core import ModelConfig
from qwenimage_core.request import FieldsModel


def as_lightning(value: Any) -> Any:
    """True, a ModelConfig of one LoRA file, or None (also for False). ValueError says what else was given."""
    if value is None or value is False:
        return None
    if value is True or isinstance(value, ModelConfig):
        return value
    if isinstance(value, dict):
        return ModelConfig(**value)
    if isinstance(value, str | os.PathLike) and str(value):
        return ModelConfig(path=value)
    raise ValueError(
        f"a LoRA file or its ModelConfig is needed, or True for the schedule alone, not {type(value).__name__}"
    )


Lightning = Annotated[
    bool | Path | ModelConfig,  # what the command line offers; the validator decides
    PlainValidator(as_lightning),
    PlainSerializer(
        lambda value: value if value is True else value.model_dump(mode="json", exclude_unset=True)
    ),
]


class Fields(FieldsModel):
    lightning: Lightning | None = Field(
        None, description="a Lightning LoRA (file or ModelConfig); true takes the schedule alone"
    )
