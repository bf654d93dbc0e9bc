"""How much room the checkpoints of a run take, said before it starts."""

from __future__ import annotations

import math
import shutil
from typing import Any

from transformers.trainer_utils import SaveStrategy

from craft.utils.common import human
from craft.utils.errors import UserError
from craft.utils.logging import get_logger

logger = get_logger(__name__)


def check_room(trainer: Any, steps: int) -> None:
    """Says what a run of so many steps takes at most, and refuses one that can't fit.

    An estimate: the weights, with an average twice, and what the optimizer keeps of each weight; while a
    checkpoint is written, those that are kept are still there.

    Raises:
        UserError: if the disk has less room than that.
    """
    args, folder = trainer.args, trainer.run_dir
    weights = sum(p.numel() * p.element_size() for p in trainer.model.parameters())
    moments = 0 if args.save_only_model else 2 if "adam" in args.optim else 1
    one = weights * (1 + moments + bool(args.ema_decay))
    every = {SaveStrategy.NO: steps, SaveStrategy.STEPS: args.save_steps}.get(args.save_strategy, steps)
    saves = math.ceil(steps / (every * steps if every < 1 else every))
    kept = min(saves, (args.save_total_limit or saves) + bool(args.load_best_model_at_end))
    there = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    peak, free = (kept + (saves > kept)) * one, shutil.disk_usage(folder).free
    logger.info(
        f"disk      up to {human(peak)}B ({human(one)}B a checkpoint, {kept} kept), {human(free)}B free"
    )
    if peak - there > free:
        raise UserError(
            f"the checkpoints of this run need {human(peak - there)}B and {folder} has {human(free)}B free; "
            "make room, set training.save_total_limit=1 or larger training.save_steps, or another "
            "training.output_dir",
            code="disk-full",
        )
