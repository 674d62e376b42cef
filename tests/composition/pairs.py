"""What every pair of the seven plugins does together: the table that is tested, and shown in docs/composition.md.

A plugin's usual fields stand in FIELDS; a pair's request is those of both. `base` is the folder of the models.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from .models import LIGHTNING, Family

Fields = dict[str, Any]

WIDTH, HEIGHT = 48, 64
PROMPT = "Context_Control. a red circle"
SMALL: Fields = {
    "height": HEIGHT,
    "width": WIDTH,
    "num_inference_steps": 2,
    "seed": 3,
    "progress_bar_cmd": iter,
}

Plugin = Literal[
    "edit", "layered", "eligen", "blockwise-controlnet", "in-context-control", "i2l", "lightning"
]
PLUGINS: tuple[Plugin, ...] = (
    "edit",
    "layered",
    "eligen",
    "blockwise-controlnet",
    "in-context-control",
    "i2l",
    "lightning",
)


def picture(seed: int = 0, size: tuple[int, int] = (WIDTH, HEIGHT), mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1] // 8, size[0] // 8, 4), dtype=np.uint8)
    return Image.fromarray(pixels).resize(size).convert(mode)


def area(*bounds: int) -> Image.Image:
    mask = Image.new("L", (WIDTH, HEIGHT))
    mask.paste(255, bounds)
    return mask


REFERENCES = [picture(1, (64, 32)), picture(2, (32, 80))]  # of other sizes than what is drawn
ENTITIES = {"a square": area(0, 0, 32, 32), "a very green sea": area(16, 32, 48, 64)}
EDGES = {"image": picture(3)}
INPAINT = {"controlnet_id": 1, "image": picture(4), "inpaint_mask": area(16, 16, 40, 48)}

FIELDS: Mapping[Plugin, Callable[[Path], Fields]] = {
    "edit": lambda base: {"edit_image": REFERENCES, "edit_image_auto_resize": False},
    "layered": lambda base: {"layer_input_image": picture(5, mode="RGBA"), "layer_num": 1},
    "eligen": lambda base: entities(*ENTITIES),
    "blockwise-controlnet": lambda base: {"blockwise_controlnet_inputs": [EDGES]},
    "in-context-control": lambda base: {"context_image": picture(6)},
    "i2l": lambda base: {"i2l_images": [picture(7), picture(8)]},
    "lightning": lambda base: {"lightning": base / LIGHTNING[base.name]},
}


def entities(*prompts: str) -> Fields:
    return {
        "eligen_entity_prompts": list(prompts),
        "eligen_entity_masks": [ENTITIES[prompt] for prompt in prompts],
    }


@dataclass(frozen=True)
class Refusal:
    """`fields` beside the pair's own that make no sense, and why, in a few words."""

    fields: Callable[[Path], Fields]
    reason: str


@dataclass(frozen=True)
class Pair:
    """Two plugins that draw a picture together. `changed` replaces usual fields, `limit` says in words what it means;
    `peer` is the case of a live comparison with DiffSynth-Studio, of that test file of tests/parity."""

    first: Plugin
    second: Plugin
    family: Family = "edit-2509"
    changed: Fields = field(default_factory=dict)
    limit: str = ""
    refusal: Refusal | None = None
    peer: tuple[str, str] | None = None

    @property
    def name(self) -> str:
        return f"{self.first}+{self.second}"

    @property
    def plugins(self) -> tuple[Plugin, Plugin]:
        return self.first, self.second

    def fields(self, base: Path, *plugins: Plugin) -> Fields:
        """Those of one of the two, or of both."""
        usual = {k: v for plugin in plugins or self.plugins for k, v in FIELDS[plugin](base).items()}
        return usual | {name: value for name, value in self.changed.items() if name in usual}


COMBINATIONS, FEW_STEPS, LAYERED = "test_combinations.py", "test_combinations_few_steps.py", "test_layered.py"
WITH_I2L = "test_combinations_i2l.py"

PAIRS: tuple[Pair, ...] = (
    Pair("edit", "layered", "layered", peer=(COMBINATIONS, "references and layers")),
    Pair("edit", "eligen", peer=(COMBINATIONS, "entities and references")),
    Pair("edit", "blockwise-controlnet", peer=(FEW_STEPS, "a ControlNet and references at time zero")),
    Pair("edit", "in-context-control", peer=(LAYERED, "context and references")),
    Pair("edit", "i2l", peer=(WITH_I2L, "edit")),
    Pair(
        "edit",
        "lightning",
        refusal=Refusal(lambda base: {"zero_cond_t": True}, "time zero with a file for a base without it"),
        peer=(FEW_STEPS, "few steps and references at time zero"),
    ),
    Pair("layered", "eligen", "layered", peer=(COMBINATIONS, "entities and layers")),
    Pair(
        "layered",
        "blockwise-controlnet",
        "layered",
        changed={"layer_num": 0},
        limit="one layer",
        refusal=Refusal(
            lambda base: {"layer_num": 1}, "several layers: one control picture fits none of them"
        ),
        peer=(FEW_STEPS, "two ControlNets and one layer"),
    ),
    Pair("layered", "in-context-control", "layered", peer=(LAYERED, "layers with an opaque context")),
    Pair("layered", "i2l", "layered", peer=(WITH_I2L, "layered")),
    Pair(
        "layered",
        "lightning",
        "layered",
        changed={"lightning": True},
        limit="schedule alone",
        refusal=Refusal(FIELDS["lightning"], "a file: none was distilled from a model with layers"),
        peer=(FEW_STEPS, "few steps and layers"),
    ),
    Pair("eligen", "blockwise-controlnet", peer=(FEW_STEPS, "a ControlNet and entities")),
    Pair("eligen", "in-context-control", peer=(COMBINATIONS, "entities and context")),
    Pair("eligen", "i2l", peer=(WITH_I2L, "eligen")),
    Pair("eligen", "lightning", peer=(FEW_STEPS, "few steps and entities")),
    Pair("blockwise-controlnet", "in-context-control", peer=(FEW_STEPS, "a ControlNet and context")),
    Pair("blockwise-controlnet", "i2l", peer=(WITH_I2L, "blockwise-controlnet")),
    Pair("blockwise-controlnet", "lightning", peer=(FEW_STEPS, "few steps and a ControlNet")),
    Pair("in-context-control", "i2l", peer=(WITH_I2L, "in-context-control")),
    Pair("in-context-control", "lightning", peer=(FEW_STEPS, "few steps and context")),
    Pair("i2l", "lightning", peer=(WITH_I2L, "lightning")),
)


@dataclass(frozen=True)
class Several:
    """A plugin more than once in a run: `both` holds two, `each` one of them. Without `each` two are refused."""

    words: str
    both: Fields
    each: Sequence[Fields] = ()
    family: Family = "edit-2509"
    swapped: Fields | None = None  # the two in the other order, where that draws the same


SEVERAL: Mapping[Plugin, Several] = {
    "edit": Several(
        "several references, in the order given",
        {"edit_image": REFERENCES},
        [{"edit_image": [reference]} for reference in REFERENCES],
    ),
    "layered": Several(
        "refused: one picture is taken apart a run",
        {"layer_input_image": [picture(5, mode="RGBA")] * 2},
        family="layered",
    ),
    "eligen": Several(
        "several entities, in any order",
        entities(*ENTITIES),
        [entities(prompt) for prompt in ENTITIES],
        swapped=entities(*reversed(ENTITIES)),
    ),
    "blockwise-controlnet": Several(
        "several ControlNets, in any order",
        {"blockwise_controlnet_inputs": [EDGES, INPAINT]},
        [{"blockwise_controlnet_inputs": [one]} for one in (EDGES, INPAINT)],
        swapped={"blockwise_controlnet_inputs": [INPAINT, EDGES]},
    ),
    "in-context-control": Several(
        "refused: one control picture a run", {"context_image": [picture(6), picture(7)]}
    ),
    "i2l": Several(
        "several pictures, in any order",
        {"i2l_images": [picture(7), picture(8)]},
        [{"i2l_images": [picture(n)]} for n in (7, 8)],
        swapped={"i2l_images": [picture(8), picture(7)]},
    ),
    "lightning": Several("refused: one file and one schedule a run", {"lightning": ["one", "two"]}),
}
