"""What two processes must have in common with one, and a run with the same run made otherwise."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from qwenimage_training.checkpoint import states
from qwenimage_training.previews import contact_sheet

from .engine_runs import KINDS, LAST, LOOK, Runs, read_log


def assert_same_course(one: Path, two: Path, *, exactly: bool = False) -> None:
    """Equal losses and gradients in every step, and equal weights in the end.

    Two processes that hold all weights make the very sums of one: a + b is b + a, and halves are exact. Where weights
    are shared out, sums are taken in another order, and a gradient of rounding errors alone has steps of either sign:
    6 of at most the learning rate, almost all less.
    """
    ours, theirs = read_log(two), read_log(one)
    assert len(ours) == len(theirs) == 6
    for value in ("loss", "grad_norm"):
        assert [line[value] for line in ours] == pytest.approx([line[value] for line in theirs], rel=1e-5)
    samples = theirs[0]["samples"]
    assert samples > 1, "there is nothing to deal out"
    assert [line["samples"] for line in ours] == [samples] * 6
    files = [load_file(folder / LAST) for folder in (one, two)]
    assert files[0].keys() == files[1].keys()
    for name, tensor in files[0].items():
        if exactly:
            assert torch.equal(files[1][name], tensor), name
        else:
            torch.testing.assert_close(files[1][name], tensor, rtol=1e-4, atol=1e-4)


def assert_same_picture(runs: Runs, kind: str, one: Path, two: Path, *, exactly: bool = False) -> None:
    """By pipelines that load the saved files. Training moved the picture by hundreds of times what the files may differ
    in: 1e-4 of -1 to 1 is a seventieth of a level of 0 to 255, so that next to no pixel of a PNG is another one. (4e-6
    was measured: drawing is not rougher than training.)"""
    base, expected, found = (runs.draw(kind, output) for output in (None, one, two))
    assert float((expected - base).abs().max()) > 0.1, "training shows nothing"
    torch.testing.assert_close(found, expected, rtol=0, atol=0 if exactly else 1e-4)


def assert_same_state(one: Path, two: Path) -> None:
    """The last states of two runs, bit by bit."""
    ends = [states(folder)[-1] for folder in (one, two)]
    names = [sorted(file.name for file in end.glob("*.safetensors")) for end in ends]
    assert names[0] == names[1] != []
    for name in names[0]:
        first, second = (load_file(end / name) for end in ends)
        assert first.keys() == second.keys()
        assert [tensor for tensor in first if not torch.equal(first[tensor], second[tensor])] == []


def assert_looked(runs: Runs, kind: str, output: Path) -> None:
    """The last look of a run: the loss of what one process saw, and what a pipeline draws with the saved file."""
    expected, found = (
        [json.loads(line) for line in (folder / "validation.jsonl").read_text().splitlines()]
        for folder in (runs.one(kind), output)
    )
    assert [line["step"] for line in found] == [3, 6]
    # bfloat16 has 8 bits: rounding of a weight to its neighbour shows in the loss of either
    rel = 1e-3 if KINDS[kind].get("mixed_precision") == "bf16" else 1e-5
    assert [line["loss"] for line in found] == pytest.approx([line["loss"] for line in expected], rel=rel)
    steps, prompt = LOOK["validation_inference_steps"], LOOK["validation_prompts"]
    arguments = runs.arguments(kind, output)
    picture = runs.pipe(kind, output)(
        prompt,
        width=64,
        height=48,
        seed=0,
        num_inference_steps=steps,
        cfg_scale=arguments.validation_cfg_scale,
    )
    sheet = contact_sheet([picture], [prompt], "step 6")
    drawn = Image.open(output / "validation" / "step-6.png")
    assert np.abs(np.asarray(sheet, float) - np.asarray(drawn, float)).max() <= 1
