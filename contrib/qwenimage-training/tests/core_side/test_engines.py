"""What the launcher says and what the options say must agree; DeepSpeed, where it is installed."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from qwenimage_core.errors import RequestError
from qwenimage_training.engines import ENGINES, config_file
from qwenimage_training.engines.launcher import check_launcher, is_fsdp
from qwenimage_training.errors import TrainingError
from qwenimage_training.run import run

from .engine_checks import assert_looked, assert_same_course, assert_same_picture, assert_same_state
from .engine_runs import Runs, environment, run_two


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


needs_deepspeed = pytest.mark.skipif(
    find_spec("deepspeed") is None, reason="DeepSpeed is an extra: `nox -s engines` installs it"
)
TRAINED = [
    *(("zero2", "full"), ("zero2", "lora"), ("zero2-offload", "full")),
    *(("zero3", "full"), ("zero3", "lora"), ("zero3", "distill")),
]


@needs_deepspeed
@pytest.mark.parametrize(("engine", "kind"), TRAINED)
def test_deepspeed_trains_and_draws_as_one_process(runs: Runs, engine: str, kind: str) -> None:
    one, two = runs.one(kind), runs.two(kind, engine)
    assert_same_course(one, two)
    assert_same_picture(runs, kind, one, two)


@needs_deepspeed
@pytest.mark.parametrize(
    ("engine", "kind"), [("zero2-offload", "full"), ("zero3", "full"), ("zero3", "lora")]
)
def test_deepspeed_resumes_with_the_same_bits(runs: Runs, tmp_path: Path, engine: str, kind: str) -> None:
    for more in ({"max_train_steps": 3}, {"resume": True}):
        arguments = runs.arguments(kind, tmp_path / "parts", **more)
        codes, said = run_two(arguments, environment(engine))
        assert codes == [0, 0], said
    assert_same_state(runs.two(kind, engine), tmp_path / "parts")


@needs_deepspeed
@pytest.mark.parametrize(("engine", "kind"), [("zero2", "lora"), ("zero3", "lora"), ("zero3", "full")])
def test_a_look_under_deepspeed_shows_the_weights_and_changes_no_bit(
    runs: Runs, engine: str, kind: str
) -> None:
    blind, looked = runs.two(kind, engine), runs.two(f"{kind}-looked", engine)
    assert_same_state(blind, looked)
    assert_looked(runs, f"{kind}-looked", looked)


@needs_deepspeed
@pytest.mark.parametrize("kind", ["split", "distill-split"])
def test_two_stages_under_zero3_equal_one_stage_of_one_process(runs: Runs, kind: str) -> None:
    unsplit = runs.one({"split": "lora", "distill-split": "distill"}[kind])
    assert_same_course(unsplit, runs.two(kind, "zero3"))


@needs_deepspeed
def test_batches_that_do_not_go_together_under_zero3(runs: Runs) -> None:
    assert_same_course(runs.one("mixed"), runs.two("mixed", "zero3"))


@needs_deepspeed
def test_an_average_is_refused_with_deepspeed(make_arguments) -> None:
    codes, said = run_two(make_arguments(ema_decay=0.9), environment("zero2"))
    assert 0 not in codes
    assert "--ema_decay does not work with zero2" in said[0]
