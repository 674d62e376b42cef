"""The record in a picture: complete, the same in every format, refused when damaged, and never half written."""

from __future__ import annotations

import errno
import json
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from pydantic import BaseModel

from qwenimage_core.errors import LoadError, QwenImageError
from qwenimage_core.metadata import (
    AdapterUsed,
    ModelUsed,
    PictureMetadata,
    PluginUsed,
    describe,
    find_picture,
    picture_digest,
)
from qwenimage_core.picture_files import read_metadata, save_picture
from qwenimage_core.request import CoreRequest, FieldsModel, Picture

FORMATS = ["png", "jpg", "jpeg", "webp"]


class Extra(CoreRequest):
    """A request with what plugins add: lists of pictures, nested models, things without a text form."""

    references: list[Picture] | None = None
    control: BaseModel | None = None
    strange: object = None


def record(request: CoreRequest | None = None, **more) -> PictureMetadata:
    request = request or CoreRequest(prompt="a red circle, “ü” 漢", height=64, width=48, cfg_scale=3.5)
    settings = {
        "prompt": request.prompts[0],
        "seed": 7,
        "plugins": [PluginUsed(name="edit", version="0.3.1", distribution="qwenimage-edit")],
        "model": ModelUsed(source="tiny", dtype="float32", device="cpu"),
        "components": {"transformer": "sha256:aa", "vae": "sha256:bb"},
        "adapters": [AdapterUsed(name="style", source="s.safetensors", digest="sha256:cc", strength=0.7)],
    }
    return describe(request, **settings | more)


def picture(size: tuple[int, int] = (48, 64), mode: str = "RGB") -> Image.Image:
    return Image.effect_mandelbrot(size, (-2, -1.5, 1, 1.5), 60).convert(mode)


def png_with(path: Path, text: str | None) -> Path:
    info = PngInfo()
    if text is not None:
        info.add_itxt("qwenimage", text)
    picture().save(path, pnginfo=info)
    return path


@pytest.mark.parametrize("suffix", FORMATS)
def test_what_is_written_is_read(tmp_path: Path, suffix: str) -> None:
    path = save_picture(picture(), tmp_path / f"a.{suffix}", record())
    assert read_metadata(path) == record()
    assert [p.name for p in tmp_path.iterdir()] == [f"a.{suffix}"]


@pytest.mark.parametrize("suffix", ["png", "webp"])
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_lossless_formats_keep_every_pixel(tmp_path: Path, suffix: str, mode: str) -> None:
    drawn = picture(mode=mode)
    if mode == "RGBA":
        drawn.putalpha(
            Image.linear_gradient("L").resize(drawn.size)
        )  # from 0, where colour is easily lost, to 255
    with Image.open(save_picture(drawn, tmp_path / f"a.{suffix}", record())) as kept:
        assert kept.mode == mode and kept.tobytes() == drawn.tobytes()


def test_every_value_that_was_used_is_in_the_record() -> None:
    request = CoreRequest(prompt=["one", "two"], seed=5, num_images_per_prompt=3, height=64, width=48)
    found = record(request, prompt="two", seed=6)
    fields = {name for name, field in CoreRequest.model_fields.items() if not field.exclude}
    assert set(found.request) == fields
    assert (found.request["prompt"], found.request["seed"], found.request["num_images_per_prompt"]) == (
        "two",
        6,
        1,
    )
    assert (found.request["num_inference_steps"], found.request["cfg_scale"]) == (30, 4.0)
    assert set(found.given) == {"prompt", "seed", "height", "width", "num_inference_steps", "cfg_scale"}


def test_the_versions_are_those_of_the_installed_distributions() -> None:
    import torch

    from qwenimage_core import __version__

    versions = record().versions
    assert versions.pop("transformers")[0].isdigit()
    assert versions == {"qwenimage-core": __version__, "torch": torch.__version__}


def test_input_pictures_are_recorded_by_path_and_pixels(tmp_path: Path) -> None:
    path = tmp_path / "in.png"
    picture().save(path)
    found = record(
        Extra(prompt="x", input_image=path, denoising_strength=0.5, references=[str(path), picture((8, 8))])
    )
    reference = {"path": str(path), "sha256": picture_digest(picture())}
    assert found.request["input_image"] == {"$picture": reference}
    unnamed = {"path": None, "sha256": picture_digest(picture((8, 8)))}
    assert found.request["references"] == [{"$picture": reference}, {"$picture": unnamed}]
    assert {"input_image", "references"} <= set(found.given)


def test_nested_models_are_recorded_and_strange_values_are_named() -> None:
    class Control(FieldsModel):
        scale: float = 0.5
        start: int = 1

    found = record(Extra(prompt="x", control=Control(), strange=object()))
    assert found.request["control"] == {"scale": 0.5, "start": 1}
    assert found.unrecorded == ("strange",)


def test_where_a_plugins_weights_are_is_recorded_as_it_was_given() -> None:
    """A LoRA given as a ModelConfig: what is recorded gives the same ModelConfig again."""
    from qwenimage_core import ModelConfig

    for config in (
        ModelConfig(path="a.safetensors"),
        ModelConfig(model_id="a/b", origin_file_pattern="c.safetensors"),
    ):
        recorded = record(Extra(prompt="x", control=config)).request["control"]
        assert ModelConfig(**json.loads(json.dumps(recorded))) == config


def test_png_also_says_it_in_plain_text(tmp_path: Path) -> None:
    request = CoreRequest(prompt="a cat", negative_prompt="a dog", height=64, width=48)
    with Image.open(save_picture(picture(), tmp_path / "a.png", record(request))) as kept:
        text = kept.text["parameters"]
    assert text.splitlines()[:2] == ["a cat", "Negative prompt: a dog"]
    assert "Seed: 7" in text and "Size: 48x64" in text


def test_long_prompts_fit_png_and_webp_and_are_refused_by_jpeg_with_the_reason(tmp_path: Path) -> None:
    long = record(CoreRequest(prompt="word " * 20_000))
    for suffix in ("png", "webp"):
        assert read_metadata(save_picture(picture(), tmp_path / f"a.{suffix}", long)) == long
    with pytest.raises(QwenImageError, match="too long to be written into JPEG"):
        save_picture(picture(), tmp_path / "a.jpg", long)
    assert not (tmp_path / "a.jpg").exists()


class TestSaving:
    def test_nothing_is_replaced_unless_said(self, tmp_path: Path) -> None:
        path = tmp_path / "a.png"
        path.write_bytes(b"precious")
        with pytest.raises(QwenImageError, match="exists already"):
            save_picture(picture(), path, record())
        assert path.read_bytes() == b"precious"
        save_picture(picture(), path, record(), overwrite=True)
        assert read_metadata(path) == record()

    def test_the_folder_must_be_there(self, tmp_path: Path) -> None:
        with pytest.raises(QwenImageError, match="no folder") as caught:
            save_picture(picture(), tmp_path / "new" / "a.png", record())
        assert caught.value.mend == f"mkdir -p {tmp_path / 'new'}"

    @pytest.mark.parametrize("name", ["a.gif", "a", "a.png.txt"])
    def test_other_suffixes_are_refused(self, tmp_path: Path, name: str) -> None:
        with pytest.raises(QwenImageError, match="no suffix of a picture"):
            save_picture(picture(), tmp_path / name, record())

    def test_jpeg_refuses_alpha(self, tmp_path: Path) -> None:
        with pytest.raises(QwenImageError, match="JPEG cannot hold"):
            save_picture(picture(mode="RGBA"), tmp_path / "a.jpg", record())
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        "failure", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()]
    )
    @pytest.mark.parametrize("overwrite", [False, True])
    def test_a_full_disk_or_ctrl_c_leaves_nothing_new(
        self, tmp_path, monkeypatch, failure, overwrite
    ) -> None:
        path = tmp_path / "a.png"
        if overwrite:
            path.write_bytes(b"old")

        def half(self, file, **settings):
            file.write(b"half a picture")
            raise failure

        monkeypatch.setattr(Image.Image, "save", half)
        with pytest.raises((QwenImageError, KeyboardInterrupt)) as caught:
            save_picture(picture(), path, record(), overwrite=overwrite)
        assert isinstance(failure, KeyboardInterrupt) or "No space left" in str(caught.value)
        assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == (
            [("a.png", b"old")] if overwrite else []
        )

    def test_a_full_disk_for_real(self, tmp_path: Path) -> None:
        """A file size limit is the nearest to a full disk that needs no rights: writing fails half way."""
        code = f"""
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
from PIL import Image
from qwenimage_core.errors import QwenImageError
from qwenimage_core.metadata import *
from qwenimage_core.picture_files import *
from qwenimage_core.request import CoreRequest
record = describe(CoreRequest(prompt="x"), prompt="x", seed=1, plugins=[], components={{}},
                  model=ModelUsed(source="t", dtype="float32", device="cpu"))
try:
    save_picture(Image.effect_noise((256, 256), 90), {str(tmp_path / "a.png")!r}, record)
except QwenImageError as error:
    print(error)
"""
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert "cannot be written" in done.stdout
        assert list(tmp_path.iterdir()) == []


class TestReading:
    """A picture may come from anywhere: whatever is in it, the answer is a record or an error in words."""

    def test_no_file(self, tmp_path: Path) -> None:
        with pytest.raises(LoadError, match="no picture at"):
            read_metadata(tmp_path / "a.png")

    def test_no_picture(self, tmp_path: Path) -> None:
        (tmp_path / "a.png").write_text("hello")
        with pytest.raises(LoadError, match="cannot be read as a picture"):
            read_metadata(tmp_path / "a.png")

    @pytest.mark.parametrize("suffix", FORMATS)
    def test_no_record(self, tmp_path: Path, suffix: str) -> None:
        picture().save(tmp_path / f"a.{suffix}")
        with pytest.raises(LoadError, match="no record of how it was made"):
            read_metadata(tmp_path / f"a.{suffix}")

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("{not json", "damaged"),
            ("[" * 100_000, "damaged"),
            ("[]", "not ours"),
            ("{}", "not ours"),
            ('{"format": 1}', "not ours"),
            ('{"format": "1"}', "not ours"),
            ('{"format": 2}', "another format"),
            ('{"format": 0}', "another format"),
        ],
    )
    def test_damaged_and_foreign_records(self, tmp_path: Path, text: str, said: str) -> None:
        with pytest.raises(LoadError, match=said) as caught:
            read_metadata(png_with(tmp_path / "a.png", text))
        assert len(str(caught.value)) < 3000

    def test_a_newer_format_asks_for_an_upgrade(self, tmp_path: Path) -> None:
        with pytest.raises(LoadError) as caught:
            read_metadata(png_with(tmp_path / "a.png", '{"format": 2}'))
        assert caught.value.mend == "pip install --upgrade qwenimage-core"

    @pytest.mark.parametrize(
        "change",
        [
            {"request": []},
            {"components": {"vae": 3}},
            {"output": -1},
            {"model": None},
            {"surprise": 1},
            {"given": "prompt"},
            {"plugins": [{"name": "x" * 10_000, "version": "1"}]},
        ],
    )
    def test_wrong_kinds_and_absurd_sizes(self, tmp_path: Path, change: dict) -> None:
        content = json.loads(record().to_json()) | change
        with pytest.raises(LoadError, match="not ours"):
            read_metadata(png_with(tmp_path / "a.png", json.dumps(content)))

    def test_a_megabyte_of_record_is_refused(self, tmp_path: Path) -> None:
        content = json.loads(record().to_json())
        content["request"]["prompt"] = "x" * 2_000_000
        with pytest.raises(LoadError, match="absurd size"):
            read_metadata(png_with(tmp_path / "a.png", json.dumps(content)))

    def test_a_compressed_bomb_is_refused(self, tmp_path: Path) -> None:
        """64 MB of spaces in a few kB: the chunk says it is compressed, and the reader must stop in time."""
        path = png_with(tmp_path / "a.png", None)
        body = b"qwenimage\0\1\0\0\0" + zlib.compress(b" " * 64_000_000)
        chunk = struct.pack(">I", len(body)) + b"iTXt" + body + struct.pack(">I", zlib.crc32(b"iTXt" + body))
        content = path.read_bytes()
        path.write_bytes(content[:33] + chunk + content[33:])  # after signature and IHDR
        with pytest.raises(LoadError):
            read_metadata(path)

    @pytest.mark.parametrize("suffix", FORMATS)
    def test_a_cut_off_file_is_a_record_or_an_error(self, tmp_path: Path, suffix: str) -> None:
        path = save_picture(picture(), tmp_path / f"a.{suffix}", record())
        whole = path.read_bytes()
        for size in (0, 10, 40, 200, len(whole) // 2):
            path.write_bytes(whole[:size])
            try:
                assert read_metadata(path) == record()
            except LoadError as error:
                assert str(path) in str(error)


class TestInputPictures:
    def reference(self, path: str | None, source: Image.Image) -> dict:
        return {"path": path, "sha256": picture_digest(source)}

    def test_found_from_here_or_beside_the_picture(self, tmp_path: Path, monkeypatch) -> None:
        picture().save(tmp_path / "in.png")
        reference = self.reference("in.png", picture())
        assert find_picture(reference, tmp_path).tobytes() == picture().tobytes()
        monkeypatch.chdir(tmp_path)
        assert find_picture(reference, Path("elsewhere")).tobytes() == picture().tobytes()

    def test_another_picture_under_the_same_name_is_refused(self, tmp_path: Path) -> None:
        picture((32, 32)).save(tmp_path / "in.png")
        with pytest.raises(LoadError, match="other pixels"):
            find_picture(self.reference("in.png", picture()), tmp_path)

    def test_a_missing_file_and_an_unnamed_picture(self, tmp_path: Path) -> None:
        with pytest.raises(LoadError, match="not there as it was"):
            find_picture(self.reference("gone.png", picture()), tmp_path)
        with pytest.raises(LoadError, match="given as an object"):
            find_picture(self.reference(None, picture()), tmp_path)

    def test_the_digest_is_of_pixels_not_of_files(self, tmp_path: Path) -> None:
        for name in ("a.png", "a.webp", "a.bmp"):
            settings = {"lossless": True} if name.endswith("webp") else {}
            picture().save(tmp_path / name, **settings)
            with Image.open(tmp_path / name) as kept:
                assert picture_digest(kept) == picture_digest(picture())
        changed = picture()
        changed.putpixel((0, 0), (1, 2, 3))
        assert picture_digest(changed) != picture_digest(picture())
