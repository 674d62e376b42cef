"""The four places of a component's weights, with the published names and meaning.

offload: while the component waits for its stage. onload: while its stage runs. preparing: those blocks that
`vram_limit` lets stay on the device. computation: where a block is while it computes. A place is a device (or "disk")
and a dtype.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from qwenimage_core.errors import LoadError
from qwenimage_core.loading.places import DISK, STORED

if TYPE_CHECKING:
    from qwenimage_core.loading.config import ModelConfig

GIB = 2**30


@dataclass(frozen=True)
class Place:
    """A device, or "disk". `dtype` is None on disk, and where weights stay as the file has them ("stored")."""

    device: str
    dtype: torch.dtype | None

    @property
    def on_disk(self) -> bool:
        return self.device == DISK

    def __str__(self) -> str:
        kind = STORED if self.dtype is None else str(self.dtype).removeprefix("torch.")
        return DISK if self.on_disk else f"{self.device} {kind}"


@dataclass(frozen=True)
class Placement:
    """`limit` is the most bytes that may be in use on the device of `computation` while this component's stage runs:
    blocks are prepared as long as they fit. None prepares all of them."""

    offload: Place
    onload: Place
    preparing: Place
    computation: Place
    limit: int | None = None

    @classmethod
    def resident(cls, device: torch.device | str, dtype: torch.dtype) -> Placement:
        """Everything is read once and stays where it computes."""
        place = Place(numbered(device), dtype)
        return cls(place, place, place, place)

    @property
    def managed(self) -> bool:
        """Whether weights are ever anywhere else than where they compute, or there is a limit to keep."""
        return (
            self.limit is not None or len({self.offload, self.onload, self.preparing, self.computation}) > 1
        )

    @property
    def streams(self) -> bool:
        """Whether blocks may come and go while their component computes."""
        return not self.onload == self.preparing == self.computation

    def as_stored(self) -> Placement:
        """The same, but what would wait cast to eight bits waits as its file has it."""
        offload, onload, preparing = (
            Place(place.device, None) if place.dtype is not None and place.dtype.itemsize == 1 else place
            for place in (self.offload, self.onload, self.preparing)
        )
        return Placement(offload, onload, preparing, self.computation, self.limit)

    @property
    def leaves(self) -> bool:
        """Whether the component gives its memory back after its stage."""
        return self.offload != self.onload or self.onload != self.computation


def placement_of(
    config: ModelConfig, *, dtype: torch.dtype, device: torch.device, vram_limit: float | None
) -> Placement:
    """What a ModelConfig asks for; what it leaves open is the place of computation, and that is the pipeline's.

    `vram_limit` is in GiB. Raises LoadError for a device that this machine does not have.
    """
    computation = _place(config, "computation", Place(numbered(device), dtype))
    limit = None if vram_limit is None else int(vram_limit * GIB)
    if config.offload_device is None:
        return Placement(computation, computation, computation, computation, None)
    found = Placement(
        _place(config, "offload", computation),
        _place(config, "onload", computation),
        _place(config, "preparing", computation),
        computation,
        limit,
    )
    for place in {found.offload, found.onload, found.preparing, computation}:
        _check_there(place, config)
    if found.preparing.device != computation.device:
        raise LoadError(
            "Blocks are prepared on the device that computes.",
            got=f"preparing_device={found.preparing.device}, computation on {computation.device}",
            mend=f"preparing_device={computation.device!r}",
        )
    return found


def _place(config: ModelConfig, state: str, default: Place) -> Place:
    dtype, device = getattr(config, f"{state}_dtype"), getattr(config, f"{state}_device")
    if DISK in (dtype, device):
        return Place(DISK, None)
    if dtype == STORED:
        return Place(numbered(device) if device is not None else default.device, None)
    kind = getattr(torch, dtype) if dtype is not None else default.dtype
    return Place(numbered(device) if device is not None else default.device, kind)


def numbered(device: torch.device | str) -> str:
    """ "cuda" means the first one; tensors say so by number."""
    found = torch.device(device)
    return str(found) if found.index is not None or found.type in ("cpu", "mps") else f"{found.type}:0"


def _check_there(place: Place, config: ModelConfig) -> None:
    if place.on_disk or torch.device(place.device).type == "cpu":
        return
    wanted = torch.device(place.device)
    there = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if there is None or there.type != wanted.type or (wanted.index or 0) >= torch.accelerator.device_count():
        raise LoadError(
            f"{config} is to be placed on a device that is not there.",
            got=place.device,
            expected=f"cpu{f' or {there}' if there else ''}",
            mend='name a device of this machine in the placement settings, as onload_device="cpu"',
        )
