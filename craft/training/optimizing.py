"""The part of our trainer that makes optimizer and schedule: transformers' own, and Muon."""

from __future__ import annotations

from typing import Any

import torch
import transformers

from craft.training.arguments import CraftTrainingArguments
from craft.training.optimization import SCHEDULE_DEFAULTS, decaying, muon_optimizer
from craft.utils.common import UserError


class OptimizingTrainer(transformers.Trainer):
    """The part of `Trainer` that makes optimizer and schedule."""

    args: CraftTrainingArguments
    model: Any
    optimizer: Any

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """As in transformers, plus Muon."""
        model = self.model if model is None else model
        if self.args.optim != "muon" or self.optimizer is not None:
            return super().create_optimizer(model)
        if not hasattr(self.model, "muon_blocks"):
            raise UserError(
                f"training.optim=muon needs a model that knows its matrices (muon_blocks), and "
                f"{type(self.model).__name__} doesn't; use training.optim=adamw_torch_fused"
            )
        self.optimizer = muon_optimizer(model, self.model.muon_blocks, self.args)
        return self.optimizer

    def get_decay_parameter_names(self, model: torch.nn.Module) -> list[str]:
        return decaying(model)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """As in transformers, with defaults for what its schedules demand."""
        default = SCHEDULE_DEFAULTS.get(str(getattr(self.args.lr_scheduler_type, "value", "")))
        if default and not self.args.lr_scheduler_kwargs:
            warmup = self.args.get_warmup_steps(num_training_steps)
            self.args.lr_scheduler_kwargs = default(num_training_steps, warmup)
        return super().create_scheduler(num_training_steps, optimizer)

    def _build_accelerator_args(self, **kwargs: Any) -> dict[str, Any]:
        accelerator_args = super()._build_accelerator_args(**kwargs)
        accelerator_args.pop("dynamo_plugin", None)  # we compile ourselves, see `compilation`
        return accelerator_args
