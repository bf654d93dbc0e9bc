"""Saves at every new best evaluation, whatever `save_steps` says; stops when there was none for long."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState
from transformers.trainer_utils import SaveStrategy

from craft.utils.logging import get_logger

logger = get_logger(__name__)


class KeepBest(TrainerCallback):
    """Asks for a checkpoint at every new best, and for the end of training when patience is over."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def on_evaluate(
        self, args: Any, state: TrainerState, control: TrainerControl, metrics: Any = None, **kwargs: Any
    ) -> None:
        if not self.trainer.is_in_train:
            return
        value = (metrics or {}).get(f"eval_{args.compared_metric}")
        if value is not None and args.save_strategy != SaveStrategy.NO:
            control.should_save |= args.is_better(value, state.best_metric)
        if patience_is_over(args, state):
            patience = args.early_stopping_patience
            logger.info(f"stopping early: {patience} evaluations were no better than {state.best_metric:.4f}")
            control.should_training_stop = True


def patience_is_over(args: Any, state: TrainerState) -> bool:
    """Whether there were `early_stopping_patience` evaluations without a better one.

    Read off the history of evaluations, so that a resumed run counts as if it had never stopped.
    """
    name = f"eval_{args.compared_metric}"
    values = [entry[name] for entry in state.log_history if name in entry]
    if not args.early_stopping_patience or not values:
        return False
    best = values.index(max(values) if args.greater_is_better else min(values))
    return len(values) - 1 - best >= args.early_stopping_patience
