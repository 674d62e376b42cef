"""The VAE: what its config and tensors say, the translation to and from the published form, and what it refuses.

That it computes what the published model computes is shown in tests/parity.
"""

import math

import pytest
import torch

from qwenimage_core.errors import LoadError
from qwenimage_core.models.vae import (
    PUBLISHED_MEAN,
    QwenImageVAE,
    VAEConfig,
    from_published,
    published_shapes,
    to_published,
)

SMALL = VAEConfig(
    base_dim=4,
    z_dim=2,
    dim_mult=(1, 2, 2),
    num_res_blocks=1,
    temperal_downsample=(False, True),
    latents_mean=(0.5, -1.0),
    latents_std=(2.0, 0.25),
)


@pytest.fixture
def vae() -> QwenImageVAE:
    torch.manual_seed(0)
    return QwenImageVAE(SMALL).eval()


def test_full_size_is_the_published_one():
    shapes = published_shapes(VAEConfig())
    assert len(shapes) == 194
    assert sum(math.prod(shape) for shape in shapes.values()) == 126_892_531  # 126.89 M as published


def test_alpha_changes_three_tensors_only():
    rgb, rgba = published_shapes(VAEConfig()), published_shapes(VAEConfig(input_channels=4))
    different = {name for name in rgb if rgb[name] != rgba[name]}
    assert different == {"encoder.conv_in.weight", "decoder.conv_out.weight", "decoder.conv_out.bias"}


@pytest.mark.parametrize(
    "config",
    [
        VAEConfig(),
        VAEConfig(input_channels=4),
        VAEConfig(base_dim=8, dim_mult=(1, 2, 4, 8), num_res_blocks=1),
        VAEConfig(base_dim=4, dim_mult=(1, 2), temperal_downsample=(True,)),
    ],
)
def test_sizes_are_read_back_from_shapes(config):
    assert VAEConfig.from_shapes(published_shapes(config)) == config


def test_config_survives_its_dict():
    assert VAEConfig.from_dict(SMALL.to_dict()) == SMALL


@torch.no_grad()
def test_state_survives_the_published_form(vae):
    published = to_published(vae.state_dict(), SMALL)
    assert {name: tuple(value.shape) for name, value in published.items()} == published_shapes(SMALL)
    again = from_published(published)
    assert again.keys() == vae.state_dict().keys()
    assert all(torch.equal(again[name], value) for name, value in vae.state_dict().items())


def test_earlier_temporal_slices_are_dropped(vae):
    published = to_published(vae.state_dict(), SMALL)
    published["encoder.conv_in.weight"][:, :, :-1] = 7.0
    assert torch.equal(
        from_published(published)["encoder.conv_in.weight"], vae.state_dict()["encoder.conv_in.weight"]
    )


@torch.no_grad()
def test_latents_are_normalised_by_the_statistics(vae):
    x = torch.rand(2, 3, 16, 24) * 2 - 1
    mean, _ = vae.posterior(x)
    expected = (mean - torch.tensor([0.5, -1.0]).view(1, 2, 1, 1)) / torch.tensor([2.0, 0.25]).view(
        1, 2, 1, 1
    )
    torch.testing.assert_close(vae.encode(x), expected)
    assert vae.encode(x).shape == (2, 2, 4, 6)
    raw = vae.decoder(vae.post_quant_conv(mean))
    torch.testing.assert_close(vae.decode(expected), raw, atol=1e-5, rtol=1e-5)
    assert raw.shape == x.shape


@torch.no_grad()
def test_pictures_of_a_batch_do_not_mix(vae):
    x = torch.rand(3, 3, 16, 16) * 2 - 1
    together = vae.encode(x)
    alone = torch.cat([vae.encode(one) for one in x.split(1)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_half_precision_is_close(vae):
    x = torch.rand(1, 3, 16, 16) * 2 - 1
    expected = vae.encode(x)
    half = vae.to(torch.bfloat16).encode(x.bfloat16())
    assert half.dtype == torch.bfloat16
    assert (half.float() - expected).abs().mean() < 0.05 * expected.abs().mean() + 0.05


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"attn_scales": [0.5]}, "attn_scales"),
        ({"dropout": 0.1}, "dropout"),
        ({"patch_size": 2}, "patch_size"),
        ({"latents_mean": [0.0]}, "latents_mean"),
        ({"latents_std": [1.0, 0.0]}, "positive"),
        ({"temperal_downsample": [True]}, "temporal flags"),
        ({"input_channels": 5}, "input_channels"),
    ],
)
def test_configs_that_are_not_of_the_family_are_refused(change, part):
    with pytest.raises(LoadError, match=part):
        VAEConfig.from_dict({**SMALL.to_dict(), **change})


def test_shapes_of_something_else_are_refused():
    with pytest.raises(LoadError, match="not those of the family's VAE"):
        VAEConfig.from_shapes({"conv.weight": (3, 3, 3, 3)})


def test_unknown_statistics_are_refused():
    with pytest.raises(LoadError, match="statistics"):
        VAEConfig.from_shapes(published_shapes(SMALL))
    assert len(PUBLISHED_MEAN) == 16


@pytest.mark.parametrize("shape", [(1, 4, 16, 16), (1, 3, 16, 18), (3, 16, 16)])
def test_pictures_of_a_wrong_shape_are_refused(vae, shape):
    with pytest.raises(ValueError, match="a picture of shape"):
        vae.encode(torch.zeros(shape))


def test_latents_of_a_wrong_shape_are_refused(vae):
    with pytest.raises(ValueError, match="latents of shape"):
        vae.decode(torch.zeros(1, 3, 4, 4))
