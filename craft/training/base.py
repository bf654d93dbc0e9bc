"""`LanguageModelTrainer`: trains a character model on a `CharDataset` and scores it over the whole
validation text.

Windows hold T + 1 ids, so all T predictions count: the loss is the exact mean over the predictions of the
global batch, whatever the number of processes and accumulation steps. Recurrent models carry their state
from window to window, which is kept, saved and restored here. The model object is all that this file knows
of a model.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from craft.data.char_dataset import train_loader
from craft.data.tokenization import load_tokenizer
from craft.training.agreement import together
from craft.training.arguments import CraftTrainingArguments
from craft.training.compilation import compile_forward
from craft.training.precision import suit_attention
from craft.training.sanity import check_data
from craft.training.settings import data_settings, fingerprint
from craft.training.state import CarriedState
from craft.training.trainer import Trainer, TrainingInterrupted
from craft.training.validating import ValidatingTrainer
from craft.utils.common import UserError
from craft.utils.logging import get_logger

__all__ = ["LanguageModelTrainer", "Trainer", "TrainingInterrupted"]

logger = get_logger(__name__)


CARRIED_SHAPE = {"training.global_batch_size", "training.carry_state"}
"""With another number of streams, the old ones can't be gone on with."""


class LanguageModelTrainer(ValidatingTrainer):
    """Trains a `LanguageModel` on windows of characters.

    Args:
        model: follows the `LanguageModel` protocol; never a concrete class. None with `model_init`, which
            makes one for every trial of `hyperparameter_search`.
        args: its `output_dir` is the run directory.
        train_dataset: `CharDataset` or `StreamDataset`; order "streams" for models that carry their state.
        eval_ids: the validation text as ids, or None.
        tokenizer: for samples, characters per id, and to be saved with the model.
        block_size: window of evaluations; by default that of training.
        run_config: the resolved run, saved beside the weights.
        text: a fingerprint of the training text, if it has one; by default made from its ids.

    Raises:
        UserError: for arguments that don't go together.
    """

    def __init__(
        self,
        model: Any,
        args: CraftTrainingArguments,
        train_dataset: Any,
        eval_ids: np.ndarray | None,
        tokenizer: Any,
        *,
        block_size: int | None = None,
        run_config: dict[str, Any] | None = None,
        text: str | None = None,
        **kwargs: Any,
    ) -> None:
        model_init = kwargs.pop("model_init", None)
        if model is None:
            self.model_init = model_init
            model = super().call_model_init()
        together(lambda: check_data(train_dataset, eval_ids, args, model.config.vocab_size))
        self.carries_state = bool(model.carries_state and args.carry_state)
        order = getattr(train_dataset, "order", None)
        if self.carries_state and order != "streams":
            raise UserError(
                f"a carried state needs data in parallel streams, not in order {order!r}; "
                "set training.carry_state=false"
            )
        super().__init__(
            model=model,
            args=args,
            run_config=run_config,
            train_dataset=train_dataset,
            eval_dataset=eval_ids,
            processing_class=tokenizer,
            **kwargs,
        )
        self.model_init = model_init
        self.tokenizer = tokenizer
        self._adopt(model)
        smoother: Any = self.label_smoother
        self.label_smoother: Any = None if smoother is None else _aligned(smoother)
        self.text = text
        self.block_size = block_size or train_dataset.block_size
        self._lap_step = 0
        self.flops_per_id = float(model.flops_per_token())
        # Losses are per id; what is logged as bits is per character, and an id may be less than one.
        known = getattr(train_dataset, "ids", eval_ids)
        self.chars_per_id = 1.0 if known is None else float(tokenizer.id_chars[known[: 1 << 20]].mean())

    def call_model_init(self, trial: Any = None) -> Any:
        """The fresh model of a trial of `hyperparameter_search`."""
        model = super().call_model_init(trial)
        suit_attention(model, self.args.precision, on_cpu=self.args.on_cpu)
        self._adopt(model)
        return model

    def _adopt(self, model: Any) -> None:
        """What is known of the model alone: the tokenizer's special ids, and its carried state."""
        for config in (model.config, model.generation_config):  # as transformers would, with a warning
            for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
                setattr(config, name, getattr(self.tokenizer, name))
        self.carried = CarriedState(model)

    @property
    def chars_per_step(self) -> float:
        windows = self.args.train_batch_size * self.args.shares
        return windows * self.train_dataset.block_size * self.chars_per_id

    # ---- Steps

    def get_train_dataloader(self) -> DataLoader:
        """This process' micro-batches, in an order that depends on seed, epoch and step alone."""
        args = self.args
        return train_loader(
            self.train_dataset,
            args.train_batch_size,
            args.gradient_accumulation_steps,
            args.process_index,
            args.world_size,
        )

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Adds the carried state to what goes into the model, and keeps what comes out."""
        step, slot, part = inputs.pop("step_in_epoch"), inputs.pop("micro_step"), inputs.pop("part", None)
        inputs["use_cache"] = self.carries_state
        if self.carries_state:
            inputs["past_key_values"] = self.carried.before(slot, step, part)
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        if self.carries_state:
            self.carried.after(slot, outputs["past_key_values"], part)
        return (loss, outputs) if return_outputs else loss

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Any]], device: torch.device) -> int:
        """Predictions of the global batch. All windows are full, so no process needs to ask another."""
        # Gradients are averaged over processes, which transformers undoes in the first case only.
        sharers = self.args.world_size if self.args.average_tokens_across_devices else 1
        return sum(batch["shift_labels"].numel() for batch in batch_samples) * sharers

    def floating_point_ops(self, inputs: dict[str, Any]) -> float:
        return self.flops_per_id * inputs["input_ids"].numel()

    def _prepare_for_training(
        self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: Any
    ) -> Any:
        if self.args.torch_compile:
            options = {"backend": self.args.torch_compile_backend, "mode": self.args.torch_compile_mode}
            compile_forward(self.model, self._try_step, **options)
        return super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)

    def _try_step(self) -> None:
        """Forward and backward on the first real batch, twice, so that a carried state is tried too."""
        batch = self._prepare_inputs(next(iter(self.get_train_dataloader())))
        with self.undisturbed():
            for step in range(2):
                with self.accelerator.autocast():
                    again = {**batch, "step_in_epoch": step}
                    count = batch["labels"].numel()
                    loss = self.compute_loss(self.model, again, num_items_in_batch=count)
                loss.backward()
        self.carried.slots.clear()

    def find(self, resume: str | Path | bool | None) -> Path | None:
        """As in `SavingTrainer`; refuses a checkpoint whose ids mean other characters."""
        checkpoint = super().find(resume)
        if checkpoint is not None and load_tokenizer(checkpoint).get_vocab() != self.tokenizer.get_vocab():
            raise UserError(
                f"can't resume from {checkpoint}: it was trained with another alphabet than this text's; "
                "put the old text back, or start a new run"
            )
        return checkpoint

    def restore_progress(self) -> None:
        super().restore_progress()
        self._lap_step = self.state.global_step

    def decisive_settings(self, planned_steps: int) -> dict[str, Any]:
        text = self.text or fingerprint(self.train_dataset)
        data = data_settings(self.train_dataset, text, self.run_config.get("data") or {})
        return {**super().decisive_settings(planned_steps), **data}

    def rank_state(self) -> dict[str, Any]:
        place = self.train_dataset.state_tensors() if hasattr(self.train_dataset, "state_tensors") else {}
        carried = self.carried.tensors() if self.carries_state else {}
        return {**super().rank_state(), "data": place, "carried": carried}

    def load_rank_states(self, per_rank: list[dict[str, Any]]) -> None:
        super().load_rank_states(per_rank)
        if hasattr(self.train_dataset, "restore"):
            self.train_dataset.restore([saved["data"] for saved in per_rank])
        if self.carries_state and CARRIED_SHAPE.isdisjoint(self.changes):
            self.carried.restore(
                [saved["carried"] for saved in per_rank],
                global_batch_size=self.args.shares * self.args.train_batch_size,
                rank=self.args.process_index,
                world=self.args.world_size,
                accumulation=self.args.gradient_accumulation_steps,
                device=self.args.device,
            )

    def log(self, logs: dict[str, Any], start_time: float | None = None) -> None:
        """Adds what only a language model can say: bits per character, characters seen and per second."""
        per_step = self.chars_per_step
        logs["characters"] = round(self.state.global_step * per_step)
        if "loss" in logs:
            logs["bits_per_char"] = logs["loss"] / math.log(2) / self.chars_per_id
            seconds, steps = self.watch.lap(), self.state.global_step - self._lap_step
            self._lap_step = self.state.global_step
            if seconds > 0 and steps > 0:
                logs["chars_per_second"] = round(steps * per_step / seconds, 1)
        super().log(logs, start_time)

    def remember(self) -> None:
        super().remember()
        self._slots_before = dict(self.carried.slots)

    def go_back(self) -> None:
        super().go_back()
        self.carried.slots = dict(self._slots_before)

    @contextmanager
    def undisturbed(self) -> Iterator[None]:
        slots = dict(self.carried.slots)
        try:
            with super().undisturbed():
                yield
        finally:
            self.carried.slots = slots


def _aligned(smoother: Any) -> Any:
    """Label smoothing for windows: their labels are the next characters already and aren't shifted again."""

    def smooth(outputs: Any, labels: torch.Tensor, shift_labels: bool = False, **kwargs: Any) -> torch.Tensor:
        return smoother(outputs, labels, **kwargs)

    return smooth
