"""`ModelConfig`: where the files of one component are, and where it should live while it is not computing.

The keywords are those of DiffSynth-Studio, so that published examples run unchanged. Values that come from the
environment are looked up when they are needed, not when the object is made. No torch here: dtypes and devices are
kept as names ("bfloat16", "cuda:0"), whichever way they were given.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    ModelWrapValidatorHandler,
    ValidationError,
    field_validator,
    model_validator,
)

from qwenimage_core.errors import LoadError
from qwenimage_core.loading.places import DISK, STORED

if TYPE_CHECKING:
    import torch

AnyPath = str | os.PathLike[str]
DownloadSource = Literal["modelscope", "huggingface"]

DTYPES = ("float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2")
DEVICE_TYPES = ("cpu", "cuda", "mps", "xpu", "npu", "hpu")
STATES = ("offload", "onload", "preparing", "computation")
PLACEMENT = tuple(f"{state}_{part}" for state in STATES for part in ("dtype", "device"))

_MODEL_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


class ModelConfig(BaseModel):
    """The files of one component: `path=` on this machine, or `model_id=` with `origin_file_pattern=` on a hub.

    `path` is a file, a folder or a list of shards. `origin_file_pattern` is one glob or several, relative to the
    repository ("transformer/*.safetensors"); one that ends in "/" means the whole folder, none the whole repository.
    `download_source`, `local_model_path` and `skip_download` fall back to the environment (QWENIMAGE_DOWNLOAD_SOURCE,
    QWENIMAGE_MODEL_BASE_PATH, QWENIMAGE_SKIP_DOWNLOAD, or the same with DIFFSYNTH_ in front), then to "modelscope",
    "./models" and false. The eight placement settings are checked here; `loading.placement` says what they mean.
    Wrong values raise LoadError.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    path: tuple[Path, ...] | None = None
    model_id: str | None = None
    origin_file_pattern: tuple[str, ...] = ()
    download_source: DownloadSource | None = None
    revision: str | None = None
    local_model_path: Path | None = None
    skip_download: bool | None = None
    offload_dtype: str | None = None
    offload_device: str | None = None
    onload_dtype: str | None = None
    onload_device: str | None = None
    preparing_dtype: str | None = None
    preparing_device: str | None = None
    computation_dtype: str | None = None
    computation_device: str | None = None

    if TYPE_CHECKING:  # what may be given; the fields above are what becomes of it

        def __init__(  # noqa: PLR0913
            self,
            *,
            path: AnyPath | Sequence[AnyPath] | None = None,
            model_id: str | None = None,
            origin_file_pattern: str | Sequence[str] | None = None,
            download_source: str | None = None,
            revision: str | None = None,
            local_model_path: AnyPath | None = None,
            skip_download: bool | None = None,
            offload_dtype: torch.dtype | str | None = None,
            offload_device: torch.device | str | None = None,
            onload_dtype: torch.dtype | str | None = None,
            onload_device: torch.device | str | None = None,
            preparing_dtype: torch.dtype | str | None = None,
            preparing_device: torch.device | str | None = None,
            computation_dtype: torch.dtype | str | None = None,
            computation_device: torch.device | str | None = None,
        ) -> None: ...

    @model_validator(mode="wrap")
    @classmethod
    def _known_keywords(cls, values: Any, validate: ModelWrapValidatorHandler[ModelConfig]) -> ModelConfig:
        for name in values if isinstance(values, dict) else ():
            if name not in cls.model_fields:
                near = get_close_matches(name, cls.model_fields, n=1)
                raise LoadError(
                    f"ModelConfig has no keyword {name!r}.",
                    expected=", ".join(cls.model_fields),
                    mend=f"did you mean {near[0]!r}?" if near else "leave it out",
                )
        try:
            return validate(values)
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(str(part) for part in first["loc"]) or "value"
            raise LoadError(
                f"`{name}` of a ModelConfig is wrong.", got=repr(first["input"]), expected=first["msg"]
            ) from None

    @field_validator("path", mode="before")
    @classmethod
    def _path(cls, value: Any) -> tuple[Path, ...] | None:
        if value is None:
            return None
        given = value if isinstance(value, list | tuple) else [value]
        if not given or not all(isinstance(item, str | os.PathLike) and str(item) for item in given):
            raise LoadError(
                "`path` is no file name.", got=repr(value), expected="a file, a folder or a list of files"
            )
        return tuple(Path(item).expanduser() for item in given)

    @field_validator("model_id")
    @classmethod
    def _model_id(cls, value: str | None) -> str | None:
        if value is not None and not _MODEL_ID.fullmatch(value):
            raise LoadError(
                "`model_id` is no hub id.", got=repr(value), expected='"owner/name", as "Qwen/Qwen-Image"'
            )
        return value

    @field_validator("origin_file_pattern", mode="before")
    @classmethod
    def _pattern(cls, value: object) -> tuple[str, ...]:
        given = [value] if isinstance(value, str) else list(value) if isinstance(value, list | tuple) else []
        if value is not None and (len(given) == 0 or not all(isinstance(item, str) for item in given)):
            raise LoadError(
                "`origin_file_pattern` is no pattern.",
                got=repr(value),
                expected='text, as "vae/*.safetensors", or a list of it',
            )
        patterns = tuple(item.removeprefix("./") for item in given)
        for pattern in patterns:
            if (
                PurePosixPath(pattern).is_absolute()
                or ".." in PurePosixPath(pattern).parts
                or "\\" in pattern
            ):
                raise LoadError(
                    "`origin_file_pattern` leaves its repository.",
                    got=repr(pattern),
                    expected='a pattern relative to the repository, without ".."',
                )
        return tuple(pattern + "*" if pattern.endswith("/") else pattern or "*" for pattern in patterns)

    @field_validator("download_source", mode="before")
    @classmethod
    def _source(cls, value: object) -> DownloadSource | None:
        return None if value is None else _source_name(value, "`download_source`")

    @field_validator(*(name for name in PLACEMENT if name.endswith("dtype")), mode="before")
    @classmethod
    def _dtype(cls, value: object) -> str | None:
        return None if value is None else dtype_name(value, also=(DISK, STORED))

    @field_validator(*(name for name in PLACEMENT if name.endswith("device")), mode="before")
    @classmethod
    def _device(cls, value: object) -> str | None:
        return None if value is None else device_name(value, also=(DISK,))

    @model_validator(mode="after")
    def _agree(self) -> ModelConfig:
        if (self.path is None) == (self.model_id is None):
            raise LoadError(
                "A ModelConfig names its files in exactly one way.",
                got="neither path nor model_id"
                if self.path is None
                else f"path={self.path[0]} and {self.model_id}",
                expected="path= or model_id=",
                mend='ModelConfig(model_id="Qwen/Qwen-Image", origin_file_pattern="vae/*.safetensors")',
            )
        hub_only = ("origin_file_pattern", "download_source", "revision", "local_model_path", "skip_download")
        ignored = [name for name in hub_only if self.path and getattr(self, name) not in (None, ())]
        if ignored:
            raise LoadError(
                f"`{ignored[0]}` has no effect beside `path`.",
                got=f"path={self.path[0] if self.path else None}, {ignored[0]}={getattr(self, ignored[0])!r}",
                mend="leave it out, or give model_id instead of path",
            )
        self._check_placement()
        return self

    def _check_placement(self) -> None:
        for state in STATES:
            dtype, device = getattr(self, f"{state}_dtype"), getattr(self, f"{state}_device")
            if (dtype == DISK) != (device == DISK) and (dtype is not None and device is not None):
                raise LoadError(
                    f'`{state}_dtype` and `{state}_device` are "disk" together or not at all.',
                    got=f"{dtype}, {device}",
                )
            if state in ("preparing", "computation") and DISK in (dtype, device):
                raise LoadError(
                    f'`{state}_*` cannot be "disk".', expected="a dtype and a device that can compute"
                )
            if state == "computation" and dtype == STORED:
                raise LoadError(
                    '`computation_dtype` cannot be "stored": weights are decoded to compute.',
                    expected='a dtype, as "bfloat16"',
                )
        managed = (self.offload_dtype is not None, self.offload_device is not None)
        others = [name for name in PLACEMENT[2:6] if getattr(self, name) is not None]
        if managed[0] != managed[1] or (others and not managed[0]):
            raise LoadError(
                "Placement needs both `offload_dtype` and `offload_device`; without them nothing is ever moved.",
                got=", ".join(self.placement()),
                mend='give both, as offload_dtype="disk", offload_device="disk", or leave all of them out',
            )

    def placement(self) -> dict[str, str]:
        """The placement settings that were given, by keyword."""
        return {name: getattr(self, name) for name in PLACEMENT if getattr(self, name) is not None}

    def source(self) -> DownloadSource:
        """The hub to download from: given, else from the environment, else ModelScope."""
        if self.download_source is not None:
            return self.download_source
        name, value = environment("DOWNLOAD_SOURCE")
        return "modelscope" if value is None else _source_name(value, name)

    def base_folder(self) -> Path:
        """The folder that holds downloaded repositories as <owner>/<name>."""
        if self.local_model_path is not None:
            return self.local_model_path.expanduser()
        return Path(environment("MODEL_BASE_PATH")[1] or "./models").expanduser()

    def offline(self) -> bool:
        """Whether downloading is forbidden."""
        if self.skip_download is not None:
            return self.skip_download
        name, value = environment("SKIP_DOWNLOAD")
        if value is None or value.lower() in ("", "false", "0", "no"):
            return False
        if value.lower() in ("true", "1", "yes"):
            return True
        raise LoadError(f"{name} is neither true nor false.", got=repr(value), mend=f"export {name}=True")

    def __repr_args__(self) -> Iterable[tuple[str, Any]]:
        return (
            (name, getattr(self, name)) for name in type(self).model_fields if name in self.model_fields_set
        )

    def __str__(self) -> str:
        if self.path is not None:
            return ", ".join(str(item) for item in self.path[:3]) + (", ..." if len(self.path) > 3 else "")
        return f"{self.model_id}:{', '.join(self.origin_file_pattern) or '*'}"


def environment(name: str) -> tuple[str, str | None]:
    """The variable QWENIMAGE_<name>, or DIFFSYNTH_<name> where only that is set: its full name and its value."""
    for prefix in ("QWENIMAGE_", "DIFFSYNTH_"):
        if prefix + name in os.environ:
            return prefix + name, os.environ[prefix + name]
    return "QWENIMAGE_" + name, None


def dtype_name(value: object, also: tuple[str, ...] = ()) -> str:
    """The name of a torch dtype, given as such ("bfloat16", "torch.bfloat16") or as the dtype itself."""
    name = str(value).removeprefix("torch.")
    if not _is_torch(value, "dtype") or name not in DTYPES + also:
        raise LoadError("Not a dtype for weights.", got=repr(value), expected=", ".join(DTYPES + also))
    return name


def device_name(value: object, also: tuple[str, ...] = ()) -> str:
    """The name of a torch device ("cpu", "cuda:0"), given as such or as the device itself."""
    name = str(value)
    kind, _, index = name.partition(":")
    known = name in also or (kind in DEVICE_TYPES and (index.isdecimal() or name == kind))
    if not _is_torch(value, "device") or not known:
        raise LoadError(
            "Not a device.",
            got=repr(value),
            expected=", ".join(DEVICE_TYPES + also) + ', also with a number: "cuda:0"',
        )
    return name


def _is_torch(value: object, kind: str) -> bool:
    """Whether `value` is text or a torch object of this kind, told without importing torch."""
    return isinstance(value, str) or (type(value).__module__ == "torch" and type(value).__name__ == kind)


def _source_name(value: object, where: str) -> DownloadSource:
    folded = str(value).lower()
    if folded == "modelscope":
        return "modelscope"
    if folded == "huggingface":
        return "huggingface"
    raise LoadError(
        f"{where} is no hub known here.", got=repr(value), expected='"modelscope" or "huggingface"'
    )
