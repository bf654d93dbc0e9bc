"""What a run says of its model on the way: scores over the whole validation text, and samples."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from itertools import takewhile
from typing import Any

import numpy as np
import torch
from transformers.trainer_utils import IntervalStrategy

from craft.data.tokenization import first_id
from craft.training import tracking
from craft.training.compilation import plain_forward
from craft.training.evaluation import Evaluation, evaluate_split
from craft.training.memory import is_out_of_memory
from craft.training.protocols import natural_protocol
from craft.training.saving import ARGUMENTS
from craft.training.trainer import Trainer
from craft.utils.common import TEMPERATURE, TrainingFailed, UserError, human
from craft.utils.logging import get_logger

logger = get_logger(__name__)


BYTES_PER_CHAR = 4
"""At most, in UTF-8: a character is no more ids than that."""


class EvaluationStopped(Exception):
    """A signal came while a text was scored."""


class ValidatingTrainer(Trainer):
    """The part of `LanguageModelTrainer` that scores and samples.

    Attributes:
        tokenizer: knows how many characters and bytes an id is.
        block_size: window of evaluations.
    """

    tokenizer: Any
    block_size: int
    chars_per_id: float

    @property
    def protocol(self) -> str:
        if self.args.eval_protocol != "auto":
            return self.args.eval_protocol
        return natural_protocol(self.model)

    def decisive_settings(self, planned_steps: int) -> dict[str, Any]:
        if self.resumed is not None:
            saved = json.loads((self.resumed / ARGUMENTS).read_text(encoding="utf-8"))
            if "eval_chars" not in saved:  # begun when all was scored: what is compared must stay the same
                self.args.eval_chars = None
        return super().decisive_settings(planned_steps)

    def record_start(self) -> None:
        super().record_start()
        ids = self.eval_dataset
        if self.args.eval_strategy != IntervalStrategy.NO and len(self._scored(ids)) < len(ids):
            logger.info(
                f"validation of the first {self.args.eval_chars:,} characters while training "
                f"(training.eval_chars), of all {human(len(ids) * self.chars_per_id)} at the end"
            )

    def _scored(self, ids: np.ndarray) -> np.ndarray:
        """What of a text is scored at this moment."""
        if not self.is_in_train or self.args.eval_chars is None:
            return ids
        return first_chars(ids, self.args.eval_chars, self.tokenizer.id_chars)

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Scores a text (by default the validation split) in float32, logs it, and writes a sample.

        While training, its first `eval_chars` characters; otherwise all of it.
        """
        self.watch.pause()
        began = time.perf_counter()
        ids = self._scored(self.eval_dataset if eval_dataset is None else eval_dataset)
        with self._as_exported():
            result = evaluate_split(
                self.accelerator.unwrap_model(self.model),
                ids,
                protocol=self.protocol,
                block_size=self.block_size,
                batch_size=self.args.per_device_eval_batch_size,
                id_chars=self.tokenizer.id_chars,
                id_bytes=self.tokenizer.id_bytes,
                rank=self.args.process_index,
                world=self.args.world_size,
                stopped=self._stopped,
            )
            seconds = time.perf_counter() - began
            sample = None
            if self.is_world_process_zero():
                with self.kept_for_all():
                    sample = self._sampled()
        if self.is_in_train and self.stop.agreed():
            raise EvaluationStopped
        metrics = self._metrics(result, metric_key_prefix, seconds)
        if self.is_world_process_zero():
            self._say(result)
        self.log(metrics)
        if sample is not None:
            self._log_sample(sample)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        if self.is_in_train:
            self.watch.run()
        return metrics

    def _stopped(self) -> bool:
        """Whether a signal ends long work within a step; asked between pieces, which are signs of life."""
        if self.is_in_train and self.watchdog is not None:
            self.watchdog.alive()
        return self.is_in_train and self.stop.asked

    def _evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """As in transformers; a signal ends it early, and a resumed run does it again."""
        try:
            return super()._evaluate(*args, **kwargs)  # type: ignore[no-any-return]
        except EvaluationStopped:
            self.evaluation_due = self.state.global_step > 0
            self.control.should_training_stop = True
            return {}
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        raise TrainingFailed(
            f"out of memory in the evaluation at step {self.state.global_step:,}; lower "
            f"training.per_device_eval_batch_size={self.args.per_device_eval_batch_size}; {self.last_good}"
        )

    def sample(self, chars: int, prompt: str | None = None) -> str:
        """`chars` characters by the model as it is, always with the same random numbers; training's stay."""
        ids = self.tokenizer.encode_ids(prompt or "").tolist() or [first_id(self.tokenizer)]
        config = copy.deepcopy(self.model.generation_config)
        config.update(do_sample=True, temperature=TEMPERATURE, top_k=None, top_p=None)
        config.update(max_new_tokens=chars, max_length=None)
        with torch.random.fork_rng(self.rng_devices()):
            torch.manual_seed(self.args.seed)
            rows = self.model.stream(torch.tensor([ids], device=self.args.device), config)
            drawn = takewhile(lambda row: not self._stopped(), rows)
            return self.tokenizer.decode([int(row[0]) for row in drawn], skip_special_tokens=True)

    def _sampled(self) -> str | None:
        if self.args.sample_chars == 0:
            return None
        try:
            text = self.sample(self.args.sample_chars, self.args.sample_prompt)
        except UserError as error:
            logger.warning(f"no samples: {error}")
            self.args.sample_chars = 0
            return None
        return (self.args.sample_prompt or "") + text

    def _log_sample(self, text: str) -> None:
        logger.info("sample:\n    " + text.strip("\n").replace("\n", "\n    "))
        self.write_metrics({"sample": text})
        if self.wandb_id is not None:
            tracking.log_sample(text, self.state.global_step)

    def _metrics(self, result: Evaluation, prefix: str, seconds: float) -> dict[str, float]:
        return {
            f"{prefix}_loss": result.nats_per_char,
            f"{prefix}_bits_per_char": result.bits_per_char,
            f"{prefix}_bits_per_byte": result.bits_per_byte,
            f"{prefix}_perplexity": result.perplexity,
            f"{prefix}_accuracy": result.accuracy,
            f"{prefix}_runtime": round(seconds, 3),
        }

    def _say(self, result: Evaluation) -> None:
        """One line that fits a terminal of 80 columns; the other figures are in metrics.jsonl."""
        compared, best = "", self.state.best_metric
        if best is not None:
            name = str(self.args.metric_for_best_model).removeprefix("eval_")
            value = result.nats_per_char if name == "loss" else getattr(result, name)
            better = value > best if self.args.greater_is_better else value < best
            of = "" if name == "loss" else f"{name} "
            compared = ", best so far" if better else f", best {of}{best:.4f}"
        logger.info(
            f"step {self.state.global_step:,}  validation {result.nats_per_char:.4f} nats = "
            f"{result.bits_per_char:.4f} bits/char  ({result.protocol}{compared})"
        )

    @contextmanager
    def _as_exported(self) -> Iterator[None]:
        """The model as it would be exported now: averaged weights, in float32, not compiled."""
        average = self.average.applied() if self.average is not None else nullcontext()
        with self.whole(), average, plain_forward(self.model):
            yield


def first_chars(ids: np.ndarray, chars: int, id_chars: np.ndarray) -> np.ndarray:
    """The beginning of a text in which at most `chars` characters are predicted, and at least one id."""
    predicted = np.cumsum(id_chars[ids[1 : BYTES_PER_CHAR * chars + 1]])
    return ids[: 1 + max(1, int(np.searchsorted(predicted, chars, side="right")))]
