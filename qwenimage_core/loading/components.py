"""Components: models with weights, checked by their headers at once and read into memory when they are first used."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qwenimage_core.errors import LoadError
from qwenimage_core.loading.checkpoint import Checkpoint
from qwenimage_core.loading.config import ModelConfig
from qwenimage_core.loading.recognise import CORE_COMPONENTS, ComponentSpec, recognise
from qwenimage_core.loading.sources import locate

NEEDED = ("transformer", "text_encoder", "vae")


class Component:
    """One model with weights: its spec, its checkpoint, and a module that has values only while it is loaded.

    The module is built on the meta device and compared with the checkpoint's headers when the component is made; a
    LoadError then lists what does not fit, before memory is spent. `load` fills the same module tensor by tensor,
    `release` empties it again: references to the module stay good, changes to its weights do not survive.
    """

    def __init__(
        self,
        spec: ComponentSpec,
        checkpoint: Checkpoint,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        self.spec, self.checkpoint = spec, checkpoint
        self.dtype, self.device = dtype, torch.device(device)
        self.config: Mapping[str, Any] | None = checkpoint.config
        self.loaded = False
        with torch.device("meta"):
            self.skeleton: Any = spec.build(checkpoint.config, checkpoint.shapes).requires_grad_(False).eval()
        self._names = self._match()

    @property
    def module(self) -> Any:
        """The module with its weights, of the class that the spec builds; reads them on first use."""
        return self.load()

    @cached_property
    def bytes(self) -> int:
        """Memory that the loaded weights take, in the target dtype."""
        return sum(
            tensor.numel() * self._dtype_of(tensor).itemsize for tensor in self.skeleton.state_dict().values()
        )

    @cached_property
    def parameters(self) -> int:
        """Number of weights."""
        return sum(tensor.numel() for tensor in self.skeleton.parameters())

    @property
    def itemsize(self) -> int:
        """Bytes of one weight in the target dtype."""
        return self.dtype.itemsize

    def digest(self) -> str:
        """A name for exactly these weights, see `Checkpoint.digest`."""
        return self.checkpoint.digest()

    def load(self) -> Any:
        """Fill the module, one tensor after the other, in the target dtype on the target device.

        The most memory in use on the way is what stays, and the largest tensor as stored.
        """
        if not self.loaded:
            passing = [
                self.checkpoint.tensors[name].nbytes for name in self._names.values() if self._passes(name)
            ]
            buffer = torch.empty(max(passing, default=0), dtype=torch.uint8)
            for name, published in self._names.items():
                _put(self.skeleton, name, self._read(published, buffer))
            self.loaded = True
        return self.skeleton

    def release(self) -> None:
        """Give the memory back. The next use of `module` reads the weights again."""
        for name, tensor in self.skeleton.state_dict().items():
            _put(self.skeleton, name, torch.empty_like(tensor, device="meta"))
        self.loaded = False

    def read(self, name: str) -> Tensor:
        """One tensor of the module by its name in the module, from the file: for streaming, and for comparisons."""
        return self._read(self._names[name], None)

    def _passes(self, published: str) -> bool:
        """Whether a tensor is not stored as it is used, and so passes through memory on its way."""
        stored = getattr(torch, self.checkpoint.tensors[published].dtype)
        cast = stored.is_floating_point and stored != self.dtype
        return cast or self.spec.convert is not None or self.device.type != "cpu"

    def _read(self, published: str, buffer: Tensor | None) -> Tensor:
        if not self._passes(published):
            return self.checkpoint.read(published)
        # One buffer for all of them: freed blocks between blocks that stay would never go back to the system.
        tensor = self.checkpoint.read(published, buffer=buffer)
        if self.spec.convert is not None:
            tensor = self.spec.convert(published, tensor)
        used = torch.empty(tensor.shape, dtype=self._dtype_of(tensor), device=self.device)
        return used.copy_(tensor)

    def _dtype_of(self, tensor: Tensor) -> torch.dtype:
        return self.dtype if tensor.is_floating_point() else tensor.dtype

    def _match(self) -> dict[str, str]:
        """Module name -> published name of every tensor, after comparing names, shapes and kinds of numbers."""
        expected = self.skeleton.state_dict()
        found: dict[str, str] = {}
        unexpected, wrong = [], []
        for published, info in self.checkpoint.tensors.items():
            name = published if self.spec.rename is None else self.spec.rename(published)
            if name is None:
                continue
            if name not in expected or name in found:
                unexpected.append(published if name not in found else f"{published} (as {found[name]})")
                continue
            found[name] = published
            stored = torch.empty(info.shape, dtype=getattr(torch, info.dtype), device="meta")
            if difference := self._difference(published, stored, expected[name]):
                wrong.append(f"{published} {difference}")
        missing = [name for name in expected if name not in found]
        if missing or unexpected or wrong:
            raise self._misfit(missing, unexpected, wrong)
        if empty := [
            name for name, buffer in self.skeleton.named_buffers() if name not in found and buffer.is_meta
        ]:
            raise LoadError(
                f"The {self.spec.name} has buffers that no file fills.",
                got=", ".join(empty[:5]),
                mend="compute them when they are needed, or keep them as plain attributes",
            )
        return found

    def _difference(self, published: str, stored: Tensor, wanted: Tensor) -> str | None:
        if wanted.is_floating_point() != stored.is_floating_point():
            return f"is {stored.dtype} instead of floating point"
        try:
            converted = stored if self.spec.convert is None else self.spec.convert(published, stored)
        except (RuntimeError, IndexError, ValueError):
            return f"is {tuple(stored.shape)}, which cannot become {tuple(wanted.shape)}"
        if converted.shape != wanted.shape:
            return f"is {tuple(converted.shape)} instead of {tuple(wanted.shape)}"
        return None

    def _misfit(self, missing: list[str], unexpected: list[str], wrong: list[str]) -> LoadError:
        kinds = {"missing": missing, "unexpected": unexpected, "wrong": wrong}
        got = "; ".join(
            f"{len(names)} {kind}: {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}"
            for kind, names in kinds.items()
            if names
        )
        if self.config is None:
            mend = "put the config.json of this model beside its weights"
        else:
            mend = "check that config.json and weights are of one model, and that the files are complete"
        return LoadError(
            f"The weights in {self.checkpoint.files[0]} do not fit the {self.spec.name} that its config describes.",
            got=got,
            expected=f"{len(self.skeleton.state_dict())} tensors of the shapes that {type(self.skeleton).__name__} has",
            mend=mend,
        )


def find_components(
    configs: Sequence[ModelConfig],
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    specs: Sequence[ComponentSpec] = CORE_COMPONENTS,
    needed: Collection[str] = NEEDED,
) -> dict[str, list[Component]]:
    """Kind -> components, in the order of `configs`: files found (downloaded where needed), recognised and checked.

    `specs` are the components that can be recognised, the core's and those of plugins. Raises LoadError if a kind in
    `needed` is not among the configs, or two are given of a kind of which the pipeline uses one.
    """
    found: dict[str, list[Component]] = {}
    for config in configs:
        for files in _checkpoints(locate(config)):
            checkpoint = Checkpoint.open(files)
            component = Component(recognise(checkpoint, specs), checkpoint, dtype=dtype, device=device)
            several = found.setdefault(component.spec.kind, [])
            if several and not component.spec.many:
                raise LoadError(
                    f"Two components of the kind {component.spec.kind} are given.",
                    got=f"{several[0].checkpoint.files[0]} and {checkpoint.files[0]}",
                    expected="one",
                    mend="leave one of the two ModelConfigs out",
                )
            several.append(component)
    if absent := [kind for kind in needed if kind not in found]:
        raise _absent(absent, found, specs)
    return found


def _checkpoints(paths: Sequence[Path]) -> Iterator[Sequence[Path]]:
    """The checkpoints in what a ModelConfig stands for: one, or the folders of a repository in hub layout."""
    if len(paths) == 1 and paths[0].is_dir() and not any(paths[0].glob("*.safetensors")):
        folders = sorted({file.parent for file in paths[0].glob("*/*.safetensors")})
        yield from ([folder] for folder in folders)
        if folders:
            return
    yield paths


def _absent(absent: Sequence[str], found: Iterable[str], specs: Sequence[ComponentSpec]) -> LoadError:
    homes = {spec.kind: spec.published for spec in (*CORE_COMPONENTS, *specs) if spec.published}
    lines = [
        f'ModelConfig(model_id="{homes[kind][0]}", origin_file_pattern="{homes[kind][1]}")'
        for kind in absent
        if kind in homes
    ]
    return LoadError(
        "Components are missing: " + ", ".join(absent) + ".",
        got=", ".join(found) or "none",
        expected=", ".join(NEEDED),
        mend="add to model_configs:\n            " + "\n            ".join(lines) if lines else None,
    )


def _put(module: nn.Module, name: str, tensor: Tensor) -> None:
    """Replace one parameter or buffer by its dotted name, without copying."""
    owner_name, _, leaf = name.rpartition(".")
    owner = module.get_submodule(owner_name)
    if leaf in owner._buffers:
        owner._buffers[leaf] = tensor
    else:
        owner._parameters[leaf] = nn.Parameter(tensor, requires_grad=False)
