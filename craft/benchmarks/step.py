"""What a training step is made of: forward and backward of a block, and the optimizer beside them.

In float32 and eager mode on windows of random characters, with the sizes of the experiments
shakespeare_transformer and shakespeare_lstm. Muon is craft's with what its trainer sets; a measurement is a
multiple of the steps for which it keeps a direction. The share of an optimizer in a step is
1 / (1 + its ratio to forward and backward).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from craft.benchmarks import networks
from craft.benchmarks.harness import Comparison, Options, timed
from craft.benchmarks.texts import make_ids
from craft.training.arguments import CraftTrainingArguments
from craft.training.optimization import STEPS_PER_DIRECTION, muon_optimizer

CONTEXT = 64
STEPS = 6 * STEPS_PER_DIRECTION
"""Of one measurement: directions are found in it as often as in a run."""


def comparisons(options: Options) -> Iterator[Comparison]:
    small = networks.SMALL
    size, lstm_size = (small, small) if options.quick else (networks.Size(4, 128), networks.Size(2, 256))
    gpt2, modern = (networks.craft_model(name, size, CONTEXT) for name in ("gpt2", "transformer"))
    lstm = networks.craft_model("char_lstm", lstm_size, CONTEXT)
    contenders = {"GPT-2's block": gradients(gpt2, 12), "modern block": gradients(modern, 12)}
    yield compared(f"forward and backward, {size}", 12, contenders)
    yield compared(f"step of the transformer {size}", 12, step_parts(modern, 12))
    yield compared(f"step of the LSTM {lstm_size}", 32, step_parts(lstm, 32))


def compared(name: str, batch: int, contenders: dict[str, Callable[[], float]]) -> Comparison:
    settings = {"batch": batch, "context": CONTEXT, "steps": STEPS}
    return Comparison(f"{name}, fp32", STEPS, "steps", contenders, settings)


def gradients(model: Any, batch: int) -> Callable[[], float]:
    """A contender: forward and backward of some steps."""
    windows = make_ids(batch * (CONTEXT + 1)).reshape(batch, -1)
    inputs, labels = (torch.as_tensor(windows[:, i : i + CONTEXT]).long().to(networks.DEVICE) for i in (0, 1))
    model.train()

    def work() -> None:
        for _ in range(STEPS):
            model.zero_grad()
            model(inputs, labels=labels, shift_labels=labels, use_cache=False).loss.backward()

    return timed(work)


def step_parts(model: Any, batch: int) -> dict[str, Callable[[], float]]:
    """Contenders: forward and backward, and the same number of steps of two optimizers alone."""
    whole = gradients(model, batch)
    whole()  # the optimizers need gradients
    args = CraftTrainingArguments(output_dir="unused", precision="fp32", optim="muon", eval_strategy="no")
    optimizers = {
        "Muon": muon_optimizer(model, args),
        "AdamW": torch.optim.AdamW(model.parameters(), fused=True),
    }
    return {"forward and backward": whole, **{name: steps(each) for name, each in optimizers.items()}}


def steps(optimizer: torch.optim.Optimizer) -> Callable[[], float]:
    return timed(lambda: [optimizer.step() for _ in range(STEPS)])
