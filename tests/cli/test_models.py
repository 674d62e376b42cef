"""`qwenimage models list`: what is on this machine, from headers."""

from __future__ import annotations

import shutil
from pathlib import Path


def test_nothing_here_says_how_to_get_the_embedded_one(run, site) -> None:
    done = run("models", "list")
    assert done.code == 0
    assert "qwenimage-core[tiny]" in done.out and "Qwen/Qwen-Image" in done.out


def test_folders_under_models_with_their_components(run, tiny: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny, tmp_path / "models" / "me" / "mine")
    shutil.copytree(tiny, tmp_path / "models" / "flat")
    shown = run("models", "list", "--json").json
    local = [m for m in shown["models"] if m["distribution"] is None]
    assert [m["name"] for m in local] == ["flat", "me/mine"]
    parts = {c["kind"]: c for c in local[0]["components"]}
    assert set(parts) == {"transformer", "text_encoder", "vae"}
    assert all(p["bytes"] > 10_000 and "error" not in p for p in parts.values())
    assert {c["kind"] for c in shown["components"]} == {"transformer", "text_encoder", "vae"}
    text = run("models", "list").out
    rows = [line.split() for line in text.splitlines()]
    assert ["flat", "text_encoder"] in [row[:2] for row in rows]
    assert "transformer/diffusion_pytorch_model*.safetensors" in text  # whole, whatever the terminal's width


def test_weights_that_lie_in_a_repository_of_their_own(run, tiny: Path, tmp_path: Path) -> None:
    """As hubs keep a ControlNet or a distilled transformer: base/owner/name/file, without component folders."""
    home = tmp_path / "models" / "someone" / "distilled"
    shutil.copytree(tiny / "transformer", home)
    (model,) = [m for m in run("models", "list", "--json").json["models"] if m["distribution"] is None]
    assert model["name"] == "someone/distilled"
    assert [(c["folder"], c["kind"]) for c in model["components"]] == [(".", "transformer")]


def test_a_cut_off_file_is_said_to_be_so(run, tiny: Path, tmp_path: Path) -> None:
    home = tmp_path / "models" / "broken"
    shutil.copytree(tiny, home)
    weights = next((home / "vae").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-100])
    (model,) = [m for m in run("models", "list", "--json").json["models"] if m["name"] == "broken"]
    errors = {c["folder"]: c.get("error") for c in model["components"]}
    assert errors["transformer"] is None and str(weights.relative_to(tmp_path)) in errors["vae"]


def test_another_base_folder(run, tiny: Path, monkeypatch) -> None:
    monkeypatch.setenv("QWENIMAGE_MODEL_BASE_PATH", str(tiny.parent))
    shown = run("models", "list", "--json").json
    assert shown["folder"] == str(tiny.parent)
    assert "tiny" in [m["name"] for m in shown["models"]]


def test_installed_models_with_the_package_that_brings_them(run, site, tiny: Path) -> None:
    site("toy", f"def folder():\n    return {str(tiny)!r}\n", group="qwenimage.models", attribute=":folder")
    site("gone", "def folder():\n    return '/nowhere'\n", group="qwenimage.models", attribute=":folder")
    models = {m["name"]: m for m in run("models", "list", "--json").json["models"]}
    assert models["toy"]["distribution"] == "qwenimage-toy 0.1.0"
    assert models["toy"]["folder"] == str(tiny) and len(models["toy"]["components"]) == 3
    assert "no folder" in models["gone"]["error"]
