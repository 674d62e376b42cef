"""The rotary embedding against its formula in complex float64, and the properties that the model relies on."""

import cmath

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenimage_core.models.rope import rope_tables

AXES = (4, 6, 6)
PLACE = st.tuples(*[st.integers(-9000, 9000)] * 3)


def tables(*positions):
    return rope_tables(torch.tensor(positions), AXES)


@given(PLACE)
@settings(max_examples=30, deadline=None)
def test_each_pair_is_turned_by_the_formula(position):
    """Positions of either sign, beyond the 4096 of the peers' tables; adjacent channels are one pair."""
    x = torch.randn(16, generator=torch.Generator().manual_seed(0))
    angles = [
        p * 10000 ** (-2 * j / dim) for p, dim in zip(position, AXES, strict=True) for j in range(dim // 2)
    ]
    expected = []
    for pair, angle in zip(x.double().view(-1, 2).tolist(), angles, strict=True):
        turned = complex(*pair) * cmath.exp(1j * angle)
        expected += [turned.real, turned.imag]
    found = tables(position).apply(x.view(1, 1, 1, 16)).flatten()
    torch.testing.assert_close(found.double(), torch.tensor(expected, dtype=torch.float64), atol=2e-3, rtol=0)


def test_scores_depend_on_differences_of_positions_only():
    q, k = torch.randn(1, 1, 1, 16), torch.randn(1, 1, 1, 16)

    def score(a, b):
        return (tables(a).apply(q) * tables(b).apply(k)).sum()

    torch.testing.assert_close(
        score((1, -4, 3), (2, 5, -6)), score((11, 16, 3), (12, 25, -6)), atol=1e-5, rtol=0
    )


def test_rows_are_those_of_the_whole():
    rope = tables((0, 0, 0), (1, 2, 3), (4, 5, 6))
    x = torch.randn(1, 2, 3, 16)
    torch.testing.assert_close(rope.rows(1, 3).apply(x[:, :, 1:]), rope.apply(x)[:, :, 1:], atol=0, rtol=0)
    assert len(rope) == 3


def test_bfloat16_input_is_turned_in_float32_and_comes_back_as_bfloat16():
    x = torch.randn(1, 1, 1, 16).bfloat16()
    rope = tables((3, 700, -700))
    assert rope.cos_SD.dtype == torch.float32
    assert torch.equal(rope.apply(x), rope.apply(x.float()).bfloat16())


def test_positions_of_a_wrong_form_are_errors():
    with pytest.raises(ValueError, match="shape"):
        rope_tables(torch.zeros(4, 2, dtype=torch.long), AXES)
    with pytest.raises(ValueError, match="integers"):
        rope_tables(torch.zeros(4, 3), AXES)
