"""A safetensors header that lies, or a file that was cut off, is told in numbers; a good file reads bit for bit."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from qwenimage_core.errors import LoadError
from qwenimage_core.loading.safetensors_file import read_header, read_tensor


def raw(path: Path, header: object, data: bytes = b"", *, text: bytes | None = None) -> Path:
    body = json.dumps(header).encode() if text is None else text
    path.write_bytes(struct.pack("<Q", len(body)) + body + data)
    return path


def refused(path: Path) -> LoadError:
    with pytest.raises(LoadError) as caught:
        read_header(path)
    assert path.name in caught.value.what
    return caught.value


def entry(
    dtype: str = "F32", shape: tuple[int, ...] = (2,), offsets: tuple[int, ...] = (0, 8)
) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.mark.parametrize(
    "dtype",
    [
        torch.float32,
        torch.float16,
        torch.bfloat16,
        torch.float8_e4m3fn,
        torch.float8_e5m2,
        torch.int64,
        torch.uint8,
        torch.bool,
    ],
)
def test_tensors_read_bit_for_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    tensors = {
        "matrix": (torch.randn(3, 5) * 4).to(dtype),
        "scalar": torch.tensor(1).to(dtype),
        "empty": torch.zeros(0, 4).to(dtype),
    }
    save_file(tensors, tmp_path / "a.safetensors", metadata={"note": "hello"})
    infos, metadata = read_header(tmp_path / "a.safetensors")
    assert metadata == {"note": "hello"}
    for name, tensor in tensors.items():
        read = read_tensor(infos[name])
        assert (read.dtype, read.shape) == (tensor.dtype, tensor.shape)
        assert (
            read.contiguous().view(torch.uint8).tolist() == tensor.view(torch.uint8).tolist()
            if tensor.ndim
            else read == tensor
        )


def test_a_tensor_owns_its_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"x": torch.ones(1000)}, path)
    read = read_tensor(read_header(path)[0]["x"])
    read += 1
    path.write_bytes(b"")
    assert read.sum() == 2000


def test_cut_off_file_tells_bytes_and_mend(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"x": torch.ones(1000)}, path)
    whole = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-1234])
    error = refused(path)
    assert "cut off" in error.what
    assert (error.got, error.expected) == (f"{whole - 1234:,} bytes", f"{whole:,} bytes")
    assert error.mend == "delete the file and download it again"


def test_file_cut_off_inside_its_header(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"x": torch.ones(10)}, path)
    path.write_bytes(path.read_bytes()[:20])
    error = refused(path)
    assert "cut off inside its header" in error.what
    assert error.got == "20 bytes"


def test_file_that_shrinks_after_opening(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"x": torch.ones(1000)}, path)
    info = read_header(path)[0]["x"]
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(LoadError, match="became shorter"):
        read_tensor(info)


def test_bytes_after_the_last_tensor(tmp_path: Path) -> None:
    error = refused(raw(tmp_path / "a.safetensors", {"x": entry()}, b"\0" * 11))
    assert "has bytes after its last tensor" in error.what


def test_git_lfs_pointer_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9973578592\n")
    error = refused(path)
    assert "Git LFS pointer" in error.what
    assert error.mend is not None and "git lfs pull" in error.mend


@pytest.mark.parametrize(
    "content", [b"", b"\0" * 7, b"<!doctype html><title>404</title>", b"PK\3\4" + b"\0" * 40]
)
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    error = refused(path)
    assert "no safetensors file" in error.what
    assert error.got is not None and f"{len(content)} bytes" in error.got


def test_absurd_header_length_is_refused_without_reading(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", 2**60) + b"{}")
    assert "no safetensors file" in refused(path).what


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (b'{"x": ', "damaged header"),
        (b'{"x": ' + b"[" * 100_000, "damaged header"),
        (b'{"\xff": 1}', "damaged header"),
        (b'{"x": {"dtype":"U8","shape":[0],"data_offsets":[0,0]}, "x": {}}', "names something twice"),
    ],
)
def test_damaged_header(tmp_path: Path, text: bytes, what: str) -> None:
    assert what in refused(raw(tmp_path / "a.safetensors", None, text=text)).what


@pytest.mark.parametrize(
    ("bad", "got", "expected"),
    [
        (entry(dtype="F31"), "'F31'", "F32"),
        ({**entry(), "dtype": ["F32"]}, "['F32']", "F32"),
        (entry(shape=(-2,)), "[-2]", "sizes of 0 or more"),
        (entry(shape=(True, 2)), "[True, 2]", "sizes of 0 or more"),
        (entry(shape=(1,) * 9), "[1, 1", "at most eight"),
        (entry(offsets=(0, 4)), "4 bytes", "8 bytes"),
        (entry(shape=(2**40, 2**40)), "8 bytes", "bytes for F32"),
        (entry(offsets=(0, 8, 9)), "[0, 8, 9]", "[begin, end]"),
        ({"dtype": "F32"}, "dtype", "data_offsets"),
        ([1], "[1]", "data_offsets"),
    ],
)
def test_wrong_tensor_entry_is_named(tmp_path: Path, bad: object, got: str, expected: str) -> None:
    error = refused(raw(tmp_path / "a.safetensors", {"good": entry(), "bad": bad}, b"\0" * 8))
    assert "'bad'" in error.what
    assert got in str(error.got)
    assert expected in str(error.expected)


@pytest.mark.parametrize("offsets", [(4, 12), (9, 17)])
def test_overlap_or_gap_between_tensors(tmp_path: Path, offsets: tuple[int, int]) -> None:
    path = raw(tmp_path / "a.safetensors", {"a": entry(), "b": entry(offsets=offsets)}, b"\0" * 20)
    error = refused(path)
    assert "gap or an overlap before its tensor 'b'" in error.what


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    places=st.lists(st.tuples(st.integers(0, 260), st.integers(0, 255)), min_size=1, max_size=4),
    cut=st.integers(0, 7),
)
def test_damage_anywhere_is_a_load_error_or_no_damage(
    tmp_path: Path, places: list[tuple[int, int]], cut: int
) -> None:
    """Whatever bytes change or are lost, reading ends in tensors that fit the file or in a LoadError."""
    path = tmp_path / "a.safetensors"
    save_file(
        {"a.weight": torch.ones(4, 3), "b": torch.zeros(2, dtype=torch.int8)}, path, metadata={"k": "v"}
    )
    content = bytearray(path.read_bytes())
    for place, value in places:
        content[place % len(content)] = value
    path.write_bytes(content[: len(content) - cut])
    try:
        infos, _ = read_header(path)
    except LoadError as error:
        assert str(path) in error.what
        return
    for info in infos.values():
        assert read_tensor(info).nbytes == info.nbytes
