"""Request fields as options: what each kind of field takes on the command line, and what the request then gets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Discriminator, Field, Tag

from qwenimage_core.cli.options import field_options, shape_of, with_fields
from qwenimage_core.errors import PluginError, RequestError
from qwenimage_core.request import CoreRequest, FieldsModel, Picture


class Control(FieldsModel):
    """One control picture."""

    controlnet_id: int = 0
    scale: float = 1.0
    image: Picture | None = None


class Kinds(FieldsModel):
    """A field of every kind that the seven plugins have."""

    picture: Picture | None = None
    pictures: list[Picture] | None = None
    one_or_many: Picture | list[Picture] | None = None
    words: list[str] | None = None
    controls: list[Control] | None = None
    control: Control | None = None
    lightning: bool | str | None = None
    literal: Control | Literal[True] | None = None
    mode: Literal["coarse", "fine"] | None = None
    on: bool = Field(False, description="switch on")
    fit: bool = True
    maybe: bool | None = None
    number: int | None = Field(None, ge=0)


OPTIONS = {o.field: o for o in field_options(Kinds, {})}


@pytest.mark.parametrize(
    ("field", "given", "value"),
    [
        ("picture", "a.png", "a.png"),
        ("pictures", ["a.png"], ["a.png"]),
        ("one_or_many", ["a.png"], "a.png"),
        ("one_or_many", ["a.png", "b.png"], ["a.png", "b.png"]),
        ("one_or_many", ['["a.png"]'], ["a.png"]),  # a list of one, where that is something else than one
        ("controls", ['[{"scale": 1}, {"scale": 2}]'], [{"scale": 1}, {"scale": 2}]),
        ("words", ["[a]"], ["[a]"]),
        ("words", ["a, b=c", "{d}"], ["a, b=c", "{d}"]),
        ("controls", ['{"scale": 0.5, "image": "a,b.png"}'], [{"scale": 0.5, "image": "a,b.png"}]),
        ("controls", ["scale=0.5, image=a.png"], [{"scale": "0.5", "image": "a.png"}]),
        ("controls", ["scale=1", "image=b=c.png"], [{"scale": "1"}, {"image": "b=c.png"}]),
        ("control", "controlnet_id=1", {"controlnet_id": "1"}),
        ("lightning", "true", True),
        ("lightning", "false", False),
        ("lightning", "lora.safetensors", "lora.safetensors"),
        ("literal", "true", True),
        ("literal", "lora.safetensors", "lora.safetensors"),
        ("mode", "fine", "fine"),
        ("on", True, True),
        ("number", "3", "3"),
    ],
)  # fmt: skip
def test_text_becomes_what_the_request_takes(field: str, given, value) -> None:
    assert OPTIONS[field].value(given) == value


def test_pictures_in_tagged_unions_are_pictures() -> None:
    """As qwenimage-edit has it: one picture and a list of one picture are two different requests."""
    kinds = Annotated[Picture, Tag("one")] | Annotated[list[Picture], Tag("many")]
    shape = shape_of(
        Annotated[kinds, Discriminator(lambda value: "many" if isinstance(value, list) else "one")]
    )
    assert (shape.picture, shape.many, shape.single, shape.metavar) == (True, True, True, "PICTURE")


@pytest.mark.parametrize("text", ['{"scale": ', '[{"scale": 1}', "scale=1,oops"])
def test_models_that_are_neither_json_nor_pairs_are_refused(text: str) -> None:
    with pytest.raises(RequestError, match="--controls"):
        OPTIONS["controls"].value([text])


def test_what_is_off_by_default_is_a_switch_and_other_booleans_take_a_value() -> None:
    assert [OPTIONS[name].switch for name in ("on", "fit", "maybe")] == [True, False, False]
    assert OPTIONS["fit"].value("false") is False
    assert OPTIONS["maybe"].value("true") is True


def test_callables_are_no_options_and_every_other_field_of_the_core_is_one() -> None:
    fields = {o.field for o in field_options(CoreRequest, {})}
    assert set(CoreRequest.model_fields) - fields == {"progress_bar_cmd", "step_callback"}


def test_a_field_with_the_name_of_an_own_option_is_refused() -> None:
    class Greedy(FieldsModel):
        overwrite: bool = False

    def command(overwrite: bool = False, **fields: object) -> None: ...

    with pytest.raises(PluginError, match="name of an option of the command line"):
        with_fields(command, field_options(Greedy, {"overwrite": "Plugin greedy"}))


class TestHelp:
    def test_every_option_stands_there_whole_under_its_owner(self, run, glow) -> None:
        """80 columns: no name is cut off, plugins have a panel of their own, brackets survive."""
        text = run("generate", "--help").out
        for option in (
            "--num-images-per-prompt",
            "--exponential-shift-mu",
            "--inpaint-blur-sigma",
            "--no-plugins",
        ):
            assert option in text
        core, _, plugin = text.partition("Plugin glow 0.1.0")
        assert "--height" in core and "--glow" not in core
        for option in ("--glow", "--glow-pictures", "--glow-lamps", "--glow-resize"):
            assert option in plugin
        words = " ".join(plugin.replace("│", " ").split())
        for said in (
            "how much it glows [0 to 1] (NUMBER)",
            "(PICTURE, may be repeated)",
            "(KEY=VALUE,...|JSON, may",
            "(true|false, default true)",
        ):
            assert said in words

    def test_defaults_and_choices_are_told(self, run) -> None:
        text = " ".join(run("generate", "--help").out.replace("│", " ").split())
        assert "guidance scale; 1 switches guidance off (NUMBER, default 4.0)" in text
        assert "pil|tensor|latent" in text

    def test_a_failed_plugin_has_no_options_and_naming_one_gives_its_error(self, run, site) -> None:
        site("edit", "import no_such_module_here")
        assert "--edit-image" not in run("generate", "--help").out
        done = run("generate", "x", "--edit-image", "a.png")
        assert done.code == 1
        assert "which is failed" in done.err and "no_such_module_here" in done.err

    def test_a_file_brings_its_options(self, run, tmp_path: Path) -> None:
        from .conftest import PLUGIN

        (tmp_path / "mine.py").write_text(PLUGIN)
        assert "--glow-lamps" in run("generate", "--plugin", "mine.py", "--help").out
        assert "--glow-lamps" in run("generate", "--plugin=mine.py", "--help").out
        assert "`glow_lamps`" in run("generate", "x", "--glow-lamps", "power=1").err

    def test_values_of_plugins_are_checked_by_their_model(self, run, glow) -> None:
        done = run("generate", "x", "--glow", "2", "--glow-lamps", "power=-1", "--glow-pictures", "gone.png")
        assert done.code == 1
        for said in ("glow: ", "glow_lamps: ", "power", "glow_pictures: there is no picture at gone.png"):
            assert said in done.err

    def test_python_spelling_works_too(self, run) -> None:
        assert "992 or 1008" in run("generate", "x", "--height", "1000", "--num_inference_steps", "2").err
