"""Training in two stages: the second gives the bits of one, with the transformer alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from qwenimage_core.errors import QwenImageError
from qwenimage_training.cache import files
from qwenimage_training.cache.make import CacheMaker
from qwenimage_training.errors import TrainingError
from qwenimage_training.run import make_cache, make_trainer, run

from .third_party import parts

ENCODERS = ("text_encoder", "vae")
LORA = {"lora_base_model", "lora_target_modules", "lora_rank"}


def models(folder: Path, *names: str) -> dict[str, Any]:
    return {"model": None, "model_paths": [str(folder / name) for name in names]}


@pytest.fixture
def stages(make_arguments, folder: Path, tmp_path: Path):
    """Arguments of the two stages, each with the models that it needs and no others."""

    def make(first: dict | None = None, second: dict | None = None, **both: Any):
        cache = str(tmp_path / "cache")
        tokenizer = {"tokenizer_path": str(folder / "tokenizer")}
        one = {"output_path": cache, "task": "sft:data_process", **models(folder, *ENCODERS), **tokenizer}
        two = {"dataset_base_path": cache, "task": "sft:train", **models(folder, "transformer")}
        data = {k: both.pop(k) for k in ("dataset_base_path", "dataset_metadata_path") if k in both}
        return (
            make_arguments(**{**one, **data, **both, **(first or {})}),
            make_arguments(**{**two, **both, **(second or {})}),
        )

    return make


def weights(output: Path, name: str = "epoch-0.safetensors") -> dict[str, torch.Tensor]:
    return load_file(output / name)


def assert_same_bits(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


def test_a_cache_trains_to_the_same_bits(make_arguments, stages, tmp_path: Path) -> None:
    options = {"dataset_repeat": 2, "batch_size": 2, "learning_rate": 1e-3, "caption_dropout": 0.3}
    run(make_arguments(**options, output_path=str(tmp_path / "whole")))
    first, second = stages(**options)
    make_cache(first)
    trainer = run(second)
    assert set(trainer.pipe.components) == {"transformer"}
    assert_same_bits(weights(tmp_path / "whole"), weights(second.output))


def test_a_third_party_s_plan_survives(
    make_arguments, stages, glance: dict, folder: Path, tmp_path: Path
) -> None:
    """Appended pictures as tensors; residuals made again, with their net in the second stage and in training there."""
    net = str(glance.pop("net"))
    for name, trained in {"lora": {}, "net": {"lora": False, "trainable_models": "glance_net"}}.items():
        options = {**glance, **trained, "learning_rate": 1e-2, "batch_size": 3, "num_epochs": 2}
        if name == "net":
            rows = Path(glance["dataset_metadata_path"])
            rows.write_text(json.dumps(json.loads(rows.read_text())[1:]))
        whole = {**options, **parts(folder, Path(net)), "output_path": str(tmp_path / f"whole {name}")}
        run(make_arguments(**whole))
        cache = str(tmp_path / f"cache {name}")
        first, second = stages(
            {"output_path": cache, "model_paths": [*(str(folder / n) for n in ENCODERS), net]},
            {
                "dataset_base_path": cache,
                "model_paths": [str(folder / "transformer"), net],
                "output_path": str(tmp_path / f"split {name}"),
                "dataset_metadata_path": None,
            },
            **options,
        )
        make_cache(first)
        run(second)
        one, other = (
            weights(tmp_path / f"{kind} {name}", "epoch-1.safetensors") for kind in ("whole", "split")
        )
        assert_same_bits(one, other)


def test_pictures_are_kept_only_where_a_residual_needs_them(stages, glance: dict, folder: Path) -> None:
    net = str(glance.pop("net"))
    first, _ = stages({"model_paths": [*(str(folder / n) for n in ENCODERS), net]}, **glance)
    cache = make_cache(first)
    plain, with_residual = (load_file(cache / files.file_of(i, (False, False))) for i in (0, 1))
    assert set(plain) == {"target", "text/0"}
    assert any(name.startswith("picture/") for name in with_residual)


def test_a_stopped_first_stage_goes_on(stages, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = stages()
    made = []
    frozen = CacheMaker._frozen

    def stop_at_the_fourth(self, row, index):
        if len(made) == 3:
            raise KeyboardInterrupt
        made.append(index)
        return frozen(self, row, index)

    monkeypatch.setattr(CacheMaker, "_frozen", stop_at_the_fourth)
    with pytest.raises(KeyboardInterrupt):
        make_cache(first)
    with pytest.raises(TrainingError, match="not finished"):
        make_trainer(second)
    (first.output / "samples" / ".00000003.safetensors.1.partial").write_bytes(b"half")
    index = first.output / "index-0.jsonl"
    index.write_text(index.read_text() + '{"file": "samp')  # as if it was killed while it wrote
    times = {path.name: path.stat().st_mtime_ns for path in (first.output / "samples").glob("0*")}
    monkeypatch.setattr(CacheMaker, "_frozen", lambda self, row, i: made.append(i) or frozen(self, row, i))
    make_cache(first)
    assert made == [0, 1, 2, 3, 4, 5]
    assert not list((first.output / "samples").glob(".*"))
    assert all((first.output / "samples" / n).stat().st_mtime_ns == t for n, t in times.items())
    run(second)


def test_a_cache_of_something_else_is_refused_and_made_again_on_demand(
    stages, data: Path, tmp_path: Path
) -> None:
    rows = json.loads((data / "metadata.json").read_text())
    written = tmp_path / "rows.json"
    written.write_text(json.dumps(rows))
    first, _ = stages(dataset_metadata_path=str(written))
    make_cache(first)
    rows[2]["prompt"] = "a dog"
    written.write_text(json.dumps(rows))
    with pytest.raises(TrainingError, match="made from something else") as caught:
        make_cache(first)
    assert "row 3 has other columns" in str(caught.value.got)
    with pytest.raises(TrainingError) as caught:
        make_cache(first.model_copy(update={"max_pixels": 1024}))
    assert "max_pixels: 1048576 -> 1024" in str(caught.value.got)
    make_cache(first.model_copy(update={"overwrite_cache": True}))
    assert "a dog" in json.dumps(files.read_sample(first.output, entry(first.output, 2)).facts)


def test_a_cache_of_another_tokenizer_or_processor_is_refused(stages, folder: Path, tmp_path: Path) -> None:
    """By what they do, not by where they are: a copy is the same."""
    first, _ = stages()
    make_cache(first)
    copy = tmp_path / "tokenizer"
    shutil.copytree(folder / "tokenizer", copy)
    moved = first.model_copy(update={"tokenizer_path": str(copy)})
    make_cache(moved)
    file = copy / "tokenizer.json"
    content = json.loads(file.read_text())
    content["model"]["merges"] = content["model"]["merges"][:-1]
    file.write_text(json.dumps(content))
    with pytest.raises(TrainingError) as caught:
        make_cache(moved)
    assert "prompts tokenizer: " in str(caught.value.got)
    assert "processor" not in str(caught.value.got)
    processor = tmp_path / "processor"
    processor.mkdir()
    settings = {"min_pixels": 56 * 56, "max_pixels": 112 * 112}
    (processor / "preprocessor_config.json").write_text(json.dumps(settings))
    with pytest.raises(TrainingError) as caught:
        make_cache(first.model_copy(update={"processor_path": str(processor)}))
    assert "prompts processor: " in str(caught.value.got)


def entry(folder: Path, record: int) -> files.Entry:
    manifest = json.loads((folder / files.MANIFEST).read_text())
    return files.Entry(**manifest["rows"][record]["files"][0])


def test_a_changed_file_is_refused(stages) -> None:
    first, second = stages()
    file = make_cache(first) / files.file_of(2, (False, False))
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(TrainingError, match="not as it was written"):
        run(second)


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        ({}, {"caption_dropout": 0.1}, "holds nothing without it"),
        ({}, {"height": 64, "width": 64}, "--height is not as it was"),
        ({}, {"task": "direct_distill:train"}, "another task"),
        ({}, {"mixed_precision": "bf16"}, "another precision"),
        ({}, {"lora_base_model": "text_encoder"}, "made the cache"),
        ({}, {"lora_base_model": "dit", "dataset_metadata_path": "rows.json"}, "rows are in the cache"),
        ({}, {"validation_prompts": "a cat", "validation_steps": 2}, "needs the encoders"),
        ({"task": "direct_distill:data_process"}, {"task": "direct_distill:train"}, "no seed"),
    ],
)
def test_what_does_not_fit_the_cache_is_said(stages, first: dict, second: dict, said: str) -> None:
    one, two = stages(first, second)
    with pytest.raises(QwenImageError) as caught:
        make_cache(one)
        make_trainer(two)
    assert said in str(caught.value)


def test_there_is_no_third_stage(make_arguments) -> None:
    with pytest.raises(ValueError, match="no such stage"):
        make_arguments(task="sft:tain")
