"""Two processes on the CPU train as one process that sums up two batches: the same curve, and a file that draws the
same picture."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from qwenimage_training.cache import files
from qwenimage_training.checkpoint import states
from qwenimage_training.engines import config_file

from .engine_checks import assert_looked, assert_same_course, assert_same_picture, assert_same_state
from .engine_runs import KINDS, OPTIONS, Runs, environment, free_port, read_log, run_two, start, written

WITH = """
import os, signal, sys
from qwenimage_training.callbacks import Callback
from qwenimage_training.run import make_cache, run
from qwenimage_training.settings import read_config, validated

arguments = validated(read_config(sys.argv[1]))

def die():
    os.kill(os.getpid(), signal.SIGKILL)
"""
POISON = f"""{WITH}
class Poison(Callback):
    def on_step(self, report, trainer):  # of the first process, and so in that alone
        if report.step == 4:
            trainer.pipe.components["transformer"][0].module.img_in.bias.data.fill_(float("nan"))

run(arguments, callbacks=[Poison()])
"""
DIE_IN_A_STEP = f"""{WITH}
class Die(Callback):
    def on_step(self, report, trainer):  # the third step is logged, and not saved
        if report.step == 3:
            die()

run(arguments, callbacks=[Die()])
"""
SEEN = '''
"""A third party's: a picture that a net of its own looks at, as tokens beside those of the noise."""
from torch import nn
from qwenimage_core import ComponentSpec, FieldsModel, ImageSegment, Picture, Tokens, hookimpl

NAME = "seen"

class Net(nn.Module):
    def __init__(self, config, shapes):
        super().__init__()
        self.seen_in = nn.Linear(64, 64)

class Fields(FieldsModel):
    seen_image: Picture | None = None

@hookimpl
def request_fields():
    return Fields

@hookimpl
def components():
    return [ComponentSpec(name="seen_net", signature=("seen_in.weight",), build=Net)]

@hookimpl
def latent_concat(ctx):
    if ctx.request.seen_image is None:
        return []
    picture = ctx.encode_picture(ctx.request.seen_image)
    compute = lambda: ctx.component("seen_net").seen_in(picture.value)
    return [ImageSegment(name="seen", tokens=Tokens(picture.count, compute, picture.grid), rank=300)]
'''
DIE_IN_THE_FIRST_STAGE = f"""{WITH}
from qwenimage_training.cache import files
append = files.append

def last(folder, process, entry):
    append(folder, process, entry)
    if process == 1:
        die()

files.append = last
make_cache(arguments)
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lora", "full", "distill"])
@pytest.mark.parametrize("engine", ["ddp", "fsdp2"])
def test_two_processes_train_and_draw_as_one(runs: Runs, engine: str, kind: str) -> None:
    one, two, exactly = runs.one(kind), runs.two(kind, engine), engine == "ddp"
    assert_same_course(one, two, exactly=exactly)
    assert_same_picture(runs, kind, one, two, exactly=exactly)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["ddp", "fsdp2"])
def test_batches_that_do_not_go_together_train_as_in_one_process(runs: Runs, engine: str) -> None:
    """One process makes one pass for a batch, the other two: with shared-out weights it would wait for ever."""
    assert_same_course(runs.one("mixed"), runs.two("mixed", engine), exactly=engine == "ddp")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["split", "distill-split"])
@pytest.mark.parametrize("engine", ["ddp", "fsdp2"])
def test_two_stages_of_two_processes_equal_one_stage_of_one(runs: Runs, engine: str, kind: str) -> None:
    alone = runs.place / f"cache-one-{kind}"
    if not alone.exists():
        codes, said = start(runs.first_stage(kind, alone), environment("ddp"), processes=1).wait()
        assert codes == [0], said
    together = runs.cache(kind, engine)
    assert together is not None
    assert_same_cache(alone, together)
    shares = [(together / f"index-{process}.jsonl").read_text().split("\n") for process in (0, 1)]
    made = [[json.loads(line)["file"] for line in share if line] for share in shares]
    assert made == [[files.file_of(i, (False, False)) for i in range(p, 6, 2)] for p in (0, 1)]
    unsplit = runs.one({"split": "lora", "distill-split": "distill"}[kind])
    assert_same_course(unsplit, runs.two(kind, engine), exactly=engine == "ddp")


@pytest.mark.slow
def test_a_first_stage_that_lost_a_process_goes_on(runs: Runs, tmp_path: Path) -> None:
    arguments = runs.first_stage("split", tmp_path / "cache")
    codes, said = run_two(arguments, environment("ddp"), code=DIE_IN_THE_FIRST_STAGE)
    assert codes[0] > 0 and codes[1] == -signal.SIGKILL, said
    folder = arguments.output
    manifest = files.read_manifest(folder)
    assert manifest is not None and not manifest["complete"]
    before = {path: path.stat().st_mtime_ns for path in (folder / files.SAMPLES).glob("0*")}
    assert len(before) == 4
    codes, said = run_two(arguments, environment("ddp"))
    assert codes == [0, 0], said
    expected = runs.cache("split", "ddp")
    assert expected is not None
    assert_same_cache(expected, folder)
    assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.slow
def test_a_model_that_ran_for_a_cache_in_another_process_cannot_be_trained_from_it(
    runs: Runs, folder: Path, data: Path, tmp_path: Path
) -> None:
    """The second row alone, and so the second process alone, needs the plugin's net."""
    (tmp_path / "seen.py").write_text(SEEN)
    rows = json.loads((data / "metadata.json").read_text())[:2]
    rows = [{"image": rows[0]["image"], "prompt": "a cat"}, {**rows[1], "seen_image": rows[1]["side_image"]}]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    net = tmp_path / "net.safetensors"
    save_file({"seen_in.weight": torch.zeros(64, 64), "seen_in.bias": torch.zeros(64)}, net)
    more = {
        "model_paths": [str(folder / "text_encoder"), str(folder / "vae"), str(net)],
        "plugin": [str(tmp_path / "seen.py")],
        "dataset_metadata_path": str(tmp_path / "rows.json"),
        "data_file_keys": "image,seen_image",
        "extra_inputs": "seen_image",
    }
    first = runs.first_stage("split", tmp_path / "cache", **more)
    codes, said = run_two(first, environment("ddp"))
    assert codes == [0, 0], said
    manifest = files.read_manifest(first.output)
    assert manifest is not None
    assert manifest["frozen"] == ["seen_net", "text_encoder", "vae"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("engine", "kind"), [("ddp", "lora"), ("fsdp2", "lora"), ("fsdp2", "full"), ("fsdp2", "average")]
)
def test_a_look_shows_the_weights_and_changes_no_bit(runs: Runs, engine: str, kind: str) -> None:
    blind, looked = runs.two(kind, engine), runs.two(f"{kind}-looked", engine)
    assert_same_state(blind, looked)
    assert_looked(runs, f"{kind}-looked", looked)


@pytest.mark.slow
def test_killed_under_ddp_and_resumed_it_ends_with_the_same_bits(runs: Runs, tmp_path: Path) -> None:
    broken = runs.arguments("lora", tmp_path / "broken", save_steps=1)
    codes, said = run_two(broken, environment("ddp"), code=DIE_IN_A_STEP)
    assert codes[0] == -signal.SIGKILL, said
    assert codes[1] > 0, "the other process noticed nothing"
    assert [state.name for state in states(broken.output)] == ["state-2"]
    assert len(read_log(broken.output)) == 3
    codes, said = run_two(runs.arguments("lora", broken.output, resume=True), environment("ddp"))
    assert codes == [0, 0], said
    whole = runs.two("lora", "ddp")
    assert_same_state(whole, broken.output)
    assert [(n["step"], n["loss"]) for n in read_log(broken.output)] == [
        (n["step"], n["loss"]) for n in read_log(whole)
    ]


@pytest.mark.slow
def test_a_process_that_dies_ends_the_run_which_resumes_with_the_same_bits(
    runs: Runs, tmp_path: Path
) -> None:
    """Under FSDP2 by the launcher, with our configuration, bfloat16 weights, their float32 copies and their average."""
    broken = runs.arguments("average", tmp_path / "broken", save_steps=1)
    launcher = [
        *(sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config_file("fsdp2"))),
        *("--num_processes", "2", "--main_process_port", str(free_port()), "-m", "qwenimage_training"),
    ]
    output = tmp_path / "output"
    process = subprocess.Popen(
        [*launcher, "--config", written(broken)],
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
        stdout=output.open("w"),
        stderr=subprocess.STDOUT,
    )
    try:
        while not states(broken.output) and process.poll() is None:
            time.sleep(0.01)
        assert process.poll() is None, output.read_text()
        os.kill(children(process.pid)[-1], signal.SIGKILL)
        assert process.wait(timeout=60) != 0
    finally:
        process.kill()
    assert states(broken.output), "there is nothing to resume"
    codes, said = run_two(runs.arguments("average", broken.output, resume=True), environment("fsdp2"))
    assert codes == [0, 0], said
    whole = runs.two("average", "fsdp2")
    assert_same_state(whole, broken.output)


@pytest.mark.slow
def test_weights_and_their_average_are_shared_out_and_gathered_for_the_file(runs: Runs) -> None:
    whole = runs.two("average", "fsdp2")
    shards = [load_file(states(whole)[-1] / f"state-{i}-of-2.safetensors") for i in (0, 1)]
    name = next(n for n in shards[0] if n.endswith("0.attn.to_q.weight") and n.startswith("weights/"))
    saved = load_file(whole / "epoch-1.safetensors")["transformer_blocks.0.attn.to_q.weight"]
    assert [shard[name].shape[0] for shard in shards] == [saved.shape[0] / 2] * 2, "nothing was shared out"
    average = torch.cat([shard[name.replace("weights/", "average/")] for shard in shards])
    assert torch.equal(average.to(torch.bfloat16), saved)


def assert_same_cache(one: Path, other: Path) -> None:
    """Complete, with the same samples; each is what its digest says."""
    manifests = [files.read_manifest(folder) or {} for folder in (one, other)]
    samples = []
    for folder, manifest in zip((one, other), manifests, strict=True):
        assert manifest["complete"]
        entries = [files.Entry(**entry) for row in manifest["rows"] for entry in row.pop("files")]
        assert {entry.file for entry in entries} == {
            str(path.relative_to(folder)) for path in folder.glob("samples/*")
        }
        samples.append({(e.file, e.made_from): files.read_sample(folder, e) for e in entries})
    assert manifests[0] == manifests[1]
    assert samples[0].keys() == samples[1].keys()
    for name, sample in samples[0].items():
        again = samples[1][name]
        assert sample.facts == again.facts and sample.tensors.keys() == again.tensors.keys()
        assert all(torch.equal(tensor, again.tensors[key]) for key, tensor in sample.tensors.items())


def children(pid: int) -> list[int]:
    """Processes that a process started, and waits for."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.slow
def test_all_processes_stop_at_a_loss_that_is_not_finite(make_arguments) -> None:
    arguments = make_arguments(**OPTIONS | KINDS["lora"])
    codes, said = run_two(arguments, environment("ddp"), code=POISON)
    assert 0 not in codes
    for output in said:  # also of the process whose own loss was finite
        assert "The loss is not finite in step 5" in output
        assert ".png" in output
    file = load_file(arguments.output / "epoch-0.safetensors")
    assert all(torch.isfinite(tensor).all() for tensor in file.values())
    assert not (arguments.output / "epoch-1.safetensors").exists()
