"""Looking in while training: sample pictures with fixed seeds as a contact sheet, and the loss of rows held out.

Training goes on to the bit as if nobody had looked: pictures and losses draw from dice of their own, and averaged
weights are put in for the look alone. Where weights are shared out, all processes look together, because none can
compute alone, and the first one writes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image, ImageDraw

from qwenimage_core.errors import LoadError, RequestError
from qwenimage_core.writing import whole_file
from qwenimage_training.callbacks import Callback, StepReport
from qwenimage_training.data.sheet import lines_of
from qwenimage_training.log import JsonLog
from qwenimage_training.module import draw_for

if TYPE_CHECKING:
    from qwenimage_training.data.dataset import TrainingDataset
    from qwenimage_training.trainer import Trainer

LOG = "validation.jsonl"
DRAWS = 4  # noises and noise levels that each row held out is judged at, the same every time
SIDE, TEXT, GAP, COLUMNS = 192, 46, 8, 4


def read_prompts(text: str | None) -> tuple[str, ...]:
    """The lines of a .txt file, or the text itself as one prompt."""
    if not text:
        return ()
    file = Path(text).expanduser()
    if file.suffix != ".txt":
        return (text,)
    try:
        found = tuple(line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip())
    except OSError as error:
        raise LoadError("--validation_prompts cannot be read.", got=f"{file}: {error.strerror}") from error
    if not found:
        raise RequestError("--validation_prompts has no prompt in it.", got=file)
    return found


class Previews(Callback):
    """Every `every` steps: `validation/step-N.png` for the prompts, and a line in validation.jsonl for the rows."""

    everywhere = True

    def __init__(self, every: int, prompts: Sequence[str], rows: TrainingDataset | None) -> None:
        self.every, self.prompts, self.rows = every, tuple(prompts), rows
        self.log: JsonLog | None = None

    def on_step(self, report: StepReport, trainer: Trainer) -> None:
        writes = trainer.accelerator.is_main_process
        if report.step % self.every or not (writes or trainer.engine.together):
            return
        values: dict[str, Any] = {"step": report.step}
        with averaged(trainer), torch.no_grad(), trainer.engine.looking():
            if self.rows is not None:
                values["loss"] = held_out_loss(trainer, self.rows)
            pictures = draw_prompts(trainer, self.prompts)
        if not writes:
            return
        if self.log is None:
            self.log = JsonLog(trainer.arguments.output, report.step - 1, LOG)
        sheet = self._save(pictures, report.step, trainer) if pictures else None
        self.log.write(values)
        for callback in trainer.callbacks:
            callback.on_validation(values, sheet, trainer)

    def _save(self, pictures: Sequence[Image.Image], step: int, trainer: Trainer) -> Path:
        folder = trainer.arguments.output / "validation"
        folder.mkdir(exist_ok=True)
        file = folder / f"step-{step}.png"
        sheet = contact_sheet(pictures, self.prompts, f"step {step}")
        with whole_file(file) as beside:
            sheet.save(beside, format="PNG")
        return file

    def on_end(self, trainer: Trainer) -> None:
        if self.log is not None:
            self.log.close()


def draw_prompts(trainer: Trainer, prompts: Sequence[str]) -> list[Image.Image]:
    """A picture a prompt, by the pipeline that trains, at the size that most targets have; prompt n has seed n."""
    arguments = trainer.arguments
    [((width, height), _)] = Counter(trainer.dataset.sizes()).most_common(1)
    pictures = []
    for seed, prompt in enumerate(prompts):
        found = trainer.pipe(
            prompt,
            height=height,
            width=width,
            seed=seed,
            num_inference_steps=arguments.validation_inference_steps,
            cfg_scale=arguments.validation_cfg_scale,
            progress_bar_cmd=iter,
        )
        pictures.append(found[0] if isinstance(found, list) else found)
    return pictures


def held_out_loss(trainer: Trainer, rows: TrainingDataset) -> float:
    """Mean loss of the rows, each at the same noises and noise levels every time."""
    module, total = trainer.module, 0.0
    for index in range(len(rows)):
        key = ("held out", index)
        if key in module.remembered:
            sample = module.remembered.sample(key, index, 0)
        else:
            sample = trainer.planner.plan(rows[index], rows.name_of(index), 0, key)
        encoded = module.encoded(sample)
        draws = [draw_for(0, -1 - number, index) for number in range(DRAWS)]
        total += float(module.objective.losses(module.velocity, [encoded] * DRAWS, draws).mean())
    return total / len(rows)


@contextmanager
def averaged(trainer: Trainer) -> Iterator[None]:
    """With --ema_decay: the averaged weights inside, and the very bits that were there before afterwards."""
    average = trainer.engine.average
    if average is None:
        yield
        return
    parameters = list(trainer.engine.weights.parameters.values())
    with torch.no_grad():
        kept = [parameter.detach().clone() for parameter in parameters]
        for parameter in parameters:
            parameter.copy_(average.of(parameter))
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, value in zip(parameters, kept, strict=True):
                parameter.copy_(value)


def contact_sheet(pictures: Sequence[Image.Image], texts: Sequence[str], title: str) -> Image.Image:
    columns = min(len(pictures), COLUMNS)
    lines = -(-len(pictures) // COLUMNS)
    sheet = Image.new("RGB", (columns * (SIDE + GAP) + GAP, lines * (SIDE + TEXT + GAP) + 24), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((GAP, 6), title, fill="gray")
    for place, (picture, text) in enumerate(zip(pictures, texts, strict=True)):
        x = GAP + place % COLUMNS * (SIDE + GAP)
        y = 24 + place // COLUMNS * (SIDE + TEXT + GAP)
        scale = SIDE / max(picture.size)
        size = round(picture.width * scale), round(picture.height * scale)
        sheet.paste(picture.convert("RGB").resize(size, Image.Resampling.LANCZOS), (x, y))
        draw.multiline_text((x, y + SIDE + 2), lines_of(text, 34, 3), fill="black")
    return sheet
