"""DeepSpeed ZeRO-2 and ZeRO-3. DeepSpeed keeps flat float32 copies of what is trained, a part of them in each process,
steps them and clips gradients itself; here it is told when, and asked for what is saved.

Its own checkpoints are pickles, so the flat copies and their optimizer state are saved as the tensors they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from qwenimage_training.engines.engine import Engine, Values, refuse_fp8
from qwenimage_training.errors import TrainingError
from qwenimage_training.optimizer import Weights

if TYPE_CHECKING:
    from accelerate import Accelerator

    from qwenimage_training.arguments import TrainingArguments
    from qwenimage_training.checkpoint import State
    from qwenimage_training.trained import Trained


class Zero(Engine):
    sharded = True

    def __init__(
        self, accelerator: Accelerator, module: nn.Module, trained: Trained, arguments: TrainingArguments
    ) -> None:
        self.accelerator, self.arguments, self.trained = accelerator, arguments, trained
        self.stage = accelerator.state.deepspeed_plugin.zero_stage
        self.name = f"zero{self.stage}"
        if arguments.ema_decay:
            raise TrainingError(
                f"--ema_decay does not work with {self.name}: DeepSpeed keeps weights in a form of its own.",
                mend="leave it out, or share out with fsdp2 (`qwenimage engines fsdp2`)",
            )
        if self.stage not in (2, 3):
            raise TrainingError(
                "This stage of ZeRO is not supported.", got=self.stage, expected="zero_stage: 2 or 3"
            )
        refuse_fp8(module, self.name)
        self.together = module.in_step = self.stage == 3
        self.average = None
        # DeepSpeed makes the float32 copies
        self.weights = Weights(module.trainable(), masters=False)  # type: ignore[operator]
        optimizer = self.weights.optimizer(arguments.learning_rate, arguments.weight_decay)
        self.model, _ = accelerator.prepare(module, optimizer)
        self.zero: Any = self.model.optimizer
        self.optimizer = self.zero.optimizer

    @contextmanager
    def collecting(self, last: bool) -> Iterator[None]:
        self.model.set_gradient_accumulation_boundary(is_boundary=last)
        yield

    @contextmanager
    def looking(self) -> Iterator[None]:
        if (
            self.together
        ):  # DeepSpeed has noted in which order a step asks for weights, and here begins another
            self.zero.parameter_offload.get_param_coordinator().reset_step()
        yield

    def backward(self, loss: Tensor, last: bool) -> None:
        self.model.backward(loss)  # divides by the accumulation steps

    def step(self, rate: float) -> float:
        for group in self.zero.param_groups:
            group["lr"] = rate
        self.model.step()
        return float("inf") if self.zero.overflow else float(self.model.get_global_grad_norm())

    def values(self, dtype: torch.dtype) -> Values:
        from deepspeed.utils import safe_get_full_fp32_param

        found = {}
        for parameter in self.weights.parameters.values():
            full = safe_get_full_fp32_param(parameter)
            if self.accelerator.is_main_process:
                found[parameter] = full.to("cpu", dtype)
        return found.__getitem__

    @property
    def _flat(self) -> list[Tensor]:
        """This process's part of the float32 copies, group by group."""
        return (
            self.zero.fp32_partitioned_groups_flat
            if self.stage == 3
            else self.zero.single_partition_of_fp32_groups
        )

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        found = {f"weights/{i}": flat.detach() for i, flat in enumerate(self._flat)}
        for i, flat in enumerate(self._flat):
            found |= {f"optimizer/{i}.{key}": value for key, value in self.optimizer.state[flat].items()}
        return found, {}

    @torch.no_grad()
    def restore(self, state: State) -> None:
        # by hand: load_state_dict looks for the flat copies in param_groups, where DeepSpeed puts one of them at a time
        fused = self.optimizer.defaults["fused"]
        for name, value in state.part("optimizer").items():
            number, _, key = name.partition(".")
            flat = self._flat[int(number)]
            self.optimizer.state[flat][key] = value.to(flat.device if value.ndim or fused else "cpu")
        for name, value in state.part("weights").items():
            self._flat[int(name)].copy_(value)
        if self.stage == 3:
            self.zero._partition_all_parameters()
            for i in range(len(self._flat)):
                self.zero._reassign_or_swap_out_partitioned_parameters(i)
            self.zero._post_step({})  # small weights are kept whole by every process
        else:
            self.zero.update_lp_params()
