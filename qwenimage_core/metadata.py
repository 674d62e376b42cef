"""What is written into a picture so that it can be made again: the request with every value that was used, versions,
digests of weights, adapters and input pictures.

A picture of a batch records the request that draws it alone. picture_files.py writes and reads the files.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, StringConstraints, ValidationError

from qwenimage_core.errors import LoadError
from qwenimage_core.fields import request_error
from qwenimage_core.images import open_picture
from qwenimage_core.version import __version__

if TYPE_CHECKING:
    from PIL import Image

FORMAT = 1
PICTURE = "$picture"  # marks an input picture inside a recorded request
MAX_CHARACTERS = 1_000_000
LIBRARIES = ("torch", "transformers")

Name = Annotated[str, StringConstraints(max_length=4096)]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PluginUsed(_Record):
    name: Name
    version: Name
    distribution: Name | None = None


class AdapterUsed(_Record):
    """A LoRA that was attached by hand. Those that plugins attach follow from the request."""

    name: Name
    source: Name | None
    digest: Name
    strength: float
    component: Name = "transformer"
    mode: Name = "hot"


class ModelUsed(_Record):
    """What `from_pretrained` was given; `source` None means model configs, which the command line cannot repeat.
    `low_memory` says that a recipe was opened in its low-memory form, `memory` with which preset or limit, `compiled`
    that the transformer's blocks were compiled, which may change the last bits."""

    source: Name | None
    dtype: Name
    device: Name
    low_memory: bool = False
    memory: Name | int | None = None
    compiled: bool = False


class PictureMetadata(_Record):
    """`request` holds every value that was used, `given` the names among them that were not defaults. `unrecorded`
    names values that have no form as text. `output` counts the pictures of one seed (layers)."""

    format: Literal[1] = 1
    request: dict[Name, JsonValue]
    given: tuple[Name, ...]
    unrecorded: tuple[Name, ...] = ()
    output: int = Field(0, ge=0, le=1024)
    versions: dict[Name, Name]
    plugins: tuple[PluginUsed, ...] = ()
    model: ModelUsed
    components: dict[Name, Name]
    adapters: tuple[AdapterUsed, ...] = ()

    def to_json(self) -> str:
        return json.dumps(self.model_dump(mode="json"), separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str, where: str) -> Self:
        """The record in `text`; LoadError says what is wrong with it, `where` whose it is."""
        if len(text) > MAX_CHARACTERS:
            raise LoadError(
                f"{where} has metadata of absurd size.", got=len(text), expected=f"<= {MAX_CHARACTERS}"
            )
        try:
            content = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise LoadError(
                f"{where} has metadata that is damaged.", got=f"{error}; {text[:60]!r}"
            ) from error
        found = content.get("format") if isinstance(content, dict) else None
        if isinstance(found, int) and found != FORMAT:
            raise LoadError(
                f"{where} has metadata of another format.",
                got=f"format {found}",
                expected=f"format {FORMAT}, of qwenimage-core {__version__}",
                mend="pip install --upgrade qwenimage-core" if found > FORMAT else None,
            )
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            raise LoadError(
                f"{where} has metadata that is not ours.", got=request_error(error).what
            ) from error

    def readable(self) -> str:
        """The gist as people and other programs write it."""
        r = self.request
        facts = {
            "Steps": r.get("num_inference_steps"),
            "CFG scale": r.get("cfg_scale"),
            "Seed": r.get("seed"),
            "Size": f"{r.get('width')}x{r.get('height')}",
            "Model": self.model.source,
            "Version": f"qwenimage-core {self.versions.get('qwenimage-core')}",
        }
        negative = [f"Negative prompt: {r['negative_prompt']}"] if r.get("negative_prompt") else []
        return "\n".join(
            [str(r.get("prompt")), *negative, ", ".join(f"{k}: {v}" for k, v in facts.items() if v)]
        )


def describe(
    request: BaseModel,
    *,
    prompt: str,
    seed: int,
    plugins: Sequence[PluginUsed],
    model: ModelUsed,
    components: Mapping[str, str],
    adapters: Sequence[AdapterUsed] = (),
    output: int = 0,
    fields: Sequence[str] | None = None,
) -> PictureMetadata:
    """The record of one picture. `request` is the one of the whole batch; `fields` are those that took part (the
    core's and the active plugins'), None means all. `components` maps names to digests."""
    values: dict[str, JsonValue] = {}
    unrecorded = []
    for name in type(request).model_fields if fields is None else fields:
        if type(request).model_fields[name].exclude:
            continue
        try:
            values[name] = _as_json(getattr(request, name))
        except TypeError:
            unrecorded.append(name)
    values |= {"prompt": prompt, "seed": seed, "num_images_per_prompt": 1}
    used = {
        "prompt",
        "seed",
        "width",
        "height",
        "num_inference_steps",
        "cfg_scale",
    } | request.model_fields_set
    return PictureMetadata(
        request=values,
        given=tuple(sorted((used - {"num_images_per_prompt"}) & set(values))),
        unrecorded=tuple(unrecorded),
        output=output,
        versions=versions(),
        plugins=tuple(plugins),
        model=model,
        components=dict(components),
        adapters=tuple(adapters),
    )


def versions() -> dict[str, str]:
    """Versions that decide about bits, read from metadata: nothing is imported."""
    return {"qwenimage-core": __version__} | {name: _version(name) for name in LIBRARIES}


def _version(distribution: str) -> str:
    try:
        return installed_version(distribution)
    except PackageNotFoundError:
        return "not installed"


def _as_json(value: Any) -> JsonValue:
    """A request value as JSON; TypeError if it has no such form."""
    from PIL import Image

    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Image.Image):
        path = getattr(value, "filename", None)
        return {PICTURE: {"path": str(path) if path else None, "sha256": picture_digest(value)}}
    if isinstance(value, BaseModel):
        inner = {name: getattr(value, name) for name in type(value).model_fields}
        used = {n: v for n, v in inner.items() if n in value.model_fields_set or v not in (None, (), [])}
        return {name: _as_json(v) for name, v in used.items()}
    if isinstance(value, Mapping):
        return {str(key): _as_json(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_as_json(inner) for inner in value]
    raise TypeError(type(value).__name__)


def picture_digest(picture: Image.Image) -> str:
    """SHA-256 of mode, size and pixels (palettes resolved): what the model saw, whatever the file around it."""
    picture = picture.convert("RGBA") if picture.mode in ("P", "PA") else picture
    head = f"{picture.mode} {picture.width} {picture.height}\n".encode()
    return hashlib.sha256(head + picture.tobytes()).hexdigest()


def find_picture(reference: Mapping[str, Any], beside: Path) -> Any:
    """An input picture by its recorded path (from here, or from the folder `beside`) if its pixels are the same."""
    path, digest = reference.get("path"), reference.get("sha256")
    if not isinstance(path, str):
        raise LoadError(
            "An input picture was given as an object, not as a file, so it cannot be found again.",
            got=f"pixels of sha256 {digest}",
        )
    seen = []
    for place in dict.fromkeys((Path(path), beside / path)):
        if place.is_file():
            picture = open_picture(place)
            if picture_digest(picture) == digest:
                return picture
            seen.append(f"{place} has other pixels")
    raise LoadError(
        f"The input picture {path} is not there as it was.",
        got="; ".join(seen) or "no such file here, nor beside the picture",
        expected=f"pixels of sha256 {digest}",
    )
