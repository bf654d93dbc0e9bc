"""Norms, activations and rotary turns with a backward of their own, beside what autograd makes of them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import gradcheck

from craft.models.elementwise import RMSNorm, relu2, rms_norm, rotate, sin_for_rotate

EPS = 1e-6


def angles(positions: int, width: int) -> tuple[Tensor, Tensor]:
    """cos and sin [1, T, 1, D], each angle for both halves, as transformers gives them."""
    turns = torch.rand(1, positions, 1, width // 2, dtype=torch.float64).repeat(1, 1, 1, 2) * 6
    return turns.cos(), turns.sin()


def plain_turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Llama's formula."""
    low, high = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-high, low), dim=-1) * sin


COS, SIN = angles(5, 8)
CASES: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "relu2": (relu2, lambda x: F.relu(x).square()),
    "rms_norm": (lambda x: rms_norm(x, EPS), lambda x: F.rms_norm(x, x.shape[-1:], eps=EPS)),
    "rotate": (
        lambda x: rotate(x, COS.to(x.dtype), sin_for_rotate(SIN).to(x.dtype)),
        lambda x: plain_turn(x, COS.to(x.dtype), SIN.to(x.dtype)),
    ),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_values_and_gradients_are_those_of_the_formula(name: str, dtype: torch.dtype) -> None:
    ours, formula = CASES[name]
    torch.manual_seed(0)
    x, upstream = (torch.randn(2, 5, 3, 8).to(dtype) for _ in range(2))
    results = []
    for function in (ours, formula):
        leaf = x.clone().requires_grad_()
        y = function(leaf)
        y.backward(upstream)
        results.append((y.detach(), leaf.grad))
    for mine, theirs in zip(*results):
        assert mine.dtype == theirs.dtype == dtype
        # Differences of almost equal numbers keep bfloat16's absolute error.
        rough = {"rtol": 2e-2, "atol": 1e-2} if dtype == torch.bfloat16 else {}
        torch.testing.assert_close(mine, theirs, **rough)


@pytest.mark.parametrize("name", CASES)
def test_gradients_agree_with_finite_differences(name: str) -> None:
    torch.manual_seed(1)
    x = torch.randn(2, 5, 3, 8, dtype=torch.float64, requires_grad=True)
    assert gradcheck(CASES[name][0], (x,))


@pytest.mark.parametrize("name", CASES)
def test_without_gradients_compiled_and_exported_the_values_are_the_same(name: str) -> None:
    function = CASES[name][0]
    x = torch.randn(2, 5, 3, 8)
    trained = function(x.clone().requires_grad_()).detach()
    with torch.no_grad():
        torch.testing.assert_close(function(x), trained)
    leaf = x.clone().requires_grad_()
    compiled = torch.compile(function, backend="aot_eager")(leaf)
    torch.testing.assert_close(compiled, trained)
    (gradient,) = torch.autograd.grad(compiled.sum(), leaf)
    torch.testing.assert_close(gradient, torch.autograd.grad(function(leaf).sum(), leaf)[0])
    exported = torch.export.export(Wrapped(function), (x,)).module()
    torch.testing.assert_close(exported(x), trained)


class Wrapped(torch.nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def test_a_row_of_zeros_has_no_scale_that_explodes() -> None:
    x = torch.zeros(2, 8, requires_grad=True)
    y = rms_norm(x, EPS)
    y.sum().backward()
    assert not y.any()
    assert torch.isfinite(x.grad).all()


def test_the_norm_has_torchs_weight() -> None:
    ours, theirs = (norm(8, eps=EPS) for norm in (RMSNorm, torch.nn.RMSNorm))
    weight = torch.rand(8)
    for norm in (ours, theirs):
        norm.load_state_dict({"weight": weight})
    x = torch.randn(4, 8)
    torch.testing.assert_close(ours(x), theirs(x))


def test_gradients_of_gradients_are_refused_instead_of_wrong() -> None:
    x = torch.randn(4, 8, requires_grad=True)
    (first,) = torch.autograd.grad(rms_norm(x, EPS).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()
