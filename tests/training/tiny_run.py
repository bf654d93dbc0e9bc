"""A whole training run of a tiny model on a tiny text, for tests here and in processes of their own."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback

from craft.data.char_dataset import CharDataset
from craft.data.tokenization import CharTokenizer
from craft.models import CharLSTMConfig, CharLSTMForCausalLM, TransformerConfig, TransformerForCausalLM
from craft.training.arguments import CraftTrainingArguments
from craft.training.base import LanguageModelTrainer
from craft.training.checkpointing import checkpointer

BLOCK = 8
BATCH = 8
TEXT = "".join(f"{n} green bottles hanging on the wall, if one fell: {n * n % 97}.\n" for n in range(20))
STEPS_PER_EPOCH = 12
"""Of the 808 training characters, in windows of 8 and batches of 8."""


def tokenizer() -> CharTokenizer:
    return CharTokenizer.train([TEXT])


def split_ids() -> tuple[np.ndarray, np.ndarray]:
    ids = tokenizer().encode_ids(TEXT)
    return ids[:808], ids[808:]


def model(kind: str, dropout: float = 0.0, **config: Any) -> Any:
    """`char_lstm` or `char_transformer` with 2 layers of 16, always the same weights."""
    torch.manual_seed(1)
    common = {"vocab_size": len(tokenizer()), "hidden_size": 16, "num_hidden_layers": 2, "dropout": dropout}
    if kind == "char_lstm":
        return CharLSTMForCausalLM(CharLSTMConfig(**common, max_position_embeddings=BLOCK, **config))
    heads = {"num_attention_heads": 2, "max_position_embeddings": BLOCK}
    return TransformerForCausalLM(TransformerConfig(**common, **heads, **config))


def arguments(output_dir: Path | str, **changes: Any) -> CraftTrainingArguments:
    values: dict[str, Any] = {
        "output_dir": str(output_dir),
        "precision": "fp32",
        "global_batch_size": BATCH,
        "max_steps": 20,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "linear",
        "warmup_steps": 2,
        "logging_steps": 5,
        "eval_strategy": "steps",
        "eval_steps": 10,
        "save_steps": 4,
        "sample_chars": 0,
    }
    return CraftTrainingArguments(**{**values, **changes})


def trainer(
    kind: str,
    output_dir: Path | str,
    dropout: float = 0.0,
    tied: bool = False,
    network: Any = None,
    optimizers: Any = (None, None),
    callbacks: Any = None,
    **changes: Any,
) -> LanguageModelTrainer:
    args = arguments(output_dir, **changes)
    network = network or model(kind, dropout, tie_word_embeddings=tied)
    order = "streams" if network.carries_state and args.carry_state else "shuffled"
    train, validation = split_ids()
    dataset = CharDataset(train, BLOCK, args.global_batch_size, args.seed, order)
    config = {"experiment": "tiny"}
    more = {"run_config": config, "optimizers": optimizers, "callbacks": callbacks}
    return LanguageModelTrainer(network, args, dataset, validation, tokenizer(), **more)


class SignalAt(TrainerCallback):
    """Sends a signal to this process at the end of a step, or inside the save of that step."""

    def __init__(self, step: int, number: int) -> None:
        self.step, self.number = step, number

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            os.kill(os.getpid(), self.number)


def signal_in_evaluation(trainer: LanguageModelTrainer, step: int, number: int) -> None:
    """Lets a signal come while the text is scored after a step."""
    batches = 0

    def send(module: Any, inputs: Any) -> None:
        nonlocal batches
        if trainer.state.global_step == step and not module.training:
            batches += 1
            if batches == 1:
                os.kill(os.getpid(), number)

    trainer.model.register_forward_pre_hook(send)


def run(
    kind: str,
    output_dir: str,
    *,
    resume: bool | str | None = None,
    signal_at: tuple[int, int] | None = None,
    signal_rank: int | None = None,
    kill_in_save: int | None = None,
    rank: int = 0,
    world: int = 1,
    port: int = 0,
    **changes: Any,
) -> None:
    """What a process of a test does; `signal_at` is (step, signal), for one rank or all of them."""
    torch.set_num_threads(1)
    if world > 1:
        where = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
        os.environ.update({name: str(value) for name, value in where.items()})
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), ACCELERATE_USE_CPU="true")
    run_trainer = trainer(kind, output_dir, **changes)
    if signal_at is not None and signal_rank in (None, rank):
        run_trainer.add_callback(SignalAt(*signal_at))
    if kill_in_save is not None:
        save_tree = checkpointer.save_tree

        def torn(tree: Any, path: Path) -> None:
            if run_trainer.state.global_step == kill_in_save:
                os.kill(os.getpid(), signal.SIGKILL)
            save_tree(tree, path)

        checkpointer.save_tree = torn  # type: ignore[assignment]
    run_trainer.train(resume)
