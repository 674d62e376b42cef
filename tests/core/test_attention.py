"""Structured attention equals dense masked attention, and costs nothing where nothing is hidden."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenimage_core import attention
from qwenimage_core.attention import attention_for
from qwenimage_core.errors import RequestError
from qwenimage_core.layout import Grid, Layout, Segment
from qwenimage_core.values import Apart, Within


def layout_of(entities: int, frames: int = 1, reference: bool = False) -> Layout:
    segments = [Segment(name=f"entity/{i}", owner="e", kind="text", tokens=2 + i) for i in range(entities)]
    segments.append(Segment(name="prompt", owner="core", kind="text", tokens=3))
    grids = {"noise": Grid(height=4, width=3, frames=frames)} | (
        {"edit": Grid(height=2, width=2)} if reference else {}
    )
    segments += [
        Segment(name=n, owner="core", kind="image", tokens=g.tokens, grid=g) for n, g in grids.items()
    ]
    return Layout(tuple(segments))


def dense_mask(rules: list[Apart | Within], layout: Layout) -> torch.Tensor:
    """The definition, token by token: what the rules say about each pair."""
    seen = torch.ones(layout.tokens, layout.tokens, dtype=torch.bool)
    for rule in rules:
        if isinstance(rule, Apart):
            a, b = layout.joint_slice(rule.a), layout.joint_slice(rule.b)
            seen[a, b] = seen[b, a] = False
        else:
            a, b = layout.joint_slice(rule.text), layout.joint_slice(rule.image)
            frames = layout[rule.image].grid.frames  # type: ignore[union-attr]
            on = rule.where.flatten().repeat(frames)
            seen[a, b] &= on
            seen[b, a] &= on[:, None]
    return seen


def check_equal(rules: list[Apart | Within], layout: Layout) -> None:
    q, k, v = torch.randn(
        3, 2, 2, layout.tokens, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=dense_mask(rules, layout))
    for pays in (True, False, None):  # grouped, masked, and as it chooses
        with pytest.MonkeyPatch.context() as patch:
            if pays is not None:
                patch.setattr(attention, "_grouping_pays", lambda *_, pays=pays: pays)
            attend = attention_for(rules, layout, "cpu")
        check_attend(attend, layout, q, k, v, expected)


def check_attend(
    attend: attention.Attend | None,
    layout: Layout,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    expected: torch.Tensor,
) -> None:
    actual = F.scaled_dot_product_attention(q, k, v) if attend is None else attend(q, k, v)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
    if attend is not None:  # the last block asks for the noise tokens alone
        noise = layout.joint_slice("noise")
        torch.testing.assert_close(
            attend(q[:, :, noise], k, v), expected[:, :, noise], rtol=1e-12, atol=1e-12
        )


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_rules_equal_the_dense_mask(data: st.DataObject) -> None:
    entities = data.draw(st.integers(1, 4))
    layout = layout_of(entities, frames=data.draw(st.integers(1, 2)), reference=data.draw(st.booleans()))
    rules: list[Apart | Within] = [
        Apart(f"entity/{i}", "prompt") for i in range(entities) if data.draw(st.booleans())
    ]
    for i in range(entities):
        for name in [s.name for s in layout.images]:
            grid = layout[name].grid
            assert grid is not None
            cells = data.draw(
                st.lists(st.booleans(), min_size=grid.height * grid.width, max_size=grid.height * grid.width)
            )
            rules.append(Within(f"entity/{i}", name, torch.tensor(cells).view(grid.height, grid.width)))
    check_equal(rules, layout)


def test_the_cheaper_form_is_chosen() -> None:
    """Two pictures apart from each other halve the work; a few entities in a large picture hide next to nothing."""
    grid = Grid(height=16, width=16)
    prompt = Segment(name="prompt", owner="core", kind="text", tokens=3)
    images = [
        Segment(name=n, owner="core", kind="image", tokens=grid.tokens, grid=grid) for n in ("noise", "other")
    ]
    apart = attention_for([Apart("noise", "other")], Layout((prompt, *images)), "cpu")
    assert isinstance(apart, attention.Grouped)
    entities = [Segment(name=f"e{i}", owner="e", kind="text", tokens=4) for i in range(6)]
    maps = [torch.rand(16, 16, generator=torch.Generator().manual_seed(i)) > 0.5 for i in range(6)]
    rules = [Within(f"e{i}", "noise", where) for i, where in enumerate(maps)]
    few = attention_for(rules, Layout((*entities, prompt, images[0])), "cpu")
    assert isinstance(few, attention.Masked)


def test_rules_that_hide_nothing_cost_nothing() -> None:
    everywhere = Within("entity/0", "noise", torch.ones(4, 3, dtype=torch.bool))
    assert attention_for([everywhere], layout_of(1), "cpu") is None
    assert attention_for([], layout_of(1), "cpu") is None


@pytest.mark.parametrize(
    ("rule", "says"),
    [
        (Apart("entity/9", "prompt"), "not there"),
        (Within("entity/0", "edit", torch.ones(2, 2, dtype=torch.bool)), "not there"),
        (Within("entity/0", "noise", torch.ones(3, 4, dtype=torch.bool)), "does not fit"),
        (Within("entity/0", "noise", torch.ones(4, 3)), "does not fit"),
        (Within("entity/0", "prompt", torch.ones(4, 3, dtype=torch.bool)), "does not fit"),
    ],
)
def test_rules_about_what_is_not_there_are_errors(rule: Apart | Within, says: str) -> None:
    with pytest.raises(RequestError, match=says):
        attention_for([rule], layout_of(1), "cpu")
