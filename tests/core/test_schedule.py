"""Noise levels against figures computed with the peers' schedulers (diffusers 0.42.1, DiffSynth-Studio 2.1.12)."""

from __future__ import annotations

from itertools import pairwise
from math import log

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenimage_core.schedule import few_step, published, published_mu


@pytest.mark.parametrize(
    ("tokens", "mu"), [(1024, 0.53871), (4096, 0.693548), (6032, 0.791129), (6889, 0.834325)]
)
def test_shift_by_size(tokens: int, mu: float) -> None:
    assert published_mu(tokens) == pytest.approx(mu, abs=1e-6)


def test_published_levels_at_1328() -> None:
    sigmas = published(steps=15, tokens=6889)
    expected = [
        1,
        0.9656728,
        0.9285445,
        0.8882576,
        0.8443912,
        0.7964461,
        0.7438256,
        0.6858107,
        0.6215273,
        0.5499011,
    ]
    assert sigmas[:10] == pytest.approx(expected, abs=2e-7)
    assert sigmas[10:] == pytest.approx([0.4695981, 0.3789398, 0.2757853, 0.1573594, 0.02, 0], abs=2e-7)


def test_strength_starts_lower_and_keeps_the_number_of_steps() -> None:
    sigmas = published(steps=10, tokens=4096, strength=0.6)
    assert len(sigmas) == 11
    assert sigmas[:3] == pytest.approx([0.7237940, 0.6699811, 0.6118028], abs=2e-7)
    assert sigmas[-2] == pytest.approx(0.02)


def test_given_mu_replaces_the_one_by_size() -> None:
    assert published(steps=3, tokens=4096, mu=log(2.5)) == pytest.approx([1, 0.6325, 0.02, 0], abs=1e-6)


@pytest.mark.parametrize(
    ("steps", "expected"),
    [(4, [1, 0.9, 0.75, 0.5, 0]), (8, [1, 0.954545, 0.9, 0.833333, 0.75, 0.642857, 0.5, 0.3, 0])],
)
def test_few_step_levels(steps: int, expected: list[float]) -> None:
    assert few_step(steps=steps, tokens=4096) == pytest.approx(expected, abs=1e-6)


@given(st.integers(1, 200), st.integers(4, 60000), st.floats(0.01, 1))
def test_levels_always_fall_to_zero(steps: int, tokens: int, strength: float) -> None:
    for schedule in (published, few_step):
        sigmas = schedule(steps=steps, tokens=tokens, strength=strength)
        assert len(sigmas) == steps + 1
        assert 0 < sigmas[0] <= 1 and sigmas[-1] == 0
        assert all(a > b for a, b in pairwise(sigmas))
