"""The request of the core and all plugins: composing it, and every way in which a field can be wrong or missing."""

from __future__ import annotations

import pytest
from pydantic import Field, field_validator

from qwenimage_core import discovery
from qwenimage_core.catalogue import EXTRAS, known_fields
from qwenimage_core.errors import ConflictError, PluginError, RequestError
from qwenimage_core.hooks import hookimpl
from qwenimage_core.registry import PluginRegistry
from qwenimage_core.request import CoreRequest, FieldsModel


def plugin(name: str, fields: object) -> object:
    """A plugin object of this name whose `request_fields` gives `fields`."""

    class Plugin:
        NAME = name

        @hookimpl
        def request_fields(self):
            return fields

    return Plugin()


class Glow(FieldsModel):
    glow: float | None = Field(None, ge=0, le=1, description="how much it glows")
    glow_colour: str = "white"


@pytest.fixture
def registry(install) -> PluginRegistry:
    return PluginRegistry.discover([plugin("glow", Glow)])


def test_fields_of_plugins_stand_beside_the_cores(registry: PluginRegistry) -> None:
    model = registry.request_model()
    assert issubclass(model, CoreRequest) and issubclass(model, Glow)
    request = registry.request(prompt="x", glow=0.5, height=64)
    assert (request.prompt, request.glow, request.glow_colour, request.height) == ("x", 0.5, "white", 64)
    with pytest.raises(ValueError, match="frozen"):
        request.glow = 1


def test_a_plugin_is_active_only_when_a_field_of_it_is_given(registry: PluginRegistry) -> None:
    assert registry.active(registry.request(prompt="x").model_fields_set) == ()
    (active,) = registry.active(registry.request(prompt="x", glow_colour="red").model_fields_set)
    assert active.name == "glow" and active.fields == ("glow", "glow_colour")


def test_the_checks_of_core_and_plugin_both_hold(install) -> None:
    class Own(FieldsModel):
        own: int = 0

        @field_validator("own")
        @classmethod
        def own_is_even(cls, value: int) -> int:
            if value % 2:
                raise ValueError("own must be even")
            return value

    registry = PluginRegistry.discover([plugin("own", Own)])
    with pytest.raises(RequestError, match="own: own must be even"):
        registry.request(prompt="x", own=3)
    with pytest.raises(RequestError, match="needs input_image"):
        registry.request(prompt="x", own=2, denoising_strength=0.5)


def test_several_faults_come_together_a_line_each(registry: PluginRegistry) -> None:
    with pytest.raises(RequestError) as caught:
        registry.request(prompt="x", height=1000, cfg_scale=-1, glow=2)
    lines = str(caught.value).splitlines()
    assert lines[0] == "The request has 3 faults."
    assert sorted(line.split(":")[0].strip() for line in lines[1:]) == ["cfg_scale", "glow", "height"]
    assert any("992 or 1008 (got 1000)" in line for line in lines)


def test_a_single_fault_is_a_single_line_and_long_values_are_cut(registry: PluginRegistry) -> None:
    with pytest.raises(RequestError) as caught:
        registry.request(prompt="x", seed="9" * 10_000 + "x")
    assert len(str(caught.value)) < 300


def test_a_field_that_takes_two_types_gets_one_line(registry: PluginRegistry) -> None:
    with pytest.raises(RequestError) as caught:
        registry.request(prompt=3)
    assert len(str(caught.value).splitlines()) == 1


def test_a_request_error_of_a_validator_comes_as_it_is(install) -> None:
    class Strict(FieldsModel):
        strict: int = 0

        @field_validator("strict")
        @classmethod
        def strict_is_zero(cls, value: int) -> int:
            raise RequestError("strict is not zero.", got=value, expected=0, mend="leave it out")

    with pytest.raises(RequestError) as caught:
        PluginRegistry.discover([plugin("strict", Strict)]).request(prompt="x", strict=4)
    assert (caught.value.got, caught.value.mend) == ("4", "leave it out")


class TestConflicts:
    def test_two_plugins_with_one_field_are_an_error_that_names_both(self, install) -> None:
        class Other(FieldsModel):
            glow: int = 0

        registry = PluginRegistry.discover([plugin("glow", Glow), plugin("shine", Other)])
        with pytest.raises(ConflictError) as caught:
            registry.request_model()
        text = str(caught.value)
        assert "glow and shine" in text and "'glow'" in text and "QWENIMAGE_DISABLE_PLUGINS" in text

    def test_validators_of_one_name_would_replace_each_other_and_are_refused(self, install) -> None:
        def model(field: str) -> type[FieldsModel]:
            def check(cls, value):
                return value

            names = {
                "__annotations__": {field: int},
                field: 0,
                "check": field_validator(field)(classmethod(check)),
            }
            return type("Model", (FieldsModel,), names)

        registry = PluginRegistry.discover([plugin("a", model("one")), plugin("b", model("two"))])
        with pytest.raises(ConflictError, match="'check'"):
            registry.request_model()

    @pytest.mark.parametrize("field", ["height", "guided", "prompts"])
    def test_a_field_or_name_of_the_core_cannot_be_taken(self, install, field: str) -> None:
        model = type("Model", (FieldsModel,), {"__annotations__": {field: int}, field: 0})
        with pytest.raises(PluginError, match=f"(?s)names that the core's request has.*{field}"):
            PluginRegistry.discover([plugin("greedy", model)])

    def test_a_field_without_default_is_refused(self, install) -> None:
        model = type("Model", (FieldsModel,), {"__annotations__": {"must": int}})
        with pytest.raises(PluginError, match="without a default"):
            PluginRegistry.discover([plugin("must", model)])

    @pytest.mark.parametrize("fields", [None, {"a": 1}, CoreRequest, Glow(), int])
    def test_what_is_no_model_of_its_own_is_refused(self, install, fields: object) -> None:
        with pytest.raises(PluginError, match="no pydantic model of its own"):
            PluginRegistry.discover([plugin("odd", fields)])

    def test_a_failing_request_fields_is_a_state(self, install) -> None:
        code = """
from qwenimage_core.hooks import hookimpl
HOOK_API = ">=1,<2"
@hookimpl
def request_fields():
    raise ValueError("not today")
"""
        install("moody", code)
        record = PluginRegistry.discover().load("moody")
        assert record.state == "failed"
        assert "moody 0.1.0 failed in request_fields" in str(record.error)


class TestUnknownFields:
    @pytest.mark.parametrize("field", known_fields())
    def test_a_first_party_field_names_the_extra_that_brings_it(self, registry, field: str) -> None:
        extra = next(e for e in EXTRAS if field in e.fields)
        with pytest.raises(RequestError) as caught:
            registry.request(prompt="x", **{field: 1})
        assert str(caught.value) == (
            f'`{field}` needs {extra.distribution}: pip install "qwenimage-core[{extra.name}]"'
        )

    def test_the_nearest_field_is_suggested(self, registry) -> None:
        with pytest.raises(RequestError, match="did you mean `height`"):
            registry.request(prompt="x", heigth=64)
        with pytest.raises(RequestError, match="did you mean `glow_colour`"):
            registry.request(prompt="x", glow_color="red")

    def test_a_misspelt_field_of_an_absent_plugin_is_found_too(self, registry) -> None:
        with pytest.raises(RequestError) as caught:
            registry.request(prompt="x", eligen_entity_promts=["a"])
        assert "`eligen_entity_prompts`" in str(caught.value) and "qwenimage-core[eligen]" in str(
            caught.value
        )

    @pytest.mark.parametrize(
        ("theirs", "ours"),
        [
            ("guidance_scale", "cfg_scale"),
            ("true_cfg_scale", "cfg_scale"),
            ("strength", "denoising_strength"),
        ],
    )
    def test_names_of_the_peers_lead_to_ours(self, registry, theirs: str, ours: str) -> None:
        with pytest.raises(RequestError, match=f"did you mean `{ours}`"):
            registry.request(prompt="x", **{theirs: 1})

    def test_a_field_of_a_failed_plugin_gives_the_plugins_own_error(self, install) -> None:
        install("edit", "import no_such_module_here")
        registry = PluginRegistry.discover()
        with pytest.raises(PluginError, match="which is failed") as caught:
            registry.request(prompt="x", edit_image="a.png")
        assert "No module named 'no_such_module_here'" in str(caught.value)
        assert isinstance(caught.value.__cause__.__cause__, ModuleNotFoundError)

    def test_a_field_of_a_blocked_plugin_says_what_blocks_it(self, install, monkeypatch) -> None:
        install("edit")
        monkeypatch.setenv(discovery.DISABLE, "edit")
        with pytest.raises(PluginError, match=r"which is blocked.*QWENIMAGE_DISABLE_PLUGINS=edit"):
            PluginRegistry.discover().request(prompt="x", edit_image="a.png")

    def test_a_field_of_an_incompatible_plugin_gives_the_pip_line(self, install) -> None:
        install(
            "edit",
            "from qwenimage_core.hooks import hookimpl\nHOOK_API = '>=4'\n@hookimpl\ndef condition(): ...\n",
        )
        with pytest.raises(PluginError, match="which is incompatible") as caught:
            PluginRegistry.discover().request(prompt="x", edit_image="a.png")
        assert caught.value.mend == "pip install --upgrade qwenimage-core"

    def test_a_field_that_an_installed_version_lacks_asks_for_an_upgrade(self, install) -> None:
        install("edit")
        with pytest.raises(
            RequestError, match=r"is not a field of the installed qwenimage-edit 0\.1\.0"
        ) as caught:
            PluginRegistry.discover().request(prompt="x", edit_image="a.png")
        assert caught.value.mend == 'pip install --upgrade "qwenimage-core[edit]"'

    def test_an_unknown_field_mentions_plugins_that_could_not_be_asked(self, install) -> None:
        install("mystery", "1 / 0")
        with pytest.raises(RequestError, match=r"mystery \(failed\)"):
            PluginRegistry.discover().request(prompt="x", zzz=1)
