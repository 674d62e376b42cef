"""A component: a model with weights, checked by its headers at once and read into memory when it is first used."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from qwenimage_core.loading.checkpoint import Checkpoint
from qwenimage_core.loading.encoding import Stored
from qwenimage_core.loading.fit import fit
from qwenimage_core.loading.placement import Place, Placement
from qwenimage_core.loading.places import DISK
from qwenimage_core.loading.reader import PIECE
from qwenimage_core.loading.recognise import ComponentSpec
from qwenimage_core.loading.stream import Stream
from qwenimage_core.loading.units import units


class Component:
    """One model with weights: its spec, its checkpoint, and a module that has values only while it is loaded.

    The module is built on the meta device and compared with the checkpoint's headers when the component is made; a
    LoadError then lists what does not fit, before memory is spent. `load` fills the same module, `release` empties it
    again: references to the module stay good, changes to its weights do not survive. Where its weights are is said by
    its placement; what its spec calls `once` is on disk but for the moment in which it computes.
    """

    def __init__(
        self,
        spec: ComponentSpec,
        checkpoint: Checkpoint,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        placement: Placement | None = None,
    ) -> None:
        self.spec, self.checkpoint = spec, checkpoint
        self.config: Mapping[str, Any] | None = checkpoint.config
        self.loaded = False
        self._watching: list[Any] = []
        self._fresh: Hashable = None
        self.budget: Callable[[Component], int] = lambda component: len(component.blocks.units)
        with torch.device("meta"):
            self.skeleton: Any = spec.build(checkpoint.config, checkpoint.shapes).requires_grad_(False).eval()
        self._names = fit(spec, checkpoint, self.skeleton)
        self.place(placement or Placement.resident(device, dtype))

    def place(self, placement: Placement) -> None:
        """Change where the weights are. What is loaded is released first."""
        if self.loaded:
            self.release()
        self.placement = placement
        for unwatch in self._watching:
            unwatch.remove()
        once = units(self.skeleton, self.spec.once, self.dtype)
        later = units(self.skeleton, self.spec.later, self.dtype)
        blocks = units(self.skeleton, self.spec.blocks, self.dtype, apart=(*once, *later))
        # read in time for its one use, and never kept
        on_disk = Place(DISK, None)
        passing = Placement(on_disk, on_disk, placement.computation, placement.computation)
        self.once = Stream(once, passing, self, cyclic=False)
        self.later = Stream(later, passing, self, cyclic=False)
        self.blocks = Stream(blocks, placement, self)
        if not placement.streams:  # read when it first runs, and kept like the rest
            self._watching = [unit.module.register_forward_pre_hook(self._settle_later) for unit in later]
        moving = {leaf.name for unit in (*once, *later, *blocks) for leaf in unit.leaves}
        self._base = tuple(name for name in self._names if name not in moving)

    @property
    def dtype(self) -> torch.dtype:
        """That it computes in."""
        assert self.placement.computation.dtype is not None
        return self.placement.computation.dtype

    @property
    def device(self) -> torch.device:
        """That it computes on."""
        return torch.device(self.placement.computation.device)

    @property
    def module(self) -> Any:
        """The module with its weights, of the class that the spec builds; reads them on first use."""
        return self.load()

    @cached_property
    def bytes(self) -> int:
        """Memory that all weights take, in the dtype they compute in."""
        return sum(
            tensor.numel() * self._dtype_of(tensor).itemsize for tensor in self.skeleton.state_dict().values()
        )

    @cached_property
    def base_bytes(self) -> int:
        """Of what is in memory for as long as the component is loaded: all but blocks and what is used once."""
        state = self.skeleton.state_dict()
        return sum(state[name].numel() * self._dtype_of(state[name]).itemsize for name in self._base)

    def resident_bytes(self) -> int:
        """Of what is on the device of computation now."""
        if not self.loaded:
            return 0
        streams = (self.blocks, self.once, self.later)
        return self.base_bytes + sum(stream.resident_bytes() for stream in streams)

    @cached_property
    def parameters(self) -> int:
        """Number of weights."""
        return sum(tensor.numel() for tensor in self.skeleton.parameters())

    @property
    def itemsize(self) -> int:
        """Bytes of one weight in the dtype it computes in."""
        return self.dtype.itemsize

    def digest(self) -> str:
        """A name for exactly these weights, see `Checkpoint.digest`."""
        return self.checkpoint.digest()

    # --- loading ------------------------------------------------------------------------------------------------

    def load(self, *, whole: bool = False, prepared: int | None = None) -> Any:
        """Fill the module, one tensor after the other.

        The most memory in use on the way is what stays, and the largest `staging_bytes`. `whole` also keeps what a
        generation uses once: for training, for merging adapters, for its state dict. `prepared` is the number of
        blocks that stay on the device; None leaves it as it is, at first as many as `budget` says.
        """
        if not self.loaded:
            passing = [self.staging_bytes(name) for name in self._base if self._passes(name)]
            buffer = torch.empty(max(passing, default=0), dtype=torch.uint8)
            for name in self._base:
                put(self.skeleton, name, self._read(name, buffer))
        for part in (self.once, self.later):
            if whole and part.units:
                part.settle(len(part.units))
            elif not self.loaded and (part is self.once or self.placement.streams):
                part.settle(0)
        if not self.loaded or prepared is not None:
            self.blocks.settle(self.budget(self) if prepared is None else prepared)
        if not self.loaded:
            self._fresh = self._state()
        self.loaded = True
        return self.skeleton

    def release(self) -> None:
        """Give the memory back. The next use of `module` reads the weights again."""
        for part in (self.blocks, self.once, self.later):
            part.close()
        for name in self._base:
            put(self.skeleton, name, torch.empty_like(self.skeleton.state_dict()[name], device="meta"))
        self.loaded = False

    def leave(self) -> None:
        """The stage of this component is over: its weights go where `offload` says."""
        self.once.rest()
        self.later.rest()
        offload = self.placement.offload
        if not self.loaded or not self.placement.leaves:
            return
        if offload.on_disk:
            self.release()
        else:
            self.blocks.park(offload)
            if not self.placement.streams:
                self.later.close()

    @property
    def as_stored(self) -> bool:
        """Whether its weights are those of its files: nothing is in training or was changed in memory. In doubt it says
        no. Adapters beside the weights do not count."""
        if any(parameter.requires_grad for parameter in self.skeleton.parameters()):
            return False
        # what comes and goes is read anew, so that no change survives
        return not self.loaded or self.placement.streams or self._state() == self._fresh

    def _state(self) -> Hashable:
        """Another one after every change of a weight that stays in memory."""
        later = {leaf.name for unit in self.later.units for leaf in unit.leaves}
        named = self.skeleton.named_parameters()
        return tuple((id(tensor), tensor._version) for name, tensor in named if name not in later)

    def _settle_later(self, module: nn.Module, args: Any) -> None:
        if len(self.later.open) < len(self.later.units):
            self.later.settle(len(self.later.units))

    def read(self, name: str) -> Tensor:
        """One tensor of the module by its name in the module, from the file, as it computes."""
        return self._read(name, None)

    # --- where a stream gets its weights (loading.stream.Source) --------------------------------------------------

    def read_as(self, name: str, device: str, dtype: torch.dtype) -> Tensor:
        """One tensor from the file, on a device in a dtype, in memory of its own."""
        tensor = self._stored(name, None)
        return tensor.to(device=device, dtype=dtype if tensor.is_floating_point() else None)

    def read_into(self, name: str, view: Tensor, staging: Tensor) -> None:
        """One tensor from the file into `view`, through `staging` unless it is stored as it computes."""
        published = self._names[name]
        if not self._in_pieces(name):
            view.copy_(self._stored(name, staging).to(view.device))
        elif getattr(torch, self.checkpoint.tensors[published].dtype) == view.dtype:
            self.checkpoint.read(published, buffer=view.flatten().view(torch.uint8))
        else:
            at, flat = 0, view.flatten()
            for piece in self.checkpoint.pieces(published, staging[:PIECE]):
                flat[at : at + piece.numel()].copy_(piece)
                at += piece.numel()

    def read_stored(self, name: str, device: str) -> Stored:
        """One tensor as the file has it, on a device, with what makes the module's tensor of it."""
        published, convert = self._names[name], self.spec.convert
        stored = self.checkpoint.read_stored(published)
        if convert is not None:
            decode = stored.decode
            stored = Stored(stored.parts, lambda *parts: convert(published, decode(*parts)))
        return stored.to(device)

    def stored_dtypes(self) -> frozenset[str]:
        """In which forms weights rest, in the file and while they wait for their turn: names of torch's dtypes
        ("bfloat16"), and of encodings ("scaled float8_e4m3fn", "GGUF Q4_K", "nf4")."""
        places = (self.placement.offload, self.placement.onload, self.placement.preparing)
        waiting = {str(place.dtype).removeprefix("torch.") for place in places if place.dtype is not None}
        return frozenset(info.stored_as for info in self.checkpoint.tensors.values()) | waiting

    def staging_bytes(self, name: str) -> int:
        """Of the buffer that a tensor passes through on its way into memory, if it is not stored as it computes."""
        return min(PIECE, self.stored_bytes(name)) if self._in_pieces(name) else self.stored_bytes(name)

    def _in_pieces(self, name: str) -> bool:
        """Whether a tensor can be cast a piece at a time."""
        plain = self.spec.convert is None and self.checkpoint.plain(self._names[name])
        return plain and self.device.type == "cpu"

    def stored_bytes(self, name: str) -> int:
        """Of one tensor in the file."""
        return self.checkpoint.tensors[self._names[name]].nbytes

    @cached_property
    def quantised(self) -> bool:
        """Whether its files hold weights in eight bits or less."""
        found = self.checkpoint.tensors.values()
        return any(i.encoding is not None or i.dtype.startswith("float8") for i in found)

    @cached_property
    def largest_decoded(self) -> int:
        """Numbers of the largest tensor that the file has in an encoding; 0 where there is none."""
        return max(
            (math.prod(i.shape) for i in self.checkpoint.tensors.values() if i.encoding is not None),
            default=0,
        )

    def _stored(self, name: str, buffer: Tensor | None) -> Tensor:
        published = self._names[name]
        tensor = self.checkpoint.read(published, buffer=buffer)
        return tensor if self.spec.convert is None else self.spec.convert(published, tensor)

    def _passes(self, name: str) -> bool:
        """Whether a tensor is not stored as it is used, and so passes through memory on its way."""
        stored = getattr(torch, self.checkpoint.tensors[self._names[name]].dtype)
        cast = stored.is_floating_point and stored != self.dtype
        return cast or self.spec.convert is not None or self.device.type != "cpu"

    def _read(self, name: str, buffer: Tensor | None) -> Tensor:
        if not self._passes(name):
            return self.checkpoint.read(self._names[name])
        if buffer is None:
            buffer = torch.empty(self.staging_bytes(name), dtype=torch.uint8)
        # One buffer for all of them: freed blocks between blocks that stay would never go back to the system.
        if self._in_pieces(name):
            used = torch.empty(self.checkpoint.tensors[self._names[name]].shape, dtype=self.dtype)
            self.read_into(name, used, buffer)
            return used
        tensor = self._stored(name, buffer)
        used = torch.empty(tensor.shape, dtype=self._dtype_of(tensor), device=self.device)
        return used.copy_(tensor)

    def _dtype_of(self, tensor: Tensor) -> torch.dtype:
        return self.dtype if tensor.is_floating_point() else tensor.dtype


def put(module: nn.Module, name: str, tensor: Tensor) -> None:
    """Replace one parameter or buffer by its dotted name, without copying."""
    owner_name, _, leaf = name.rpartition(".")
    owner = module.get_submodule(owner_name)
    if leaf in owner._buffers:
        owner._buffers[leaf] = tensor
    else:
        owner._parameters[leaf] = nn.Parameter(tensor, requires_grad=False)
