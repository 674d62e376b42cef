"""`generate` and `explain` on a tiny random model, from the words on the command line to the files."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image
from safetensors import safe_open

from qwenimage_core.metadata import picture_digest
from qwenimage_core.picture_files import read_metadata

SMALL = ("--height", 32, "--width", 48, "--num-inference-steps", 2)


@pytest.fixture
def draw(run, tiny: Path):
    """draw("a cat", ...): generate with the tiny model at a tiny size."""
    return lambda *words: run("generate", "--model", tiny, *SMALL, *words)


def pixels(path: str | Path) -> bytes:
    with Image.open(path) as picture:
        return picture.tobytes()


def test_a_prompt_becomes_a_picture_and_its_path_is_printed(draw) -> None:
    done = draw("a red circle", "--seed", 3)
    assert (done.code, done.out) == (0, "qwenimage-0001.png\n")
    with Image.open("qwenimage-0001.png") as picture:
        assert (picture.size, picture.mode) == ((48, 32), "RGB")


def test_it_is_the_picture_that_python_draws(draw, tiny: Path) -> None:
    from qwenimage_core import QwenImagePipeline

    draw("a red circle", "--seed", 3, "--cfg-scale", 2.5, "--negative-prompt", "blue", "-o", "a.png")
    pipe = QwenImagePipeline.from_pretrained(str(tiny), device="cpu")
    settings = {
        "height": 32,
        "width": 48,
        "num_inference_steps": 2,
        "cfg_scale": 2.5,
        "negative_prompt": "blue",
    }
    assert pixels("a.png") == pipe("a red circle", seed=3, **settings).tobytes()


def test_the_record_says_what_was_used(draw, tiny: Path) -> None:
    draw("a red circle", "-o", "a.png", "--device", "cpu", "--dtype", "float32")
    record = read_metadata("a.png")
    assert isinstance(record.request["seed"], int)  # drawn, and recorded
    wanted = {"prompt": "a red circle", "height": 32, "width": 48, "num_inference_steps": 2, "cfg_scale": 4.0}
    assert record.request | wanted == record.request
    assert record.model.model_dump() == {
        "source": str(tiny),
        "dtype": "float32",
        "device": "cpu",
        "low_memory": False,
        "memory": None,
        "compiled": False,
    }
    assert set(record.components) == {"transformer", "text_encoder", "vae"}
    assert all(digest.startswith("sha256:") for digest in record.components.values())
    assert (record.plugins, record.adapters) == ((), ())


def test_names_count_up_and_nothing_is_replaced(draw) -> None:
    assert draw("x").out == "qwenimage-0001.png\n"
    assert draw("x", "--num-images-per-prompt", 2).out == "qwenimage-0002.png\nqwenimage-0003.png\n"
    assert draw("x", "-o", "a.png").code == 0
    before = Path("a.png").read_bytes()
    done = draw("x", "-o", "a.png")
    assert done.code == 1 and "a.png exists already" in done.err and "--overwrite" in done.err
    assert Path("a.png").read_bytes() == before
    assert draw("x", "-o", "a.png", "--overwrite", "--seed", 99).code == 0
    assert Path("a.png").read_bytes() != before


def test_several_prompts_and_pictures_with_json(draw) -> None:
    words = ("--prompt", "one", "--prompt", "two", "--num-images-per-prompt", 2, "--seed", 5)
    done = draw(*words, "-o", "p.png", "--json")
    written = done.json["pictures"]
    assert [w["path"] for w in written] == ["p-1.png", "p-2.png", "p-3.png", "p-4.png"]
    assert [(w["prompt"], w["seed"]) for w in written] == [("one", 5), ("one", 6), ("two", 5), ("two", 6)]
    assert done.json["seconds"] > 0
    assert draw("two", "--seed", 6, "-o", "alone.png").code == 0
    assert pixels("p-4.png") == pixels("alone.png")
    assert read_metadata("p-4.png") == read_metadata("alone.png")


def test_patterns_in_names(draw) -> None:
    assert draw("x", "--seed", 8, "-o", "s{seed}.webp").out == "s8.webp\n"
    done = draw("x", "--seed", 8, "--num-images-per-prompt", 2, "-o", "{n}-of-{seed}.jpg")
    assert done.out == "1-of-8.jpg\n2-of-9.jpg\n"
    done = draw("--prompt", "a", "--prompt", "b", "--seed", 8, "-o", "t{seed}.png")
    assert done.code == 1 and "{n}" in done.err


@pytest.mark.parametrize(
    ("output", "said"),
    [("a.gif", "no suffix of a picture"), ("new/a.png", "mkdir -p new"), ("a.safetensors", "does not suit")],
)
def test_an_output_that_cannot_be_is_refused_before_anything_is_drawn(
    draw, monkeypatch, output, said
) -> None:
    from qwenimage_core.pipeline import QwenImagePipeline

    monkeypatch.setattr(QwenImagePipeline, "run", lambda self, plan: pytest.fail("drew first"))
    done = draw("x", "-o", output)
    assert done.code == 1 and said in done.err


@pytest.mark.parametrize(("kind", "shape"), [("latent", [16, 4, 6]), ("tensor", [3, 32, 48])])
def test_latents_and_tensors_are_written_as_safetensors(draw, kind: str, shape: list[int]) -> None:
    assert draw("x", "--output-type", kind).out == "qwenimage-0001.safetensors\n"
    with safe_open("qwenimage-0001.safetensors", framework="np") as file:
        assert file.get_slice(kind).get_shape() == shape
        assert json.loads(file.metadata()["qwenimage"])["request"]["output_type"] == kind
    done = draw("x", "--output-type", kind, "-o", "a.png")
    assert done.code == 1 and "does not suit --output-type" in done.err


def test_pictures_go_in_by_path(draw) -> None:
    Image.linear_gradient("L").resize((48, 32)).convert("RGB").save("in.png")
    words = ("x", "--input-image", "in.png", "--denoising-strength", 0.5)
    done = draw(*words, "-o", "a.png")
    assert done.code == 0, done.err
    with Image.open("in.png") as picture:
        reference = {"path": "in.png", "sha256": picture_digest(picture)}
    assert read_metadata("a.png").request["input_image"] == {"$picture": reference}
    assert "input_image is not of the target's size" in draw(*words, "--width", 64).err


def test_a_model_that_is_not_there(run) -> None:
    assert "There is no model 'nowhere'" in run("generate", "x", "--model", "nowhere").err
    assert 'pip install "qwenimage-core[tiny]"' in run("generate", "x").err


def test_the_default_is_the_installed_tiny_model_with_its_own_defaults(
    run, site, tiny: Path, tmp_path: Path
) -> None:
    import shutil

    home = tmp_path / "home"
    shutil.copytree(tiny, home)
    (home / "defaults.json").write_text(
        '{"height": 48, "width": 64, "num_inference_steps": 1, "cfg_scale": 1}'
    )
    site("tiny", f"def folder():\n    return {str(home)!r}\n", group="qwenimage.models", attribute=":folder")
    assert run("generate", "x", "-o", "a.png").code == 0
    record = read_metadata("a.png")
    assert [record.request[n] for n in ("height", "width", "num_inference_steps", "cfg_scale")] == [
        48,
        64,
        1,
        1.0,
    ]
    assert record.model.source == "tiny"


def test_loras_with_strengths(draw, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    name = "transformer_blocks.0.attn.to_q"
    save_file(
        {f"{name}.lora_A.weight": torch.randn(2, 64), f"{name}.lora_B.weight": torch.randn(64, 2)},
        tmp_path / "style.safetensors",
    )
    plain, half, whole = "plain.png", "half.png", "whole.png"
    draw("x", "--seed", 1, "-o", plain)
    assert draw("x", "--seed", 1, "-o", half, "--lora", "style.safetensors=0.5").code == 0
    assert draw("x", "--seed", 1, "-o", whole, "--lora", "style.safetensors").code == 0
    assert len({pixels(p) for p in (plain, half, whole)}) == 3
    (adapter,) = read_metadata(half).adapters
    assert (adapter.name, adapter.source, adapter.strength) == ("style", "style.safetensors", 0.5)
    assert draw("x", "--seed", 1, "-o", "off.png", "--lora", "style.safetensors=0").code == 0
    assert pixels("off.png") == pixels(plain)


class TestExplain:
    def test_for_people_and_as_json(self, run, tiny: Path) -> None:
        words = ("explain", "a cat", "--model", tiny, *SMALL, "--seed", 4)
        text = run(*words).out
        assert "48 x 32" in text and "positive branch" in text and "negative branch" in text
        told = run(*words, "--json").json
        assert (told["width"], told["height"], told["steps"], told["seeds"]) == (48, 32, 2, [[4]])
        assert {c["state"] for c in told["components"]} == {"on disk"}  # nothing was loaded

    def test_errors_are_those_of_generate(self, run, tiny: Path) -> None:
        assert "992 or 1008" in run("explain", "x", "--model", tiny, "--height", 1000).err


def test_ctrl_c_in_the_loop_leaves_nothing_half_written(tiny: Path, tmp_path: Path) -> None:
    """A real process and a real signal; the pictures that were finished stay."""
    code = (
        f"import sys; sys.path[:] = {sys.path!r}; from qwenimage_core.cli.main import main; sys.exit(main())"
    )
    words = ["--model", tiny, "--height", 32, "--width", 32, "--num-inference-steps", 100, "-o", "p.png"]
    prompts = [w for n in range(200) for w in ("--prompt", f"picture {n}")]
    process = subprocess.Popen(
        [sys.executable, "-c", code, "generate", *map(str, words), *prompts],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert process.stdout is not None
    first = process.stdout.readline().strip()
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert "Interrupted" in err and "Traceback" not in err
    finished = [first, *out.split()]
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(finished)
    assert all(read_metadata(tmp_path / name) for name in finished)
