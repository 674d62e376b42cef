"""How one step is made: by a single process, by several that all hold the weights (DDP), or by several that share them
out (FSDP2, here; DeepSpeed, in zero.py). The loop knows no difference."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from qwenimage_training.engines.launcher import is_fsdp
from qwenimage_training.engines.local import local, norm_value, whole
from qwenimage_training.errors import TrainingError
from qwenimage_training.optimizer import Average, Weights, load_optimizer, optimizer_tensors

if TYPE_CHECKING:
    from accelerate import Accelerator

    from qwenimage_training.arguments import TrainingArguments
    from qwenimage_training.checkpoint import State
    from qwenimage_training.trained import Trained

Values = Callable[[nn.Parameter], Tensor]


class Engine:
    """A single process, or DDP: `model` is what is called, `weights` what is stepped."""

    name = "ddp"
    sharded = False
    """Whether every process holds a state of its own, which it saves and reads itself."""
    together = False
    """Whether weights are shared out, so that nothing computes unless all processes compute it together."""

    def __init__(
        self, accelerator: Accelerator, module: nn.Module, trained: Trained, arguments: TrainingArguments
    ) -> None:
        self.accelerator, self.arguments, self.trained = accelerator, arguments, trained
        self.model: Any = self._wrap(module)
        self.weights = Weights(module.trainable(), masters=arguments.master_weights)  # type: ignore[operator]
        self.average = Average(self.weights, arguments.ema_decay) if arguments.ema_decay else None
        self.optimizer = self.weights.optimizer(arguments.learning_rate, arguments.weight_decay)

    def _wrap(self, module: nn.Module) -> Any:
        return self.accelerator.prepare_model(module)

    # --- a step -----------------------------------------------------------------------------------------------------

    @contextmanager
    def collecting(self, last: bool) -> Iterator[None]:
        """Around forward and backward of a batch; gradients are exchanged in the `last` one of a step."""
        silent = getattr(self.model, "no_sync", None)
        try:
            with nullcontext() if last or silent is None else silent():
                yield
        except RuntimeError as error:
            if "find_unused_parameters" not in str(error):
                raise
            raise TrainingError(
                "Not every weight that is trained got a gradient, and DDP waits for those that did not.",
                expected="--find_unused_parameters, as the published modes have it",
                mend="add --find_unused_parameters",
            ) from error

    def backward(self, loss: Tensor, last: bool) -> None:
        (loss / self.arguments.gradient_accumulation_steps).backward()

    def step(self, rate: float) -> float:
        """Step the weights and give the norm of the gradient, before it is shortened to `max_grad_norm`. With a norm
        that is not finite the weights stay as they are."""
        norm = self.clip()
        if abs(norm) < float("inf"):
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            self.optimizer.step()
            if self.average is not None:
                self.average.update()
        self.weights.forget_gradients()
        return norm

    @contextmanager
    def looking(self) -> Iterator[None]:
        """Around passes that are of no step, without gradients."""
        yield

    def clip(self) -> float:
        """The norm of the gradient, which is shortened to `max_grad_norm` if there is such a limit."""
        gradients = [p.grad for p in self.weights.parameters.values() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients, foreach=None if self.sharded else True)
        if limit := self.arguments.max_grad_norm:
            torch.nn.utils.clip_grads_with_norm_(self.weights.parameters.values(), limit, norm)
        return norm_value(norm)

    # --- what is saved ----------------------------------------------------------------------------------------------

    def values(self, dtype: torch.dtype) -> Values:
        """What to save of a parameter, on the main process. Where weights are shared out, every process must call this:
        what is trained is gathered, one tensor after the other, and nothing else."""
        return self.weights.exact if self.average is None else self.average.of

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and numbers of a resume, as this process holds them."""
        tensors, numbers = optimizer_tensors(self.optimizer)
        parts: dict[str, Mapping[str, Tensor]] = {"weights": self.weights.stepped, "optimizer": tensors}
        if self.average is not None:
            parts["average"] = self.average.values
        named = {
            f"{part}/{n}": local(t.detach()) for part, content in parts.items() for n, t in content.items()
        }
        return named, numbers

    def restore(self, state: State) -> None:
        self.weights.load(state.part("weights"))
        load_optimizer(self.optimizer, state.part("optimizer"), state.numbers)
        if self.average is not None:
            for name, value in state.part("average").items():
                local(self.average.values[name]).copy_(value)


class Alone(Engine):
    """One process."""

    name = "one process"

    def _wrap(self, module: nn.Module) -> Any:
        return module.to(self.accelerator.device)


class Fsdp2(Engine):
    """Weights, gradients and optimizer shared out by torch's fully_shard: a block is gathered while it computes."""

    name = "fsdp2"
    sharded = together = True

    def _wrap(self, module: nn.Module) -> Any:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        refuse_fp8(module, self.name)
        module.in_step = True  # type: ignore[assignment]
        mesh = init_device_mesh(self.accelerator.device.type, (self.accelerator.num_processes,))
        # gradients of bfloat16 weights are summed up in float32; the weights themselves have float32 copies (Weights)
        policy = MixedPrecisionPolicy(reduce_dtype=torch.float32, cast_forward_inputs=False)
        for part in self._units():
            fully_shard(part, mesh=mesh, mp_policy=policy)
        return fully_shard(module, mesh=mesh, mp_policy=policy)

    def _units(self) -> list[nn.Module]:
        """What is gathered at once: the units that models name for reading from disk, the inner ones first."""
        parts = [*self.trained.full, *([self.trained.lora] if self.trained.lora else [])]
        components = {part.key: part.component for part in parts}.values()
        found = [unit.module for c in components for unit in (*c.once.units, *c.blocks.units)]
        return [module for module in found if any(True for _ in module.parameters())]

    @contextmanager
    def collecting(self, last: bool) -> Iterator[None]:
        self.model.set_requires_gradient_sync(last)
        yield

    @contextmanager
    def looking(self) -> Iterator[None]:
        self.model.unshard()  # what is of no unit; units come and go as they compute
        try:
            yield
        finally:
            self.model.reshard()

    def values(self, dtype: torch.dtype) -> Values:
        chosen = super().values(dtype)
        found = {}
        for parameter in self.weights.parameters.values():
            full = whole(chosen(parameter).detach())
            if self.accelerator.is_main_process:
                found[parameter] = full.to("cpu", dtype)
        return found.__getitem__


def refuse_fp8(module: nn.Module, engine: str) -> None:
    """Eight-bit storage swaps the weights of a layer while it runs, which an engine that shares them out does too."""
    if any(p.dtype == torch.float8_e4m3fn for p in module.parameters()):
        raise TrainingError(
            f"--fp8_models names the model that is trained, and {engine} shares out its weights.",
            mend="take it off the list: sharing out saves more; or train with ddp",
        )


def make_engine(
    accelerator: Accelerator, module: nn.Module, trained: Trained, arguments: TrainingArguments
) -> Engine:
    """The engine that the launcher's configuration asks for."""
    from accelerate.utils import DistributedType

    kind: type[Engine] = Alone if accelerator.num_processes == 1 else Engine
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        from qwenimage_training.engines.zero import Zero

        kind = Zero
    elif is_fsdp():
        kind = Fsdp2
    return kind(accelerator, module, trained, arguments)
