"""The optimizer and the schedule of a run: which weights decay, whose class, which defaults."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from craft.training.arguments import CraftTrainingArguments, user_optimizer
from craft.training.muon import MuonAdamW, Polynomial
from craft.training.requirements import library_errors
from craft.utils.errors import UserError
from craft.utils.logging import get_logger

logger = get_logger(__name__)

POLAR_EXPRESS: tuple[Polynomial, ...] = (
    (8.01324, -22.92576, 16.59941),
    (3.63659, -2.72193, 0.53655),
    (2.6613, -1.97715, 0.45262),
)
"""Each the best one for what the one before leaves, from singular values of 0.01 on (Amsel et al., 2025,
https://arxiv.org/abs/2505.16932): three bring them as near to 1 as five steps of Newton and Schulz do. The
first takes matrices as if divided by 1.01, as in the paper: beyond 1, where a rounded norm may leave one, it
would explode."""
STEPS_PER_DIRECTION = 2
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
        "polynomials": POLAR_EXPRESS,
        "steps_per_direction": STEPS_PER_DIRECTION,
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
    return MuonAdamW(muon_groups(model, blocks_of, args), processes=args.world_size)


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
    return trainer.budget.follow_plans(schedule) if given is None else schedule


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
