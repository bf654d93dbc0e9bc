"""The folders of checkpoints in a run: found, verified, loaded, and removed when they are old.

A manifest of sizes and SHA-256 sums, its own included, is written last. A folder that differs from its
manifest (a torn copy, a flipped bit, a missing file) is never resumed from; the checkpoint before it is.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from craft.utils import manifest
from craft.utils.errors import UserError
from craft.utils.logging import get_logger
from craft.utils.outputs import checkpoint_step

logger = get_logger(__name__)


def checkpoint_dir(run_dir: Path, step: int) -> Path:
    return run_dir / f"checkpoint-{step}"


def has_checkpoint_name(folder: Path) -> bool:
    """Whether a folder is named like a checkpoint; it may be damaged."""
    return checkpoint_step(folder.resolve().name) is not None


def run_of(where: Path) -> Path:
    """The run directory of a checkpoint; anything else is one."""
    return where.resolve().parent if has_checkpoint_name(where) else where


def step_of(checkpoint: Path) -> int:
    step = checkpoint_step(checkpoint.resolve().name)
    assert step is not None, checkpoint
    return step


def checkpoints(run_dir: Path) -> Iterator[Path]:
    """`checkpoint-{step}` folders, the newest first; damaged ones too."""
    yield from sorted(filter(has_checkpoint_name, run_dir.glob("checkpoint-*")), key=step_of, reverse=True)


def damage(checkpoint: Path) -> str:
    """What is wrong with a checkpoint, in a few words; empty if every file is as its manifest says."""
    return manifest.damage(checkpoint, step_of(checkpoint))


def last_good(run_dir: Path) -> Path | None:
    return next((checkpoint for checkpoint in checkpoints(run_dir) if not damage(checkpoint)), None)


def find_checkpoint(where: Path) -> Path:
    """The newest good checkpoint of the run directory `where`, or of the run of the checkpoint `where`.

    Raises:
        UserError: if there is none, or it isn't the one that was named: what the run wrote next would be
            older than what it has.
    """
    if not where.is_dir():
        raise UserError(f"can't resume from {where}: there is no such folder", code="run-missing")
    run_dir = run_of(where)
    damaged: dict[int, str] = {}
    for checkpoint in checkpoints(run_dir):
        if why := damage(checkpoint):
            damaged[step_of(checkpoint)] = f"; {checkpoint.name} is damaged ({why})"
            logger.warning(f"{checkpoint.name} is passed over: {why}")
            continue
        if run_dir != where and step_of(where) != step_of(checkpoint):
            raise UserError(
                f"can't resume from {where}{damaged.get(step_of(where), '')}; the newest good checkpoint of "
                f"its run is {checkpoint.name}: name the run, or copy another one into a folder of its own",
                code="checkpoint-damaged" if step_of(where) in damaged else "setting-conflict",
            )
        if damaged:
            logger.warning(f"going back to {checkpoint.name}, the newest good one")
        return checkpoint
    raise UserError(
        f"can't resume from {where}: it holds no good checkpoint-N{''.join(damaged.values())}; start the run "
        "again",
        code="checkpoint-damaged" if damaged else "run-missing",
    )


def load_weights(checkpoint: Path, model: Any) -> None:
    """Puts the weights of a folder into a model. Tied weights are saved once.

    Raises:
        UserError: if they are of another model.
    """
    weights = {}
    for file in sorted(checkpoint.glob("model*.safetensors")):
        weights.update(load_file(file))
    own = {name for name, _ in model.named_parameters()}  # each tied one under its first name
    try:
        found = model.load_state_dict(weights, strict=False)
        absent = own.intersection(found.missing_keys)
        if absent and found.unexpected_keys:  # transformers saves some models by names of its older versions
            read: Any = type(model).from_pretrained
            same, about = read(checkpoint, config=model.config, dtype=model.dtype, output_loading_info=True)
            absent = own.intersection(about["missing_keys"])
            model.load_state_dict(same.state_dict(), strict=False)
        fault = f"lacks {', '.join(sorted(absent)[:3])}" if absent else ""
    except RuntimeError as error:
        if "size mismatch" not in str(error):
            raise
        fault = "has weights of other shapes"
    if fault:
        raise UserError(
            f"{checkpoint} isn't of this model: it {fault}; put models.* back as they were, or start a new "
            "run",
            code="model-mismatch",
        )


def rotate(run_dir: Path, keep: int | None, spared: Collection[int | None] = ()) -> None:
    """Deletes what is older than the newest `keep` good checkpoints; `None` keeps all.

    A damaged one counts for nothing: it never pushes out a good one.

    Args:
        spared: steps that stay in any case, such as the best one (None before there is one).
    """
    good = 0
    for checkpoint in checkpoints(run_dir) if keep else ():
        if good == keep:
            if step_of(checkpoint) not in spared:
                shutil.rmtree(checkpoint, ignore_errors=True)
        elif why := damage(checkpoint):
            logger.warning(f"{checkpoint.name} is damaged ({why}) and doesn't count")
        else:
            good += 1
