"""The transformer's norms: their backward passes against finite differences, their rounding in bfloat16."""

import pytest
import torch

from qwenimage_core.models.norms import RMSNorm


@pytest.mark.parametrize("trained", [True, False])
def test_the_gradient_of_the_rms_norm_is_that_of_finite_differences(trained):
    torch.manual_seed(0)
    norm = RMSNorm(6).double()
    norm.weight.data.uniform_(0.5, 2)
    norm.weight.requires_grad_(trained)
    x = torch.randn(2, 3, 6, dtype=torch.float64, requires_grad=True)

    def normed(x, weight):
        return torch.func.functional_call(norm, {"weight": weight}, (x,))

    # statistics are float32 by contract, so that steps and tolerances are those of float32
    assert torch.autograd.gradcheck(normed, (x, norm.weight), eps=1e-2, atol=2e-3, rtol=1e-3)


def test_in_bfloat16_it_rounds_before_the_weight_as_published():
    torch.manual_seed(0)
    norm = RMSNorm(64)
    norm.weight.data.uniform_(0.5, 2)
    norm = norm.bfloat16()
    x = torch.randn(5, 64).bfloat16()
    wide = x.float()
    root = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
    assert torch.equal(norm(x), (wide * root).bfloat16() * norm.weight)


@pytest.mark.parametrize("weights", [torch.bfloat16, torch.float32])
def test_gradients_have_the_dtypes_of_what_they_belong_to(weights):
    norm = RMSNorm(8).to(weights)
    x = torch.randn(2, 8, dtype=torch.bfloat16, requires_grad=True)
    norm(x).sum().backward()
    assert x.grad.dtype == torch.bfloat16
    assert norm.weight.grad.dtype == weights
