"""How timesteps act: the embedding's rounding, runs of tokens with their own timestep, tables of steps."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qwenimage_core.models.modulation import TimestepEmbedding, add_gated, norm_and_modulate, timestep_runs
from qwenimage_core.models.transformer import QwenImageTransformer, TransformerConfig

TINY = TransformerConfig(
    num_layers=2,
    num_attention_heads=2,
    attention_head_dim=16,
    joint_attention_dim=8,
    in_channels=16,
    out_channels=4,
    axes_dims_rope=(4, 6, 6),
)


# 988.573 lies between 988 and 992 in bfloat16, and 0.988 between 0.984375 and 0.98828125 (also where float32 keeps it)
@pytest.mark.parametrize(
    ("dtype", "timestep", "fraction"),
    [
        (torch.bfloat16, 988.573, 0.98828125),
        (torch.bfloat16, 976.813, 0.9765625),
        (torch.float32, 500.0, 0.5),
    ],
)
def test_the_timestep_is_rounded_before_it_is_divided(dtype, timestep, fraction):
    embedding = TimestepEmbedding(32, additional=False).to(dtype)
    seen = {}
    embedding.timestep_embedder.register_forward_pre_hook(lambda _, inputs: seen.update(x=inputs[0]))
    embedding(torch.tensor([timestep]), None, dtype)

    angles = [1000 * fraction * math.exp(-math.log(10000) * i / 128) for i in range(128)]
    expected = torch.tensor([[*map(math.cos, angles), *map(math.sin, angles)]])
    assert seen["x"].dtype == dtype
    torch.testing.assert_close(
        seen["x"].float(), expected, atol=4e-3 if dtype == torch.bfloat16 else 1e-4, rtol=0
    )


@st.composite
def zero_rows(draw):
    cuts = sorted(draw(st.sets(st.integers(0, 12), max_size=6)))
    return tuple(slice(a, b) for a, b in zip(cuts[::2], cuts[1::2], strict=False))


@given(zero_rows(), st.integers(1, 12))
def test_runs_give_every_token_its_row(zero, tokens):
    rows = [row for start, stop, row in timestep_runs(tokens, zero) for _ in range(start, stop)]
    assert rows == [int(any(z.start <= token < z.stop for z in zero)) for token in range(tokens)]


@pytest.mark.parametrize("times", [1, 2])
@given(zero=zero_rows())
def test_modulating_by_runs_equals_a_gather_by_token(times, zero):
    x, delta = torch.randn(2, 12, 4), torch.randn(2, 12, 4)
    shift, scale = torch.randn(2, times, 4), torch.randn(2, times, 4)  # (R, B, D)
    runs = timestep_runs(12, zero)
    rows = torch.tensor([row for start, stop, row in runs for _ in range(start, stop)])
    by_token = shift[rows].transpose(0, 1), scale[rows].transpose(0, 1)  # (B, N, D)
    shifts, scales = shift.unsqueeze(2).unbind(0), scale.unsqueeze(2).unbind(0)  # (B, 1, D) of each row
    normed = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, correction=0) + 1e-6).sqrt()
    expected = normed * (1 + by_token[1]) + by_token[0]
    torch.testing.assert_close(norm_and_modulate(x, shifts, scales, runs), expected)
    torch.testing.assert_close(add_gated(x, delta, scales, runs), x + by_token[1] * delta)


def test_overlapping_zero_rows_are_an_error():
    with pytest.raises(ValueError, match="overlap"):
        timestep_runs(8, (slice(0, 4), slice(3, 6)))


@torch.no_grad()
def test_a_table_of_steps_holds_each_step():
    transformer = QwenImageTransformer(TINY)
    times = [1000.0, 400.0, 20.0]
    table = transformer.modulation(torch.tensor(times), zero=True)
    for index, time in enumerate(times):
        step, alone = table.step(index), transformer.modulation(time, zero=True)
        for name in ("image_LRBE", "text_LBE", "scale_BD", "shift_BD"):
            torch.testing.assert_close(getattr(step, name), getattr(alone, name), atol=1e-6, rtol=0)


@torch.no_grad()
def test_the_zero_row_is_the_modulation_at_time_zero():
    transformer = QwenImageTransformer(TINY)
    both, zero = transformer.modulation(700.0, zero=True), transformer.modulation(0.0)
    torch.testing.assert_close(both.image_LRBE[:, 1], zero.image_LRBE[:, 0], atol=1e-6, rtol=0)
    assert not torch.allclose(both.image_LRBE[:, 0], zero.image_LRBE[:, 0])
