"""Validation while training: scores of the validation text, and samples. Calls `craft.evaluation`."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import takewhile
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import TrainerCallback

from craft.data.tokenization import first_id
from craft.evaluation.protocols import natural_protocol
from craft.evaluation.scores import Evaluation, evaluate_split
from craft.training.arguments import METRICS
from craft.training.distributed.sharding import gathered_model
from craft.training.ending import stop_training
from craft.training.logging import write_event
from craft.training.step_state import rng_devices
from craft.utils.common import TEMPERATURE
from craft.utils.errors import UserError
from craft.utils.logging import get_logger

logger = get_logger(__name__)

BYTES_PER_CHAR = 4
"""At most, in UTF-8: a character is no more ids than that."""


class Validation(TrainerCallback):
    """Scores and samples of a trainer's model as it is now.

    Args:
        trainer: a `LanguageModelTrainer`.
        tokenizer: knows how many characters and bytes an id is.
        block_size: the window.
    """

    def __init__(self, trainer: Any, tokenizer: Any, block_size: int) -> None:
        self.trainer, self.args = trainer, trainer.args
        self.tokenizer, self.block_size = tokenizer, block_size

    @property
    def protocol(self) -> str:
        if self.args.eval_protocol != "auto":
            return self.args.eval_protocol
        return natural_protocol(self.trainer.model)

    def interrupted(self) -> bool:
        """Whether a signal ends long work within a step; asked between pieces, which are signs of life."""
        if self.trainer.is_in_train:
            self.trainer.watchdog.alive()
        return bool(self.trainer.is_in_train and self.trainer.stop.requested)

    def part(self, ids: np.ndarray) -> np.ndarray:
        """What of a text is scored: while training its first `eval_chars` characters, otherwise all of it."""
        if not self.trainer.is_in_train or self.args.eval_chars is None:
            return ids
        return first_chars(ids, self.args.eval_chars, self.tokenizer.id_chars)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        ids = self.trainer.eval_dataset
        if args.eval_strategy != "no" and ids is not None and len(part := self.part(ids)) < len(ids):
            logger.info(
                f"validation of the first {len(part):,} of {len(ids):,} ids while training (eval_chars)"
            )

    def run(self, ids: Any = None, prefix: str = "eval") -> dict[str, float]:
        """What `LanguageModelTrainer.evaluate` does; by default with the validation split."""
        trainer = self.trainer
        trainer.watch.pause()
        began, sample = time.perf_counter(), None
        # As it would be exported now: averaged, in float32, not compiled.
        with gathered_model(trainer), trainer.ema.applied(), plain_forward(trainer.model):
            result = self.score(self.part(trainer.eval_dataset if ids is None else ids))
            seconds = time.perf_counter() - began
            if trainer.is_world_process_zero():
                with trainer.stop.defer_errors():
                    sample = self.usual_sample()
        if trainer.is_in_train and trainer.stop.agreed():
            stop_training(trainer, evaluation_due=True)
        if trainer.is_world_process_zero():
            logger.info(self.line(result))
        metrics = self.metrics(result, prefix, seconds)
        trainer.log(metrics)
        if sample is not None:
            logger.info("sample:\n    " + sample.strip("\n").replace("\n", "\n    "))
            write_event(trainer, {"sample": sample})
            trainer.wandb.log_sample(sample, trainer.state.global_step)
        trainer.control = trainer.callback_handler.on_evaluate(
            self.args, trainer.state, trainer.control, metrics
        )
        if trainer.is_in_train:
            trainer.watch.run()
        return metrics

    def score(self, ids: Any) -> Evaluation:
        """The score of a text, shared out among the processes; unfinished if a signal came."""
        return evaluate_split(
            self.trainer.accelerator.unwrap_model(self.trainer.model),
            ids,
            protocol=self.protocol,
            block_size=self.block_size,
            batch_size=self.args.per_device_eval_batch_size,
            id_chars=self.tokenizer.id_chars,
            id_bytes=self.tokenizer.id_bytes,
            rank=self.args.process_index,
            world=self.args.world_size,
            stopped=self.interrupted,
        )

    def sample(self, chars: int, prompt: str | None = None) -> str:
        """`chars` characters by the model, always with the same random numbers; training's stay."""
        ids = self.tokenizer.encode_ids(prompt or "").tolist() or [first_id(self.tokenizer)]
        model = self.trainer.model
        config = copy.deepcopy(model.generation_config)
        config.update(do_sample=True, temperature=TEMPERATURE, top_k=None, top_p=None)
        config.update(max_new_tokens=chars, max_length=None)
        with torch.random.fork_rng(rng_devices(self.args.device)):
            torch.manual_seed(self.args.seed)
            rows = model.stream(torch.tensor([ids], device=self.args.device), config)
            drawn = takewhile(lambda row: not self.interrupted(), rows)
            return self.tokenizer.decode([int(row[0]) for row in drawn], skip_special_tokens=True)  # type: ignore[no-any-return]

    def usual_sample(self) -> str | None:
        """The sample that goes with each evaluation, prompt included; None if none is wanted or possible."""
        if self.args.sample_chars == 0:
            return None
        try:
            text = self.sample(self.args.sample_chars, self.args.sample_prompt)
        except UserError as error:
            logger.warning(f"no samples: {error}")
            self.args.sample_chars = 0
            return None
        return (self.args.sample_prompt or "") + text

    def line(self, result: Evaluation) -> str:
        """One line that fits a terminal of 80 columns; the other figures are in metrics.jsonl."""
        compared, best = "", self.trainer.state.best_metric
        if best is not None:
            name = str(self.args.metric_for_best_model).removeprefix("eval_")
            value = result.nats_per_char if name == "loss" else getattr(result, name)
            better = value > best if self.args.greater_is_better else value < best
            compared = ", best so far" if better else f", best {best:.4f}"
        return (
            f"step {self.trainer.state.global_step:,}  validation {result.nats_per_char:.4f} nats = "
            f"{result.bits_per_char:.4f} bits/char  ({result.protocol}{compared})"
        )

    def metrics(self, result: Evaluation, prefix: str, seconds: float) -> dict[str, float]:
        """A score as the metrics that transformers logs and compares."""
        figures = {"loss": result.nats_per_char, **{name: getattr(result, name) for name in METRICS[1:]}}
        return {
            f"{prefix}_{name}": value for name, value in {**figures, "runtime": round(seconds, 3)}.items()
        }


def first_chars(ids: np.ndarray, chars: int, id_chars: np.ndarray) -> np.ndarray:
    """The beginning of a text in which at most `chars` characters are predicted, and at least one id."""
    predicted = np.cumsum(id_chars[ids[1 : BYTES_PER_CHAR * chars + 1]])
    return ids[: 1 + max(1, int(np.searchsorted(predicted, chars, side="right")))]


@contextmanager
def plain_forward(model: nn.Module) -> Iterator[None]:
    """Inside, the model's own forward: accelerate puts one with autocast on the instance."""
    wrapped = model.__dict__.pop("forward", None)
    try:
        yield
    finally:
        if wrapped is not None:
            model.forward = wrapped
