"""From a row of data to a plan: the row's columns become request fields, the core's and every plugin's alike.

A plugin that can draw can be trained by this alone. One whose field is a list of models says with `Columns` which
columns of a row make an item of it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from PIL import Image

from qwenimage_core.errors import QwenImageError, RequestError
from qwenimage_core.request import Columns

if TYPE_CHECKING:
    from pydantic import BaseModel

    from qwenimage_core import Plan, QwenImagePipeline
    from qwenimage_training.data.rows import Row

TARGET = "image"


@dataclass(frozen=True)
class Sample:
    """A planned row: what is drawn, the picture(s) that should come out, and what to call it in messages. Samples of
    equal `key` are encoded to the same; None is like no other."""

    plan: Plan
    target: tuple[Image.Image, ...]
    name: str
    index: int
    epoch: int = 0
    key: Hashable = None


class Planner:
    """Plans rows. `fixed` are the request fields that the objective gives, `inputs` the columns that become fields;
    `check` refuses plans that the objective cannot learn from."""

    def __init__(
        self,
        pipe: QwenImagePipeline,
        inputs: Iterable[str],
        fixed: Mapping[str, Any],
        check: Callable[[Plan], None] | None = None,
    ) -> None:
        self.pipe, self.inputs, self.fixed, self.check = pipe, tuple(inputs), dict(fixed), check
        model = pipe.registry.request_model()
        if own := [
            name for name in self.inputs if name in ("prompt", TARGET, "height", "width", "input_image")
        ]:
            raise RequestError(
                f"--extra_inputs names {own[0]}, which training sets itself.", mend="leave it out of the list"
            )
        self._fields = {name: _field_of(name, model) for name in self.inputs}

    def check_columns(self, columns: Iterable[str]) -> None:
        """RequestError for an extra input that no row has."""
        there = sorted(set(columns))
        for name in self.inputs:
            if name not in there:
                near = get_close_matches(name, there, n=1)
                raise RequestError(
                    f"--extra_inputs names {name}, which no row of the dataset has.",
                    expected=", ".join(there),
                    mend=f"did you mean {near[0]}?" if near else "leave it out of the list",
                )

    def plan(self, row: Row, name: str, epoch: int = 0, key: Hashable = None) -> Sample:
        """The plan of a row, at its target's size. Errors name the row."""
        image = row.fields[TARGET]
        target = tuple(image) if isinstance(image, list | tuple) else (image,)
        try:
            plan = self.pipe.plan(**self.given(row))
            _check_target(target, plan)
            _check_adapters(plan)
            if self.check is not None:
                self.check(plan)
        except QwenImageError as error:
            error.add_note(f"while planning {name}")
            raise
        return Sample(plan, target, name, row.index, epoch, key)

    def given(self, row: Row) -> dict[str, Any]:
        """The fields of a row's request, at its target's size."""
        image = row.fields[TARGET]
        width, height = (image[0] if isinstance(image, list | tuple) else image).size
        size = {"prompt": row.prompt, "height": height, "width": width}
        return {**size, **self.fixed, **self.request_fields(row.fields)}

    def request_fields(self, columns: Mapping[str, Any]) -> dict[str, Any]:
        """What the columns say, as request fields; a column that the row lacks is left out."""
        fields: dict[str, Any] = {}
        items: dict[str, dict[str, Any]] = {}
        for name in self.inputs:
            if name not in columns:
                continue
            field, keyword = self._fields[name]
            if keyword is None:
                fields[field] = columns[name]
            else:
                items.setdefault(field, {})[keyword] = columns[name]
        return fields | {field: [item] for field, item in items.items()}


def _field_of(column: str, model: type[BaseModel]) -> tuple[str, str | None]:
    """(request field, keyword of its one item): the field of that name, else one that is made of such columns."""
    if column in model.model_fields:
        return column, None
    for name, field in model.model_fields.items():
        for mark in field.metadata:
            if isinstance(mark, Columns) and column.startswith(mark.prefix):
                return name, column.removeprefix(mark.prefix)
    return column, None  # the request says what is wrong with it


def _check_target(target: tuple[Image.Image, ...], plan: Plan) -> None:
    frames = plan.target.frames
    if len(target) != frames:
        raise RequestError(
            "The target has another number of pictures than the request draws.",
            got=len(target),
            expected=frames,
            mend="with layers: image lists layer_num + 1 pictures, the whole picture first",
        )
    if sizes := {picture.size for picture in target if picture.size != target[0].size}:
        raise RequestError(
            "The pictures of a target differ in size.", got=sorted(sizes), expected=target[0].size
        )


def _check_adapters(plan: Plan) -> None:
    if plan.adapters:
        raise RequestError(
            "This request brings LoRAs of its own, which a run puts on and takes off; training keeps to its weights.",
            got=", ".join(adapter.name for adapter in plan.adapters),
            mend="leave out the column that brings them",
        )
