"""Attach and detach: exact, in any order, equal to peft, and refused before anything is touched."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import LoHaConfig, LoHaModel, LoKrConfig, LoKrModel, LoraConfig, inject_adapter_in_model
from torch import nn

from qwenimage_core.adapters.lora import Adapter, attach, attached
from qwenimage_core.adapters.parse import parse
from qwenimage_core.adapters.weights import Kronecker, LoraWeights, LowRank
from qwenimage_core.errors import AdapterError

MODES = ("hot", "merged")


def weights(pairs, alpha=None):
    return LoraWeights({name: LowRank(down, up, alpha) for name, (down, up) in pairs.items()})


def adapter(name, pairs, mode="hot", strength=1.0, alpha=None):
    return Adapter(name=name, weights=weights(pairs, alpha), strength=strength, mode=mode)


def snapshot(model):
    """Everything an adapter could leave behind: classes, attributes, and the bits of every tensor."""
    shape = [(name, type(module), sorted(vars(module))) for name, module in model.named_modules()]
    tensors = {name: (id(value), value.detach().clone()) for name, value in model.named_parameters()}
    return shape, tensors, list(model.state_dict()), len(list(model.buffers()))


def assert_untouched(model, before):
    shape, tensors, names, buffers = before
    now = snapshot(model)
    assert now[0] == shape
    assert now[2:] == (names, buffers)
    for name, (identity, value) in tensors.items():
        assert now[1][name][0] == identity
        assert torch.equal(now[1][name][1], value)


# --- equal to the definition, and to peft -------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_equals_peft(model, velocity, pairs, targets, mode):
    """alpha 6 at rank 3 and strength 0.5, on every kind of layer, modulation included."""
    ours = velocity(model)
    with attached(model, [adapter("a", pairs(), mode, 0.5, alpha=6.0)]):
        ours = velocity(model)

    peft = inject_adapter_in_model(LoraConfig(r=3, lora_alpha=6, target_modules=list(targets)), model)
    for name, (down, up) in pairs().items():
        layer = peft.get_submodule(name)
        layer.lora_A["default"].weight.data, layer.lora_B["default"].weight.data = down, up
        layer.set_scale("default", 0.5)
    torch.testing.assert_close(ours, velocity(peft), atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("config", "model_class"),
    [
        (LoHaConfig(r=2, alpha=3, init_weights=False), LoHaModel),
        (LoKrConfig(r=2, alpha=3, init_weights=False, decompose_both=True, decompose_factor=8), LoKrModel),
        (LoKrConfig(r=2, alpha=3, init_weights=False, decompose_factor=4), LoKrModel),
    ],
)
@pytest.mark.parametrize("mode", MODES)
def test_lycoris_kinds_equal_peft(config, model_class, mode):
    """peft's own tuners make the file; its layers say what it should do."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 48), nn.ReLU(), nn.Linear(48, 32))
    config.target_modules = ["0", "2"]
    x, plain = torch.randn(5, 32), {name: value.clone() for name, value in model.state_dict().items()}
    peft = model_class(model, config, "default")
    expected = peft(x).detach()
    file = {}
    for name, value in peft.state_dict().items():
        path, _, role = name.removeprefix("model.").partition(".")
        if role.endswith(".default"):
            file[f"{path}.{role.removesuffix('.default')}"] = value
            file[f"{path}.alpha"] = torch.tensor(3.0)

    ours = nn.Sequential(nn.Linear(32, 48), nn.ReLU(), nn.Linear(48, 32))
    ours.load_state_dict(plain)
    with attached(ours, [Adapter(name="a", weights=parse(file, ["0", "2"]), mode=mode)]):
        torch.testing.assert_close(ours(x), expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(ours(x), expected, atol=1e-3)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sizes=st.tuples(*[st.integers(1, 6)] * 4), rank=st.integers(1, 5), strength=st.floats(-2, 2),
    alpha=st.none() | st.floats(0.1, 16), batch=st.lists(st.integers(1, 3), max_size=2), kron=st.booleans(),
)  # fmt: skip
def test_hot_equals_merged_for_any_shape(sizes, rank, strength, alpha, batch, kron):
    a, b, c, d = sizes
    torch.manual_seed(rank)
    layer = nn.Sequential(nn.Linear(b * d, a * c))
    change = (
        Kronecker(torch.randn(a, b), torch.randn(c, d), 0.5)
        if kron
        else LowRank(torch.randn(rank, b * d), torch.randn(a * c, rank), alpha)
    )
    x = torch.randn(*batch, b * d)
    results = []
    for mode in MODES:
        with attached(
            layer, [Adapter(name="a", weights=LoraWeights({"0": change}), strength=strength, mode=mode)]
        ):
            results.append(layer(x))
    by_hand = nn.functional.linear(x, layer[0].weight + strength * change.delta_OI(), layer[0].bias)
    torch.testing.assert_close(results[0], by_hand, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(results[1], by_hand, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("mode", MODES)
def test_bfloat16_model_with_float32_adapter(model, velocity, pairs, mode):
    model = model.to(torch.bfloat16)
    layer = model.get_submodule("transformer_blocks.0.attn.to_q")
    x = torch.randn(4, 32, dtype=torch.bfloat16)
    down, up = pairs()["transformer_blocks.0.attn.to_q"]
    with attached(model, [adapter("a", pairs(), mode)]):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    exact = nn.functional.linear(x.float(), layer.weight.float() + up @ down, layer.bias.float())
    assert (y.float() - exact).abs().max() < 0.05 * exact.abs().max()


# --- several, and exactly back ------------------------------------------------------------------------------


@pytest.mark.parametrize("modes", list(itertools.product(MODES, repeat=2)))
def test_order_of_attaching_does_not_matter(model, velocity, pairs, modes):
    first, second = adapter("a", pairs(1), modes[0], 0.7), adapter("b", pairs(2, rank=5), modes[1], -0.4)
    with attached(model, [first, second]):
        forth = velocity(model)
    with attached(model, [second, first]):
        back = velocity(model)
    torch.testing.assert_close(forth, back, atol=1e-6, rtol=1e-5)
    assert not torch.allclose(forth, velocity(model), atol=1e-3)


@settings(max_examples=30, deadline=None)
@given(
    order=st.permutations(range(3)),
    modes=st.tuples(*[st.sampled_from(MODES)] * 3),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_detach_in_any_order_leaves_what_was_never_there(order, modes, dtype):
    """Bit for bit, after every single detach, also in a dtype where adding and subtracting would leave a rest."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 12), nn.Linear(12, 8), nn.Linear(8, 8)).to(dtype)
    x, before, untouched = torch.randn(3, 8, dtype=dtype), snapshot(model), copy.deepcopy(model)
    made = [
        adapter(f"a{n}", {"0": (torch.randn(2, 8), torch.randn(12, 2)), "2": (up.T, up)}, modes[n], 0.3)
        for n in range(3)
        for up in [torch.randn(8, n + 1)]
    ]
    attachments = [attach(model, one) for one in made]
    for position, gone in enumerate(order):
        attachments[gone].detach()
        left = sorted(order[position + 1 :])
        with attached(untouched, [made[n] for n in left]):
            assert torch.equal(model(x), untouched(x))
    assert_untouched(model, before)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_run_that_fails_leaves_no_trace(model, pairs, mode, error):
    before = snapshot(model)
    with pytest.raises(error), attached(model, [adapter("a", pairs(1), mode), adapter("b", pairs(2), mode)]):
        raise error
    assert_untouched(model, before)


@pytest.mark.parametrize("mode", MODES)
def test_an_interrupt_while_attaching_leaves_no_trace(model, pairs, mode):
    before = snapshot(model)

    class Interrupting(LowRank):
        """Stands for Ctrl-C in the middle: the third layer's change cannot be computed."""

        @property
        def scale(self):
            raise KeyboardInterrupt

    changes = {name: LowRank(*pair) for name, pair in pairs().items()}
    name = list(changes)[2]
    changes[name] = Interrupting(*pairs()[name])
    with pytest.raises(KeyboardInterrupt):
        attach(model, Adapter(name="a", weights=LoraWeights(changes), mode=mode))
    assert_untouched(model, before)


def test_one_that_does_not_fit_takes_the_earlier_ones_off_again(model, pairs):
    before = snapshot(model)
    unfit = adapter("b", {"nowhere": pairs()["img_in"]})
    with pytest.raises(AdapterError), attached(model, [adapter("a", pairs()), unfit]):
        pass
    assert_untouched(model, before)


@pytest.mark.parametrize("mode", MODES)
def test_strength_changes_without_loading(model, velocity, pairs, mode):
    attachment = attach(model, adapter("a", pairs(), mode, 1.0))
    other = attach(model, adapter("b", pairs(2), mode, 1.0))
    attachment.set_strength(0.25)
    changed = velocity(model)
    attachment.detach()
    other.detach()
    with attached(model, [adapter("a", pairs(), mode, 0.25), adapter("b", pairs(2), mode)]):
        assert torch.equal(velocity(model), changed)
    with pytest.raises(AdapterError, match="not attached any more"):
        attachment.set_strength(1)


@pytest.mark.parametrize("mode", MODES)
def test_adapters_follow_the_model_to_another_dtype(model, pairs, mode):
    plain = model.state_dict()["img_in.weight"].clone()
    attachment = attach(model, adapter("a", pairs(), mode))
    model.to(torch.float64)
    y = model.img_in(torch.ones(1, 8, dtype=torch.float64))
    down, up = (t.double() for t in pairs()["img_in"])
    exact = nn.functional.linear(torch.ones(1, 8).double(), plain.double() + up @ down, model.img_in.bias)
    torch.testing.assert_close(y, exact, atol=1e-6, rtol=1e-6)
    attachment.detach()
    assert torch.equal(model.img_in.weight, plain.double())


@pytest.mark.parametrize("mode", MODES)
def test_published_names_and_checkpoint_loading_stay(model, pairs, mode):
    names, shapes = list(model.state_dict()), [value.shape for value in model.state_dict().values()]
    with attached(model, [adapter("a", pairs(), mode)]):
        assert list(model.state_dict()) == names
        assert [value.shape for value in model.state_dict().values()] == shapes
        assert isinstance(model.img_in, nn.Linear)


def test_hot_never_reads_the_weight_so_it_works_over_a_quantised_layer(pairs):
    class Quantised(nn.Module):
        """A linear layer whose weight is int8 with a scale."""

        def __init__(self, linear):
            super().__init__()
            self.in_features, self.out_features = linear.in_features, linear.out_features
            self.register_buffer("scale", linear.weight.detach().abs().max() / 127)
            self.register_buffer("weight", (linear.weight.detach() / self.scale).round().to(torch.int8))

        def forward(self, x):
            return nn.functional.linear(x, self.weight.to(x) * self.scale)

    model = nn.ModuleDict({"img_in": Quantised(nn.Linear(8, 32))})
    x, pair = torch.randn(3, 8), {"img_in": pairs()["img_in"]}
    plain = model["img_in"](x)
    with attached(model, [adapter("a", pair)]):
        torch.testing.assert_close(model["img_in"](x), plain + x @ pair["img_in"][0].T @ pair["img_in"][1].T)
    assert torch.equal(model["img_in"](x), plain)
    with pytest.raises(AdapterError, match="cannot be merged") as caught:
        attach(model, adapter("a", pair, "merged"))
    assert "int8" in caught.value.got
    assert caught.value.mend == 'use mode="hot"'


def test_merged_refuses_plain_fp8_storage(pairs):
    model = nn.ModuleDict({"img_in": nn.Linear(8, 32).to(torch.float8_e4m3fn)})
    with pytest.raises(AdapterError, match="cannot be merged"):
        attach(model, adapter("a", {"img_in": pairs()["img_in"]}, "merged"))


def test_gradients_flow_through_hot_adapters_to_the_input(model, pairs):
    """The text encoder or a ControlNet may be trained below a transformer that carries adapters."""
    x = torch.randn(2, 8, requires_grad=True)
    with attached(model, [adapter("a", pairs())]):
        model.img_in(x).sum().backward()
    down, up = pairs()["img_in"]
    torch.testing.assert_close(x.grad, (model.img_in.weight + up @ down).sum(0).expand(2, 8).detach())


# --- compiled -----------------------------------------------------------------------------------------------


def test_compiled_code_sees_attach_strength_and_detach():
    """Hooks would be missed by code compiled before; another class is not. A strength alone must not recompile."""
    torch._dynamo.reset()
    compiles = []

    def backend(graph, inputs):
        compiles.append(graph)
        return graph.forward

    model = nn.ModuleDict({"block": nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 8))})
    compiled = torch.compile(model["block"], backend=backend, fullgraph=True)
    x, pair = torch.randn(2, 8), {"block.0": (torch.randn(2, 8), torch.randn(8, 2))}
    with torch.no_grad():
        plain = compiled(x)
        for _ in range(2):
            attachment = attach(model, adapter("a", pair))
            torch.testing.assert_close(compiled(x), model["block"](x))
            assert not torch.allclose(compiled(x), plain)
            attachment.set_strength(0.5)
            torch.testing.assert_close(compiled(x), model["block"](x))
            attachment.detach()
            torch.testing.assert_close(compiled(x), plain)
    assert len(compiles) == 2, "one graph without and one with the adapter, whatever its strength"


def test_paths_inside_compiled_modules_are_the_published_ones(model, pairs):
    model.transformer_blocks[0] = torch.compile(model.transformer_blocks[0], backend="eager")
    with attached(model, [adapter("a", pairs())]) as (attachment,):
        assert attachment.attached


# --- refused ------------------------------------------------------------------------------------------------


def test_wrong_shape_names_module_got_and_expected(model, pairs):
    wrong = {"img_in": (torch.ones(2, 64), torch.ones(3072, 2))}
    before = snapshot(model)
    with pytest.raises(AdapterError) as caught:
        attach(model, adapter("a", pairs() | wrong))
    assert "img_in has another shape" in caught.value.what
    assert "(3072, 64)" in caught.value.got
    assert "(32, 8)" in caught.value.expected
    assert_untouched(model, before)


def test_layer_that_is_not_linear(model):
    with pytest.raises(AdapterError, match="txt_norm is no linear layer") as caught:
        attach(model, adapter("a", {"txt_norm": (torch.ones(1, 24), torch.ones(24, 1))}))
    assert caught.value.got == "RMSNorm"


def test_strangers_in_run_time_weights(model, pairs):
    with pytest.raises(AdapterError, match="1 of its 9 names match nothing") as caught:
        attach(model, adapter("a", pairs() | {"transformer_blocks.7.attn.to_q": pairs()["img_in"]}))
    assert "at least 8 blocks, this one has 2" in caught.value.mend


def test_weights_may_be_made_when_they_are_attached(model, velocity, pairs):
    """By a function: called once an attachment, not before, and held to the same checks."""
    made = []

    def make():
        made.append(1)
        return weights(pairs())

    lazy = Adapter(name="a", weights=make)
    assert not made
    with attached(model, [lazy]):
        found = velocity(model)
    with attached(model, [adapter("a", pairs())]):
        assert torch.equal(found, velocity(model))
    assert len(made) == 1
    before = snapshot(model)
    with pytest.raises(AdapterError, match="not_there"):
        attach(model, Adapter(name="b", weights=lambda: weights({"not_there": (torch.ones(1, 4),) * 2})))
    assert_untouched(model, before)


def test_no_weights_at_all(model):
    with pytest.raises(AdapterError, match="is empty"):
        attach(model, adapter("a", {}))


def test_same_name_twice(model, pairs):
    with (
        attached(model, [adapter("a", pairs())]),
        pytest.raises(AdapterError, match="'a' is already attached"),
    ):
        attach(model, adapter("a", pairs()))


def test_layer_whose_forward_was_replaced(model, pairs):
    model.img_in.forward = lambda x: x
    with pytest.raises(AdapterError, match="replaced this layer's forward"):
        attach(model, adapter("a", pairs()))


@pytest.mark.parametrize("strength", [float("nan"), float("inf")])
def test_strength_must_be_a_number(model, pairs, strength):
    with pytest.raises(AdapterError, match="strength of adapter 'a'"):
        adapter("a", pairs(), strength=strength)
    with attached(model, [adapter("a", pairs())]) as (attachment,), pytest.raises(AdapterError):
        attachment.set_strength(strength)


def test_unknown_mode(pairs):
    with pytest.raises(AdapterError, match="no such mode") as caught:
        adapter("a", pairs(), mode="fused")
    assert caught.value.expected == "hot or merged"
