"""What a transformer does between its matrix products, in as few passes over memory as PyTorch allows.

On a CPU these small steps cost as much time as the products: autograd takes RMS norm and squared ReLU apart
into many, and keeps and reads again what each of them made. The functions here have a backward of their own,
used while a model trains in eager mode. Elsewhere (no gradients, `torch.compile`, `torch.export`) the same
formula is left to PyTorch. Autograd refuses gradients of gradients and `torch.func`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def _apply(function: Any, formula: Callable[..., Tensor], x: Tensor, *rest: Any) -> Tensor:
    """The function with its own backward where it is needed and nothing is traced; else the formula."""
    # One frame with both, for `torch.compile` takes frames one by one where it can't compile a model.
    trains = x.requires_grad and torch.is_grad_enabled() and not torch.compiler.is_compiling()
    return function.apply(x, *rest) if trains else formula(x, *rest)  # type: ignore[no-any-return]


def relu2(x: Tensor) -> Tensor:
    """max(x, 0) squared."""
    return _apply(_ReLU2, _relu2, x)


def _relu2(x: Tensor) -> Tensor:
    positive = F.relu(x)
    return positive * positive  # `square` is a power to PyTorch, which takes twice the time


class _ReLU2(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        positive = F.relu(x)
        ctx.save_for_backward(positive)
        return positive * positive

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (positive,) = ctx.saved_tensors
        return (gradient * positive).mul_(2)


def rms_norm(x: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps), the mean over the last dimension; computed in float32 at least."""
    return _apply(_RMSNorm, rms_norm_formula, x, eps)


def rms_norm_formula(x: Tensor, eps: float | Tensor) -> Tensor:
    """`rms_norm` without a backward of its own; it takes less time with an `eps` that is a tensor already, of
    the precision it computes in."""
    return (x * _inverse_rms(x, eps)).to(x.dtype)


def _inverse_rms(x: Tensor, eps: float | Tensor) -> Tensor:
    precise = torch.promote_types(x.dtype, torch.float32)
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=precise)
    eps = eps if isinstance(eps, Tensor) else norm.new_full((), eps)
    return torch.rsqrt(torch.addcmul(eps, norm, norm, value=1 / x.shape[-1]))


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float) -> Tensor:
        scale = _inverse_rms(x, eps)
        y = (x * scale).to(x.dtype)
        ctx.save_for_backward(y, scale)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        # d x = scale * (g - y * mean(g * y)): what points along y would only change its length.
        y, scale = ctx.saved_tensors
        along = (
            torch.linalg.vecdot(gradient.to(scale.dtype), y.to(scale.dtype)).unsqueeze_(-1).div_(-y.shape[-1])
        )
        return torch.addcmul(gradient.to(scale.dtype), y, along).mul_(scale).to(gradient.dtype), None


class RMSNorm(nn.RMSNorm):
    """torch's, with `rms_norm` as its formula."""

    def forward(self, x: Tensor) -> Tensor:
        normed = rms_norm(x, torch.finfo(x.dtype).eps if self.eps is None else self.eps)
        return normed if self.weight is None else normed * self.weight


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs (i, i + D/2) of x [B, T, heads, D] by the angles of `cos` and `sin`.

    Args:
        cos: [B, T, 1, D].
        sin: the same, negative in its first half (see `sin_for_rotate`).
    """
    return _apply(_Rotate, _rotated, x, cos, sin)


def sin_for_rotate(sin: Tensor) -> Tensor:
    """The sine as `rotate` takes it: a turn is then two products and a sum."""
    low, high = sin.chunk(2, dim=-1)
    return torch.cat((-low, high), dim=-1)


def _rotated(x: Tensor, cos: Tensor, sin: Tensor, sign: int = 1) -> Tensor:
    low, high = x.chunk(2, dim=-1)
    return torch.addcmul(x * cos, torch.cat((high, low), dim=-1), sin, value=sign)


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotated(x, cos, sin)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _rotated(gradient, cos, sin, sign=-1), None, None  # back by the same angles
