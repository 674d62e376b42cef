"""The inference code stays small: less than 5,000 lines for the core and the seven plugins together.

Counted are whole files, blank lines and comments too, of all that turns a request into pictures: what the peer has in
its folder of modular blocks for this family (`diffusers/modular_pipelines/qwenimage`, 8,938 lines for fewer variants).
Left out is what the peer keeps elsewhere: model classes, loading, placement, sharing a run between processes,
adapters, the host of blocks or plugins, command lines, lists of published models, and what is written into files. A new
file counts unless it is named here.
"""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[2]
LIMIT = 5000

# finding, checking and holding plugins, and putting their request fields together
HOST = ("registry.py", "discovery.py", "plugin_check.py", "catalogue.py", "fields.py")
LOADING_AND_FILES = ("assemble.py", "metadata.py", "picture_files.py", "recipes.py")
PACKAGE = ("__init__.py", "__main__.py", "version.py")
# beside the peer's blocks: chat templates, tokens of the prompt, and pictures for the text encoder
PROMPTS = ("models/prompt_templates.py", "models/prompt_tokens.py", "models/vision.py")
# model classes of plugins, how their files are recognised, their command lines, their published models
PLUGIN_ELSEWHERE = ("recipes.py", "command.py", "model.py", "network.py", "component.py", "components.py")


def inference_files() -> list[Path]:
    core = ROOT / "qwenimage_core"
    left_out = {*HOST, *LOADING_AND_FILES, *PACKAGE}
    files = [path for path in core.glob("*.py") if path.name not in left_out]
    files += [core / name for name in PROMPTS]
    plugins = (ROOT / "plugins").glob("qwenimage-*/qwenimage_*/**/*.py")
    return sorted([*files, *(path for path in plugins if path.name not in PLUGIN_ELSEWHERE)])


def test_inference_code_is_small() -> None:
    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in inference_files()}
    assert {path.parts[len(ROOT.parts)] for path in lines} == {"qwenimage_core", "plugins"}
    assert len({path.parent for path in lines if "plugins" in path.parts}) == 7
    assert sum(lines.values()) < LIMIT
