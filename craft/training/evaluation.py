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
from craft.evaluation.protocols import check_protocol, default_protocol
from craft.evaluation.scores import Evaluation, evaluate_split
from craft.training.checkpointing.parts import Generators
from craft.training.distributed.sharding import gathered_model
from craft.training.ending import stop_training
from craft.training.logging import write_event
from craft.utils.common import TEMPERATURE
from craft.utils.errors import UserError
from craft.utils.logging import get_logger
from craft.utils.units import unit_of

logger = get_logger(__name__)

IDS_PER_UNIT = 4
"""At most: a character is no more bytes in UTF-8."""


class Validation(TrainerCallback):
    """Scores and samples of a trainer's model as it is now.

    Args:
        trainer: a `LanguageModelTrainer`.
        tokenizer: knows what is counted, and how much of it an id is.
        block_size: the window.
    """

    def __init__(self, trainer: Any, tokenizer: Any, block_size: int) -> None:
        self.trainer, self.args = trainer, trainer.args
        self.tokenizer, self.block_size, self.unit = tokenizer, block_size, unit_of(tokenizer)
        for protocol in (self.args.eval_protocol, *(self.args.eval_protocols or ())):
            if protocol != "auto":  # a model that can't be scored so shouldn't be trained first
                check_protocol(protocol, trainer.model, block_size)
        metric = self.args.compared_metric
        if metric.startswith("bits_per_") and metric not in self.metric_names():
            raise UserError(
                f"training.metric_for_best_model={metric} isn't logged by a model that counts "
                f"{self.unit.plural}; use loss",
                code="setting-conflict",
            )

    def metric_names(self) -> list[str]:
        """Figures of an evaluation, as they are logged behind `eval_`."""
        bits = dict.fromkeys((self.unit.metric, *(["bits_per_byte"] if self.unit.has_bytes else [])))
        return [*bits, "perplexity", "accuracy", "calibration_error"]

    def interrupted(self) -> bool:
        """Whether a signal ends long work within a step; asked between pieces, which are signs of life."""
        if self.trainer.is_in_train:
            self.trainer.watchdog.alive()
        return bool(self.trainer.is_in_train and self.trainer.stop.requested)

    def scored_in_training(self, ids: np.ndarray) -> np.ndarray:
        """What of a text is scored while training: its first `eval_chars` units."""
        if self.args.eval_chars is None:
            return ids
        return first_units(ids, self.args.eval_chars, self.tokenizer.id_units)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        ids = self.trainer.eval_dataset
        if args.eval_strategy != "no" and ids is not None and len(self.scored_in_training(ids)) < len(ids):
            logger.info(
                f"validation of the first {self.args.eval_chars:,} {self.unit.plural} while training "
                "(training.eval_chars), of all at the end"
            )

    def run(self, ids: Any = None, prefix: str = "eval") -> dict[str, float]:
        """What `LanguageModelTrainer.evaluate` does; by default with the validation split."""
        trainer = self.trainer
        trainer.watch.pause()
        began, sample = time.perf_counter(), None
        ids = trainer.eval_dataset if ids is None else ids
        # As it would be exported now: averaged, in float32, not compiled.
        with gathered_model(trainer), trainer.ema.applied(), plain_forward(trainer.model):
            result = self.score(self.scored_in_training(ids) if trainer.is_in_train else ids)
            seconds = time.perf_counter() - began
            if trainer.is_world_process_zero():
                sample = self.sample()
        if trainer.is_in_train and trainer.stop.requested_anywhere():
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
        asked, model = self.args.eval_protocol, self.trainer.accelerator.unwrap_model(self.trainer.model)
        return evaluate_split(
            model,
            ids,
            protocol=default_protocol(model) if asked == "auto" else asked,
            block_size=self.block_size,
            batch_size=self.args.per_device_eval_batch_size,
            tokenizer=self.tokenizer,
            rank=self.args.process_index,
            world=self.args.world_size,
            stopped=self.interrupted,
        )

    def sample(self) -> str | None:
        """A text by the model, prompt included, with the same random numbers each time; None for none."""
        args, model, prompt = self.args, self.trainer.model, self.args.sample_prompt or ""
        if args.sample_chars == 0:
            return None
        begun = self.tokenizer.encode_ids(prompt).tolist() or [first_id(self.tokenizer)]
        config = copy.deepcopy(model.generation_config)
        config.update(do_sample=True, temperature=TEMPERATURE, top_k=None, top_p=None)
        config.update(max_new_tokens=args.sample_chars, max_length=None)
        with Generators(args.device).preserved():  # training's stay as they are
            torch.manual_seed(args.seed)
            rows = model.stream(torch.tensor([begun], device=args.device), config)
            drawn = takewhile(lambda row: not self.interrupted(), rows)
            text: str = self.tokenizer.decode([int(row[0]) for row in drawn], skip_special_tokens=True)
        return prompt + text

    def line(self, result: Evaluation) -> str:
        """One line that fits a terminal of 80 columns; the other figures are in metrics.jsonl."""
        compared, best = "", self.trainer.state.best_metric
        if best is not None:
            name = self.args.compared_metric
            value = result.nats_per_unit if name == "loss" else result.figures()[name]
            compared = ", best so far" if self.args.is_better(value, best) else f", best {best:.4f}"
        return (
            f"step {self.trainer.state.global_step:,}  validation {result.nats_per_unit:.4f} nats = "
            f"{result.bits_per_unit:.4f} bits/{self.unit.short}  ({result.protocol}{compared})"
        )

    def metrics(self, result: Evaluation, prefix: str, seconds: float) -> dict[str, float]:
        """A score as the metrics that transformers logs and compares."""
        figures = result.figures()
        return {
            f"{prefix}_loss": result.nats_per_unit,
            **{f"{prefix}_{name}": figures[name] for name in self.metric_names()},
            f"{prefix}_runtime": round(seconds, 3),
        }


def first_units(ids: np.ndarray, units: int, id_units: np.ndarray) -> np.ndarray:
    """The beginning of a text in which at most `units` units are predicted, and at least one id."""
    predicted = np.cumsum(id_units[ids[1 : IDS_PER_UNIT * units + 1]])
    return ids[: 1 + max(1, int(np.searchsorted(predicted, units, side="right")))]


@contextmanager
def plain_forward(model: nn.Module) -> Iterator[None]:
    """Inside, the model's own forward: accelerate puts one with autocast on the instance."""
    wrapped = model.__dict__.pop("forward", None)
    try:
        yield
    finally:
        if wrapped is not None:
            model.forward = wrapped
