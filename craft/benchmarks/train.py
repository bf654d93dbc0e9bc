"""Characters per second of training: craft's trainer beside a bare PyTorch loop over the same model."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from craft.benchmarks import machine, networks
from craft.benchmarks.harness import Comparison, Contender, Options, Sample
from craft.benchmarks.texts import make_ids

PROTOCOL = """Characters trained on per second, between two moments inside the loop: imports, set-up and the
first 5 steps are left out, all that happens in a step is counted, with the loss logged every 10 steps; no
evaluation, no checkpoint. Baseline: a bare PyTorch loop over the same model class, windows, AdamW (fused),
clipping and precision. Llama and GPT-2 of transformers have the same layers and width and run in the same
bare loop. Precision is what craft chooses on this machine. MFU is relative to the half-precision peak of the
GPU."""

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
    context: int
    others: tuple[Callable[[networks.Size, int, int], Any], ...] = ()


TASKS = (
    Task("transformer 4x128, GPT-2's block", "gpt2", networks.Size(4, 128), 12, 64, (networks.gpt2,)),
    Task("transformer 4x128, modern block", "transformer", networks.Size(4, 128), 12, 64, (networks.llama,)),
    Task("LSTM 2x256, carried state", "char_lstm", networks.Size(2, 256), 32, 64),
)
SMALL = networks.Size(1, 32)


def comparisons(options: Options) -> Iterator[Comparison]:
    steps = options.steps or (4 if options.quick else 100)
    for task in TASKS:
        if options.quick:
            task = Task(task.title, task.preset, SMALL, 4, 16, task.others)
        yield training(task, steps, options.seed)


def training(task: Task, steps: int, seed: int) -> Comparison:
    """The trainer, the bare loop, and other models of the size in the bare loop; each has its own model."""
    from craft.data.char_dataset import CharDataset
    from craft.training.precision import Hardware, choose_precision

    model = networks.craft_model(task.preset, task.size, task.context, seed)
    chosen, _ = choose_precision("auto", hardware=Hardware.detect(), launcher="no")
    precision = "fp32" if chosen == "fp16" else chosen  # a bare loop in fp16 would need loss scaling as well
    ids = make_ids((WARM_UP + steps + 4) * task.batch * task.context, networks.VOCAB, seed).astype(np.uint8)
    order = "streams" if model.carries_state else "shuffled"
    data = CharDataset(ids, task.context, task.batch, seed, order)
    flops = float(model.flops_per_token())

    # Each run trains a fresh copy: Accelerate marks a model it has prepared and leaves it alone thereafter.
    def bare(network: Any) -> Callable[[], Sample]:
        return lambda: bare_loop(copy.deepcopy(network), data, steps, precision)

    def by_trainer() -> Sample:
        return trainer(copy.deepcopy(model), data, steps, precision, seed)

    contenders = [
        Contender("bare loop", bare(model), flops),
        Contender("craft LanguageModelTrainer", by_trainer, flops),
    ]
    others = [build(task.size, task.context, seed) for build in task.others]
    contenders += [Contender(f"{type(other).__name__}, bare loop", bare(other)) for other in others]
    weights = {type(network).__name__: network.num_parameters() for network in (model, *others)}
    settings = {
        "batch": task.batch,
        "context": task.context,
        "steps": steps,
        "precision": precision,
        "weights": weights,
    }
    return Comparison(f"{task.title}, {precision}", "characters", contenders, contenders[0].name, settings)


def bare_loop(model: Any, data: Any, steps: int, precision: str) -> Sample:
    """What one would write by hand: forward, backward, clip, step, and a look at the loss now and then."""
    import torch

    from craft.training.precision import suit_attention

    carried = getattr(model, "carries_state", False)
    extra: dict[str, Any] = {"use_cache": carried}
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.0, fused=True)
    device = torch.device(networks.device())
    suit_attention(model, precision, on_cpu=device.type == "cpu")
    autocast = torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()
    model.train()
    start = machine.now()
    for step in range(WARM_UP + steps):
        if step == WARM_UP:
            start = machine.now()
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
    return Sample.between(start, machine.now(), steps * data.global_batch_size * data.block_size)


def trainer(model: Any, data: Any, steps: int, precision: str, seed: int) -> Sample:
    """The same by craft's trainer, as `craft train` sets it up."""
    from transformers import TrainerCallback

    from craft.training.arguments import CraftTrainingArguments
    from craft.training.base import LanguageModelTrainer

    class Clock(TrainerCallback):
        """Looks at the time when a step begins, so that what follows a step, such as logging, is counted."""

        begun: dict[int, machine.Moment]

        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            self.begun = {}

        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step in (WARM_UP, WARM_UP + steps):
                self.begun[state.global_step] = machine.now()

    with tempfile.TemporaryDirectory() as folder:
        arguments = CraftTrainingArguments(
            output_dir=str(Path(folder) / "run"),
            precision=precision,
            global_batch_size=data.global_batch_size,
            max_steps=WARM_UP + steps + 1,
            learning_rate=LEARNING_RATE,
            lr_scheduler_type="constant",
            logging_steps=LOG_EVERY,
            save_strategy="no",
            eval_strategy="no",
            seed=seed,
        )
        clock = Clock()
        tokenizer = networks.tokenizer()
        LanguageModelTrainer(model, arguments, data, None, tokenizer, callbacks=[clock]).train()
    amount = steps * data.global_batch_size * data.block_size
    return Sample.between(clock.begun[WARM_UP], clock.begun[WARM_UP + steps], amount)
