"""Trial steps: how long a step, an evaluation, a save and the end of a run take here, without a trace."""

from __future__ import annotations

import copy
import hashlib
import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from craft.evaluation.protocols import default_protocol, parallel_streams, rows_of
from craft.evaluation.scores import evaluate_split
from craft.training.checkpointing.parts import Generators, StepSnapshot
from craft.training.distributed.agreement import on_rank0_broadcast
from craft.training.memory import is_out_of_memory, out_of_memory_message, set_micro_batch_size
from craft.utils.common import SAMPLE_CHARACTERS
from craft.utils.errors import TrainingFailed, UserError

WARM_UP = 3
TRIAL_SECONDS = 1.0
"""For about how long steps are tried."""
MOST_STEPS = 30
PIECE = 16_384
"""Predictions of the evaluation that is tried."""
PIECE_PER_STREAM = 512
LARGEST_WRITE = 64 << 20
HASHED = 3
"""How many checkpoints every save reads: its own, and those that are kept."""
SAVE, ENDING = 0.15, 2.0
"""Seconds for what isn't measured: small files; export, loading, plotting, the card."""


@dataclass(frozen=True)
class Costs:
    """Seconds of a step, of an evaluation, of a save, and of all that comes after training."""

    step: float
    evaluation: float
    save: float
    ending: float


def measure(trainer: Any, protocols: Sequence[str]) -> Costs:
    """Tries what a run does, before it begins. All processes come here; what the first one measured counts.

    Args:
        protocols: by which the finished model is scored in the first process, after training.

    Raises:
        UserError: for a sharded model.
    """
    if trainer.is_fsdp_enabled:
        raise UserError(
            "training.max_minutes tries steps and takes them back, which a sharded model (FSDP) can't; "
            "set training.max_steps",
            code="setting-conflict",
        )
    step = step_seconds(trainer, TRIAL_SECONDS)

    def rest() -> Costs:
        validation, ids = getattr(trainer, "validation", None), trainer.eval_dataset
        args, evaluation, ending, sample = trainer.args, 0.0, 0.0, 0.0
        if validation is not None and args.sample_chars and (protocols or args.eval_strategy != "no"):
            began = time.perf_counter()
            validation.sample()
            sample = time.perf_counter() - began
        if validation is not None and args.eval_strategy != "no":
            asked = args.eval_protocol
            protocol = default_protocol(trainer.model) if asked == "auto" else asked
            scored = validation.scored_in_training(ids)
            evaluation = sample + _scoring(trainer, scored, protocol) / args.world_size
        if protocols:
            ending = ENDING + sample * SAMPLE_CHARACTERS / (args.sample_chars or SAMPLE_CHARACTERS)
            if ids is not None:
                ending += sum(_scoring(trainer, ids, protocol) for protocol in protocols)
        return Costs(step, evaluation, _save(trainer), ending)

    return on_rank0_broadcast(rest)


@contextmanager
def undone(trainer: Any) -> Iterator[None]:
    """Inside, steps may be taken; weights, optimizer, random numbers and states are then as they were before,
    bit for bit."""
    model, optimizer, scaler = trainer.model, trainer.optimizer, trainer.accelerator.scaler
    training, snapshot = model.training, StepSnapshot(trainer)
    tensors = [*model.parameters(), *model.buffers()]
    weights = [tensor.detach().clone() for tensor in tensors]
    stateful = [part for part in (optimizer, scaler) if part is not None]
    states = [copy.deepcopy(part.state_dict()) for part in stateful]
    try:
        with Generators(trainer.args.device).preserved():
            yield
    finally:
        with torch.no_grad():
            for tensor, weight in zip(tensors, weights):
                tensor.copy_(weight)
        snapshot.rollback()
        model.train(training)
        for part, state in zip(stateful, states):
            part.load_state_dict(state)
        trainer.optimizer = optimizer  # the run makes its own
        for attribute in ("forward", "_is_accelerate_prepared"):
            model.__dict__.pop(attribute, None)
        trainer.accelerator.free_memory()


def step_seconds(trainer: Any, measured: float) -> float:
    """How long a step of the run takes: the median of some, behind others that warm up, as the first process
    measured it. All processes come here.

    Args:
        measured: for about how many seconds; a few steps are taken at least.

    Raises:
        TrainingFailed: if memory is short.
    """
    try:
        with undone(trainer):
            seconds = _step(trainer, measured)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise TrainingFailed(out_of_memory_message(trainer), code="out-of-memory") from None
    return on_rank0_broadcast(lambda: seconds)


def _step(trainer: Any, measured: float) -> float:
    args, accelerator, rows = trainer.args, trainer.accelerator, trainer.args.train_batch_size
    trainer.create_optimizer()
    model, optimizer = accelerator.prepare(trainer._wrap_model(trainer.model), trainer.optimizer)
    batches = _batches(trainer)

    def take() -> float:
        began = time.perf_counter()
        micro_batches, count = next(batches)
        trainer.current_gradient_accumulation_steps = len(micro_batches)
        for place, batch in enumerate(micro_batches, start=1):
            with nullcontext() if place == len(micro_batches) else accelerator.no_sync(model):
                trainer.training_step(model, batch, count)
        if args.max_grad_norm > 0:
            accelerator.clip_grad_norm_(model.parameters(), args.max_grad_norm)
        optimizer.step()
        model.zero_grad()
        if args.device.type != "cpu":
            torch.get_device_module(args.device).synchronize()
        return time.perf_counter() - began

    trainer.finds_batch_size = args.auto_find_batch_size and args.world_size == 1
    try:
        usual = [take() for _ in range(WARM_UP)][-1]
        steps = on_rank0_broadcast(lambda: max(WARM_UP, min(MOST_STEPS, int(measured / usual))))
        return statistics.median(take() for _ in range(steps))
    finally:
        trainer.finds_batch_size = False
        set_micro_batch_size(trainer, rows)


def _batches(trainer: Any) -> Iterator[tuple[list[Any], Any]]:
    """The micro-batches of one step after the other, and what their losses are divided by; without end."""
    args = trainer.args
    while True:
        epoch = iter(trainer.get_train_dataloader())
        while True:
            batches, count = trainer.get_batch_samples(epoch, args.gradient_accumulation_steps, args.device)
            if not batches:
                break
            yield batches, count


def _scoring(trainer: Any, ids: np.ndarray, protocol: str) -> float:
    """Seconds in which one process scores a text, as a piece of it goes."""
    block, at_once = trainer.validation.block_size, trainer.args.per_device_eval_batch_size
    model, whole = trainer.model, len(ids) - 1
    streams = min(at_once, parallel_streams(model, whole, at_once))

    # Of these windows there are as many in a piece of a text as in all of it.
    timed = "blocks" if protocol == "nanogpt-sampled" else protocol

    def work(protocol: str, predictions: int, streams: int | None = None) -> int:
        rows = rows_of(protocol, predictions, block, model, at_once, streams)
        return len(rows.starts) * rows.length

    def score(predictions: int) -> float:
        began = time.perf_counter()
        settings = {"block_size": block, "batch_size": at_once, "tokenizer": trainer.tokenizer}
        piece = ids[: predictions + 1]
        evaluate_split(model, piece, protocol=timed, streams=streams, **settings)
        return time.perf_counter() - began

    piece = min(whole, PIECE_PER_STREAM * streams if protocol == "stateful" else PIECE)
    score(max(1, piece // 4))
    return score(piece) * work(protocol, whole) / work(timed, piece, streams)


def _save(trainer: Any) -> float:
    """Seconds for a checkpoint: its bytes written, synced and hashed."""
    args = trainer.args
    if args.save_strategy == "no":
        return 0.0
    weights = sum(p.numel() * p.element_size() for p in trainer.model.parameters())
    size = max(1, weights * (1 if args.save_only_model else 3 + bool(args.ema_decay)))
    folder = trainer.run_dir.absolute()
    place = next(place for place in (folder, *folder.parents) if place.is_dir())
    written = os.urandom(min(size, LARGEST_WRITE))
    began = time.perf_counter()
    with tempfile.TemporaryFile(dir=place) as file:
        file.write(written)
        file.flush()
        os.fsync(file.fileno())
    for _ in range(HASHED):
        hashlib.sha256(written).digest()
    return SAVE + (time.perf_counter() - began) * size / len(written)
