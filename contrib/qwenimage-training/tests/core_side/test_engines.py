"""What the launcher says and what the options say must agree; DeepSpeed, where it is installed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from qwenimage_core.errors import RequestError
from qwenimage_training.checkpoint import states
from qwenimage_training.engines import ENGINES, config_file
from qwenimage_training.engines.launcher import check_launcher, is_fsdp
from qwenimage_training.errors import TrainingError
from qwenimage_training.run import run

from .engine_runs import environment, run_two
from .test_processes import FULL, STEPS, assert_same_course


def test_every_engine_has_a_configuration_that_says_nothing_of_what_options_say() -> None:
    for name in ENGINES:
        text = config_file(name).read_text()
        said = yaml.safe_load(text)
        assert said["num_processes"] == 8
        for option in ("mixed_precision", "gradient_accumulation_steps", "gradient_clipping"):
            assert option not in said | said.get("deepspeed_config", {}), f"{name} says {option}"


def test_an_unknown_engine_is_named() -> None:
    with pytest.raises(RequestError, match="did you mean zero3"):
        config_file("zero-3")


@pytest.mark.parametrize(
    ("name", "value", "option"),
    [
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4", "gradient_accumulation_steps"),
        ("ACCELERATE_GRADIENT_CLIPPING", "1.0", "max_grad_norm"),
        ("ACCELERATE_MIXED_PRECISION", "bf16", "mixed_precision"),
        ("ACCELERATE_MIXED_PRECISION", "fp16", "mixed_precision"),
    ],
)
def test_a_launcher_that_says_otherwise_is_refused(
    make_arguments, monkeypatch: pytest.MonkeyPatch, name: str, value: str, option: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(TrainingError) as caught:
        run(make_arguments())
    assert f"--{option}" in str(caught.value) and value in str(caught.value)


def test_a_launcher_that_says_the_same_is_taken(make_arguments, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "2")
    monkeypatch.setenv("ACCELERATE_GRADIENT_CLIPPING", "0.5")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    arguments = make_arguments(gradient_accumulation_steps=2, max_grad_norm=0.5, mixed_precision="bf16")
    check_launcher(arguments, "bfloat16")


def test_a_deepspeed_file_that_says_otherwise_is_refused(
    make_arguments, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "zero.json"
    file.write_text(json.dumps({"train_micro_batch_size_per_gpu": "auto", "gradient_clipping": 1.0}))
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_CONFIG_FILE", str(file))
    check_launcher(make_arguments(max_grad_norm=1.0), "float32")
    with pytest.raises(TrainingError, match="gradient_clipping: 1"):
        check_launcher(make_arguments(), "float32")


def test_the_first_fsdp_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(TrainingError, match="qwenimage engines fsdp2"):
        is_fsdp()


@pytest.mark.parametrize(
    ("engine", "options"),
    [("zero2-offload", FULL), ("zero3", FULL), ("zero3", {})],
    ids=["zero2-offload-full", "zero3-full", "zero3-lora"],
)
def test_deepspeed_equals_one_process_and_resumes(
    make_arguments, tmp_path: Path, engine: str, options
) -> None:
    pytest.importorskip("deepspeed", reason="an extra: `nox -s engines` installs it")
    options = {**STEPS, **options}
    run(make_arguments(**options, gradient_accumulation_steps=2, output_path=str(tmp_path / "one")))
    codes, said = run_two(make_arguments(**options, output_path=str(tmp_path / "two")), environment(engine))
    assert codes == [0, 0], said
    assert_same_course(tmp_path)
    for more in ({"max_train_steps": 3}, {"resume": True}):
        arguments = make_arguments(**options, **more, output_path=str(tmp_path / "parts"))
        codes, said = run_two(arguments, environment(engine))
        assert codes == [0, 0], said
    ends = [states(tmp_path / name)[-1] for name in ("two", "parts")]
    for file in ("state-0-of-2.safetensors", "state-1-of-2.safetensors"):
        one, other = (load_file(end / file) for end in ends)
        assert one.keys() == other.keys()
        assert [name for name in one if not torch.equal(one[name], other[name])] == []


def test_an_average_is_refused_with_deepspeed(make_arguments) -> None:
    pytest.importorskip("deepspeed", reason="an extra: `nox -s engines` installs it")
    codes, said = run_two(make_arguments(ema_decay=0.9), environment("zero2"))
    assert 0 not in codes
    assert "--ema_decay does not work with zero2" in said[0]
