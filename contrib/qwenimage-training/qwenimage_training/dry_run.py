"""What a run would cost, before it starts: steps, memory by part, and the time of two steps. Nothing is written.

B samples, S joint tokens, D width, L blocks.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from qwenimage_training.sample import Sample
    from qwenimage_training.trainer import Trainer

MEASURED = 2  # steps
KEPT_A_BLOCK = 34
"""Times D, what a block keeps of a token for its backward pass: the norms, projections, heads before and after
rotation, attention, gates, and a feed-forward that is four times as wide."""


@dataclass(frozen=True)
class Forecast:
    """Bytes are those of each process, at their most. `activations` are of one batch at the largest size; measured
    where steps were measured. `seconds_a_step` and `seconds` are None without."""

    rows: int
    batches_an_epoch: int
    steps: int
    batch_size: int
    largest_size: str
    trained_parameters: int
    weights: int
    gradients: int
    optimizer: int
    average: int
    activations: int
    measured: bool
    seconds_a_step: float | None
    seconds: float | None

    @property
    def memory(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.average + self.activations

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"memory": self.memory}


def forecast(trainer: Trainer, *, measure: bool) -> Forecast:
    """Of a trainer that has not begun; it is of no use afterwards, because measuring steps its weights."""
    arguments = trainer.arguments
    sizes = Counter(trainer.dataset.sizes())
    largest = max(sizes, key=lambda size: size[0] * size[1])
    parameters = list(trainer.engine.weights.parameters.values())
    stepped = list(trainer.engine.weights.stepped.values())
    copies = [w for w, p in zip(stepped, parameters, strict=True) if w is not p]
    average = trainer.engine.average
    samples = _largest_batch(trainer, largest)
    kept, seconds = measured(trainer, samples) if measure else (estimated(trainer, samples), None)
    return Forecast(
        rows=len(trainer.dataset),
        batches_an_epoch=trainer.batches_an_epoch,
        steps=trainer.total_steps,
        batch_size=arguments.batch_size,
        largest_size=f"{largest[0]} x {largest[1]}",
        trained_parameters=sum(p.numel() for p in parameters),
        weights=_bytes(w for c in _loaded(trainer) for w in (*c.parameters(), *c.buffers())),
        gradients=_bytes(parameters),
        optimizer=2 * _bytes(stepped) + _bytes(copies),  # two moments, and the float32 copies
        average=0 if average is None else _bytes(average.values.values()),
        activations=kept,
        measured=measure,
        seconds_a_step=seconds,
        seconds=None if seconds is None else seconds * trainer.total_steps,
    )


def _loaded(trainer: Trainer) -> list[torch.nn.Module]:
    """Every model with weights in memory; asked for when the samples are encoded, so that the encoders are there."""
    components = [c for several in trainer.pipe.components.values() for c in several]
    return [c.module for c in components if c.loaded]


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum({t.data_ptr(): t.nbytes for t in tensors}.values())


def _largest_batch(trainer: Trainer, size: tuple[int, int]) -> list[Sample]:
    """As many rows of this size as a batch has, planned."""
    places = [i for i, found in enumerate(trainer.dataset.sizes()) if found == size]
    wanted = min(trainer.arguments.batch_size, len(places))
    dataset = trainer.dataset
    return [trainer.planner.plan(dataset[i], dataset.name_of(i)) for i in places[:wanted]]


def estimated(trainer: Trainer, samples: list[Sample]) -> int:
    """Bytes that a backward pass through the transformer needs, by its shape."""
    for sample in samples:
        trainer.module.encoded(sample)  # loads the encoders, whose weights are counted
    config = trainer.module.velocity.transformer.config
    tokens = sum(sample.plan.positive.layout.tokens for sample in samples)
    one = tokens * config.width * torch.empty((), dtype=trainer.pipe.dtype).element_size()
    blocks = config.num_layers
    # recomputed, a block keeps its input alone, and one block at a time is whole
    return one * (blocks + KEPT_A_BLOCK if trainer.arguments.checkpointing else blocks * KEPT_A_BLOCK)


def measured(trainer: Trainer, samples: list[Sample]) -> tuple[int, float]:
    """(bytes kept between forward and backward, seconds a step): of MEASURED steps after a first one."""
    accumulated = trainer.arguments.gradient_accumulation_steps
    parameters = {p.data_ptr() for p in trainer.module.parameters()}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in parameters:
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss_B = trainer.engine.model(samples)
    trainer.engine.backward(loss_B.mean(), True)
    trainer.engine.step(0.0)
    began = time.perf_counter()
    for _ in range(MEASURED):
        for number in range(accumulated):
            last = number == accumulated - 1
            with trainer.engine.collecting(last):
                trainer.engine.backward(trainer.engine.model(samples).mean(), last)
        trainer.engine.step(0.0)
    return sum(kept.values()), (time.perf_counter() - began) / MEASURED


def show(found: Forecast) -> None:
    """The forecast for people."""
    from rich.console import Console
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    table.add_row("rows", f"{found.rows} in an epoch, at most {found.largest_size}")
    table.add_row("batches", f"{found.batches_an_epoch} an epoch, of {found.batch_size}")
    table.add_row("steps", str(found.steps))
    table.add_row("trained", f"{found.trained_parameters:,} parameters")
    how = "measured" if found.measured else "estimated"
    for name in ("weights", "gradients", "optimizer", "average", "activations"):
        note = f" ({how})" if name == "activations" else ""
        table.add_row(f"memory: {name}", f"{getattr(found, name) / 1e9:.3f} GB{note}")
    table.add_row("memory: together", f"{found.memory / 1e9:.3f} GB")
    if found.seconds_a_step is None or found.seconds is None:
        table.add_row("time", "not measured")
    else:
        each = f"{found.seconds_a_step:.3f} s a step, measured with encoded samples in memory"
        table.add_row("time", f"{found.seconds / 3600:.2f} h: {each}")
    Console().print(table, highlight=False)
