"""The optimizer: which weights decay, Muon and AdamW as one torch optimizer, schedules that need no extras.

Muon (Keller Jordan et al., 2024, https://kellerjordan.github.io/posts/muon/) replaces the momentum of a
matrix by the nearest (semi-)orthogonal one, found by five Newton-Schulz steps. `torch.optim.Muon` exists;
this one is our own for two reasons. It orthogonalises all matrices of one shape in a single batched
product, which saves a fifth of its time on small models. And it sees inside stacked weights: an LSTM keeps
the matrices of its four gates in one parameter, and orthogonalising the stack as one matrix would couple
gates that have nothing to do with each other. On a plain matrix both give the same result, which a test
checks.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from craft.training.arguments import CraftTrainingArguments, user_optimizer
from craft.training.precision import Hardware
from craft.training.requirements import library_errors
from craft.utils.errors import UserError
from craft.utils.logging import get_logger

logger = get_logger(__name__)

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 5
SCHEDULE_DEFAULTS: dict[str, Callable[[int, int], dict[str, Any]]] = {
    # What Hugging Face's schedules demand as kwargs although there is a sensible default.
    "warmup_stable_decay": lambda steps, warmup: {"num_decay_steps": max(1, min(steps - warmup, steps // 5))},
    "cosine_with_min_lr": lambda steps, warmup: {"min_lr_rate": 0.1},
    "cosine_warmup_with_min_lr": lambda steps, warmup: {"min_lr_rate": 0.1},
}


def decay_parameter_names(model: nn.Module) -> list[str]:
    """Names of the parameters that weight decay shrinks: matrices except embeddings, no gains or biases."""
    embeddings = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, nn.Embedding)
        for parameter in module.parameters(recurse=False)
    }
    return [name for name, p in model.named_parameters() if p.ndim >= 2 and id(p) not in embeddings]


def muon_groups(model: nn.Module, blocks_of: Callable[[str], int], args: Any) -> list[dict[str, Any]]:
    """Parameter groups for `MuonAdamW`: AdamW with and without decay, then Muon's, by number of blocks.

    Args:
        blocks_of: how many stacked matrices a named 2-D parameter holds; 0 leaves it to AdamW.
        args: `CraftTrainingArguments`.
    """
    decay = set(decay_parameter_names(model))
    adamw_groups: dict[float, list[Tensor]] = {args.weight_decay: [], 0.0: []}
    muon: dict[int, list[Tensor]] = defaultdict(list)
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        blocks = blocks_of(name) if parameter.ndim == 2 else 0
        if blocks:
            muon[blocks].append(parameter)
        else:
            adamw_groups[args.weight_decay if name in decay else 0.0].append(parameter)
    of_adamw = {
        "lr": args.learning_rate,
        "betas": (args.adam_beta1, args.adam_beta2),
        "eps": args.adam_epsilon,
    }
    # Muon's directions are in float32 on any hardware where that was asked for. Rounded to bfloat16 they turn
    # the last bit of a gradient, in which one process and several differ, into 1e-5 of the loss.
    of_muon = {
        "lr": args.muon_learning_rate,
        "momentum": args.muon_momentum,
        "weight_decay": args.weight_decay,
        "exact": args.precision == "fp32",
    }
    groups: list[dict[str, Any]] = [
        {"params": parameters, "blocks": 0, **of_adamw, "weight_decay": share}
        for share, parameters in adamw_groups.items()
        if parameters
    ]
    return groups + [{"params": muon[blocks], "blocks": blocks, **of_muon} for blocks in sorted(muon)]


def choose_optimizer(trainer: Any, model: Any) -> None:
    """Makes Muon, or names the user's class, where transformers would look for an optimizer of its own.

    A class of the user gets `lr`, `weight_decay` and the words of `optim_args`, numbers as numbers.
    """
    args = trainer.args
    if trainer.optimizer is not None:
        return
    if args.optim == "muon":
        trainer.optimizer = muon_optimizer(model, args)
    elif cls := user_optimizer(args.optim):
        words = dict(word.split("=") for word in (args.optim_args or "").replace(" ", "").split(",") if word)
        extra = {name: _number_or_text(text) for name, text in words.items()}
        given = {"lr": args.learning_rate, "weight_decay": args.weight_decay, **extra}
        trainer.optimizer_cls_and_kwargs = cls, given


def _number_or_text(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def muon_optimizer(model: Any, args: CraftTrainingArguments) -> MuonAdamW:
    """Muon as the training arguments describe it.

    Raises:
        UserError: for a model that doesn't know its matrices.
    """
    blocks_of: Callable[[str], int] | None = getattr(model, "muon_blocks", None)
    if blocks_of is None:
        raise UserError(
            f"training.optim=muon needs a model that knows its matrices (muon_blocks), and "
            f"{type(model).__name__} doesn't; use training.optim=adamw_torch_fused",
            code="model-mismatch",
        )
    return MuonAdamW(muon_groups(model, blocks_of, args))


class MuonAdamW(torch.optim.Optimizer):
    """Muon for groups with `blocks` >= 1, AdamW (fused) for groups with `blocks` = 0, in one optimizer.

    One optimizer, because gradient scalers, schedulers, Accelerate and checkpoints each expect one.

    Args:
        groups: from `muon_groups`; `defaults["lr"]` is the learning rate of the first (AdamW's).
    """

    def __init__(self, groups: Iterable[dict[str, Any]]) -> None:
        groups = list(groups)
        defaults = {
            "lr": groups[0]["lr"],
            "blocks": 0,
            "momentum": 0.95,
            "betas": (0.9, 0.999),
            "eps": 1e-8,
            "weight_decay": 0.0,
            "fused": True,  # also tells torch to leave the step counters in float32 when it loads a state
        }
        super().__init__(groups, defaults)

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
        momentum, blocks, lr = group["momentum"], group["blocks"], group["lr"]
        for p in parameters:
            if not self.state[p]:
                self.state[p] = {"momentum_buffer": torch.zeros_like(p)}
        gradients = [p.grad for p in parameters]
        buffers = [self.state[p]["momentum_buffer"] for p in parameters]
        torch._foreach_lerp_(buffers, gradients, 1 - momentum)
        updates = torch._foreach_lerp(gradients, buffers, momentum)  # Nesterov
        if group["weight_decay"]:
            torch._foreach_mul_(parameters, 1 - lr * group["weight_decay"])
        same_shape: dict[torch.Size, list[int]] = defaultdict(list)
        for i, p in enumerate(parameters):
            same_shape[p.shape].append(i)
        for shape, members in same_shape.items():
            rows = shape[0] // blocks
            stack = torch.stack([updates[i] for i in members]).view(-1, rows, shape[1])
            directions = (
                orthogonalized(stack, exact=group.get("exact", False))
                .to(parameters[members[0]].dtype)
                .view(-1, *shape)
            )
            # Tall matrices take longer steps, so that every output moves equally far (Jordan's rule).
            scale = max(1.0, rows / shape[1]) ** 0.5
            moved = [parameters[i] for i in members]
            torch._foreach_add_(moved, list(directions.unbind()), alpha=-lr * scale)


def orthogonalized(matrices: Tensor, exact: bool = False) -> Tensor:
    """Roughly U V^T of each matrix U S V^T (singular values between about 0.7 and 1.2), [n, rows, columns].

    In bfloat16, whose precision is enough for a direction, where the device multiplies it natively and the
    result need not be `exact`.
    """
    a, b, c = NEWTON_SCHULZ
    x = matrices.to(torch.float32 if exact else _direction_dtype(matrices.device.type))
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.mT
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT
        update = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, update, x, beta=a)
    return x.mT if tall else x


@cache
def _direction_dtype(device: str) -> torch.dtype:
    hardware = Hardware.detect(use_cpu=device == "cpu")
    native = hardware.native_bf16 or (hardware.capability or (0, 0)) >= (8, 0)
    return torch.bfloat16 if native else torch.float32


def complete_schedule(args: CraftTrainingArguments, steps: int) -> None:
    """Fills in what the schedules of transformers demand, where there is a sensible default."""
    default = SCHEDULE_DEFAULTS.get(args.lr_scheduler_type)
    if default and not args.lr_scheduler_kwargs:
        args.lr_scheduler_kwargs = default(steps, args.get_warmup_steps(steps))


def create_scheduler(trainer: Any, create: Callable[..., Any], steps: int, optimizer: Any) -> Any:
    """What `create` of transformers makes, complete, and bent where a plan of the run's time changes.

    Args:
        steps: of the run; of one that is planned by time, those of the first plan count.
    """
    given, steps = trainer.lr_scheduler, trainer.budget.schedule_steps(steps)
    complete_schedule(trainer.args, steps)
    with library_errors():
        schedule = create(steps, optimizer)
    return trainer.budget.bend(schedule) if given is None else schedule


class Optimization:
    """Optimizer, schedule and loss scaler of a trainer as a part of its checkpoints.

    Args:
        trainer: also says which settings changed since the checkpoint (`changes`, `settings_moved`).
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def state_dict(self) -> dict[str, Any]:
        scaler = self.trainer.accelerator.scaler
        return {
            "optimizer": self.trainer.optimizer.state_dict(),
            "scheduler": self.trainer.lr_scheduler.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        trainer, optimizer, scaler = self.trainer, self.trainer.optimizer, self.trainer.accelerator.scaler
        saved, schedule, moves = state["optimizer"], trainer.lr_scheduler, trainer.settings_moved
        if moves:  # the new settings count: a loaded state would bring the old ones with it
            pairs = zip(optimizer.state_dict()["param_groups"], saved["param_groups"])
            saved = {**saved, "param_groups": [{**new, "lr": old["lr"]} for new, old in pairs]}
        if "training.optim" in trainer.changes:
            logger.warning("the optimizer changed: its state starts from zero")
        else:
            optimizer.load_state_dict(saved)
            _keep_formats(optimizer, saved.get("state", {}))
        if moves and hasattr(schedule, "lr_lambdas"):
            schedule.last_epoch = state["scheduler"]["last_epoch"]
            factors = [factor(schedule.last_epoch) for factor in schedule.lr_lambdas]
            schedule._last_lr = [rate * factor for rate, factor in zip(schedule.base_lrs, factors)]
            for group, rate in zip(optimizer.param_groups, schedule._last_lr):
                group["lr"] = rate
        elif "training.lr_scheduler_type" not in trainer.changes:
            schedule.load_state_dict(state["scheduler"])
        if scaler is not None and state["scaler"]:
            scaler.load_state_dict(state["scaler"])


def _keep_formats(optimizer: Any, saved: dict[Any, Any]) -> None:
    """Puts back states whose number format isn't that of the weights, to which torch casts what it loads."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for i, parameter in enumerate(parameters):
        for name, value in saved.get(i, {}).items():
            loaded = optimizer.state[parameter].get(name)
            if isinstance(value, Tensor) and isinstance(loaded, Tensor) and value.dtype != loaded.dtype:
                optimizer.state[parameter][name] = value.to(loaded.device)
