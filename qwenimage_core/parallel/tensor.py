"""Tensor parallel: every process holds a share of each block's large matrices, and computes with all tokens.

Queries, keys, values and the first half of a feed-forward are cut by output channel, so that a process has some of the
heads; what follows them is cut by input channel, and its results are added up over the processes. Norms act on single
heads, so that they stay whole; so do modulation and everything outside of blocks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from qwenimage_core.adapters.layer import AdaptedLayer
from qwenimage_core.errors import AdapterError, RequestError

if TYPE_CHECKING:
    from qwenimage_core.loading.component import Component
    from qwenimage_core.loading.encoding import Stored

BY_OUTPUT = (
    *(f"attn.{name}" for name in ("to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj")),
    *(f"{stream}_mlp.net.0.proj" for stream in ("img", "txt")),
)
BY_INPUT = ("attn.to_out.0", "attn.to_add_out", "img_mlp.net.2", "txt_mlp.net.2")


def shard(component: Component, world: int, device: torch.device) -> DeviceMesh:
    """Make a transformer that is not loaded yet read, keep and use this process's share of its blocks; gives the mesh
    of the processes. Its placement must stay as it is.

    Raises RequestError where heads cannot be shared out evenly, and where weights come and go.
    """
    heads = component.skeleton.config.num_attention_heads
    if heads % world:
        raise RequestError(
            "The heads cannot be shared out evenly.",
            got=f"{heads} heads for {world} processes",
            expected="a number of processes that divides the heads",
            mend='give torchrun another --nproc_per_node, or use parallel="sequence"',
        )
    if component.placement.managed:
        raise RequestError(
            'parallel="tensor" does not go with weights that come and go.',
            got=f"the transformer waits on {component.placement.offload}",
            mend='leave out memory, vram_limit and placement settings, or use parallel="sequence"',
        )
    mesh = init_device_mesh(device.type, (world,))
    cuts: dict[str, int] = {}
    for number, block in enumerate(component.skeleton.transformer_blocks):
        # on the meta device: nothing is sent; what it leaves are the ways in and out of each layer
        styles: dict[str, Any] = {name: ColwiseParallel() for name in BY_OUTPUT}
        parallelize_module(block, mesh, styles | {name: RowwiseParallel() for name in BY_INPUT})
        for name in (*BY_OUTPUT, *BY_INPUT):
            by_output = name in BY_OUTPUT
            block.get_submodule(name).register_forward_pre_hook(_before(mesh, name, by_output))
            path = f"transformer_blocks.{number}.{name}"
            cuts |= {f"{path}.weight": 0, f"{path}.bias": 0} if by_output else {f"{path}.weight": 1}
            cuts |= {} if by_output else {f"{path}.bias": WHOLE}
    component.blocks.source = Shares(component, mesh, cuts)
    return mesh


WHOLE = -1  # no dimension is cut: each process has the whole tensor


class Shares:
    """A component's weights (loading.stream.Source), of which a process takes its share as soon as each is read."""

    def __init__(self, component: Component, mesh: DeviceMesh, cuts: dict[str, int]) -> None:
        self.component, self.mesh, self.cuts = component, mesh, cuts

    def read_as(self, name: str, device: str, dtype: torch.dtype) -> Tensor:
        if name not in self.cuts:
            return self.component.read_as(name, device, dtype)
        return _share(self.component.read_as(name, "cpu", dtype), self.mesh, self.cuts[name], device)

    def read_into(self, name: str, view: Tensor, staging: Tensor) -> None:
        raise NotImplementedError("shares are not streamed; `shard` refuses such placements")

    def read_stored(self, name: str, device: str) -> Stored:
        raise NotImplementedError("shares are not kept as stored; `shard` refuses such placements")

    def stored_bytes(self, name: str) -> int:
        return self.component.stored_bytes(name)

    def staging_bytes(self, name: str) -> int:
        return self.component.staging_bytes(name)


def _share(whole: Tensor, mesh: DeviceMesh, dim: int, device: torch.device | str) -> DTensor:
    """The process's part in memory of its own, so that the whole can go."""
    if dim == WHOLE:
        return DTensor.from_local(whole.to(device), mesh, [Replicate()], run_check=False)
    part = whole.chunk(mesh.size(), dim)[mesh.get_local_rank()].clone(memory_format=torch.contiguous_format)
    return DTensor.from_local(part.to(device), mesh, [Shard(dim)], run_check=False)


def _before(mesh: DeviceMesh, name: str, by_output: bool) -> Any:
    """Cut the side branches of adapters as their layer is cut, when they first run."""

    def hook(layer: nn.Module, args: Any) -> None:
        if not isinstance(layer, AdaptedLayer):
            return
        for branch in layer.branches:
            factors = dict(branch.named_buffers(recurse=False))
            if set(factors) != {"down_RI", "up_OR"}:
                raise AdapterError(
                    f'{name}: with parallel="tensor", adapters are pairs of low rank.',
                    got="a Kronecker product (LoKr)",
                    mend='use parallel="sequence" or "data"',
                )
            if not isinstance(factors["up_OR"], DTensor):
                cuts = {"down_RI": WHOLE, "up_OR": 0} if by_output else {"down_RI": 1, "up_OR": WHOLE}
                for each, dim in cuts.items():
                    branch._buffers[each] = _share(factors[each], mesh, dim, factors[each].device)

    return hook
