"""Noise levels (sigmas) as plain functions of steps, tokens and strength. A schedule ends with 0.

Flow matching: x = (1 - sigma) * picture + sigma * noise, the transformer predicts noise - picture, and one Euler step
adds prediction * (sigma_next - sigma).
"""

from __future__ import annotations

from math import exp, log

# Published scheduler of Qwen-Image: the shift grows with the number of target tokens.
BASE_TOKENS, MAX_TOKENS = 256, 8192
BASE_SHIFT, MAX_SHIFT = 0.5, 0.9
TERMINAL_SIGMA = 0.02

FEW_STEP_MU = log(3)  # Qwen-Image-Lightning: fixed shift 3, no terminal stretch


def published_mu(tokens: int) -> float:
    """Shift of the published schedule for a target of `tokens` tokens of one picture."""
    return BASE_SHIFT + (tokens - BASE_TOKENS) * (MAX_SHIFT - BASE_SHIFT) / (MAX_TOKENS - BASE_TOKENS)


def linear(steps: int, strength: float = 1.0) -> list[float]:
    """steps falling levels from `strength`, one step short of 0."""
    return [strength * (1 - i / steps) for i in range(steps)]


def shifted(sigmas: list[float], mu: float) -> list[float]:
    """Exponential time shift: e^mu / (e^mu + 1/s - 1)."""
    return [exp(mu) / (exp(mu) + (1 / s - 1)) for s in sigmas]


def stretched(sigmas: list[float], terminal: float) -> list[float]:
    """Stretch around 1 so that the last level is `terminal`.

    One step at full strength stands at 1 alone and cannot be stretched; it is left as it is.
    """
    last = 1 - sigmas[-1]
    if last == 0:
        return sigmas
    return [1 - (1 - s) * (1 - terminal) / last for s in sigmas]


def published(*, steps: int, tokens: int, strength: float = 1.0, mu: float | None = None) -> list[float]:
    """The schedule of Qwen-Image: dynamic shift by `tokens` (or `mu`), stretched to end at 0.02, then 0."""
    mu = published_mu(tokens) if mu is None else mu
    return [*stretched(shifted(linear(steps, strength), mu), TERMINAL_SIGMA), 0.0]


def few_step(*, steps: int, tokens: int = 0, strength: float = 1.0, mu: float | None = None) -> list[float]:
    """The schedule of the Lightning distillations: shift 3 whatever the size, no terminal stretch, then 0."""
    return [*shifted(linear(steps, strength), FEW_STEP_MU if mu is None else mu), 0.0]
