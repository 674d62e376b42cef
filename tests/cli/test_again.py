"""`again PICTURE`: bit for bit the same picture, or an error that lists what is different."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from PIL import Image

from qwenimage_core.picture_files import read_metadata, save_picture

SMALL = ("--height", 32, "--width", 48, "--num-inference-steps", 2)

SHIFT = '''
"""A plugin in a file: another prompt in front of the user's."""
from qwenimage_core.hooks import hookimpl
from qwenimage_core.request import FieldsModel
from qwenimage_core.values import Condition

class Fields(FieldsModel):
    shift_by: float | None = None

@hookimpl
def request_fields():
    return Fields

@hookimpl
def condition(ctx):
    return Condition(schedule=lambda *, steps, tokens, strength, mu: [1 - i / steps / 2 for i in range(steps)] + [0.0])
'''


def pixels(path: str | Path) -> bytes:
    with Image.open(path) as picture:
        return picture.tobytes()


def write_lora(path: Path, seed: int) -> None:
    """A LoRA of one layer of the tiny model."""
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(seed)
    name = "transformer_blocks.1.attn.to_k"
    save_file(
        {f"{name}.lora_A.weight": torch.randn(2, 64), f"{name}.lora_B.weight": torch.randn(64, 2)}, path
    )


@pytest.fixture
def model(tiny: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny, tmp_path / "model"))


@pytest.fixture
def draw(run, model: Path):
    def draw(*words: object) -> None:
        done = run("generate", "--model", model, *SMALL, *words)
        assert done.code == 0, done.err

    return draw


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_the_same_picture_bit_for_bit(run, draw, suffix: str) -> None:
    draw("a red circle", "--cfg-scale", 3, "--negative-prompt", "blue", "-o", f"a.{suffix}")
    done = run("again", f"a.{suffix}")
    assert (done.code, done.out) == (0, f"a-again.{suffix}\n"), done.err
    assert pixels(f"a.{suffix}") == pixels(f"a-again.{suffix}")
    assert read_metadata(f"a.{suffix}") == read_metadata(f"a-again.{suffix}")


def test_one_picture_of_a_batch(run, draw) -> None:
    draw("--prompt", "one", "--prompt", "two", "--num-images-per-prompt", 2, "-o", "p.png")
    assert run("again", "p-4.png", "-o", "again.png").code == 0
    assert pixels("again.png") == pixels("p-4.png") != pixels("p-3.png")


def test_switches_and_dependent_fields_come_back(run, draw) -> None:
    """Fields that are refused without each other: they must be given again together, and only if they were given."""
    Image.linear_gradient("L").resize((48, 32)).convert("RGB").save("in.png")
    Image.linear_gradient("L").resize((48, 32)).save("mask.png")
    inpaint = ("--input-image", "in.png", "--inpaint-mask", "mask.png", "--denoising-strength", 0.7)
    blur = ("--inpaint-blur-size", 1, "--inpaint-blur-sigma", 1)
    tiles = ("--tiled", "--tile-size", 16, "--tile-stride", 8)
    guidance = ("--cfg-scale", 2, "--cfg-normalize", "--exponential-shift-mu", 0.5)
    draw("x", *inpaint, *blur, *tiles, *guidance, "-o", "a.png")
    done = run("again", "a.png")
    assert done.code == 0, done.err
    assert pixels("a.png") == pixels("a-again.png")


def test_without_guidance(run, draw) -> None:
    draw("x", "--cfg-scale", 1, "-o", "a.png")
    assert run("again", "a.png").code == 0
    assert pixels("a.png") == pixels("a-again.png")


def test_json_and_output_rules(run, draw) -> None:
    draw("x", "--seed", 4, "-o", "a.png")
    assert run("again", "a.png", "-o", "b.webp", "--json").json == {
        "path": "b.webp",
        "seed": 4,
        "peak_bytes": None,
    }
    done = run("again", "a.png", "-o", "b.webp")
    assert done.code == 1 and "exists already" in done.err
    assert run("again", "a.png", "-o", "b.webp", "--overwrite").code == 0


class TestDifferences:
    def change(self, path: str, **more: object) -> None:
        """The same picture with another record."""
        record = read_metadata(path)
        with Image.open(path) as picture:
            picture.load()
        save_picture(picture, path, record.model_copy(update=more), overwrite=True)

    def test_other_weights(self, run, draw, model: Path, tmp_path: Path) -> None:
        from qwenimage_core.testing import write_tiny_checkpoint

        draw("x", "-o", "a.png")
        other = write_tiny_checkpoint(tmp_path / "other", seed=1)
        shutil.rmtree(model / "vae")
        shutil.copytree(other / "vae", model / "vae")
        done = run("again", "a.png")
        assert done.code == 1 and "--force" in done.err
        assert "component vae: made with sha256:" in done.err and "component transformer" not in done.err
        assert not Path("a-again.png").exists()
        assert run("again", "a.png", "--force").code == 0
        assert pixels("a-again.png") != pixels("a.png")

    def test_other_versions_are_listed_before_anything_is_loaded(self, run, draw, monkeypatch) -> None:
        draw("x", "-o", "a.png")
        self.change("a.png", versions={"qwenimage-core": "0.0.1", "torch": "1.0", "transformers": "4.0"})
        from qwenimage_core.cli import again

        monkeypatch.setattr(again, "open_session", lambda *a, **k: pytest.fail("loaded first"))
        done = run("again", "a.png")
        assert done.code == 1
        for said in (
            "qwenimage-core: made with 0.0.1, here ",
            "torch: made with 1.0",
            "transformers: made with 4.0",
        ):
            assert said in done.err

    def test_a_model_that_moved(self, run, draw, model: Path, tmp_path: Path) -> None:
        draw("x", "-o", "a.png")
        model.rename(tmp_path / "moved")
        assert run("again", "a.png").code == 1
        assert run("again", "a.png", "--model", tmp_path / "moved").code == 0
        assert pixels("a.png") == pixels("a-again.png")

    def test_an_input_picture_that_changed_or_went(self, run, draw) -> None:
        Image.new("RGB", (48, 32), "red").save("in.png")
        draw("x", "--input-image", "in.png", "--denoising-strength", 0.5, "-o", "a.png")
        Image.new("RGB", (48, 32), "blue").save("in.png")
        done = run("again", "a.png", "--force")
        assert done.code == 1 and "other pixels" in done.err
        Path("in.png").unlink()
        assert "not there as it was" in run("again", "a.png").err

    def test_a_lora_that_changed_or_went(self, run, draw, tmp_path: Path) -> None:
        write_lora(tmp_path / "style.safetensors", 0)
        draw("x", "--lora", "style.safetensors=0.7", "-o", "a.png")
        assert run("again", "a.png").code == 0
        assert pixels("a.png") == pixels("a-again.png")
        write_lora(tmp_path / "style.safetensors", 1)
        done = run("again", "a.png", "-o", "b.png")
        assert done.code == 1 and "LoRA style: made with sha256:" in done.err
        Path("style.safetensors").unlink()
        assert "The LoRA style is not there" in run("again", "a.png", "-o", "b.png").err


RECIPE = """
from qwenimage_core.adapters.lora import Adapter
from qwenimage_core.hooks import hookimpl
from qwenimage_core.request import FieldsModel
from qwenimage_core.values import Condition, Recipe

class Fields(FieldsModel):
    style_file: str | None = None

@hookimpl
def request_fields():
    return Fields

@hookimpl
def condition(ctx):
    return Condition(adapters=(Adapter(name="style", weights=ctx.request.style_file),))

@hookimpl
def recipes():
    parts = tuple(dict(path="model/" + part) for part in ("transformer", "vae", "text_encoder"))
    defaults = dict(height=32, width=48, num_inference_steps=2, cfg_scale=1)
    tokenizer = dict(path="model/tokenizer")
    return [Recipe(name="toy", summary="a toy", models=parts, tokenizer=tokenizer, defaults=defaults)]
"""


class TestRecipesAndAdaptersOfPlugins:
    def test_a_recipe_is_run_again_by_its_name(self, run, model: Path, tmp_path: Path) -> None:
        (tmp_path / "toy.py").write_text(RECIPE)
        done = run("generate", "x", "--recipe", "toy", "--plugin", "toy.py", "-o", "a.png")
        assert done.code == 0, done.err
        record = read_metadata("a.png")
        assert (record.model.source, record.request["height"], record.request["cfg_scale"]) == (
            "recipe:toy",
            32,
            1.0,
        )
        assert run("again", "a.png", "--plugin", "toy.py").code == 0
        assert pixels("a.png") == pixels("a-again.png")
        done = run("again", "a.png", "-o", "b.png")
        assert done.code == 1 and "There is no recipe 'toy'" in done.err
        done = run("generate", "x", "--recipe", "toy", "--plugin", "toy.py", "--model", "tiny")
        assert done.code == 1 and "--model and --recipe" in done.err

    def test_a_lora_file_that_a_plugin_brings_is_held_to_its_digest(self, run, draw, tmp_path: Path) -> None:
        write_lora(tmp_path / "style.safetensors", 0)
        (tmp_path / "toy.py").write_text(RECIPE)
        draw("x", "--plugin", "toy.py", "--style-file", "style.safetensors", "-o", "a.png")
        assert read_metadata("a.png").components["lora/style"].startswith("sha256:")
        assert run("again", "a.png", "--plugin", "toy.py").code == 0
        assert pixels("a.png") == pixels("a-again.png")
        write_lora(tmp_path / "style.safetensors", 1)
        done = run("again", "a.png", "--plugin", "toy.py", "-o", "b.png")
        assert done.code == 1 and "component lora/style: made with sha256:" in done.err


class TestPlugins:
    def test_a_plugin_file_is_never_run_because_a_picture_names_it(self, run, draw, tmp_path: Path) -> None:
        file = tmp_path / "shift.py"
        file.write_text(SHIFT)
        draw("x", "--plugin", "shift.py", "--shift-by", 1, "-o", "a.png")
        (used,) = read_metadata("a.png").plugins
        assert (used.name, used.distribution) == ("shift", None) and used.version.startswith("sha256:")
        done = run("again", "a.png")
        assert done.code == 1 and "There is no plugin 'shift'" in done.err
        assert run("again", "a.png", "--plugin", "shift.py").code == 0
        assert pixels("a.png") == pixels("a-again.png")
        file.write_text(SHIFT + "# changed\n")
        done = run("again", "a.png", "-o", "b.png", "--plugin", "shift.py")
        assert done.code == 1 and "plugin shift: made with sha256:" in done.err

    def test_an_installed_plugin_is_found_by_itself(self, run, draw, site) -> None:
        site("shift", 'HOOK_API = ">=1.0,<2"\n' + SHIFT)
        draw("x", "--shift-by", 1, "-o", "a.png")
        draw("x", "--seed", read_metadata("a.png").request["seed"], "-o", "plain.png")
        assert run("again", "a.png").code == 0
        assert pixels("a.png") == pixels("a-again.png") != pixels("plain.png")

    def test_an_idle_plugin_leaves_no_trace(self, run, draw, glow) -> None:
        draw("x", "-o", "a.png")
        record = read_metadata("a.png")
        assert record.plugins == () and not [name for name in record.request if name.startswith("glow")]
