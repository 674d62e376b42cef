"""The first stage: every row is planned and encoded once, with whatever dropout may leave out, and written down."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

from qwenimage_core.values import TransformerOptions
from qwenimage_training.cache import files
from qwenimage_training.cache.encoders import RecordingEncoders
from qwenimage_training.cache.files import Entry, Left
from qwenimage_training.cache.frozen import Frozen, freeze
from qwenimage_training.checkpoint import clear_partial
from qwenimage_training.data.dataset import dataset_digest
from qwenimage_training.data.dropout import leave_out
from qwenimage_training.encoded import encode_sample
from qwenimage_training.errors import TrainingError
from qwenimage_training.objectives import make_objective
from qwenimage_training.sample import Planner

if TYPE_CHECKING:
    from accelerate import Accelerator

    from qwenimage_core import QwenImagePipeline
    from qwenimage_training.arguments import TrainingArguments
    from qwenimage_training.data.dataset import TrainingDataset
    from qwenimage_training.data.rows import Row

ENCODING = (
    *(
        "data_file_keys",
        "extra_inputs",
        "height",
        "width",
        "max_pixels",
        "aligned_fields",
        "condition_fields",
    ),
    *("buckets", "bucket_step", "bucket_max_aspect", "bucket_enlarge", "fp8_models"),
)
"""The options that decide what the encoders are given."""


class CacheMaker:
    """Makes a cache, or what is missing of one."""

    def __init__(
        self,
        arguments: TrainingArguments,
        pipe: QwenImagePipeline,
        dataset: TrainingDataset,
        accelerator: Accelerator,
    ) -> None:
        self.arguments, self.pipe, self.dataset, self.accelerator = arguments, pipe, dataset, accelerator
        objective = make_objective(arguments)
        pipe.encoders = RecordingEncoders
        pipe.components = self.components = Watched(pipe.components)
        self.planner = Planner(pipe, arguments.inputs, objective.fixed, objective.check)
        self.planner.check_columns(column for record in dataset.records for column in record.values)
        self.folder = arguments.output
        self.rows = [dataset_digest([record], dataset.reader) for record in dataset.records]
        self.inputs = self._inputs(objective.fixed)
        shares = arguments.caption_dropout, arguments.condition_dropout
        self.lefts: list[Left] = [
            (caption, conditions)
            for caption, conditions in product(*((False, True) if share else (False,) for share in shares))
        ]
        self.frozen = {"text_encoder", "vae"}  # besides those that the entries name

    def _inputs(self, fixed: Any) -> dict[str, Any]:
        """What the cache is made from, but for the rows."""
        chosen = self.arguments.model_dump(mode="json")
        return {
            "versions": {
                "qwenimage": version("qwenimage-core"),
                **{p.name: p.version for p in self.pipe.registry.loaded if p.fields},
            },
            "task": self.arguments.objective,
            "fixed": dict(fixed),
            "arguments": {name: chosen[name] for name in ENCODING},
            "dtype": str(self.pipe.dtype).removeprefix("torch."),
            "models": {
                f"{kind}/{i}": component.digest()
                for kind, several in self.pipe.components.items()
                for i, component in enumerate(several)
                if not component.spec.denoises
            },
            "prompts": _prompt_digests(self.pipe.prompts),
        }

    def make(self) -> Path:
        """Write what is not there yet; the folder. TrainingError where another cache is."""
        begun = files.finished(self.folder) if self._goes_on() else {}
        self.accelerator.wait_for_everyone()  # all have looked before one changes anything
        if self.accelerator.is_main_process and not begun:
            files.clear(self.folder)
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            clear_partial(self.folder / files.SAMPLES)
            files.write_manifest(self.folder, self._manifest({}))
        self.accelerator.wait_for_everyone()
        process, processes = self.accelerator.process_index, self.accelerator.num_processes
        missing = {
            i: lefts
            for i in range(process, len(self.rows), processes)
            if (lefts := [left for left in self.lefts if not self._is_done(begun, i, left)])
        }
        loader: Any = DataLoader(
            Subset(self.dataset, list(missing)),
            batch_size=None,
            num_workers=self.arguments.dataset_num_workers,
            collate_fn=_as_it_is,
        )
        for row in tqdm(loader, disable=not self.accelerator.is_main_process or None, unit="row"):
            for left in missing[row.index]:
                frozen, models = self._frozen(leave_out(row, left, self.arguments.dropped_fields), row.index)
                file = files.file_of(row.index, left)
                entry = files.write_sample(
                    self.folder, file, self._made_from(row.index, left), frozen, models
                )
                files.append(self.folder, process, entry)
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            files.write_manifest(self.folder, self._manifest(files.finished(self.folder)))
        return self.folder

    @torch.no_grad()
    def _frozen(self, row: Row, index: int) -> tuple[Frozen, list[str]]:
        """Plan for either kind of transformer, encode once; also, which models are not needed for it again."""
        name = self.dataset.name_of(index)
        plans = []
        for zero in (False, True):
            self.pipe.options = TransformerOptions(zero_cond_t=zero)
            plans.append(self.planner.plan(row, name))
        sample, other = plans
        self.components.asked.clear()
        for tokens in (*sample.plan.positive.text, *sample.plan.images):
            tokens.value  # noqa: B018  computed before those of residuals, which are computed in training again
        models = sorted(self.components.asked)
        encoded = encode_sample(sample, dtype=self.pipe.dtype, device=self.pipe.device)
        target = torch.cat([sample.plan.ctx.encode_picture(p).value for p in sample.target], dim=1)
        return freeze(replace(encoded, target_1NC=target), other.plan, self.planner.given(row)), models

    # --- what is there already ------------------------------------------------------------------------------------

    def _made_from(self, record: int, left: Left) -> str:
        return files.digest_of([self.inputs, self.rows[record], left])

    def _is_done(self, begun: dict[str, Entry], record: int, left: Left) -> bool:
        entry = begun.get(files.file_of(record, left))
        return entry is not None and entry.made_from == self._made_from(record, left)

    def _goes_on(self) -> bool:
        """Whether the folder holds this very cache, whole or in part. TrainingError if it holds another, unless that
        is to be overwritten."""
        old = files.read_manifest(self.folder)
        if old is None:
            return False
        changed = changes(old, self.inputs, self.rows)
        if changed and self.arguments.overwrite_cache:
            return False
        if changed:
            raise TrainingError(
                f"The cache in {self.folder} was made from something else.",
                got="; ".join(changed)[:600],
                expected="the inputs that its manifest names",
                mend="add --overwrite_cache to make it again, or choose another --output_path",
            )
        self.frozen |= set(old["frozen"])
        return True

    def _manifest(self, done: dict[str, Entry]) -> dict[str, Any]:
        sizes = self.dataset.sizes()
        backbone = self.pipe.backbone
        kept = ("latent_channels", "image_channels", "vae_scale", "vae_width", "text_width")
        entries = [[done.get(files.file_of(i, left)) for left in self.lefts] for i in range(len(self.rows))]
        return {
            "format": files.FORMAT,
            "complete": all(all(several) for several in entries),
            "inputs": self.inputs,
            "frozen": sorted(self.frozen.union(*(entry.models for entry in done.values()))),
            "backbone": {name: getattr(backbone, name) for name in kept},
            "left_out": [list(left) for left in self.lefts],
            "rows": [
                {
                    "name": self.dataset.name_of(i),
                    "digest": row,
                    "size": list(sizes[i]),
                    "files": [asdict(e) if e else None for e in entries[i]],
                }
                for i, row in enumerate(self.rows)
            ],
        }


class Watched(dict[str, Any]):
    """Components that note which of them were asked for."""

    def __init__(self, components: Mapping[str, Any]) -> None:
        super().__init__(components)
        self.asked: set[str] = set()

    def __getitem__(self, kind: str) -> Any:
        self.asked.add(kind)
        return super().__getitem__(kind)

    def get(self, kind: str, default: Any = None) -> Any:
        self.asked.add(kind)
        return super().get(kind, default)


def _prompt_digests(prompts: Any) -> dict[str, str]:
    """By their content, wherever they were read from: the tokenizer, and how pictures are prepared for the encoder."""
    tokenizer = prompts.tokenizer.tokenizer.backend_tokenizer.to_str()
    return {
        "tokenizer": files.digest_of(tokenizer),
        "processor": files.digest_of(asdict(prompts.preparation)),
    }


def _as_it_is(row: Any) -> Any:
    return row


def changes(manifest: dict[str, Any], inputs: dict[str, Any], rows: Sequence[str]) -> list[str]:
    """What is no longer as the manifest says, in words."""
    found = []
    old = manifest["inputs"]
    for part, value in inputs.items():
        before = old.get(part)
        if isinstance(value, dict) and isinstance(before, dict):
            names = sorted(k for k in {*value, *before} if value.get(k) != before.get(k))
            found += [
                f"{part} {name}: {_short(before.get(name))} -> {_short(value.get(name))}" for name in names
            ]
        elif value != before:
            found.append(f"{part}: {_short(before)} -> {_short(value)}")
    known = [row["digest"] for row in manifest["rows"]]
    if len(known) != len(rows):
        found.append(f"rows: {len(known)} -> {len(rows)}")
    if other := [i + 1 for i, (a, b) in enumerate(zip(known, rows, strict=False)) if a != b]:
        shown = ", ".join(map(str, other[:8])) + (", ..." if len(other) > 8 else "")
        found.append(f"row {shown} has other columns or files")
    return found


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else text[:37] + "..."
