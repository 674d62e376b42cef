"""The processes of a run: what they tell each other, and what each does for a pipeline."""

from __future__ import annotations

import atexit
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Self, TypeVar

import torch
import torch.distributed as dist

# Its functions take the group of the moment in which they are imported as default arguments. Imported later (by
# transformers or DTensor), they would keep a group and its threads alive when it is left.
import torch.distributed.nn
from torch.distributed.device_mesh import DeviceMesh

from qwenimage_core.errors import RequestError
from qwenimage_core.parallel.data import share
from qwenimage_core.parallel.launch import Launch, Parallel, checked

if TYPE_CHECKING:
    from qwenimage_core.pipeline import QwenImagePipeline
    from qwenimage_core.plan import Plan

    Pipeline = TypeVar("Pipeline", bound=QwenImagePipeline)

PATIENCE = timedelta(days=1)
"""One that has drawn its share waits for the others, which may take hours. One that ends is noticed at once."""

MESHES: list[DeviceMesh] = []
"""Of this process's tensor parallel transformers; they refer to the group."""


@dataclass(frozen=True)
class Group:
    """This process among the others. All of them make the same calls, in the same order."""

    parallel: Parallel
    rank: int
    world: int
    device: torch.device

    @classmethod
    def join(cls, parallel: str, device: str | torch.device | None) -> Self:
        """Meet the other processes, and take a device of one's own.

        Raises RequestError for an unknown way, a process that is alone, and a device that all would have to share.
        """
        way, launch = checked(parallel), Launch.found()
        assert way is not None and launch is not None
        own = _device_of(device, launch)
        if own.type != "cpu":
            torch.accelerator.set_device_index(own.index)
        if not dist.is_initialized():
            # gloo carries what is said in words (seeds, names), whatever carries tensors
            backend = "gloo" if own.type == "cpu" else f"cpu:gloo,{_backend(own)}"
            dist.init_process_group(backend=backend, timeout=PATIENCE)
            atexit.register(_part)
        return cls(way, launch.rank, launch.world, own)

    def attach(self, pipe: Pipeline) -> Pipeline:
        """Make a pipeline's transformer do this process's share; gives the pipeline back."""
        pipe.group = self
        component = pipe.components["transformer"][0]
        if self.parallel == "tensor":
            if pipe.keeper.machine is not None:
                raise RequestError(
                    'parallel="tensor" does not go with a memory preset, which moves weights for each request.',
                    mend='leave out memory, or use parallel="sequence"',
                )
            from qwenimage_core.parallel.tensor import shard

            MESHES.append(shard(component, self.world, self.device))
        elif self.parallel == "sequence":
            from qwenimage_core.parallel.sequence import split

            split(component.skeleton, self.rank, self.world)
        return pipe

    def share(self, plans: Sequence[Plan]) -> list[Plan]:
        """What this process draws of these plans: in `data` its part, else all, together with the others."""
        return share(plans, self.rank, self.world) if self.parallel == "data" else list(plans)

    def every(self, value: Any) -> list[Any]:
        """What each process says, in the order of ranks. Values are what JSON can hold."""
        own = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        lengths = [torch.empty(1, dtype=torch.long) for _ in range(self.world)]
        dist.all_gather(lengths, torch.tensor([len(own)]))
        longest = max(int(length) for length in lengths)
        padded = torch.nn.functional.pad(own, (0, longest - len(own)))
        said = [torch.empty(longest, dtype=torch.uint8) for _ in range(self.world)]
        dist.all_gather(said, padded)
        return [
            json.loads(bytes(text[: int(length)].tolist()))
            for text, length in zip(said, lengths, strict=True)
        ]

    def leave(self) -> None:
        """Part from the others when all have come this far; nothing can be drawn together afterwards. A process that
        ends without it (an error, Ctrl-C) parts at its exit, and waits for nobody."""
        if dist.is_initialized():
            self.every(None)
            _part()

    def agree(self, value: Any) -> Any:
        """The first process's value, for all."""
        return self.every(value)[0]


def _part() -> None:
    """End the group and its threads, while Python is still there: a thread of gloo drops the tensors it has sent some
    time after they arrived, needs Python for that, and aborts the process where there is none any more. The threads end
    with the last reference to the group."""
    while MESHES:
        # not public, and absent from some versions of torch; a mesh itself stays in caches of DTensor's operations
        getattr(MESHES.pop(), "_pg_registry", {}).clear()
    if dist.is_initialized():
        dist.destroy_process_group()


def _device_of(device: str | torch.device | None, launch: Launch) -> torch.device:
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    kind = torch.device(device) if device is not None else accelerator or torch.device("cpu")
    if kind.type == "cpu":
        return kind
    if kind.index is not None:
        raise RequestError(
            "Every process needs a device of its own.", got=f"device={kind}", mend=f"device={kind.type!r}"
        )
    if launch.local_rank >= torch.accelerator.device_count():
        raise RequestError(
            "There are more processes than devices here.",
            got=f"process {launch.local_rank + 1} of {os.environ.get('LOCAL_WORLD_SIZE', launch.world)}",
            expected=f"at most {torch.accelerator.device_count()}",
            mend="give torchrun a smaller --nproc_per_node",
        )
    return torch.device(kind.type, launch.local_rank)


def _backend(device: torch.device) -> str:
    return f"{device.type}:{dist.get_default_backend_for_device(device)}"
