"""The short forms: a folder, an installed model, a hub id; and the tokenizer beside the weights."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from qwenimage_core.errors import LoadError, PluginError
from qwenimage_core.loading.bundle import find_bundle, load_tokenizer
from qwenimage_core.loading.components import find_components
from qwenimage_core.loading.sources import locate, locate_folder
from qwenimage_core.testing.checkpoints import write_tiny_checkpoint


def install(site: Path, entry: str, code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a distribution on the import path that offers models, as pip would."""
    info = site / "some_models-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: some-models\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[qwenimage.models]\n{entry}\n")
    (site / f"models_of_{site.name}.py").write_text(code)
    monkeypatch.syspath_prepend(str(site))


def test_local_folder_in_hub_layout(tiny: Path) -> None:
    bundle = find_bundle(tiny)
    assert [locate(config) for config in bundle.models] == [
        (tiny / p,) for p in ("transformer", "text_encoder", "vae")
    ]
    assert bundle.tokenizer is not None and locate_folder(bundle.tokenizer) == tiny / "tokenizer"
    assert bundle.processor is not None and locate_folder(bundle.processor) == tiny / "processor"
    assert bundle.scheduler is not None and locate_folder(bundle.scheduler) == tiny / "scheduler"
    assert bundle.folder == tiny
    assert list(find_components(bundle.models)) == ["transformer", "text_encoder", "vae"]


def test_folder_that_lacks_what_its_index_lists(tiny: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny, tmp_path / "model")
    shutil.rmtree(folder / "vae")
    with pytest.raises(LoadError) as caught:
        find_bundle(folder)
    assert "is incomplete" in caught.value.what
    assert caught.value.expected == "vae/ as well"
    assert caught.value.mend is not None


@pytest.mark.parametrize("part", ["transformer", "transformer/diffusion_pytorch_model.safetensors"])
def test_transformer_alone_tells_what_is_missing(tiny: Path, part: str) -> None:
    with pytest.raises(LoadError, match=r"Components are missing: text_encoder, vae\.") as caught:
        find_components(find_bundle(tiny / part).models)
    assert caught.value.mend is not None and caught.value.mend.count("ModelConfig(") == 2


def test_hub_id_with_files_put_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_tiny_checkpoint(tmp_path / "Qwen" / "Qwen-Image", shards=2)
    monkeypatch.setenv("QWENIMAGE_MODEL_BASE_PATH", str(tmp_path))
    monkeypatch.setenv("QWENIMAGE_SKIP_DOWNLOAD", "True")
    bundle = find_bundle("Qwen/Qwen-Image")
    assert bundle.folder == root
    assert bundle.processor is None, "the published model_index.json lists none"
    assert list(find_components(bundle.models)) == ["transformer", "text_encoder", "vae"]
    (root / "model_index.json").unlink()
    assert len(find_bundle("Qwen/Qwen-Image").models) == 3, "folders that are here tell enough"


def test_hub_id_with_nothing_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QWENIMAGE_MODEL_BASE_PATH", str(tmp_path))
    monkeypatch.setenv("QWENIMAGE_SKIP_DOWNLOAD", "True")
    with pytest.raises(LoadError, match=r"Qwen/Qwen-Image:model_index\.json is not on this machine"):
        find_bundle("Qwen/Qwen-Image")


@pytest.mark.parametrize("name", ["Qwen-Image", "./nowhere", "/no/such/folder", "a/b/c"])
def test_name_of_nothing(name: str) -> None:
    with pytest.raises(LoadError, match="There is no model") as caught:
        find_bundle(name)
    assert caught.value.expected is not None and "a folder, a hub id" in caught.value.expected
    assert caught.value.mend is not None


def test_misspelt_name_suggests_the_nearest() -> None:
    with pytest.raises(LoadError) as caught:
        find_bundle("tinny")
    assert caught.value.mend == "did you mean 'tiny'?"


def test_tiny_that_is_not_installed_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qwenimage_core.loading.bundle.MODELS_GROUP", "qwenimage.no_such_group")
    with pytest.raises(PluginError) as caught:
        find_bundle("tiny")
    assert "not installed" in caught.value.what
    assert caught.value.mend == 'pip install "qwenimage-core[tiny]"'


def test_installed_model_is_found_by_its_name(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(
        tmp_path / "good", "small = models_of_good:folder", f"def folder(): return {str(tiny)!r}", monkeypatch
    )
    assert find_bundle("small").folder == tiny


def test_folder_comes_before_an_installed_model(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(
        tmp_path / "other",
        "small = models_of_other:folder",
        "def folder(): raise AssertionError",
        monkeypatch,
    )
    monkeypatch.chdir(shutil.copytree(tiny, tmp_path / "here" / "small").parent)
    assert find_bundle("small").folder == Path("small")


def test_installed_model_that_fails_tells_whose_failure_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(
        tmp_path / "bad",
        "broken = models_of_bad:folder",
        "raise RuntimeError('no weights today')",
        monkeypatch,
    )
    with pytest.raises(PluginError) as caught:
        find_bundle("broken")
    assert "'broken' cannot be had" in caught.value.what
    assert caught.value.got == "models_of_bad:folder: RuntimeError: no weights today"


def test_installed_model_without_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(
        tmp_path / "gone",
        "gone = models_of_gone:folder",
        "def folder(): return '/no/such/folder'",
        monkeypatch,
    )
    with pytest.raises(PluginError, match="'gone' has no folder"):
        find_bundle("gone")


def test_naming_a_model_imports_no_torch(tiny: Path) -> None:
    code = (
        "import sys; from qwenimage_core.loading.bundle import find_bundle; "
        "find_bundle(sys.argv[1]); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tiny)], check=False).returncode == 0


# --- tokenizer ----------------------------------------------------------------------------------------------------


def test_tokenizer_loads_from_either_form(tiny: Path, tmp_path: Path) -> None:
    text = "<|im_start|>user\nA blue ☂ below <|image_pad|> 12\n"
    whole = load_tokenizer(tiny / "tokenizer")
    folder = shutil.copytree(tiny / "tokenizer", tmp_path / "tokenizer")
    (folder / "tokenizer.json").unlink()
    ids = whole(text).input_ids
    assert load_tokenizer(folder)(text).input_ids == ids
    assert whole.decode(ids) == text
    assert whole.convert_tokens_to_ids("<|image_pad|>") in ids


def test_folder_without_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text("{}")
    with pytest.raises(LoadError) as caught:
        load_tokenizer(tmp_path)
    assert caught.value.got == "tokenizer_config.json"
    assert caught.value.expected == "tokenizer.json, or vocab.json and merges.txt"
    assert caught.value.mend is not None and 'origin_file_pattern="tokenizer/"' in caught.value.mend


def test_damaged_tokenizer(tiny: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny / "tokenizer", tmp_path / "tokenizer")
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(LoadError, match="cannot be read"):
        load_tokenizer(folder)


def test_code_in_the_folder_is_not_run(tiny: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny / "tokenizer", tmp_path / "tokenizer")
    path = folder / "tokenizer_config.json"
    custom = {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", None]}}
    path.write_text(json.dumps(json.loads(path.read_text()) | custom))
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n")
    with contextlib.suppress(LoadError):
        load_tokenizer(folder)
    assert not (tmp_path / "ran").exists()
