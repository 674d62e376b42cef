"""Loading plugins: each in isolation, checked against the hook API, with every refusal in words."""

from __future__ import annotations

import traceback

import pytest

from qwenimage_core.errors import PluginError
from qwenimage_core.hooks import HOOK_API, hookimpl
from qwenimage_core.plugin_check import hook_arguments
from qwenimage_core.registry import PluginRegistry

GOOD = """
from qwenimage_core.hooks import hookimpl
HOOK_API = ">=1.0,<2"

@hookimpl
def condition(ctx):
    return None
"""


def discover(*plugins: object) -> PluginRegistry:
    return PluginRegistry.discover(plugins)


def refusal(*plugins: object) -> str:
    with pytest.raises(PluginError) as caught:
        discover(*plugins)
    return str(caught.value)


def test_a_broken_plugin_becomes_a_state_with_its_traceback_and_harms_nobody(install) -> None:
    install("broken", "def f():\n    return {}['missing key']\nf()\n")
    install("good", GOOD)
    registry = PluginRegistry.discover()
    states = {r.name: r.state for r in registry.load_all()}
    assert states == {"broken": "failed", "good": "loaded"}
    assert registry.request(prompt="x").prompt == "x"
    error = registry.record("broken").error
    assert error is not None
    assert "broken of qwenimage-broken 0.1.0" in str(error)
    assert "KeyError: 'missing key'" in str(error)
    frames = traceback.extract_tb(error.__cause__.__traceback__)
    assert frames[-1].name == "f" and frames[-1].filename.endswith("plugin_qwenimage_broken.py")


@pytest.mark.parametrize("code", ["raise SystemExit(3)", "import nowhere_to_be_found", "def ("])
def test_any_failure_of_an_import_is_a_state(install, code: str) -> None:
    install("broken", code)
    assert PluginRegistry.discover().load("broken").state == "failed"


def test_ctrl_c_during_an_import_is_not_swallowed(install) -> None:
    install("slow", "raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        PluginRegistry.discover().load("slow")


def test_asking_for_a_failed_plugin_raises_its_own_error(install) -> None:
    install("broken", "1 / 0")
    registry = PluginRegistry.discover()
    with pytest.raises(PluginError, match="ZeroDivisionError") as caught:
        registry.get("broken")
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_a_plugin_is_imported_once(install, monkeypatch) -> None:
    install("good", GOOD + "\nimport builtins\nbuiltins.imports_seen += 1\n")
    import builtins

    monkeypatch.setattr(builtins, "imports_seen", 0, raising=False)
    registry = PluginRegistry.discover()
    record = registry.load("good")
    assert registry.load("good") is record and registry.load_all() == (record,)
    assert builtins.imports_seen == 1
    assert record.hooks == ("condition",) and record.import_ms is not None


def test_asking_for_a_plugin_that_is_not_there(install) -> None:
    install("eligen", GOOD)
    registry = PluginRegistry.discover()
    with pytest.raises(PluginError, match="did you mean eligen"):
        registry.get("elgien")
    with pytest.raises(PluginError) as caught:
        registry.get("in_context_control")
    assert caught.value.mend == 'pip install "qwenimage-core[in-context-control]"'


class TestHookApi:
    ours = ".".join(map(str, HOOK_API))

    def load(self, install, stated: str | None):
        line = "" if stated is None else f"HOOK_API = {stated}"
        install("some", GOOD.replace('HOOK_API = ">=1.0,<2"', line), version="0.7")
        return PluginRegistry.discover().load("some")

    @pytest.mark.parametrize("stated", ["'>=1.0,<2'", "'~=1.0'", "'==1.*'"])
    def test_a_range_that_holds_ours_loads(self, install, stated) -> None:
        assert self.load(install, stated).state == "loaded"

    @pytest.mark.parametrize(
        ("stated", "mend"),
        [
            ("'>=1.7,<2'", "pip install --upgrade qwenimage-core"),
            ("'>=2'", "pip install --upgrade qwenimage-core"),
            ("'>=0.3,<1'", "pip install --upgrade qwenimage-some"),
            ("'<1'", "pip install --upgrade qwenimage-some"),
        ],
    )
    def test_another_range_is_incompatible_with_the_pip_line_that_mends_it(
        self, install, stated, mend
    ) -> None:
        record = self.load(install, stated)
        assert record.state == "incompatible"
        assert record.error.mend == mend
        assert self.ours in record.error.got
        assert "some of qwenimage-some 0.7" in record.error.what

    @pytest.mark.parametrize("stated", [None, "'one or two'", "''", "(1, 0)"])
    def test_an_installed_plugin_must_state_a_range(self, install, stated) -> None:
        record = self.load(install, stated)
        assert record.state == "failed"
        assert f'HOOK_API = ">={self.ours},<2"' in record.error.expected

    def test_an_object_need_not_state_one_and_is_held_to_what_it_states(self, install) -> None:
        class Plugin:
            @hookimpl
            def condition(self, ctx):
                return None

        assert discover(Plugin()).record("Plugin").state == "loaded"
        Plugin.HOOK_API = ">=9"
        assert "another hook API" in refusal(Plugin())


class TestHooks:
    """Nothing that an author meant as a hook is left out in silence."""

    def test_a_misspelt_hook_names_the_nearest(self, install) -> None:
        class Plugin:
            @hookimpl
            def residual_injekt(self, ctx, layout):
                return None

        text = refusal(Plugin())
        assert "'residual_injekt'" in text and "did you mean residual_inject?" in text

    def test_an_argument_that_the_hook_has_not_lists_those_it_has(self, install) -> None:
        class Plugin:
            @hookimpl
            def attention_mask(self, context, layout):
                return None

        text = refusal(Plugin())
        assert "attention_mask" in text and "context" in text and "ctx, layout" in text

    @pytest.mark.parametrize("parameter", ["*args", "**kwargs", "extra=None"])
    def test_arguments_that_would_never_be_filled_are_refused(self, install, parameter: str) -> None:
        names: dict = {}
        exec(f"def condition(self, ctx, {parameter}): ...", names)
        plugin = type("Plugin", (), {"condition": hookimpl(names["condition"])})
        assert parameter in refusal(plugin())

    def test_any_subset_of_the_arguments_may_be_taken(self, install) -> None:
        class Plugin:
            @hookimpl
            def attention_mask(self, layout):
                return ("mask", layout)

            @hookimpl
            def condition(self):
                return "condition"

        (plugin,) = discover(Plugin()).loaded
        assert plugin.call("attention_mask", ctx=1, layout=2) == ("mask", 2)
        assert plugin.call("condition", ctx=1) == "condition"
        assert plugin.call("latent_concat", ctx=1) is None

    def test_a_hooks_name_without_the_mark_is_refused(self, install) -> None:
        class Plugin:
            @hookimpl
            def condition(self, ctx):
                return None

            def latent_concat(self, ctx):
                return None

        text = refusal(Plugin())
        assert "'latent_concat'" in text and "@hookimpl" in text

    def test_a_plugin_without_hooks_is_refused(self, install) -> None:
        assert "no hook at all" in refusal(type("Nothing", (), {})())

    def test_wrappers_are_refused(self, install) -> None:
        class Plugin:
            @hookimpl(wrapper=True)
            def condition(self, ctx):
                return (yield)

        assert "hook wrapper" in refusal(Plugin())

    def test_a_hook_may_have_another_function_name(self, install) -> None:
        class Plugin:
            @hookimpl(specname="condition")
            def give_segments(self, ctx):
                return ctx

        (plugin,) = discover(Plugin()).loaded
        assert plugin.call("condition", ctx=5) == 5

    def test_a_refused_plugin_leaves_nothing_behind(self, install) -> None:
        install("half", GOOD + "\n@hookimpl\ndef latent_concatt(ctx): ...\n")
        install("good", GOOD)
        registry = PluginRegistry.discover()
        registry.load_all()
        assert [p.name for p in registry.loaded] == ["good"]
        assert registry.record("half").hooks == ()

    def test_a_module_a_class_and_an_instance_are_all_plugins(self, install, tmp_path) -> None:
        install("module", GOOD)

        class Static:
            @staticmethod
            @hookimpl
            def condition(ctx):
                return "static"

        registry = PluginRegistry.discover([Static])
        registry.load_all()
        assert [p.name for p in registry.loaded] == ["module", "Static"]
        assert registry.get("Static").call("condition", ctx=None) == "static"

    def test_the_hooks_and_their_arguments(self) -> None:
        """Plugins are written against this table: an entry may be added, none may change within hook API 1."""
        assert hook_arguments() == {
            "attention_mask": ("ctx", "layout"),
            "check_request": ("ctx",),
            "commands": ("app",),
            "components": (),
            "condition": ("ctx",),
            "decode": ("ctx", "latents"),
            "latent_concat": ("ctx",),
            "recipes": (),
            "request_defaults": ("given",),
            "request_fields": (),
            "residual_inject": ("ctx", "layout"),
        }
