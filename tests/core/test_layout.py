"""Positions and order of segments. Expected numbers are those of the published models (worked by hand)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenimage_core.errors import RequestError
from qwenimage_core.layout import Grid, Layout, Segment, centred, spread


def text(tokens: int, name: str = "prompt") -> Segment:
    return Segment(name=name, owner="core", kind="text", tokens=tokens)


def image(name: str, height: int, width: int, frames: int = 1, **rules: object) -> Segment:
    grid = Grid(height=height, width=width, frames=frames)
    return Segment(name=name, owner="test", kind="image", tokens=grid.tokens, grid=grid, **rules)  # type: ignore[arg-type]


def test_one_picture_is_centred_and_text_starts_after_half_its_longest_side() -> None:
    positions = Layout((text(2), image("noise", 4, 3))).positions()
    assert positions[:2] == [(2, 2, 2), (3, 3, 3)]
    assert positions[2:5] == [(0, -2, -2), (0, -2, -1), (0, -2, 0)]
    assert positions[-1] == (0, 1, 0)


def test_a_larger_reference_moves_the_text_start_and_takes_the_next_frame() -> None:
    positions = Layout((text(1), image("noise", 4, 3), image("edit/1", 10, 6))).positions()
    assert positions[0] == (5, 5, 5)
    assert positions[13] == (1, -5, -3)


def test_every_text_segment_starts_at_the_same_position() -> None:
    positions = Layout((text(2, "entity/1"), text(3), image("noise", 4, 4))).positions()
    assert [p[0] for p in positions[:5]] == [2, 3, 2, 3, 4]


def test_layers_take_frames_in_order_and_a_fixed_frame_takes_none() -> None:
    layout = Layout(
        (text(1), image("noise", 4, 3, frames=3), image("context", 4, 3), image("layers", 4, 3, frame=-1)),
        rule="layer3d",
    )
    frames = [p[0] for p in layout.positions()[1:]]
    assert [frames[i * 12] for i in range(5)] == [0, 1, 2, 3, -1]
    assert layout.positions()[0][0] == 4  # five pictures: 5 - 1 is above half of four rows


def test_spread_samples_the_target_grid_as_the_published_model_does() -> None:
    assert spread(4, 8) == [-4, -2, 0, 3]
    assert spread(3, 6) == [-3, -1, 2]
    layout = Layout((text(1), image("noise", 8, 6), image("edit/1", 4, 3, onto="noise")))
    assert layout.positions()[49] == (1, -4, -3)
    assert layout.positions()[-1] == (1, 3, 2)


@given(st.integers(1, 200), st.integers(1, 200))
def test_spread_stays_on_the_target_and_never_falls(n: int, onto: int) -> None:
    places = spread(n, onto)
    assert len(places) == n and places == sorted(places)
    assert set(places) <= set(centred(onto))
    if n == onto:
        assert places == list(centred(onto))


def test_spread_follows_the_published_float32_positions() -> None:
    """As torch.linspace(0, onto - 1, n) cut to integers, which DiffSynth-Studio computes; 3 -> 15 differs from exact
    arithmetic."""
    torch = pytest.importorskip("torch")
    for n in range(2, 70):
        for onto in range(1, 70):
            published = torch.linspace(0, onto - 1, n).long().tolist()
            assert spread(n, onto) == [centred(onto)[place] for place in published], (n, onto)


def test_slices_cut_the_sequences_without_gap_or_overlap() -> None:
    layout = Layout((text(2, "a"), text(3), image("noise", 4, 3), image("x", 2, 2), image("y", 2, 3)))
    joint = [layout.joint_slice(s.name) for s in layout.segments]
    assert [(s.start, s.stop) for s in joint] == [(0, 2), (2, 5), (5, 17), (17, 21), (21, 27)]
    assert layout.image_slice("noise") == slice(0, 12)
    assert layout.tokens == 27 == len(layout.positions())


def test_neighbours_at_time_zero_are_one_run() -> None:
    zero = {"timestep": "zero"}
    layout = Layout((text(1), image("noise", 2, 2), image("a", 2, 2, **zero), image("b", 2, 3, **zero)))
    assert layout.zero_slices == (slice(4, 14),)
    apart = Layout(
        (text(1), image("noise", 2, 2), image("a", 2, 2, **zero), image("n", 2, 2), image("b", 2, 3, **zero))
    )
    assert apart.zero_slices == (slice(4, 8), slice(12, 18))


@pytest.mark.parametrize(
    ("segments", "says"),
    [
        ((text(1), text(2), image("noise", 2, 2)), "different names"),
        ((image("noise", 2, 2), text(1)), "come before"),
        ((text(1), image("edit/1", 2, 2)), "first image segment must be 'noise'"),
    ],
)
def test_wrong_orders_are_refused(segments: tuple[Segment, ...], says: str) -> None:
    with pytest.raises(RequestError, match=says):
        Layout(segments)


def test_a_grid_that_does_not_hold_its_tokens_is_refused() -> None:
    with pytest.raises(RequestError, match="needs a grid"):
        Segment(name="noise", owner="core", kind="image", tokens=5, grid=Grid(height=2, width=2))
