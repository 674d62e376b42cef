"""Packing, noise and the mask of what is redrawn."""

from __future__ import annotations

import torch
from PIL import Image

from qwenimage_core.latents import draw_noise, pack, redraw_mask, unpack
from qwenimage_core.layout import Grid


def test_channels_of_a_token_are_latent_channel_then_row_then_column() -> None:
    z = torch.arange(2 * 4 * 4.0).view(1, 1, 2, 4, 4)  # channel 1 holds 16..31
    x = pack(z)
    assert x.shape == (1, 4, 8)
    assert x[0, 0].tolist() == [0, 1, 4, 5, 16, 17, 20, 21]
    assert x[0, 1, :4].tolist() == [2, 3, 6, 7]  # tokens run along a row


def test_unpack_is_the_inverse_for_several_pictures_and_frames() -> None:
    z = torch.randn(2, 3, 16, 4, 6)
    assert torch.equal(unpack(pack(z), Grid(height=2, width=3, frames=3)), z)


def test_noise_of_a_seed_does_not_depend_on_its_neighbours() -> None:
    shape = (1, 16, 4, 4)
    batch = draw_noise([7, 8], shape, dtype=torch.float32, device="cpu")
    assert torch.equal(batch[1:], draw_noise([8], shape, dtype=torch.float32, device="cpu"))
    assert not torch.equal(batch[0], batch[1])


def test_reference_noise_of_seed_zero() -> None:
    """First values at 1328 x 1328 in bfloat16, as both peers draw them."""
    noise = draw_noise([0], (1, 16, 166, 166), dtype=torch.bfloat16, device="cpu").flatten()[:8]
    expected = [-1.125, -1.15625, -0.25, -0.43359, 0.84766, 0.69141, -0.31641, -2.10938]
    torch.testing.assert_close(noise, torch.tensor(expected), rtol=0, atol=1e-5)


def test_white_is_redrawn_and_black_is_kept() -> None:
    mask = Image.new("L", (64, 32), 0)
    mask.paste(255, (32, 0, 64, 32))
    m = redraw_mask(mask, 4, 8)
    assert m.shape == (1, 1, 1, 4, 8)
    assert m[..., :2].max() < 0.01 and m[..., -2:].min() > 0.99


def test_blur_keeps_the_mean_far_from_borders_and_softens_the_edge() -> None:
    mask = Image.new("L", (64, 64), 0)
    mask.paste(255, (32, 0, 64, 64))
    hard = redraw_mask(mask, 64, 64)[0, 0, 0]
    soft = redraw_mask(mask, 64, 64, blur_size=4, blur_sigma=2.0)[0, 0, 0]
    assert set(hard.unique().tolist()) == {0.0, 1.0}
    assert 0.3 < soft[32, 31] < 0.5 < soft[32, 32] < 0.7
    torch.testing.assert_close(soft.mean(), hard.mean(), rtol=0, atol=1e-3)
