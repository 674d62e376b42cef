"""What is known of columns by their names. Names may hold `*`; a column of a third-party plugin is in none of these.

`--aligned_fields` and `--condition_fields` replace the first two.
"""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase

# cut exactly as the target is, because they say something about its places
ALIGNED = ("blockwise_controlnet_*", "eligen_entity_masks", "context_image", "layer_input_image")

# left out together by condition dropout, so that no half of a condition stays behind
CONDITIONS = ("edit_*", "eligen_*", "blockwise_controlnet_*", "context_image", "i2l_*")
# pictures that are the example itself: the target, and what a target in layers was made from
NO_CONDITION = ("image", "layer_*")

RGBA = ("layer_input_image",)  # and image, where it is a list of layers

# columns known to hold pictures, for tools that are not told
PICTURE_COLUMNS = (
    "image",
    "edit_image",
    "context_image",
    "layer_input_image",
    "blockwise_controlnet_image",
    "blockwise_controlnet_inpaint_mask",
    "eligen_entity_masks",
    "i2l_images",
)


def matches(field: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(field, pattern) for pattern in patterns)


def is_condition(field: str, picture: bool, named: Iterable[str] | None) -> bool:
    """Whether condition dropout leaves this field out: those named, else known ones and pictures beside the target."""
    if named is not None:
        return matches(field, named)
    return matches(field, CONDITIONS) or (picture and not matches(field, NO_CONDITION))
