"""The loop and guidance, on velocities whose answer is known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from qwenimage_core import QwenImagePipeline, Residual, hookimpl
from qwenimage_core.errors import DenoiseError
from qwenimage_core.inputs import Blend
from qwenimage_core.loop import denoise, guide
from qwenimage_core.schedule import published

from .example_plugins import Nudge


def test_the_true_velocity_lands_on_the_picture() -> None:
    picture, noise = torch.randn(2, 1, 6, 4, generator=torch.Generator().manual_seed(1))
    x = denoise(lambda x, step: noise - picture, noise, published(steps=7, tokens=4096))
    torch.testing.assert_close(x, picture, rtol=1e-5, atol=1e-5)


def test_half_precision_velocities_accumulate_in_float32() -> None:
    x = denoise(
        lambda x, step: torch.full_like(x, 1e-3).bfloat16(), torch.ones(1, 2, 4), [1.0, 0.9995, 0.999, 0.0]
    )
    assert x.dtype == torch.float32
    assert (x != 1).all() and x.max() < 1  # a bfloat16 sum would have stayed at 1


def test_blend_keeps_the_black_part_exactly() -> None:
    start, noise = torch.randn(2, 1, 6, 4, generator=torch.Generator().manual_seed(2))
    redraw = torch.zeros(1, 6, 4)
    redraw[:, 3:] = 1
    x = denoise(
        lambda x, step: torch.randn_like(x),
        noise,
        published(steps=9, tokens=4096),
        blend=Blend(start, redraw),
    )
    torch.testing.assert_close(x[:, :3], start[:, :3], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(x[:, 3:], start[:, 3:], atol=0.1)


def test_values_that_are_not_finite_stop_the_run_at_once() -> None:
    seen = []

    def velocity(x: torch.Tensor, step: int) -> torch.Tensor:
        seen.append(step)
        return torch.full_like(x, float("nan") if step == 1 else 0.0)

    with pytest.raises(DenoiseError, match="after step 2 of 4") as error:
        denoise(velocity, torch.zeros(1, 2, 4), [1.0, 0.7, 0.5, 0.2, 0.0])
    assert seen == [0, 1]
    assert "8 of 8 values" in str(error.value)


def test_values_that_are_not_finite_name_what_was_active(
    make_pipe: Callable[..., QwenImagePipeline], small: dict[str, Any]
) -> None:
    class Broken(Nudge):
        @hookimpl
        def residual_inject(self) -> list[Residual]:
            return [
                Residual(name="push", delta=lambda block, step, tokens: tokens * float("nan"), steps=(1,))
            ]

    with pytest.raises(DenoiseError, match="after step 2 of 3") as error:
        make_pipe(Broken())("x", **small, nudge=1.0)
    assert "with plugin nudge" in str(error.value.got)
    with pytest.raises(DenoiseError) as error:
        denoise(lambda x, step: x / 0, torch.ones(1, 2, 4), [1.0, 0.0], active=["adapter style"])
    assert "with adapter style" in str(error.value.got)


def test_reports_show_the_guess_of_the_finished_picture() -> None:
    picture, noise = torch.randn(2, 1, 6, 4, generator=torch.Generator().manual_seed(3))
    guesses = []
    denoise(
        lambda x, step: noise - picture,
        noise,
        [1.0, 0.6, 0.0],
        after_step=lambda step, x, guess: guesses.append(guess),
    )
    for guess in guesses:
        torch.testing.assert_close(guess, picture, rtol=1e-5, atol=1e-5)


def test_guidance_extrapolates_and_normalization_keeps_the_norm_of_each_token() -> None:
    positive, negative = torch.randn(2, 1, 5, 8, generator=torch.Generator().manual_seed(4))
    torch.testing.assert_close(guide(positive, negative, 1.0), positive)
    torch.testing.assert_close(guide(positive, negative, 3.0), 3 * positive - 2 * negative)
    normalized = guide(positive, negative, 3.0, normalize=True)
    torch.testing.assert_close(normalized.norm(dim=-1), positive.norm(dim=-1))
