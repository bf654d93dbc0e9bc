"""What a trainer writes of its model and of its own state."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from craft.sharing.card import write_card
from craft.sharing.record import TRAINER_STATE
from craft.training.checkpointing import folders
from craft.utils.outputs import RUN_CONFIG


def write_model(trainer: Any, folder: Path) -> None:
    """Model, tokenizer, run and arguments: these as JSON without secrets, where transformers would pickle."""
    folder.mkdir(parents=True, exist_ok=True)
    trainer.accelerator.unwrap_model(trainer.model).save_pretrained(str(folder))
    if trainer.processing_class is not None:
        trainer.processing_class.save_pretrained(str(folder))
    if trainer.run_config:
        text = yaml.safe_dump(trainer.run_config, sort_keys=False, allow_unicode=True)
        (folder / RUN_CONFIG).write_text(text, encoding="utf-8")
    (folder / "training_args.json").write_text(trainer.args.to_json_string() + "\n", encoding="utf-8")
    write_card(folder, trainer.run_dir.name)


def write_trainer_state(trainer: Any, folder: Path) -> None:
    """`trainer_state.json`, and the model as it is evaluated (with `ema_decay` the average)."""
    if trainer.is_world_process_zero():  # before the card of the model, which says its step
        best = trainer.state.best_global_step
        named = str(folders.checkpoint_dir(trainer.checkpointer.run_dir, best)) if best else None
        replace(trainer.state, best_model_checkpoint=named).save_to_json(str(folder / TRAINER_STATE))
    with trainer.ema.applied():
        trainer.save_model(str(folder), _internal_call=True)
