"""Rows as the trainer gets them; arguments and files that cannot be right."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from PIL import Image, ImageChops, ImageStat
from pydantic import ValidationError
from torch.utils.data import DataLoader

from qwenimage_core.errors import LoadError
from qwenimage_training.data.arguments import DataArguments
from qwenimage_training.data.batches import BatchSampler
from qwenimage_training.data.dataset import TrainingDataset
from qwenimage_training.data.dropout import Dropout
from qwenimage_training.data.rows import Row


def dataset(folder, **more) -> TrainingDataset:
    return TrainingDataset(folder.arguments(**more))


def test_defaults_are_the_published_ones() -> None:
    a = DataArguments()
    assert (a.dataset_base_path, a.dataset_metadata_path, a.dataset_repeat) == ("", None, 1)
    assert (a.dataset_num_workers, a.data_file_keys, a.height, a.width) == (0, "image,video", None, None)
    assert a.max_pixels == 1048576


def test_rows_with_and_without_optional_columns(folder) -> None:
    for name in ("a.png", "s.png", "c.png"):
        folder.picture(name)
    folder.jsonl(
        [
            {"prompt": "edit", "image": "a.png", "edit_image": ["s.png", "c.png"], "seed": 3},
            {"prompt": "one", "image": "a.png", "edit_image": "s.png"},
            {"prompt": "plain", "image": "a.png", "edit_image": None},
            {"prompt": "empty", "image": "a.png", "edit_image": []},
        ]
    )
    rows = list(map(dataset(folder, data_file_keys="image,edit_image").__getitem__, range(4)))
    assert [(r.index, r.prompt) for r in rows] == [(0, "edit"), (1, "one"), (2, "plain"), (3, "empty")]
    assert [p.size for p in rows[0].fields["edit_image"]] == [(64, 48), (64, 48)]
    assert rows[0].fields["seed"] == 3
    assert isinstance(rows[1].fields["edit_image"], Image.Image)  # one is one, a list is a list
    assert set(rows[2].fields) == set(rows[3].fields) == {"image"}


def test_columns_that_are_not_files_stay_as_they_are(folder) -> None:
    folder.picture("a.png")
    folder.jsonl([{"prompt": "p", "image": "a.png", "edit_image": "a.png"}])
    assert dataset(folder)[0].fields["edit_image"] == "a.png"


def test_layers_are_rgba_of_one_size(folder) -> None:
    folder.picture("whole.png", (100, 80))
    folder.picture("layer.png", (50, 40), (0, 255, 0, 100), "RGBA")
    folder.jsonl(
        [
            {
                "prompt": "p",
                "image": ["whole.png", "layer.png"],
                "layer_input_image": "whole.png",
                "layer_num": 1,
            }
        ]
    )
    fields = dataset(folder, data_file_keys="image,layer_input_image")[0].fields
    assert [(p.mode, p.size) for p in fields["image"]] == [("RGBA", (96, 80))] * 2
    assert fields["image"][1].getpixel((40, 40)) == (0, 255, 0, 100)
    assert fields["layer_input_image"].mode == "RGBA"
    assert fields["layer_num"] == 1


def test_controls_and_masks_follow_the_target_and_references_do_not(folder) -> None:
    """A target of 200 x 120 at 96 x 96 loses its sides. What lies on its left edge is lost in the control as well."""
    for name, size in (("a.png", (200, 120)), ("control.png", (400, 240)), ("ref.png", (50, 90))):
        drawn = Image.new("RGB", size, "black")
        drawn.paste("white", (0, 0, round(size[0] * 0.3), round(size[1] * 0.4)))
        drawn.save(folder.path / name)
    folder.jsonl(
        [
            {
                "prompt": "p",
                "image": "a.png",
                "blockwise_controlnet_image": "control.png",
                "eligen_entity_masks": ["control.png", "a.png"],
                "edit_image": "ref.png",
                "own_image": "ref.png",
            }
        ]
    )
    keys = "image,blockwise_controlnet_image,eligen_entity_masks,edit_image,own_image"
    fields = dataset(folder, data_file_keys=keys, buckets=True, max_pixels=96 * 96, bucket_step=96)[0].fields
    target = fields["image"]
    # its white corner: 60 of 200 columns, less the 40 cut off, of 120 that are left; 48 of 120 lines
    left, top, right, bottom = target.convert("L").point(lambda value: 255 * (value > 127)).getbbox()
    assert (left, top) == (0, 0)
    assert (right, bottom) == (pytest.approx(96 / 6, abs=1), pytest.approx(96 * 0.4, abs=1))
    for other in (fields["blockwise_controlnet_image"], *fields["eligen_entity_masks"]):
        assert other.size == target.size == (96, 96)
        difference = ImageStat.Stat(ImageChops.difference(other, target)).mean[0]
        assert difference < 255 * (16 + 38) / 96**2  # at most a line of pixels along the edges
    assert fields["edit_image"].size == fields["own_image"].size == (48, 80)  # its own size, floored


def test_a_control_of_another_aspect_is_an_error_unless_it_need_not_fit(folder) -> None:
    folder.picture("a.png", (64, 64))
    folder.picture("m.png", (64, 32))
    folder.jsonl([{"prompt": "p", "image": "a.png", "context_image": "m.png"}])
    with pytest.raises(LoadError, match=r"row 1.*context_image.*does not fit"):
        dataset(folder, data_file_keys="image,context_image")[0]
    free = dataset(folder, data_file_keys="image,context_image", aligned_fields="image")
    assert free[0].fields["context_image"].size == (64, 32)


def test_an_own_column_can_be_aligned(folder) -> None:
    folder.picture("a.png", (64, 64))
    folder.picture("d.png", (640, 640))
    folder.jsonl([{"prompt": "p", "image": "a.png", "own_depth": "d.png"}])
    keys = "image,own_depth"
    assert dataset(folder, data_file_keys=keys)[0].fields["own_depth"].size == (640, 640)
    assert dataset(folder, data_file_keys=keys, aligned_fields="own_*")[0].fields["own_depth"].size == (
        64,
        64,
    )


def test_fixed_size_holds_for_all(folder) -> None:
    folder.picture("a.png", (640, 64))
    folder.jsonl([{"prompt": "p", "image": "a.png", "edit_image": "a.png"}])
    found = dataset(folder, height=32, width=48, data_file_keys="image,edit_image")
    assert found.sizes() == [(48, 32)]
    assert {p.size for p in (found[0].fields["image"], found[0].fields["edit_image"])} == {(48, 32)}


def test_repeats_and_sizes(folder) -> None:
    folder.picture("a.png", (100, 50))
    folder.picture("b.png", (64, 64))
    folder.jsonl([{"prompt": "p", "image": "a.png"}, {"prompt": "q", "image": "b.png"}])
    found = dataset(folder, dataset_repeat=3)
    assert len(found) == 6
    assert [found[i].prompt for i in range(6)] == ["p", "q"] * 3
    assert [found[i].index for i in range(6)] == list(range(6))
    assert found.sizes() == [found[i].fields["image"].size for i in range(6)] == [(96, 48), (64, 64)] * 3
    assert found.name_of(3) == "metadata.jsonl, row 2 (line 2) (b.png)"
    with pytest.raises(IndexError):
        found[6]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_gives_batches_of_one_size(folder, workers: int) -> None:
    rows = [
        {"prompt": str(i), "image": folder.picture(f"{i}.png", (64, 64) if i % 3 else (96, 32), (i, 0, 0))}
        for i in range(8)
    ]
    folder.jsonl(rows)
    found = dataset(folder, dataset_repeat=2, dataset_num_workers=workers)
    sampler = BatchSampler(found.sizes(), 3, seed=1)
    loader = DataLoader(found, batch_sampler=sampler, collate_fn=list, num_workers=workers)
    batches = list(loader)
    assert [[row.index for row in batch] for batch in batches] == list(sampler)
    assert len(loader) == len(batches)
    for batch in batches:
        assert len({row.fields["image"].size for row in batch}) == 1
        for row in batch:
            assert row.prompt == str(row.index % 8)
            assert row.fields["image"].getpixel((0, 0)) == (row.index % 8, 0, 0)


def test_the_digest_follows_rows_and_files(folder) -> None:
    folder.picture("a.png")
    folder.jsonl([{"prompt": "p", "image": "a.png"}])
    first = dataset(folder).digest()
    assert dataset(folder, max_pixels=4096).digest() == first
    os.utime(folder.path / "a.png", ns=(1, 1))
    touched = dataset(folder).digest()
    folder.jsonl([{"prompt": "q", "image": "a.png"}])
    assert len({first, touched, dataset(folder).digest()}) == 3


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("/etc/hostname", "leaves the dataset's folder"),
        ("../secret.png", "leaves the dataset's folder"),
        ("sub/../../secret.png", "leaves the dataset's folder"),
        ("C:\\secret.png", "leaves the dataset's folder"),
        ("link.png", "a link to"),
        ("none.png", "no such file"),
        ("https://example.org/a.png", "not fetched"),
        ("a\0.png", "no file name"),
        (3, "no file name"),
        (["a.png", None], "no file name"),
    ],
)
def test_files_stay_inside_the_root(folder, name, said: str) -> None:
    folder.picture("../secret.png")
    folder.picture("a.png")
    (folder.path / "link.png").symlink_to("../secret.png")
    folder.jsonl([{"prompt": "p", "image": "a.png"}, {"prompt": "p", "image": name}])
    with pytest.raises(LoadError, match=r"row 2 \(line 2\), image") as caught:
        dataset(folder)
    assert said in str(caught.value)
    assert caught.value.mend


def test_links_inside_the_root_are_followed(folder) -> None:
    folder.picture("a.png")
    (folder.path / "link.png").symlink_to("a.png")
    folder.jsonl([{"prompt": "p", "image": "link.png"}])
    assert dataset(folder)[0].fields["image"].size == (64, 48)


def test_a_root_that_is_not_there(tmp_path) -> None:
    with pytest.raises(LoadError, match="--dataset_base_path"):
        TrainingDataset(DataArguments(dataset_base_path=str(tmp_path / "none")))


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"data_file_keys": "image,edit_imgae"}, "did you mean edit_image"),
        (
            {"data_file_keys": "image,edit_image", "aligned_fields": "edit_pictures"},
            "did you mean edit_image",
        ),
        ({"condition_dropout": 0.1, "condition_fields": "depth"}, "condition_fields names depth"),
        ({"condition_dropout": 0.1, "condition_fields": "*"}, "leave out the target"),
    ],
)
def test_names_that_no_row_has_are_errors(folder, more, said: str) -> None:
    folder.picture("a.png")
    folder.jsonl([{"prompt": "p", "image": "a.png", "edit_image": "a.png"}])
    with pytest.raises(LoadError) as caught:
        dataset(folder, **more)
    assert said in str(caught.value)


def test_condition_dropout_needs_conditions(folder) -> None:
    folder.picture("a.png")
    folder.jsonl([{"prompt": "p", "image": "a.png"}])
    with pytest.raises(LoadError, match="nothing to leave out"):
        dataset(folder, condition_dropout=0.1)


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ({"height": 64}, "height alone does nothing"),
        ({"width": 64}, "width alone does nothing"),
        ({"height": 70, "width": 64}, "no multiple of 16"),
        ({"height": 0, "width": 64}, "greater than or equal to 16"),
        ({"data_file_keys": "edit_image"}, "must name image"),
        ({"bucket_step": 32}, "without buckets"),
        ({"buckets": True, "height": 64, "width": 64}, "buckets do nothing"),
        ({"buckets": True, "max_pixels": 1024}, "lower the step"),
        ({"height": 64, "width": 64, "max_pixels": 256}, "max_pixels 256 does nothing"),
        ({"condition_fields": "edit_image"}, "without condition_dropout"),
        ({"caption_dropout": 1.5}, "less than or equal to 1"),
        ({"dataset_repeat": 0}, "greater than or equal to 1"),
        ({"dataset_bas_path": "x"}, "Extra inputs"),
    ],
)
def test_arguments_that_could_not_act_are_refused(bad, said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        DataArguments(**bad)


CONDITIONS = {"edit_image": 1, "eligen_entity_prompts": ["x"], "seed": 7, "layer_num": 1}


def row(index: int) -> Row:
    own = Image.new("RGB", (16, 16))
    return Row(index, "p", {"image": own, "layer_input_image": own, "own_image": [own], **CONDITIONS})


def test_dropout_is_a_matter_of_seed_epoch_and_row_alone() -> None:
    drop = Dropout.of(DataArguments(caption_dropout=0.3, condition_dropout=0.2), seed=5)
    there = [drop(row(i), epoch) for epoch in (0, 1) for i in range(1000)]
    back = [drop(row(i), epoch) for epoch in (1, 0) for i in reversed(range(1000))]
    kept = [(r.prompt, sorted(r.fields)) for r in there]
    assert kept == [(r.prompt, sorted(r.fields)) for r in reversed(back)]
    assert kept[:1000] != kept[1000:]
    assert sum(r.prompt == "" for r in there) / 2000 == pytest.approx(0.3, abs=0.04)
    assert sum("edit_image" not in r.fields for r in there) / 2000 == pytest.approx(0.2, abs=0.04)
    both = sum(r.prompt == "" and "edit_image" not in r.fields for r in there) / 2000
    assert both == pytest.approx(0.06, abs=0.03)  # drawn apart


def test_condition_dropout_leaves_out_all_of_a_condition_and_nothing_of_the_target() -> None:
    dropped = Dropout.of(DataArguments(condition_dropout=1), seed=0)(row(0), 0)
    assert set(dropped.fields) == {"image", "layer_input_image", "layer_num", "seed"}
    assert dropped.prompt == "p"
    named = Dropout.of(DataArguments(condition_dropout=1, condition_fields="own_*"), seed=0)(row(0), 0)
    assert set(named.fields) == {"image", "layer_input_image", *CONDITIONS}
    assert Dropout.of(DataArguments(), seed=0)(row(0), 0) == row(0)


def test_importing_the_data_side_is_light() -> None:
    modules = "arguments, metadata, files, pictures, rows, buckets, batches, dropout, columns, captions"
    code = (
        f"import sys; from qwenimage_training.data import {modules}; "
        "print(*(m for m in ('torch', 'transformers', 'numpy', 'pandas') if m in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
