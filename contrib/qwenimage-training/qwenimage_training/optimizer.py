"""AdamW over float32 weights. Trained weights of fewer bits have a float32 copy that is stepped and rounded back:
small steps on bfloat16 weights would be lost in rounding (84 of 100 at a learning rate of 1e-5)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from qwenimage_training.engines.local import like, local


class Weights:
    """Trained parameters by name, with the tensors that the optimizer steps."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], *, masters: bool = True) -> None:
        self.parameters = dict(parameters)
        self.stepped: dict[str, Tensor] = {
            name: nn.Parameter(p.detach().float().clone()) if masters and p.element_size() < 4 else p
            for name, p in self.parameters.items()
        }
        self._names = {p: name for name, p in self.parameters.items()}

    def exact(self, parameter: nn.Parameter) -> Tensor:
        """The value of a parameter at full precision; a parameter that is not trained as it is."""
        return self.stepped[self._names[parameter]] if parameter in self._names else parameter

    def optimizer(self, lr: float, weight_decay: float) -> torch.optim.Optimizer:
        weights = list(self.stepped.values())
        # one pass over all weights instead of ten over each of them
        fused = all(w.device.type in ("cpu", "cuda") for w in weights)
        optimizer = torch.optim.AdamW(weights, lr=lr, weight_decay=weight_decay, fused=fused)
        if self._copies():
            optimizer.register_step_pre_hook(lambda *_: self._take_gradients())
            optimizer.register_step_post_hook(lambda *_: self.round_back())
        return optimizer

    def forget_gradients(self) -> None:
        """Of the trained parameters alone: to go through all of a model for that costs a twentieth of a small step."""
        for parameter in self.parameters.values():
            parameter.grad = None

    def _copies(self) -> list[tuple[nn.Parameter, Tensor]]:
        pairs = [(p, self.stepped[name]) for name, p in self.parameters.items()]
        return [(p, s) for p, s in pairs if s is not p]

    def _take_gradients(self) -> None:
        for parameter, stepped in self._copies():
            stepped.grad = None if parameter.grad is None else parameter.grad.float()

    @torch.no_grad()
    def round_back(self) -> None:
        """Give the parameters the values of their float32 copies."""
        for parameter, stepped in self._copies():
            parameter.copy_(stepped)
            stepped.grad = None

    @torch.no_grad()
    def load(self, values: Mapping[str, Tensor]) -> None:
        for name, stepped in self.stepped.items():
            local(stepped).copy_(values[name])
        self.round_back()


class Average:
    """Exponential moving average of the weights, in float32."""

    def __init__(self, weights: Weights, decay: float) -> None:
        self.weights, self.decay = weights, decay
        self.values = {name: w.detach().float().clone() for name, w in weights.stepped.items()}

    @torch.no_grad()
    def update(self) -> None:
        for name, value in self.values.items():
            local(value).lerp_(local(self.weights.stepped[name]).float(), 1 - self.decay)

    def of(self, parameter: nn.Parameter) -> Tensor:
        name = self.weights._names.get(parameter)
        return parameter if name is None else self.values[name]


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The optimizer's state as tensors and plain numbers, by `NUMBER.KEY` of its parameters."""
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, Any] = {}
    for i, state in optimizer.state_dict()["state"].items():
        for key, value in state.items():
            (tensors if isinstance(value, Tensor) else numbers)[f"{i}.{key}"] = value
    return tensors, numbers


def load_optimizer(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]
) -> None:
    """What `optimizer_tensors` gave; of weights that are shared out, the part that this process holds."""
    weights = [w for group in optimizer.param_groups for w in group["params"]]
    state: dict[int, dict[str, Any]] = {}
    for name, value in {**tensors, **numbers}.items():
        i, _, key = name.partition(".")
        shared = isinstance(value, Tensor) and value.ndim > 0  # the number of steps is a plain tensor
        state.setdefault(int(i), {})[key] = like(weights[int(i)], value) if shared else value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
