"""How much room the checkpoints of a run take, said before it starts."""

from __future__ import annotations

import math
import shutil
from typing import Any

from rich.filesize import decimal
from transformers.trainer_utils import SaveStrategy

from craft.utils.errors import UserError
from craft.utils.logging import get_logger

logger = get_logger(__name__)


def check_room(trainer: Any, steps: int) -> None:
    """Says about how much a run of so many steps takes, and refuses one that can't fit.

    An estimate, rather too high: the weights, with an average twice, and for each of them two numbers of the
    optimizer; while a checkpoint is written, those that are kept are still there, the best one among them.

    Raises:
        UserError: if the disk has less room than that.
    """
    args, folder = trainer.args, trainer.run_dir
    weights = sum(p.numel() * p.element_size() for p in trainer.model.parameters())
    moments = 0 if args.optim == "sgd" else 2
    one = weights * (1 if args.save_only_model else 1 + moments + bool(args.ema_decay))
    every = args.save_steps if args.save_strategy == SaveStrategy.STEPS else steps
    if args.save_strategy == SaveStrategy.EPOCH:
        every = trainer.set_initial_training_values(args, trainer.get_train_dataloader())[1]
    saves = math.ceil(steps / (every * steps if every < 1 else every))
    kept = min(saves, (args.save_total_limit or saves) + bool(args.metric_for_best_model))
    there = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    peak, free = (kept + (saves > kept)) * one, shutil.disk_usage(folder).free
    logger.info(
        f"disk      about {decimal(peak)} ({decimal(one)} a checkpoint, {kept} kept), {decimal(free)} free"
    )
    if peak - there > free:
        raise UserError(
            f"the checkpoints of this run need {decimal(peak - there)}, and {folder} has {decimal(free)} "
            "free; make room, set training.save_total_limit=1 or larger training.save_steps, or another "
            "training.output_dir",
            code="disk-full",
        )
