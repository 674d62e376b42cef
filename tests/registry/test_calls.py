"""Calling plugins: their failures come out with plugin, version, hook and place."""

from __future__ import annotations

import pytest

from qwenimage_core.errors import HookError, RequestError
from qwenimage_core.hooks import hookimpl
from qwenimage_core.registry import LoadedPlugin, PluginRegistry


class Failing:
    NAME = "failing"
    __version__ = "3.1"

    @hookimpl
    def condition(self, ctx):
        raise KeyError("entity")

    @hookimpl
    def latent_concat(self, ctx):
        raise RequestError("The picture is too small.", got="3 x 3")

    @hookimpl
    def attention_mask(self, ctx):
        raise KeyboardInterrupt


@pytest.fixture
def plugin(install) -> LoadedPlugin:
    return PluginRegistry.discover([Failing()]).get("failing")


def test_a_failure_names_plugin_version_hook_and_place_and_keeps_its_cause(plugin: LoadedPlugin) -> None:
    with pytest.raises(HookError) as caught:
        plugin.call("condition", "the positive branch", ctx=None)
    assert caught.value.what == "failing 3.1 failed in condition at the positive branch."
    assert caught.value.got == "KeyError: 'entity'"
    assert isinstance(caught.value.__cause__, KeyError)


def test_a_delta_that_fails_in_the_loop_names_block_step_and_shapes(plugin: LoadedPlugin) -> None:
    def delta(block, step, tokens):
        raise ValueError("shapes do not match")

    where = "block 17, step 4, tokens (1, 4096, 3072)"
    with pytest.raises(HookError, match="residual_inject") as caught:
        plugin.run("residual_inject", where, delta, 17, 4, None)
    assert where in str(caught.value) and "shapes do not match" in str(caught.value)


def test_our_own_errors_pass_through_with_the_plugin_in_a_note(plugin: LoadedPlugin) -> None:
    with pytest.raises(RequestError, match="too small") as caught:
        plugin.call("latent_concat", ctx=None)
    assert caught.value.__notes__ == ["raised by plugin failing 3.1 in latent_concat"]


def test_ctrl_c_in_a_hook_stays_ctrl_c(plugin: LoadedPlugin) -> None:
    with pytest.raises(KeyboardInterrupt):
        plugin.call("attention_mask", ctx=None)


def test_what_a_function_gives_is_given(plugin: LoadedPlugin) -> None:
    assert plugin.run("residual_inject", "", lambda a, b: a + b, 1, b=2) == 3
