"""Muon and AdamW as one torch optimizer.

Muon (Keller Jordan et al., 2024, https://kellerjordan.github.io/posts/muon/) replaces the momentum of a
matrix by the nearest (semi-)orthogonal one. `torch.optim.Muon` exists; this one is our own for three reasons.
It sees inside stacked weights: an LSTM keeps the matrices of its four gates in one parameter, and
orthogonalising the stack as one matrix would couple gates that have nothing to do with each other. It
orthogonalises all matrices of one shape in a single batched product. And it keeps a direction for several
steps while momentum hardly turns it, the matrices taking turns, and processes share the directions out, since
for small models on a CPU they would be a third of a step. With the same settings both give the same result,
which a test checks.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim.adamw import adamw

from craft.training.precision import Hardware

Polynomial = tuple[float, float, float]
NEWTON_SCHULZ: tuple[Polynomial, ...] = ((3.4445, -4.7750, 2.0315),) * 5
"""Jordan's five steps."""


class MuonAdamW(torch.optim.Optimizer):
    """Muon for groups with `blocks` >= 1, AdamW (fused) for groups with `blocks` = 0, in one optimizer.

    One optimizer, because gradient scalers, schedulers, Accelerate and checkpoints each expect one. AdamW's
    half is torch's function, for torch's class would step all groups.

    Args:
        groups: from `muon_groups`; `defaults["lr"]` is the learning rate of the first (AdamW's). In those of
            Muon, `polynomials` are the steps of `orthogonalized`, whose result is kept for
            `steps_per_direction`.
        processes: how many hold the same weights and gradients (those of `torch.distributed`); each finds
            its share of the directions for all.
    """

    processes = 1  # of a copy, to which torch hands no attributes

    def __init__(self, groups: Iterable[dict[str, Any]], processes: int = 1) -> None:
        groups, self.processes = list(groups), processes
        defaults = {
            "lr": groups[0]["lr"],
            "blocks": 0,
            "momentum": 0.95,
            "polynomials": NEWTON_SCHULZ,
            "steps_per_direction": 1,
            "exact": False,
            "betas": (0.9, 0.999),
            "eps": 1e-8,
            "weight_decay": 0.0,
            "fused": True,  # also tells torch to leave the step counters in float32 when it loads a state
        }
        super().__init__(groups, defaults)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:  # a checkpoint from before there was a choice goes on as it began
            for name in ("polynomials", "steps_per_direction", "exact"):
                group.setdefault(name, self.defaults[name])

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if parameters:
                (self._muon if group["blocks"] else self._adamw)(group, parameters)
        return loss

    def _adamw(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        for p in parameters:
            if not self.state[p]:
                self.state[p] = {
                    "step": torch.zeros((), dtype=torch.float32, device=p.device),
                    "exp_avg": torch.zeros_like(p),
                    "exp_avg_sq": torch.zeros_like(p),
                }
        states = [self.state[p] for p in parameters]
        adamw(
            parameters,
            [p.grad for p in parameters],
            [s["exp_avg"] for s in states],
            [s["exp_avg_sq"] for s in states],
            [],
            [s["step"] for s in states],
            fused=True,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )

    def _muon(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        lr, kept_for = group["lr"], group["steps_per_direction"]
        for i, p in enumerate(parameters):
            state = self.state[p]
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(p)
            if "direction" not in state:
                # All are due now. Afterwards each counts on from another number, so that they take turns.
                state["direction"], state["steps_since_update"] = torch.zeros_like(p), kept_for + i % kept_for
        momenta = [self.state[p]["momentum_buffer"] for p in parameters]
        torch._foreach_lerp_(momenta, [p.grad for p in parameters], 1 - group["momentum"])
        if group["weight_decay"]:
            torch._foreach_mul_(parameters, 1 - lr * group["weight_decay"])
        self._refresh_directions(group, parameters)
        same_scale: dict[float, list[Tensor]] = defaultdict(list)
        for p in parameters:
            # Tall matrices take longer steps, so that every output moves equally far (Jordan's rule).
            same_scale[max(1.0, p.shape[0] // group["blocks"] / p.shape[1]) ** 0.5].append(p)
        for scale, members in same_scale.items():
            torch._foreach_add_(members, [self.state[p]["direction"] for p in members], alpha=-lr * scale)

    def _refresh_directions(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        """Finds new directions for those of the parameters that are due."""
        kept_for, states = group["steps_per_direction"], [self.state[p] for p in parameters]
        due: dict[torch.Size, list[Tensor]] = defaultdict(list)
        for p, state in zip(parameters, states):
            if state["steps_since_update"] >= kept_for:
                state["steps_since_update"] -= kept_for
                due[p.shape].append(p)
            state["steps_since_update"] += 1
        stacks = []
        for shape, members in due.items():
            momenta = [self.state[p]["momentum_buffer"] for p in members]
            updates = torch._foreach_lerp([p.grad for p in members], momenta, group["momentum"])  # Nesterov
            stacks.append(torch.stack(list(updates)).view(-1, shape[0] // group["blocks"], shape[1]))
        for (shape, members), new in zip(due.items(), self._directions(group, stacks)):
            torch._foreach_copy_(
                [self.state[p]["direction"] for p in members], new.reshape(-1, *shape).unbind()
            )

    def _directions(self, group: dict[str, Any], stacks: list[Tensor]) -> list[Tensor]:
        """`orthogonalized` of each stack [n, rows, columns]; several processes share the matrices out."""
        settings = group["polynomials"], group["exact"]
        if self.processes == 1 or not stacks:
            return [orthogonalized(stack, *settings) for stack in stacks]
        mine = []
        for stack in stacks:  # as many for each process: where that doesn't divide, the first ones once more
            size = -(-len(stack) // self.processes)
            numbers = dist.get_rank() * size + torch.arange(size, device=stack.device)
            mine.append(orthogonalized(stack[numbers % len(stack)], *settings))
        message = torch.cat([share.flatten() for share in mine])
        messages = message.new_empty(self.processes, len(message))
        dist.all_gather(list(messages), message)
        parts = messages.split([share.numel() for share in mine], dim=1)
        return [part.reshape(-1, *s.shape[1:])[: len(s)] for part, s in zip(parts, stacks)]


def orthogonalized(matrices: Tensor, polynomials: Sequence[Polynomial], exact: bool = False) -> Tensor:
    """Roughly U V^T of each matrix U S V^T, [n, rows, columns].

    In bfloat16, whose precision is enough for a direction, where the device multiplies it natively and the
    result need not be `exact`.

    Args:
        polynomials: (a, b, c) of each step, which takes a singular value s to a s + b s^3 + c s^5.
    """
    x = matrices.to(torch.float32 if exact else _direction_dtype(matrices.device.type))
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.mT
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for a, b, c in polynomials:
        gram = x @ x.mT
        update = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, update, x, beta=a)
    return x.mT if tall else x


@cache
def _direction_dtype(device: str) -> torch.dtype:
    hardware = Hardware.detect(use_cpu=device == "cpu")
    native = hardware.native_bf16 or (hardware.capability or (0, 0)) >= (8, 0)
    return torch.bfloat16 if native else torch.float32
