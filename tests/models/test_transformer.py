"""What callers of the transformer rely on. Parity with the peers is in tests/parity."""

import dataclasses
import hashlib

import pytest
import torch
from torch.nn import functional as F

from qwenimage_core.models.rope import rope_tables
from qwenimage_core.models.transformer import QwenImageTransformer, TransformerConfig

TINY = TransformerConfig(
    num_layers=3,
    num_attention_heads=2,
    attention_head_dim=16,
    joint_attention_dim=8,
    in_channels=16,
    out_channels=4,
    axes_dims_rope=(4, 6, 6),
)
TEXT, NOISE, TOKENS = 5, 6, 10


def build(config=TINY):
    torch.manual_seed(0)
    transformer = QwenImageTransformer(config)
    for name, parameter in transformer.named_parameters():
        if "norm" not in name or "norm_out" in name:
            torch.nn.init.normal_(parameter, std=0.12)
    return transformer


def inputs(batch=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, TOKENS, 16, generator=generator)
    text = torch.randn(batch, TEXT, 8, generator=generator)
    positions = torch.randint(-5, 9, (TEXT + TOKENS, 3), generator=generator)
    return x, text, rope_tables(positions, TINY.axes_dims_rope)


def run(transformer, batch=2, timestep=600.0, zero_rows=(), noise_tokens=NOISE, **options):
    x, text, rope = inputs(batch)
    modulation = transformer.modulation(timestep, zero=bool(zero_rows))
    return transformer(
        x,
        transformer.embed_text(text),
        rope,
        modulation,
        noise_tokens=noise_tokens,
        zero_rows=zero_rows,
        **options,
    )


@pytest.mark.parametrize("zero_rows", [(), (slice(NOISE, TOKENS),), (slice(2, 4), slice(7, 9))])
@torch.no_grad()
def test_leaving_out_the_unread_half_of_the_last_block_changes_nothing(zero_rows):
    transformer = build()
    cut, whole = (
        run(transformer, zero_rows=zero_rows),
        run(transformer, zero_rows=zero_rows, noise_tokens=TOKENS),
    )
    assert cut.shape == (2, NOISE, 16)
    torch.testing.assert_close(cut, whole[:, :NOISE], atol=1e-5, rtol=0)


@torch.no_grad()
def test_a_batch_equals_its_samples_one_by_one_each_at_its_own_time():
    transformer = build()
    x, text, rope = inputs()
    times = torch.tensor([900.0, 100.0])
    together = run(transformer, timestep=times)
    for i in range(2):
        alone = transformer(
            x[i : i + 1],
            transformer.embed_text(text[i : i + 1]),
            rope,
            transformer.modulation(times[i]),
            noise_tokens=NOISE,
        )
        torch.testing.assert_close(together[i : i + 1], alone, atol=1e-5, rtol=0)


@torch.no_grad()
def test_zero_rows_change_the_result_and_only_where_the_timestep_is_not_zero():
    transformer = build()
    rows = (slice(NOISE, TOKENS),)
    assert (run(transformer, zero_rows=rows) - run(transformer)).abs().max() > 0.01
    torch.testing.assert_close(run(transformer, timestep=0.0, zero_rows=rows), run(transformer, timestep=0.0))


@torch.no_grad()
def test_attend_is_given_joint_heads_and_in_the_last_block_noise_queries_only():
    seen = []

    def attend(q, k, v):
        seen.append((tuple(q.shape), tuple(k.shape), tuple(v.shape)))
        return F.scaled_dot_product_attention(q, k, v)

    transformer = build()
    torch.testing.assert_close(run(transformer, attend=attend), run(transformer))
    joint, noise = (2, 2, TEXT + TOKENS, 16), (2, 2, NOISE, 16)
    assert seen == [(joint, joint, joint)] * 2 + [(noise, joint, joint)]


@torch.no_grad()
def test_text_that_attend_hides_from_everyone_has_no_effect():
    """The mask's last rows serve the last block: image tokens see image tokens only."""
    transformer = build()
    x, text, rope = inputs()

    def blind(q, k, v):
        q_text = q.shape[2] - (TOKENS if q.shape[2] > NOISE else NOISE)
        image = F.scaled_dot_product_attention(q[:, :, q_text:], k[:, :, TEXT:], v[:, :, TEXT:])
        return torch.cat([q[:, :, :q_text], image], dim=2)

    def velocity(text):
        modulation = transformer.modulation(300.0)
        return transformer(
            x, transformer.embed_text(text), rope, modulation, noise_tokens=NOISE, attend=blind
        )

    torch.testing.assert_close(velocity(text), velocity(text + 1), atol=0, rtol=0)


@torch.no_grad()
def test_residual_sees_every_block_and_changes_what_goes_on():
    transformer, seen = build(), []

    def watch(block, tokens):
        seen.append((block, tokens.shape[1]))

    plain = run(transformer, residual=watch)
    assert seen == [(0, TOKENS), (1, TOKENS), (2, NOISE)]
    torch.testing.assert_close(plain, run(transformer), atol=0, rtol=0)
    for chosen in range(3):
        changed = run(
            transformer, residual=lambda block, x, at=chosen: x + 1.0 * x.cos() if block == at else None
        )
        assert (changed - plain).abs().max() > 1e-3


@torch.no_grad()
def test_activation_of_a_call_overrides_the_configs():
    tanh, quick = build(), build(dataclasses.replace(TINY, activation="quick_gelu"))
    torch.testing.assert_close(run(tanh, activation="quick_gelu"), run(quick), atol=0, rtol=0)
    assert (run(tanh) - run(quick)).abs().max() > 1e-3


@torch.no_grad()
def test_feed_forward_activations_are_the_two_formulas():
    mlp, x = build().transformer_blocks[0].img_mlp, torch.randn(3, 32)
    up = mlp.net[0].proj(x).double()
    tanh = 0.5 * up * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (up + 0.044715 * up**3)))
    for activation, inner in (("gelu_tanh", tanh), ("quick_gelu", up / (1 + torch.exp(-1.702 * up)))):
        torch.testing.assert_close(mlp(x, activation), mlp.net[2](inner.float()), atol=1e-5, rtol=1e-5)


def test_checkpointing_gives_the_same_gradients():
    grads = []
    for checkpointing in (False, True):
        transformer = build()
        run(
            transformer, zero_rows=(slice(NOISE, TOKENS),), checkpointing=checkpointing
        ).square().mean().backward()
        grads.append({name: p.grad for name, p in transformer.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys()
    for name in grads[0]:
        torch.testing.assert_close(grads[0][name], grads[1][name])


def test_gradients_are_those_of_finite_differences():
    transformer = build(dataclasses.replace(TINY, num_layers=2)).double()
    x, text, rope = inputs(batch=1)
    rope = dataclasses.replace(rope, cos_SD=rope.cos_SD.double(), sin_SD=rope.sin_SD.double())
    x, text = x.double().requires_grad_(), text.double().requires_grad_()
    modulation = transformer.modulation(500.0)

    def velocity(x, text):
        return transformer(x, transformer.embed_text(text), rope, modulation, noise_tokens=NOISE)

    with torch.no_grad():
        direction_x, direction_text = torch.randn_like(x), torch.randn_like(text)
        step = 1e-3  # norms and rotation are computed in float32, which bounds how small a step can be
        ahead = velocity(x + step * direction_x, text + step * direction_text).sum()
        behind = velocity(x - step * direction_x, text - step * direction_text).sum()
    gx, gtext = torch.autograd.grad(velocity(x, text).sum(), (x, text))
    slope = (gx * direction_x).sum() + (gtext * direction_text).sum()
    torch.testing.assert_close(slope, (ahead - behind) / (2 * step), rtol=1e-2, atol=1e-2)


def test_only_the_unread_text_half_of_the_last_block_gets_no_gradient():
    transformer = build()
    run(transformer).square().mean().backward()
    without = {name for name, parameter in transformer.named_parameters() if parameter.grad is None}
    parts = ("attn.add_q_proj", "attn.to_add_out", "attn.norm_added_q", "txt_mlp")
    assert without == {
        name
        for name, _ in transformer.named_parameters()
        if name.startswith(tuple(f"transformer_blocks.2.{part}." for part in parts))
    }


@pytest.mark.slow
@torch.no_grad()
def test_a_block_compiles_in_one_graph():
    transformer = build()
    rows = (slice(NOISE, TOKENS),)
    expected = run(transformer, zero_rows=rows)
    for block in transformer.transformer_blocks:
        block.compile(fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(run(transformer, zero_rows=rows), expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_bfloat16_stays_near_float32_and_float16_does_not_overflow():
    x, text, rope = inputs()
    expected = run(
        build(), timestep=500.0
    )  # 0.5 is exact in bfloat16: the embedding of the time is not compared
    half = build().bfloat16()
    modulation = half.modulation(500.0)
    found = half(x.bfloat16(), half.embed_text(text.bfloat16()), rope, modulation, noise_tokens=NOISE)
    assert found.dtype == torch.bfloat16
    assert (found - expected).norm() / expected.norm() < 0.03

    half = build().half()
    half.img_in.bias.fill_(6e4)
    found = half(x.half(), half.embed_text(text.half()), rope, half.modulation(600.0), noise_tokens=NOISE)
    assert torch.isfinite(found).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"noise_tokens": TOKENS + 1}, "noise_tokens"),
        ({"zero_rows": (slice(4, TOKENS + 1),)}, "zero_rows"),
        ({"timestep": torch.tensor([1.0, 2.0, 3.0])}, "3 timesteps"),
    ],
)
def test_mismatches_that_torch_would_let_pass_are_errors(changes, message):
    with pytest.raises(ValueError, match=message):
        run(build(), **changes)


def test_rope_of_another_length_and_a_missing_zero_row_are_errors():
    transformer = build()
    x, text, rope = inputs()
    tokens, modulation = transformer.embed_text(text), transformer.modulation(1.0)
    with pytest.raises(ValueError, match="rope covers"):
        transformer(x, tokens, rope.rows(0, 3), modulation, noise_tokens=NOISE)
    with pytest.raises(ValueError, match="zero=True"):
        transformer(x, tokens, rope, modulation, noise_tokens=NOISE, zero_rows=(slice(6, 10),))
    with pytest.raises(ValueError, match="2 samples come with 1 texts"):
        transformer(x, tokens[:1], rope, modulation, noise_tokens=NOISE)


@torch.no_grad()
def test_the_additional_embedding_is_asked_for_where_it_is_and_only_there():
    layered = build(dataclasses.replace(TINY, use_additional_t_cond=True))
    with pytest.raises(ValueError, match="expected 0 or 1"):
        layered.modulation(1.0)
    with pytest.raises(ValueError, match="no such embedding"):
        build().modulation(1.0, addition_t=0)
    first, second = layered.modulation(1.0, addition_t=0), layered.modulation(1.0, addition_t=1)
    assert not torch.allclose(first.scale_BD, second.scale_BD)


# DiffSynth-Studio knows the published files by a digest of all names and shapes.
@pytest.mark.parametrize(
    ("layered", "tensors", "digest"),
    [(False, 1933, "0319a1cb19835fb510907dd3367c95ff"), (True, 1934, "8dc8cda05de16c73afa755e2c1ce2839")],
)
def test_full_size_names_and_shapes_are_the_published_ones(layered, tensors, digest):
    with torch.device("meta"):
        transformer = QwenImageTransformer(TransformerConfig(use_additional_t_cond=layered))
    shapes = {name: tuple(tensor.shape) for name, tensor in transformer.state_dict().items()}
    lines = []
    for name, shape in shapes.items():
        lines += [name, f"{name}:{'_'.join(map(str, shape))}"]
    assert len(shapes) == tensors
    assert hashlib.md5(",".join(sorted(lines)).encode()).hexdigest() == digest
    assert sum(p.numel() for p in transformer.parameters()) == 20_430_401_088 + (2 * 3072 if layered else 0)

    config = TransformerConfig(use_additional_t_cond=layered, use_layer3d_rope=layered)
    assert TransformerConfig.from_shapes(shapes) == config
