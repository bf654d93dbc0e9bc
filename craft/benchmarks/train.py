"""Characters trained on per second: craft's trainer beside a bare PyTorch loop over the same model.

Measured between two moments inside the loop: imports, set-up and the first 5 steps are left out, all that
happens in a step is counted, with the loss logged every 10 steps; no evaluation, no checkpoint. Baseline: a
bare PyTorch loop over the same model class, windows, AdamW (fused), clipping and precision. Llama and GPT-2
of transformers have the same layers and width and run in the same bare loop. Precision is what craft
chooses on this machine.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback

from craft.benchmarks import networks
from craft.benchmarks.harness import Comparison, Options, now
from craft.benchmarks.texts import make_ids
from craft.data.char_dataset import CharDataset
from craft.training.arguments import CraftTrainingArguments
from craft.training.base import LanguageModelTrainer
from craft.training.precision import choose_precision, suit_attention

WARM_UP = 5
LEARNING_RATE = 1e-3
LOG_EVERY = 10


@dataclass(frozen=True)
class Task:
    """What is trained, on `batch` windows of `context` characters a step (or that many parallel streams)."""

    title: str
    preset: str
    size: networks.Size
    batch: int
    context: int = 64
    upstream: str | None = None


TASKS = (
    Task("transformer 4x128, GPT-2's block", "gpt2", networks.Size(4, 128), 12, upstream="gpt2"),
    Task("transformer 4x128, modern block", "transformer", networks.Size(4, 128), 12, upstream="llama"),
    Task("LSTM 2x256, carried state", "char_lstm", networks.Size(2, 256), 32),
)


def comparisons(options: Options) -> Iterator[Comparison]:
    for task in TASKS:
        if options.quick:
            task = replace(task, size=networks.SMALL, batch=4, context=16)
        yield training(task, 4 if options.quick else options.steps)


def training(task: Task, steps: int) -> Comparison:
    """The bare loop, the trainer, and a model of transformers in the bare loop; each has its own model."""
    model = networks.craft_model(task.preset, task.size, task.context)
    chosen, _ = choose_precision("auto", launcher="no")
    precision = "fp32" if chosen == "fp16" else chosen  # a bare loop in fp16 would need loss scaling as well
    ids = make_ids((WARM_UP + steps + 4) * task.batch * task.context).astype(np.uint8)
    order = "streams" if model.carries_state else "shuffled"
    data = CharDataset(ids, task.context, task.batch, seed=0, order=order)
    # Each run trains a fresh copy: Accelerate marks a model it has prepared and leaves it alone thereafter.
    contenders = {
        "bare loop": lambda: bare_loop(copy.deepcopy(model), data, steps, precision),
        "craft LanguageModelTrainer": lambda: trainer(copy.deepcopy(model), data, steps, precision),
    }
    weights = {type(model).__name__: model.num_parameters()}
    if task.upstream:
        other = networks.upstream_model(task.upstream, task.size, task.context)
        name = type(other).__name__
        contenders[f"{name}, bare loop"] = lambda: bare_loop(copy.deepcopy(other), data, steps, precision)
        weights[name] = other.num_parameters()
    settings = {"batch": task.batch, "context": task.context, "steps": steps, "weights": weights}
    amount = steps * task.batch * task.context
    return Comparison(f"{task.title}, {precision}", amount, "characters", contenders, settings)


def bare_loop(model: Any, data: CharDataset, steps: int, precision: str) -> float:
    """What one would write by hand: forward, backward, clip, step, and a look at the loss now and then."""
    carried = getattr(model, "carries_state", False)
    extra: dict[str, Any] = {"use_cache": carried}
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.0, fused=True)
    device = networks.DEVICE
    suit_attention(model, precision, on_cpu=device.type == "cpu")
    autocast = torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()
    model.train()
    for step in range(WARM_UP + steps):
        if step == WARM_UP:
            start = now()
        windows = data.windows(data.starts(0, step)).to(device)
        labels = windows[:, 1:].contiguous()
        with autocast:
            outputs = model(windows[:, :-1].contiguous(), labels=labels, shift_labels=labels, **extra)
        if carried:
            state = model.state_tensors(outputs.past_key_values)
            extra["past_key_values"] = model.state_from_tensors(state)
        outputs.loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % LOG_EVERY == 0:
            outputs.loss.item()
    return now() - start


class Clock(TrainerCallback):
    """Looks at the time when a step begins, so that what follows a step, such as logging, is counted."""

    def __init__(self) -> None:
        self.began: dict[int, float] = {}

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.began[state.global_step] = now()


def trainer(model: Any, data: CharDataset, steps: int, precision: str) -> float:
    """The same by craft's trainer, as `craft train` sets it up."""
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        arguments = CraftTrainingArguments(
            output_dir=f"{folder}/run",
            precision=precision,
            global_batch_size=data.global_batch_size,
            max_steps=WARM_UP + steps + 1,
            learning_rate=LEARNING_RATE,
            lr_scheduler_type="constant",
            logging_steps=LOG_EVERY,
            save_strategy="no",
            eval_strategy="no",
            seed=0,
        )
        LanguageModelTrainer(model, arguments, data, None, networks.tokenizer(), callbacks=[clock]).train()
    return clock.began[WARM_UP + steps] - clock.began[WARM_UP]
