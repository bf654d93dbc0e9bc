"""A model that suits a text, a machine and a time: what `craft train my.txt` chooses by itself.

Steps of one model are tried on this machine; what those of the other sizes of `configs/sizes.yaml` take
follows from how their costs compare. So it is known how many ids each would read in the time, and how often
it would see the text. `forecast` says what loss runs of that kind came to; the lowest wins.
"""

from __future__ import annotations

import bz2
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from craft.building import build_model, training_windows
from craft.config.automatic import size_table
from craft.config.schema import Run
from craft.data.arguments import DataArguments
from craft.data.facts import utf8_pieces
from craft.data.loaders import Corpus
from craft.data.tokenization import CharTokenizer
from craft.utils import launch
from craft.utils.logging import get_logger
from craft.utils.outputs import OUTPUTS
from craft.utils.units import unit_of

if TYPE_CHECKING:
    from craft.training.trial import Costs

logger = get_logger(__name__)

PACKED = 1_000_000
"""Ids that are packed, to know how predictable a text is."""
IDS_PER_STREAM = 256
"""Of the training text at least; a batch of a short text reads fewer streams of it."""


@dataclass(frozen=True)
class Size:
    """A model of `configs/sizes.yaml`; `cost` of its step, as a multiple of the first size's."""

    architecture: str
    layers: int
    width: int
    cost: float

    def __str__(self) -> str:
        return f"{self.architecture} {self.layers}x{self.width}"

    @property
    def matrices(self) -> int:
        """The weights of its layers: those of an LSTM have 8 matrices, those of a transformer 12."""
        return (8 if self.architecture == "LSTM" else 12) * self.layers * self.width**2

    @property
    def settings(self) -> dict[str, Any]:
        """How it is trained, by keys as on the command line; "models" is that section."""
        architecture = size_table()["architectures"][self.architecture]
        shape = {"num_hidden_layers": self.layers, "hidden_size": self.width}
        return {"models": {**architecture["models"], **shape}, **architecture["settings"]}


@dataclass(frozen=True)
class Text:
    """What a forecast asks of a training text.

    Args:
        ids: how many it has.
        packed: nats per id of its beginning, once bzip2 has packed that.
        ids_per_unit: how many ids of it are a character, or whatever is counted.
    """

    ids: int
    packed: float
    ids_per_unit: float = 1.0

    @classmethod
    def of(cls, corpus: Corpus) -> Text:
        ids: Any = corpus.train
        first, tokenizer = ids[:PACKED], corpus.tokenizer
        packed = len(bz2.compress(b"".join(utf8_pieces(first, tokenizer))))
        units = max(1, int(tokenizer.id_units[first].sum()))
        return cls(len(ids), 8 * math.log(2) * packed / len(first), len(first) / units)


@dataclass(frozen=True)
class Choice:
    """A size, how often it reads the text in the time, and the loss that is expected, in nats per id."""

    size: Size
    epochs: float
    loss: float


def choose_size(run: Run, corpus: Corpus, run_began: float) -> tuple[Run, Costs | None]:
    """A run whose open settings (`run.automatic`) are chosen, and said. All processes come here.

    Args:
        run_began: when the clock of the run started, in seconds since 1970.

    Returns:
        The run, and what its steps and pauses cost, if they are those that were tried.
    """
    options = [Size(**fields) for fields in size_table()["sizes"]]
    text = Text.of(corpus)
    steps, costs = _steps_in_time(run, options, text, corpus, run_began)
    choices = []
    for size, count in zip(options, steps, strict=True):
        ids = count * ids_per_step(completed(run, size, 1.0, text))
        choices.append(Choice(size, ids / text.ids, forecast(size, text, ids)))
    choice = min(choices, key=lambda choice: choice.loss)
    logger.info(_words(choice, run, text, corpus.tokenizer))
    return completed(run, choice.size, choice.epochs, text), costs if choice.size is options[0] else None


def completed(run: Run, size: Size, epochs: float, text: Text) -> Run:
    """A run with its open settings as a size has them that reads a text so often; a short text is read in
    smaller batches, of which all processes have their share."""
    settings = size.settings
    settings["models"]["dropout"] = dropout_for(epochs)
    settings["training.weight_decay"] = weight_decay_for(epochs)
    window = settings["data.block_size"] if "data.block_size" in run.automatic else run.data["block_size"]
    shares = launch.world_size() * (run.training.get("gradient_accumulation_steps") or 1)
    room = text.ids // max(IDS_PER_STREAM, 2 * window) - 1
    batch = max(shares, min(settings["training.global_batch_size"], room) // shares * shares)
    return run.filled({**settings, "training.global_batch_size": batch})


def ids_per_step(run: Run) -> int:
    """How many ids a step of a run reads, in all processes."""
    batch = run.training["global_batch_size"]
    if batch is None:
        accumulated = run.training.get("gradient_accumulation_steps") or 1
        batch = run.training["per_device_train_batch_size"] * launch.world_size() * accumulated
    return int(batch * run.data["block_size"])


def dropout_for(epochs: float) -> float:
    """How much dropout suits a model that reads a text so often. Of runs over 1, 8, 13 and 18 epochs those
    with 0, 0.1, 0.2 and 0.3 of it did best; too much costs more than too little."""
    return round(min(0.5, 0.09 * max(0.0, math.log(epochs / 2))), 2)


def weight_decay_for(epochs: float) -> float:
    """The weight decay: below some epochs it costs more than it helps."""
    return 0.1 if epochs > 3 else 0.0


def _steps_in_time(
    run: Run, options: Sequence[Size], text: Text, corpus: Corpus, run_began: float
) -> tuple[list[int], Costs]:
    """How many steps each size makes in the time of a run, as those of the first one go here; their cost."""
    from craft.evaluation.protocols import final_protocols
    from craft.training.arguments import CraftTrainingArguments
    from craft.training.base import LanguageModelTrainer
    from craft.training.distributed.agreement import on_rank0_broadcast
    from craft.training.trial import measure

    trial_began = time.time()
    tried = completed(run, options[0], 1.0, text)
    private = {"report_to": "none", "push_to_hub": False, "output_dir": str(OUTPUTS / "models")}
    args = CraftTrainingArguments(**{**tried.training, **private})
    data = DataArguments(**tried.data)
    model = build_model(tried.models, corpus.tokenizer, data.block_size, corpus.documents)
    windows = training_windows(model, corpus, data, args)
    trainer = LanguageModelTrainer(model, args, windows, corpus.validation, corpus.tokenizer)
    costs = measure(trainer, final_protocols(model, args.eval_protocols))
    assert args.max_minutes is not None
    tried_for, left = time.time() - trial_began, 60 * args.max_minutes - (time.time() - run_began)

    def steps(size: Size) -> int:
        step, evaluation, ending = (
            size.cost * seconds for seconds in (costs.step, costs.evaluation, costs.ending)
        )
        own = replace(costs, step=step, evaluation=evaluation, ending=ending)
        again = 0.0 if size is options[0] else tried_for  # another one is tried for its own plan
        return max(1, trainer.budget.steps_within(left - again, own))

    return on_rank0_broadcast(lambda: ([steps(size) for size in options], costs))


def forecast(size: Size, text: Text, ids: float) -> float:
    """Nats per id that are expected of a size once it has read so many ids of a text, some of them again and
    again; beyond the runs and texts that were tried, what those at the border came to."""
    fitted = size_table()["forecast"]
    ids, length = (np.clip(count, *fitted[name]) for count, name in ((ids, "ids"), (text.ids, "text_ids")))
    text = replace(text, ids=length)
    weighted = zip(fitted["weights"], features(size, text, ids), strict=True)
    return text.packed * math.exp(sum(weight * value for weight, value in weighted))


def features(size: Size, text: Text, ids: float) -> list[float]:
    """What the logarithm of a loss, as a share of what bzip2 needs, is a weighted sum of."""
    read, length, matrices = (math.log(count / 1e6) for count in (ids, text.ids, size.matrices))
    again = max(0.0, read - length)
    is_transformer = float(size.architecture == "transformer")
    return [1.0, read, length, again, matrices, matrices**2, matrices * read, is_transformer]


def _words(choice: Choice, run: Run, text: Text, tokenizer: CharTokenizer) -> str:
    """What was chosen and why, and the loss to expect, in what is counted."""
    minutes, error = run.training["max_minutes"], size_table()["forecast"]["error"]
    expected = choice.loss * text.ids_per_unit
    low, high = expected * math.exp(-error), expected * math.exp(error)
    limit = f"{minutes:g} minute{'s' * (minutes != 1)}"
    count = f"{choice.epochs:.2g}" if choice.epochs < 10 else f"{choice.epochs:,.0f}"
    times = "once" if count == "1" else f"{count} times"
    return (
        f"size      {choice.size}, dropout {dropout_for(choice.epochs):g}: the best for a text that is\n"
        f"          read {times} in {limit} here; expect {expected:.2f} "
        f"nats/{unit_of(tokenizer).short} ({low:.2f} to {high:.2f})"
    )
