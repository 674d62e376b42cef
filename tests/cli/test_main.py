"""The command line's frame: help, errors with exit codes, laziness, commands of plugins."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from qwenimage_core import __version__

from .conftest import PLUGIN

EDIT = 'qwenimage-edit: pip install "qwenimage-core[edit]"'
LIGHT = """
import sys
from qwenimage_core.cli.main import main
code = main(sys.argv[1:])
heavy = {"torch", "transformers", "modelscope", "accelerate", "peft", "numpy"} & set(sys.modules)
sys.exit(f"imported {sorted(heavy)}" if heavy else code)
"""


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["--version"],
        ["generate", "--help"],
        ["explain", "--help"],
        ["plugins", "list"],
        ["plugins", "list", "--json"],
        ["plugins", "show", "glow"],
        ["models", "list"],
        ["again", "--help"],
        ["lora", "--help"],
    ],
    ids=" ".join,
)
def test_what_only_tells_imports_nothing_heavy(words: list[str], tmp_path: Path) -> None:
    site = tmp_path / "site"
    info = site / "qwenimage_glow-0.1.0.dist-info"
    info.mkdir(parents=True)
    (site / "fake_glow.py").write_text(PLUGIN)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: qwenimage-glow\nVersion: 0.1.0\n")
    (info / "entry_points.txt").write_text("[qwenimage.plugins]\nglow = fake_glow\n")
    code = f"import sys; sys.path[:] = {[str(site), *sys.path]!r}\n{LIGHT}"
    done = subprocess.run(
        [sys.executable, "-c", code, *words], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_python_m_is_the_command(tmp_path: Path) -> None:
    code = f"import sys, runpy; sys.path[:] = {sys.path!r}; sys.argv[1:] = ['--version']; "
    code += "runpy.run_module('qwenimage_core', run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, f"qwenimage-core {__version__}\n")


def test_help_lists_every_command(run) -> None:
    done = run("--help")
    assert done.code == 0
    for command in ("generate", "explain", "again", "plugins", "models", "lora"):
        assert command in done.out


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["frobnicate"], 2, "No such command 'frobnicate'"),
        (["generate", "x", "--heigth", "64"], 2, "did you mean --height?"),
        (["generate", "a", "red", "circle"], 2, "put the prompt in quotes"),
        (["generate", "x", "--seed"], 2, "--seed"),
        (["generate"], 1, "There is no prompt."),
        (["generate", "x", "--prompt", "y"], 1, "given twice"),
        (["generate", "x", "--guidance-scale", "4"], 1, "did you mean `cfg_scale`?"),
        (["generate", "x", "--edit-image", "a.png"], 1, f"`edit_image` needs {EDIT}"),
        (["generate", "x", "--edit-imge", "a.png"], 1, f"did you mean `edit_image`? It needs {EDIT}"),
        (["i2l", "a.png"], 1, '`qwenimage i2l` needs qwenimage-i2l: pip install "qwenimage-core[i2l]"'),
        (["train"], 1, 'pip install "qwenimage-core[train]"'),
        (["generate", "x", "--height", "1000"], 1, "use 992 or 1008"),
        (["generate", "x", "--height", "tall"], 1, "height: Input should be a valid integer"),
        (["generate", "x", "--input-image", "gone.png"], 1, "there is no picture at gone.png"),
        (["generate", "x", "--dtype", "int4"], 1, "float32, bfloat16, float16"),
        (["generate", "x", "--lora", "a=strong"], 1, "--lora is FILE or FILE=STRENGTH"),
        (["plugins", "show", "elgien"], 1, "There is no plugin 'elgien'"),
        (["again", "gone.png"], 1, "There is no picture at gone.png"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)  # fmt: skip
def test_mistakes_are_answered_on_stderr_with_what_mends_them(run, words, code, said) -> None:
    done = run(*words)
    assert done.code == code
    assert said in done.err and done.err.startswith("error: ") and done.out == ""
    assert "Traceback" not in done.err


def test_errors_as_json(run) -> None:
    done = run("generate", "x", "--edit-image", "a.png", "--json")
    assert (done.code, done.out) == (1, "")
    assert done.error["error"] == "RequestError" and "qwenimage-core[edit]" in done.error["what"]
    done = run("generate", "x", "--heigth", "64", "--json")
    assert (done.code, done.error["error"], done.error["mend"]) == (
        2,
        "UsageMistake",
        "did you mean --height?",
    )


def test_an_unexpected_exception_fits_a_screen_and_debug_adds_the_traceback(run, monkeypatch) -> None:
    from qwenimage_core.cli import generate

    def fault(*args, **kwargs):
        raise ZeroDivisionError("x" * 10_000)

    monkeypatch.setattr(generate, "open_session", fault)
    done = run("generate", "x")
    assert done.code == 1 and "ZeroDivisionError" in done.err and "QWENIMAGE_DEBUG=1" in done.err
    assert "Traceback" not in done.err and len(done.err) < 2000
    assert "Traceback" in run("--debug", "generate", "x").err
    monkeypatch.setenv("QWENIMAGE_DEBUG", "1")
    assert "Traceback" in run("generate", "x").err


def test_ctrl_c_is_one_line_and_130(run, monkeypatch) -> None:
    from qwenimage_core.cli import generate

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(generate, "open_session", interrupted)
    done = run("generate", "x")
    assert (done.code, len(done.err.splitlines())) == (130, 1)
    assert done.err.startswith("Interrupted")


class TestPluginCommands:
    def test_they_are_commands_and_stand_in_the_help(self, run, glow) -> None:
        assert run("glow-info").out == "it glows\n"
        assert run("glow-info", "--loud").out == "IT GLOWS\n"
        done = run("--help")
        assert "glow-info" in done.out and "Plugin glow 0.1.0" in done.out

    def test_built_in_names_cannot_be_taken(self, run, site) -> None:
        code = PLUGIN.replace('"glow-info"', '"generate"')
        site("greedy", code)
        done = run("greedy")
        assert done.code == 1
        assert "qwenimage-core and greedy both add the command `generate`" in done.err
        assert run("generate", "x", "--height", "1000").code == 1  # and does no harm to the built-in ones

    def test_two_plugins_with_one_command_are_an_error_that_names_both(self, run, site) -> None:
        command = PLUGIN[: PLUGIN.index("class Lamp")] + PLUGIN[PLUGIN.index("@hookimpl\ndef commands") :]
        site("one", command)
        site("two", command)
        assert "one and two both add the command `glow-info`" in run("glow-info").err

    def test_a_broken_plugin_leaves_the_help_standing_and_is_mentioned(self, run, site, glow) -> None:
        site("broken", "1 / 0")
        done = run("--help")
        assert done.code == 0 and "glow-info" in done.out
        assert "broken (failed)" in done.out and "plugins doctor" in done.out

    def test_no_plugins_leaves_them_out(self, run, glow) -> None:
        assert "--glow-resize" in run("generate", "--help").out
        assert "--glow-resize" not in run("generate", "--no-plugins", "--help").out
        assert "glow (blocked)" in run("generate", "x", "--no-plugins", "--glow", "1").err
