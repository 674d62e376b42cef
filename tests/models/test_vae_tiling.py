"""Tiled encoding and decoding: where tiles lie, how they are blended, and that one tile is the whole."""

import pytest
import torch

from qwenimage_core.errors import RequestError
from qwenimage_core.models.vae import QwenImageVAE, VAEConfig
from qwenimage_core.models.vae_tiling import decode_tiled, encode_tiled, spans

SMALL = VAEConfig(
    base_dim=4,
    z_dim=2,
    dim_mult=(1, 1, 1, 1),
    num_res_blocks=1,
    latents_mean=(0.1, 0.2),
    latents_std=(1.5, 0.5),
)


@pytest.fixture
def vae() -> QwenImageVAE:
    torch.manual_seed(0)
    return QwenImageVAE(SMALL).eval()


class Doubling:
    """A "VAE" of scale 8 whose work is exact, so that only the blending is left to see."""

    config = SMALL

    def decode(self, z_BZhw):
        return z_BZhw.repeat_interleave(8, 2).repeat_interleave(8, 3)

    def encode(self, x_BCHW):
        return x_BCHW[..., ::8, ::8]


def test_a_tile_that_reaches_the_end_is_the_last():
    # 128 / 64 on a side of 166 latent pixels: the tile at 64 ends at 166 (clipped), so none starts at 128.
    assert list(spans(166, 128, 64)) == [(0, 128), (64, 166)]
    assert list(spans(10, 4, 4)) == [(0, 4), (4, 8), (8, 10)]
    assert list(spans(5, 8, 2)) == [(0, 5)]


@torch.no_grad()
@pytest.mark.parametrize(("size", "stride"), [(6, 6), (8, 3), (64, 64)])
def test_one_tile_equals_no_tiles(vae, size, stride):
    z = torch.randn(1, 2, 6, 5)
    torch.testing.assert_close(decode_tiled(vae, z, size, stride), vae.decode(z), atol=1e-6, rtol=0)
    x = torch.rand(1, 3, 48, 40) * 2 - 1
    torch.testing.assert_close(encode_tiled(vae, x, size, stride), vae.encode(x), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("size", "stride"), [(4, 4), (4, 2), (5, 3), (7, 1)])
def test_blending_of_exact_tiles_is_exact(size, stride):
    z = torch.randn(2, 2, 11, 9)
    torch.testing.assert_close(
        decode_tiled(Doubling(), z, size, stride), Doubling().decode(z), atol=1e-5, rtol=0
    )
    x = torch.randn(1, 3, 88, 72)
    torch.testing.assert_close(
        encode_tiled(Doubling(), x, size, stride), Doubling().encode(x), atol=1e-5, rtol=0
    )


def test_overlaps_cross_fade_linearly():
    class Numbered(Doubling):
        """Each tile decodes to its own number."""

        tiles = 0

        def decode(self, z_BZhw):
            self.tiles += 1
            return torch.full_like(super().decode(z_BZhw), self.tiles - 1.0)

    row = decode_tiled(Numbered(), torch.zeros(1, 1, 1, 6), size=4, stride=2)[0, 0, 0]
    border = 16  # (4 - 2) latent pixels of overlap, 8 pixels each
    assert (row[:16] == 0).all()
    assert (row[32:] == 1).all()
    i = torch.arange(border)
    rising, falling = (i + 1) / border, (border - i) / border
    torch.testing.assert_close(row[16:32], rising / (rising + falling))


@torch.no_grad()
def test_seams_are_bounded(vae):
    z = torch.randn(1, 2, 24, 24)
    whole, tiled = vae.decode(z), decode_tiled(vae, z, 16, 8)
    assert (tiled - whole).abs().mean() < 0.1 * whole.std()


def test_tiles_with_gaps_are_refused(vae):
    with pytest.raises(RequestError, match="gaps"):
        decode_tiled(vae, torch.zeros(1, 2, 8, 8), size=4, stride=5)
    with pytest.raises(RequestError, match="gaps"):
        decode_tiled(vae, torch.zeros(1, 2, 8, 8), size=4, stride=0)
