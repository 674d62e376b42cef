"""Our 2-D VAE against diffusers' 3-D one with equal weights, float32."""

import pytest
import torch

from qwenimage_core.models.vae import QwenImageVAE, VAEConfig, from_published, published_shapes, to_published

diffusers = pytest.importorskip("diffusers")

SMALL = dict(
    base_dim=8, z_dim=4, dim_mult=[1, 2, 4, 4], num_res_blocks=1, temperal_downsample=[False, True, True]
)
STATS = dict(latents_mean=[0.1, -0.2, 0.3, 0.0], latents_std=[1.5, 0.5, 2.0, 1.0])


def build(channels: int, num_res_blocks: int):
    torch.manual_seed(0)
    config = {**SMALL, **STATS, "input_channels": channels, "num_res_blocks": num_res_blocks}
    peer = diffusers.AutoencoderKLQwenImage(**config).eval()
    ours = QwenImageVAE(VAEConfig.from_dict(dict(peer.config))).eval()
    ours.load_state_dict(from_published(peer.state_dict()))
    return peer, ours


@pytest.mark.parametrize(("channels", "num_res_blocks"), [(3, 1), (4, 2)])
@torch.no_grad()
def test_encode_and_decode_equal_the_peer(channels, num_res_blocks):
    peer, ours = build(channels, num_res_blocks)
    x = torch.rand(2, channels, 48, 64) * 2 - 1
    mean = torch.tensor(STATS["latents_mean"]).view(1, -1, 1, 1)
    std = torch.tensor(STATS["latents_std"]).view(1, -1, 1, 1)

    expected = (peer.encode(x.unsqueeze(2)).latent_dist.mode().squeeze(2) - mean) / std
    z = ours.encode(x)
    torch.testing.assert_close(z, expected, atol=1e-6, rtol=0)

    z = torch.randn_like(z)
    # Inside the peer's decode the picture is clamped to [-1, 1]; compare before that.
    expected = peer.decoder(peer.post_quant_conv((z * std + mean).unsqueeze(2))).squeeze(2)
    torch.testing.assert_close(ours.decode(z), expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_posterior_equals_the_peer():
    peer, ours = build(3, 1)
    x = torch.rand(1, 3, 32, 32) * 2 - 1
    dist = peer.encode(x.unsqueeze(2)).latent_dist
    mean, logvar = ours.posterior(x)
    torch.testing.assert_close(mean, dist.mean.squeeze(2), atol=1e-6, rtol=0)
    torch.testing.assert_close(logvar, dist.logvar.squeeze(2), atol=1e-6, rtol=0)


@pytest.mark.parametrize("channels", [3, 4])
def test_full_size_names_and_shapes_equal_the_peer(channels):
    with torch.device("meta"):
        peer = diffusers.AutoencoderKLQwenImage(input_channels=channels)
    expected = {name: tuple(tensor.shape) for name, tensor in peer.state_dict().items()}
    assert published_shapes(VAEConfig(input_channels=channels)) == dict(sorted(expected.items()))
    assert VAEConfig.from_shapes(expected) == VAEConfig.from_dict(dict(peer.config))
    assert len(expected) == 194


@torch.no_grad()
def test_what_we_save_runs_in_the_peer():
    _, ours = build(3, 1)
    peer = diffusers.AutoencoderKLQwenImage.from_config(ours.config.to_dict())
    peer.load_state_dict(to_published(ours.state_dict(), ours.config))
    x = torch.rand(1, 3, 32, 32) * 2 - 1
    expected = peer.encode(x.unsqueeze(2)).latent_dist.mode().squeeze(2)
    torch.testing.assert_close(ours.posterior(x)[0], expected, atol=1e-6, rtol=0)
