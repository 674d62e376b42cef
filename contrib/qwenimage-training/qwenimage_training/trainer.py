"""The training loop, on accelerate: one screen, and what stands around it."""

from __future__ import annotations

import json
import time
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from safetensors import SafetensorError
from torch.utils.data import DataLoader
from tqdm import tqdm

from qwenimage_core.writing import whole_file
from qwenimage_training.callbacks import Callback, StepReport, by_level
from qwenimage_training.checkpoint import (
    State,
    Writers,
    after_room,
    clear_partial,
    damaged,
    load_state,
    make_output,
    save_state,
)
from qwenimage_training.course import facts
from qwenimage_training.data.batches import BatchSampler, Position
from qwenimage_training.data.dropout import Dropout
from qwenimage_training.engines.engine import make_engine
from qwenimage_training.errors import TrainingError
from qwenimage_training.log import JsonLog
from qwenimage_training.module import TrainingModule
from qwenimage_training.objectives import make_objective
from qwenimage_training.planning import make_planner
from qwenimage_training.sample import Sample
from qwenimage_training.schedule import factor
from qwenimage_training.trained import Trained

if TYPE_CHECKING:
    from pathlib import Path

    from qwenimage_core import QwenImagePipeline
    from qwenimage_training.arguments import TrainingArguments
    from qwenimage_training.cache.dataset import CachedDataset
    from qwenimage_training.data.dataset import TrainingDataset
    from qwenimage_training.data.rows import Row
    from qwenimage_training.engines.engine import Values


class Trainer:
    """One run. Every part can be replaced: the dataset, the objective (`module.objective`), the callbacks."""

    def __init__(
        self,
        arguments: TrainingArguments,
        pipe: QwenImagePipeline,
        trained: Trained,
        dataset: TrainingDataset | CachedDataset,
        accelerator: Accelerator,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        self.arguments, self.pipe, self.trained, self.dataset = arguments, pipe, trained, dataset
        self.accelerator, self.callbacks = accelerator, tuple(callbacks)
        objective = make_objective(arguments)
        self.planner = make_planner(pipe, arguments, dataset, objective)
        self.module = TrainingModule(
            pipe,
            trained.modules,
            objective,
            seed=arguments.seed,
            checkpointing=arguments.checkpointing,
            offload=arguments.use_gradient_checkpointing_offload,
            remembered=int(arguments.cache_encoded * 1e9),
        )
        self.engine = make_engine(accelerator, self.module, trained, arguments)
        self.weights, self.average = self.engine.weights, self.engine.average
        self.writers = Writers(
            accelerator.process_index,
            accelerator.num_processes,
            self.engine.sharded,
            accelerator.wait_for_everyone,
        )
        self.dropout = Dropout.of(arguments, arguments.seed)
        self.sampler = BatchSampler(
            dataset.sizes(),
            arguments.batch_size,
            seed=arguments.seed,
            rank=accelerator.process_index,
            world=accelerator.num_processes,
        )
        self.batches_an_epoch = len(self.sampler)
        self.batches = self.steps = 0
        self.saved: list[str] = []

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the run. The last one is filled up from a next epoch if the epochs do not end with it."""
        arguments = self.arguments
        batches = arguments.num_epochs * self.batches_an_epoch
        steps = -(-batches // arguments.gradient_accumulation_steps)
        return min(steps, arguments.max_train_steps or steps)

    # --- the loop -------------------------------------------------------------------------------------------------

    def train(self) -> None:
        """Run to the end, from the beginning or from where the state in the output folder is."""
        arguments, accelerator = self.arguments, self.accelerator
        self._begin()
        bar = tqdm(
            total=self.total_steps,
            initial=self.steps,
            disable=not accelerator.is_main_process or None,
            unit="step",
        )
        losses: list[float] = []
        levels: list[float] = []
        began = time.perf_counter()
        for samples in self._samples() if self.steps < self.total_steps else ():
            last = (self.batches + 1) % arguments.gradient_accumulation_steps == 0
            with self.engine.collecting(last):
                loss_B = self.engine.model(samples)
                self._check(loss_B, samples)
                self.engine.backward(loss_B.mean(), last)
            losses += loss_B.tolist()
            levels += self.module.levels(samples)
            self.batches += 1
            if not last:
                continue
            rate = arguments.learning_rate * self._factor()
            norm = self.engine.step(rate)
            self._check_norm(norm, samples)
            self.steps += 1
            seconds, began = time.perf_counter() - began, time.perf_counter()
            loss = self._report(losses, levels, norm, rate, seconds)
            bar.update()
            bar.set_postfix(loss=f"{loss:.4f}", lr=f"{rate:.2e}")
            losses, levels = [], []
            self._save_if_due()
            if self.steps >= self.total_steps:
                break
        bar.close()
        self._end()

    def _samples(self) -> Iterator[list[Sample]]:
        """Planned batches from the run's position on, epoch after epoch, without end."""
        epoch, done = divmod(self.batches, self.batches_an_epoch)
        while True:
            self.sampler.start(Position(epoch, done))
            batches = list(self.sampler)
            unread = [
                [i for i in batch if self._key(i, epoch) not in self.module.remembered] for batch in batches
            ]
            loader = DataLoader(
                self.dataset,
                batch_sampler=[indices for indices in unread if indices],
                collate_fn=list,
                num_workers=self.arguments.dataset_num_workers,
                generator=torch.Generator(),
            )
            reading = iter(loader)
            for batch, indices in zip(batches, unread, strict=True):
                rows = {row.index: row for row in (next(reading) if indices else ())}
                yield [self._sample(index, epoch, rows.get(index)) for index in batch]
            epoch, done = epoch + 1, 0

    def _key(self, index: int, epoch: int) -> Hashable:
        """What decides the outcome of the encoders: the row, and what of it is left out."""
        return index % len(self.dataset.records), self.dropout.drawn(index, epoch)

    def _sample(self, index: int, epoch: int, row: Row | None) -> Sample:
        """The planned sample of a row, or, without one, that which is remembered."""
        key = self._key(index, epoch)
        if row is None:
            return self.module.remembered.sample(key, index, epoch)
        return self.planner.plan(self.dropout(row, epoch), self.dataset.name_of(index), epoch, key)

    def _factor(self) -> float:
        arguments = self.arguments
        return factor(self.steps, self.total_steps, arguments.lr_scheduler, arguments.lr_warmup_steps)

    def _check(self, loss_B: torch.Tensor, samples: Sequence[Sample]) -> None:
        """All processes stop together at what one of them finds, so that none waits for another in vain."""
        fault = None
        if not torch.isfinite(loss_B).all():
            pairs = zip(samples, loss_B.tolist(), strict=True)
            bad = [s.name for s, loss in pairs if not abs(loss) < float("inf")]
            fault = self._broken("The loss is not finite", bad)
        elif not loss_B.requires_grad:
            fault = TrainingError(
                "A batch has nothing to do with what is trained.",
                got=", ".join(s.name for s in samples),
                expected="rows that use " + ", ".join(self.trained.modules),
                mend="give these rows the columns of --extra_inputs, or leave them out",
            )
        if self._sum(float(fault is not None))[0] > 0:
            faults = [other for other in gather_object([fault]) if other is not None]
            raise fault or faults[0]

    def _sum(self, *numbers: float) -> Sequence[float]:
        """Each number, summed over all processes."""
        if self.accelerator.num_processes == 1:
            return numbers
        found = torch.tensor(numbers, device=self.accelerator.device)
        return self.accelerator.reduce(found, "sum").tolist()

    def _check_norm(self, norm: float, samples: Sequence[Sample]) -> None:
        """The gradient is that of all processes, and so they all come here."""
        if not abs(norm) < float("inf"):
            raise self._broken("The gradient is not finite", gather_object([s.name for s in samples]))

    def _broken(self, what: str, names: Sequence[str]) -> TrainingError:
        kept = f"{self.saved[-1]} is the last that was saved" if self.saved else "nothing was saved yet"
        return TrainingError(
            f"{what} in step {self.steps + 1}; training stopped before it could spoil the weights.",
            got=", ".join(names),
            expected="finite numbers",
            mend=f"look at the sample, lower --learning_rate or give --max_grad_norm 1; {kept}",
        )

    # --- around it ------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        folder = self.arguments.output
        if self.accelerator.is_main_process:
            make_output(folder)
            clear_partial(folder)
        self.accelerator.wait_for_everyone()
        how = self.accelerator.num_processes, self.engine.name, self.pipe.dtype
        self.run_facts = facts(self.arguments, self.dataset.digest(), *how)
        if self.arguments.resume:
            self._restore(load_state(folder, self.run_facts, self.writers))
        self.log = JsonLog(folder, self.steps) if self.accelerator.is_main_process else None
        if self.accelerator.is_main_process:
            text = json.dumps(self.arguments.model_dump(), indent=4, ensure_ascii=False)
            with whole_file(folder / "training_args.json") as beside:
                beside.write_text(text + "\n", encoding="utf-8")

    def _restore(self, state: State) -> None:
        try:
            self.engine.restore(state)
        except (KeyError, ValueError, RuntimeError) as error:  # names or shapes of another model
            raise damaged(self.arguments.output / f"state-{state.batches}", error) from error
        self.batches, self.steps, self.saved = state.batches, state.steps, list(state.saved)

    def _report(
        self, losses: Sequence[float], levels: Sequence[float], norm: float, rate: float, seconds: float
    ) -> float:
        """Log a step and tell the callbacks; the mean loss of its samples in all processes."""
        total, samples = self._sum(sum(losses), len(losses))
        loss, epoch = total / samples, (self.batches - 1) // self.batches_an_epoch
        report = StepReport(
            *(self.steps, self.batches, epoch, loss, norm, rate, round(seconds, 4), round(samples)),
            samples_per_second=round(samples / max(seconds, 1e-9), 3),
            loss_by_level=by_level(levels, losses),
        )
        if self.log is not None:
            self.log.write(asdict(report))
        for callback in self.callbacks:
            if self.log is not None or callback.everywhere:
                callback.on_step(report, self)
        return loss

    def _save_if_due(self) -> None:
        every, done = self.arguments.save_steps, self.batches
        if every is not None:
            if done % every == 0:
                self.save(f"step-{done}")
            return
        before = done - self.arguments.gradient_accumulation_steps
        for epoch in range(before // self.batches_an_epoch, done // self.batches_an_epoch):
            if epoch < self.arguments.num_epochs:
                self.save(f"epoch-{epoch}")

    def _end(self) -> None:
        every = self.arguments.save_steps
        whole = self.batches >= self.arguments.num_epochs * self.batches_an_epoch
        if (every is None and not whole) or (every is not None and self.batches % every):
            self.save(f"step-{self.batches}")
        if self.log is not None:
            self.log.close()
            for callback in self.callbacks:
                callback.on_end(self)

    def save(self, name: str) -> None:
        """Save the weights as `name`.safetensors, and the state of the run; drop what is beyond the limit."""
        values = self.engine.values(self.trained.dtype)
        files = self._write(name, values) if self.accelerator.is_main_process else []
        if self.arguments.save_state:
            save_state(self.arguments.output, self._state(), self.writers)
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            for callback in self.callbacks:
                callback.on_save(files, self)

    def _write(self, name: str, values: Values) -> list[Path]:
        folder = self.arguments.output
        try:
            files = self.trained.save(folder / f"{name}.safetensors", values, self._metadata())
        except (OSError, SafetensorError) as error:
            raise TrainingError(
                f"{name} cannot be saved in {folder}.", got=str(error), mend=after_room(folder)
            ) from error
        self.saved += [file.name for file in files if file.name not in self.saved]
        limit = self.arguments.save_total_limit
        while limit is not None and len(self.saved) > limit * len(files):
            (folder / self.saved.pop(0)).unlink(missing_ok=True)
        return files

    def _state(self) -> State:
        tensors, numbers = self.engine.state()
        return State(self.batches, self.steps, self.run_facts, tuple(self.saved), numbers, tensors)

    def _metadata(self) -> dict[str, str]:
        """What a file says about how it was made."""
        arguments = self.arguments
        base = arguments.model or arguments.model_id_with_origin_paths or arguments.model_paths or ""
        found = {
            "base_model": base,
            "trained_steps": str(self.steps),
            "dataset_digest": self.run_facts["dataset"],
        }
        if self.trained.lora is not None:
            found |= {
                "lora_rank": str(arguments.lora_rank),
                "lora_alpha": f"{arguments.alpha:g}",
                "lora_target_modules": arguments.lora_target_modules,
            }
        if arguments.lora_trigger:
            found["trigger"] = arguments.lora_trigger
        return found
