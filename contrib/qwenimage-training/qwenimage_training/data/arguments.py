"""What can be said about a dataset. Published names, defaults and meanings first, then what is ours.

Sizes are pixels. Values that could not act are errors.
"""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

MULTIPLE = 16
MIN_SIDE = MULTIPLE
MAX_SIDE = 16384
DEFAULT_KEYS = ("image", "video")


def names(text: str | None) -> tuple[str, ...]:
    """A comma list as a tuple; blanks around names do not count."""
    return tuple(part.strip() for part in (text or "").split(",") if part.strip())


def _multiple(value: int) -> int:
    if value % MULTIPLE:
        below = max(value // MULTIPLE, 1) * MULTIPLE
        raise ValueError(f"{value} is no multiple of {MULTIPLE}; use {below} or {below + MULTIPLE}")
    return value


Side = Annotated[int, Field(ge=MIN_SIDE, le=MAX_SIDE), AfterValidator(_multiple)]


class DataArguments(BaseModel):
    """The part of the training arguments that the dataset reads."""

    model_config = ConfigDict(extra="forbid")

    dataset_base_path: str = Field("", description="folder that the files named in the metadata are in")
    dataset_metadata_path: str | None = Field(
        None,
        description="metadata: .csv, .json or .jsonl (default: metadata.csv, .json or .jsonl in the base folder, "
        "else pictures with .txt captions)",
    )
    dataset_repeat: int = Field(1, ge=1, description="how often each row comes up in an epoch")
    dataset_num_workers: int = Field(0, ge=0, le=1024, description="processes that read rows ahead")
    data_file_keys: str = Field(
        ",".join(DEFAULT_KEYS), description="comma list of the columns that name picture files"
    )
    height: Side | None = Field(
        None, description="fixed height, together with width (default: as the picture)"
    )
    width: Side | None = Field(
        None, description="fixed width, together with height (default: as the picture)"
    )
    max_pixels: int = Field(
        1048576, ge=MIN_SIDE**2, le=MAX_SIDE**2, description="larger pictures are shrunk to this area"
    )

    aligned_fields: str | None = Field(
        None,
        description="comma list (* allowed) of picture columns that are cut exactly as the target is; the others are "
        "cut by their own size (default: controls, masks, context and layer pictures)",
    )
    buckets: bool = Field(
        False, description="cut targets to a few sizes of equal area, so that batches can be formed"
    )
    bucket_step: Side = Field(64, description="sides of buckets are multiples of this")
    bucket_max_aspect: float = Field(4.0, ge=1, le=64, description="longest over shortest side of a bucket")
    bucket_enlarge: float = Field(
        1.0,
        ge=1,
        le=8,
        description="pictures that a bucket would enlarge by more than this keep their own size",
    )
    caption_dropout: float = Field(0.0, ge=0, le=1, description="share of rows trained with an empty prompt")
    condition_dropout: float = Field(
        0.0, ge=0, le=1, description="share of rows trained without their conditions"
    )
    condition_fields: str | None = Field(
        None,
        description="comma list (* allowed) of the columns that condition_dropout leaves out (default: every picture "
        "column but the target and its layers, with what belongs to it)",
    )

    @property
    def file_keys(self) -> tuple[str, ...]:
        return names(self.data_file_keys)

    @property
    def dropped_fields(self) -> tuple[str, ...] | None:
        return None if self.condition_fields is None else names(self.condition_fields)

    @property
    def fixed_size(self) -> tuple[int, int] | None:
        """(width, height) where both are given."""
        return None if self.height is None or self.width is None else (self.width, self.height)

    @model_validator(mode="after")
    def _every_value_can_act(self) -> Self:
        given = self.model_fields_set
        if (self.height is None) != (self.width is None):
            one, other = ("width", "height") if self.height is None else ("height", "width")
            raise ValueError(f"{one} alone does nothing: give {other} as well, or neither")
        if "image" not in self.file_keys:
            raise ValueError(f"data_file_keys is {self.data_file_keys!r}: it must name image, the target")
        if (
            self.fixed_size
            and "max_pixels" in given
            and self.max_pixels < self.fixed_size[0] * self.fixed_size[1]
        ):
            raise ValueError(
                f"max_pixels {self.max_pixels} does nothing where height and width are given: leave it out"
            )
        if self.buckets and self.fixed_size:
            raise ValueError("buckets do nothing where height and width fix the size: leave one out")
        idle = [f for f in ("bucket_step", "bucket_max_aspect", "bucket_enlarge") if f in given]
        if idle and not self.buckets:
            raise ValueError(f"{' and '.join(idle)} do nothing without buckets: add --buckets")
        if self.buckets and self.bucket_step**2 > self.max_pixels:
            raise ValueError(
                f"bucket_step {self.bucket_step} leaves no bucket within max_pixels {self.max_pixels}: lower the step"
            )
        if self.condition_fields is not None and not self.condition_dropout:
            raise ValueError(
                "condition_fields does nothing without condition_dropout: give it a share above 0"
            )
        return self
