"""A checkpoint is complete and consistent before its first tensor is read, or a LoadError says what is wrong."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from qwenimage_core.errors import LoadError
from qwenimage_core.loading import checkpoint as module
from qwenimage_core.loading.checkpoint import Checkpoint

WEIGHTS = {f"block.{i}.weight": torch.arange(12.0).reshape(3, 4) + i for i in range(6)}
STEM = "diffusion_pytorch_model"


def shard(number: int, total: int) -> str:
    return f"{STEM}-{number:05}-of-{total:05}.safetensors"


def write_shards(folder: Path, total: int = 3, *, index: bool = True) -> list[Path]:
    names = list(WEIGHTS)
    weight_map: dict[str, str] = {}
    for number in range(total):
        part = {name: WEIGHTS[name] for name in names[number::total]}
        save_file(part, folder / shard(number + 1, total))
        weight_map |= dict.fromkeys(part, shard(number + 1, total))
    if index:
        write_index(folder, weight_map)
    return sorted(folder.glob("*.safetensors"))


def write_index(folder: Path, weight_map: Mapping[str, str], total_size: int = 6 * 48) -> Path:
    path = folder / f"{STEM}.safetensors.index.json"
    path.write_text(json.dumps({"metadata": {"total_size": total_size}, "weight_map": dict(weight_map)}))
    return path


def change_index(folder: Path, change: Mapping[str, str | None]) -> None:
    path = folder / f"{STEM}.safetensors.index.json"
    content = json.loads(path.read_text())
    for name, file in change.items():
        if file is None:
            del content["weight_map"][name]
        else:
            content["weight_map"][name] = file
    path.write_text(json.dumps(content))


def refused(paths: Path | list[Path]) -> LoadError:
    with pytest.raises(LoadError) as caught:
        Checkpoint.open(paths)
    return caught.value


def assert_whole(checkpoint: Checkpoint) -> None:
    assert checkpoint.tensors.keys() == WEIGHTS.keys()
    for name, tensor in WEIGHTS.items():
        assert torch.equal(checkpoint.read(name), tensor)


def test_single_file(tmp_path: Path) -> None:
    save_file(WEIGHTS, tmp_path / "model.safetensors", metadata={"format": "pt"})
    checkpoint = Checkpoint.open(tmp_path / "model.safetensors")
    assert_whole(checkpoint)
    info = checkpoint.tensors["block.0.weight"]
    assert (info.shape, info.dtype, info.nbytes) == ((3, 4), "float32", 48)
    assert checkpoint.nbytes == 6 * 48
    assert checkpoint.metadata == {"format": "pt"}


@pytest.mark.parametrize("index", [True, False])
@pytest.mark.parametrize("form", ["folder", "files", "index"])
def test_shards_with_and_without_index(tmp_path: Path, index: bool, form: str) -> None:
    files = write_shards(tmp_path, index=index)
    if form == "index":
        if not index:
            return
        assert_whole(Checkpoint.open(tmp_path / f"{STEM}.safetensors.index.json"))
    else:
        assert_whole(Checkpoint.open(tmp_path if form == "folder" else files))


def test_reading_casts_floats_only(tmp_path: Path) -> None:
    save_file({"w": torch.arange(12.0).reshape(3, 4), "ids": torch.arange(4)}, tmp_path / "a.safetensors")
    checkpoint = Checkpoint.open(tmp_path / "a.safetensors")
    read = checkpoint.read("w", dtype=torch.bfloat16)
    assert read.dtype == torch.bfloat16
    assert read.tolist() == WEIGHTS["block.0.weight"].tolist()
    assert checkpoint.read("ids", dtype=torch.bfloat16).dtype == torch.int64
    with pytest.raises(LoadError, match="no tensor 'nothing'"):
        checkpoint.read("nothing")


@pytest.mark.parametrize("index", [True, False])
def test_missing_shard_is_named(tmp_path: Path, index: bool) -> None:
    write_shards(tmp_path, index=index)
    (tmp_path / shard(2, 3)).unlink()
    error = refused(tmp_path)
    assert "incomplete" in error.what
    assert error.got == f"missing {shard(2, 3)}"
    assert error.expected == "3 files"
    assert error.mend == "download the missing files"


def test_subset_of_the_shards_is_refused(tmp_path: Path) -> None:
    files = write_shards(tmp_path)
    error = refused(files[:1])
    assert error.got == f"missing {shard(2, 3)}, {shard(3, 3)}"
    assert error.mend == "name all of them, or their folder"


def test_index_lists_a_tensor_that_no_shard_holds(tmp_path: Path) -> None:
    write_shards(tmp_path)
    change_index(tmp_path, {"block.9.weight": shard(1, 3)})
    error = refused(tmp_path)
    assert "'block.9.weight'" in error.what and shard(1, 3) in error.what
    assert error.got == "it is in no shard"
    assert error.mend is not None and "one revision" in error.mend


def test_index_lists_a_tensor_in_the_wrong_shard(tmp_path: Path) -> None:
    write_shards(tmp_path)
    change_index(tmp_path, {"block.0.weight": shard(2, 3)})
    assert refused(tmp_path).got == f"it is in {shard(1, 3)}"


def test_shard_holds_a_tensor_that_the_index_does_not_list(tmp_path: Path) -> None:
    write_shards(tmp_path)
    change_index(tmp_path, {"block.0.weight": None})
    error = refused(tmp_path)
    assert "'block.0.weight'" in error.what and "does not list" in error.what


def test_total_size_of_the_index_is_checked(tmp_path: Path) -> None:
    write_shards(tmp_path)
    write_index(tmp_path, {name: shard(i % 3 + 1, 3) for i, name in enumerate(WEIGHTS)}, total_size=1000)
    error = refused(tmp_path)
    assert (error.got, error.expected) == ("288 bytes of tensors", "1,000 bytes")


@pytest.mark.parametrize(
    "name",
    ["../outside.safetensors", "/etc/x.safetensors", "sub/x.safetensors", "..\\x.safetensors", "x.bin"],
)
def test_index_naming_a_file_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    write_shards(tmp_path)
    change_index(tmp_path, {"block.0.weight": name})
    error = refused(tmp_path)
    assert "outside its folder" in error.what
    assert error.got == name


def test_index_naming_a_link_out_of_its_folder_is_refused(tmp_path: Path) -> None:
    outside, inside = tmp_path / "outside.safetensors", tmp_path / "model"
    inside.mkdir()
    files = write_shards(inside)
    files[0].rename(outside)
    files[0].symlink_to(outside)
    error = refused(inside)
    assert "leads out of its folder" in error.what
    assert error.got == str(outside)


def test_layout_of_a_hugging_face_cache_is_accepted(tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "abc" / "transformer"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    for number, file in enumerate(write_shards(snapshot)):
        file.rename(blobs / str(number))
        file.symlink_to(blobs / str(number))
    assert_whole(Checkpoint.open(snapshot))


@pytest.mark.parametrize("content", ["{", "[]", '{"weight_map": []}', '{"weight_map": {}}', "{}"])
def test_damaged_index(tmp_path: Path, content: str) -> None:
    write_shards(tmp_path)
    (tmp_path / f"{STEM}.safetensors.index.json").write_text(content)
    assert f"{STEM}.safetensors.index.json" in refused(tmp_path).what


def test_tensor_in_two_files(tmp_path: Path) -> None:
    files = write_shards(tmp_path, index=False)
    save_file({"block.1.weight": WEIGHTS["block.1.weight"], "x": torch.ones(1)}, files[0])
    error = refused(tmp_path)
    assert "'block.1.weight' is in two files" in error.what
    assert error.got is not None and shard(1, 3) in error.got and shard(2, 3) in error.got


def test_folder_with_two_checkpoints(tmp_path: Path) -> None:
    save_file(WEIGHTS, tmp_path / "model.safetensors")
    save_file(WEIGHTS, tmp_path / "model.fp16.safetensors")
    error = refused(tmp_path)
    assert "more than one checkpoint" in error.what
    assert error.got == "model.fp16.safetensors, model.safetensors"
    assert error.mend is not None and "path=" in error.mend


def test_folder_without_weights_and_missing_path(tmp_path: Path) -> None:
    (tmp_path / "readme.md").write_text("hello")
    error = refused(tmp_path)
    assert "holds no weights" in error.what and error.got == "readme.md"
    assert "does not exist" in refused(tmp_path / "nowhere").what
    assert "no weight file" in refused(tmp_path / "readme.md").what
    assert "No files" in refused([]).what


def test_cut_off_shard_is_named(tmp_path: Path) -> None:
    files = write_shards(tmp_path)
    files[1].write_bytes(files[1].read_bytes()[:-10])
    error = refused(tmp_path)
    assert shard(2, 3) in error.what and "cut off" in error.what


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".pth", ".ckpt"])
def test_pickle_is_refused_unless_allowed(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"pytorch_model{suffix}"
    torch.save(WEIGHTS, path)
    error = refused(path)
    assert "pickle" in error.what
    assert error.expected == ".safetensors"
    assert error.mend is not None and "safetensors version" in error.mend
    assert_whole(Checkpoint.open(path, allow_pickle=True))


def test_allowed_pickle_still_runs_no_code(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (tmp_path / "ran",)

    torch.save({"w": Evil()}, tmp_path / "evil.bin")
    with pytest.raises(LoadError, match="cannot be read"):
        Checkpoint.open(tmp_path / "evil.bin", allow_pickle=True)
    assert not (tmp_path / "ran").exists()


def test_config_beside_the_weights(tmp_path: Path) -> None:
    save_file(WEIGHTS, tmp_path / "model.safetensors")
    assert Checkpoint.open(tmp_path).config is None
    (tmp_path / "config.json").write_text('{"num_layers": 2}')
    assert Checkpoint.open(tmp_path).config == {"num_layers": 2}
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(LoadError, match=r"config\.json is damaged"):
        _ = Checkpoint.open(tmp_path).config


def test_digest_names_the_weights_not_the_folder(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("a", "b", "c")]
    for folder in folders:
        folder.mkdir()
        write_shards(folder)
    content = bytearray((folders[2] / shard(3, 3)).read_bytes())
    content[-1] ^= 1
    (folders[2] / shard(3, 3)).write_bytes(content)
    first, second, third = (Checkpoint.open(folder).digest() for folder in folders)
    assert first == second != third
    assert first.startswith("sha256:") and len(first) == 7 + 64


def test_digest_of_a_huge_file_is_sampled_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "DIGEST_WHOLE", 1000)
    monkeypatch.setattr(module, "DIGEST_BLOCK", 16)
    digests = []
    for change in (0.0, 1.0):
        save_file({"w": torch.full((100_000,), change)}, tmp_path / "a.safetensors")
        digests.append(Checkpoint.open(tmp_path / "a.safetensors").digest())
    assert digests[0] != digests[1]
    assert all(digest.startswith("sha256-sampled:") for digest in digests)


def test_opening_reads_headers_without_torch(tmp_path: Path) -> None:
    import subprocess
    import sys

    write_shards(tmp_path)
    code = (
        "import sys; from qwenimage_core.loading.checkpoint import Checkpoint; "
        "assert len(Checkpoint.open(sys.argv[1]).shapes) == 6; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False).returncode == 0
