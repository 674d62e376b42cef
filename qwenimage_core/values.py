"""The frozen values that hooks return. A plugin builds these; the planner puts them together by rule.

Nothing heavy happens when a value is built: tensors are wrapped in `Tokens`, which knows how many tokens it will
give and computes them only when a picture is really made. So `explain()` runs every hook and no model.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, Protocol

from qwenimage_core.errors import RequestError
from qwenimage_core.layout import NOISE, Grid, TimestepRule

if TYPE_CHECKING:
    from torch import Tensor

    from qwenimage_core.adapters.lora import Adapter

BranchName = Literal["positive", "negative"]
BRANCHES: tuple[BranchName, ...] = ("positive", "negative")


@dataclass(frozen=True)
class Tokens:
    """A number of tokens and how to compute them: `value` is (1, count, width), computed once, on first use."""

    count: int
    compute: Callable[[], Tensor]
    grid: Grid | None = None

    @cached_property
    def value(self) -> Tensor:
        value = self.compute()
        if value.ndim != 3 or tuple(value.shape[:2]) != (1, self.count):
            raise RequestError(
                "Tokens came out in another shape than announced.",
                got=tuple(value.shape),
                expected=f"(1, {self.count}, width)",
            )
        return value


class EncodePrompt(Protocol):
    """How a prompt of one branch becomes text tokens (the encoder's last hidden state, system prefix dropped)."""

    def __call__(self, prompt: str) -> Tokens: ...


@dataclass(frozen=True, kw_only=True)
class TextSegment:
    """Text tokens beside the prompt's own, placed before it. None leaves the segment out of that branch; "prompt"
    stands for the branch's own prompt, however this run encodes it."""

    name: str
    positive: Tokens | Literal["prompt"] | None = None
    negative: Tokens | Literal["prompt"] | None = None


@dataclass(frozen=True, kw_only=True)
class ImageSegment:
    """Image tokens appended after the noise tokens, the same in both branches.

    `rank` fixes the order of segments of different plugins (100 context, 200 references, 300 the input of layers);
    segments of equal rank keep the order in which their plugin gives them. `timestep` None follows the model: time
    zero where it was trained so (`zero_cond_t`), the step's time elsewhere.
    """

    name: str
    tokens: Tokens
    rank: int
    frame: int | None = None
    onto: str | None = None
    timestep: TimestepRule | None = None


@dataclass(frozen=True, kw_only=True)
class Target:
    """Shape of what is denoised: `frames` pictures at request size, of as many image channels as the VAE must have
    (3 RGB, 4 RGBA; None takes what is loaded). With `series` the outcome is a list (a tensor with a frame axis) even of
    one frame."""

    frames: int = 1
    channels: int | None = None
    series: bool = False


class Schedule(Protocol):
    """Noise levels from the first step to 0: steps + 1 falling numbers in [0, 1], the last one 0."""

    def __call__(self, *, steps: int, tokens: int, strength: float, mu: float | None) -> list[float]: ...


@dataclass(frozen=True, kw_only=True)
class TransformerOptions:
    """Choices of one run that change the transformer's arithmetic; None leaves the checkpoint's own choice.

    `zero_cond_t` modulates segments whose rule is `zero` at time zero; `addition_t` picks the row of the additional
    time embedding; `activation` is that of the feed-forward layers.
    """

    zero_cond_t: bool | None = None
    addition_t: int | None = None
    activation: Literal["gelu_tanh", "quick_gelu"] | None = None


@dataclass(frozen=True, kw_only=True)
class Condition:
    """What a `condition` hook gives. `text` and `adapters` add; every other part replaces, and two plugins that
    replace the same part are an error."""

    text: tuple[TextSegment, ...] = ()
    adapters: tuple[Adapter, ...] = ()
    encode_prompt: EncodePrompt | None = None
    schedule: Schedule | None = None
    target: Target | None = None
    options: TransformerOptions | None = None


@dataclass(frozen=True)
class Apart:
    """Two segments that do not see each other, in either direction."""

    a: str
    b: str


@dataclass(frozen=True, eq=False)
class Within:
    """A text segment and the image tokens where `where` is true see each other; elsewhere they do not.

    `where` is a (height, width) boolean tensor on the grid of `image`; it holds for every frame of that segment.
    """

    text: str
    image: str
    where: Tensor


@dataclass(frozen=True)
class AttentionRules:
    """Structure of who sees whom in one branch. Rules of all plugins intersect; no rule means no mask at all."""

    rules: tuple[Apart | Within, ...]


Delta = Callable[..., "Tensor"]
"""(block, step, tokens_BND of the segment, *computed inputs) -> delta_BND"""


@dataclass(frozen=True, kw_only=True)
class Residual:
    """Something added to the tokens of `segment` after a block.

    All residuals of a block see the same tokens and their deltas add up, so their order does not matter.
    `delta(block, step, tokens_BND, *inputs)` gives it, in the shape of the tokens. `blocks` and `steps` None mean all
    of them. `inputs` are computed once before the loop and handed to `delta`.
    """

    name: str
    delta: Delta
    inputs: tuple[Tokens, ...] = ()
    segment: str = NOISE
    blocks: Collection[int] | None = None
    steps: Collection[int] | None = None
    branches: Collection[BranchName] = BRANCHES


LOW_MEMORY: Mapping[str, str] = {
    "offload_dtype": "disk",
    "offload_device": "disk",
    "onload_dtype": "float8_e4m3fn",
    "onload_device": "cpu",
    "preparing_dtype": "float8_e4m3fn",
    "computation_dtype": "bfloat16",
}
"""The published placement for little memory: weights wait on disk, are kept in eight bits and compute in bfloat16, on
the pipeline's device."""


@dataclass(frozen=True)
class TrainingForm:
    """A published way of training a recipe's model: `arguments` of `qwenimage train`, by their published names, where
    they differ from the mode's own. Training starts from the recipe's models, without its LoRAs; a mapping with a
    `model_id` stands for a file to fetch."""

    mode: Literal["full", "lora"]
    arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A named way to run one published model: where its files are, and the request that suits it.

    `defaults` are what a request leaves open; `given` are fields of the owning plugin that every run gives, which
    makes it take part (a mapping with a `model_id` stands for a ModelConfig). `low_memory` are the placement settings
    that each of its ModelConfigs takes in its low-memory form.
    """

    name: str
    summary: str
    models: tuple[Mapping[str, Any], ...]
    tokenizer: Mapping[str, Any] | None = None
    processor: Mapping[str, Any] | None = None
    defaults: Mapping[str, Any] = field(default_factory=dict)
    given: Mapping[str, Any] = field(default_factory=dict)
    loras: tuple[Mapping[str, Any], ...] = ()
    options: TransformerOptions = TransformerOptions()
    example: Mapping[str, Any] = field(default_factory=dict)
    based_on: str | None = None
    low_memory: Mapping[str, str] = field(default_factory=lambda: LOW_MEMORY)
    training: tuple[TrainingForm, ...] = ()
