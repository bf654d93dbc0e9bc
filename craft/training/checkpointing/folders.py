"""The folders of checkpoints, whole or not there: staged, synced to disk, hashed, then renamed into place.

A manifest of sizes and SHA-256 sums, its own included, is written last. A folder that differs from its
manifest (a torn copy, a flipped bit, a missing file) is never resumed from; the checkpoint before it is.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from craft.utils import manifest
from craft.utils.errors import UserError
from craft.utils.files import sync
from craft.utils.logging import get_logger

logger = get_logger(__name__)

STAGING, TRASH, REPLACED, UPLOADING = ".staging-", ".trash-", ".replaced-", ".uploading"

_known_good: dict[Path, list[tuple[str, int, int, int]]] = {}
"""What the files of checkpoints looked like to the file system when this process knew that they were good."""


def staging_dir(run_dir: Path, step: int) -> Path:
    """Where the files of `checkpoint-{step}` are written before it exists."""
    return run_dir / f"{STAGING}checkpoint-{step}"


def checkpoint_dir(run_dir: Path, step: int) -> Path:
    return run_dir / f"checkpoint-{step}"


def publish(staging: Path, step: int) -> Path:
    """Turns a staging folder into `checkpoint-{step}`: syncs its files, writes the manifest, renames.

    Raises:
        OSError: if the disk refuses; the staging folder is left for `discard`.
    """
    manifest.write_manifest(staging, step=step)
    final = put(staging, checkpoint_dir(staging.parent, step))
    _known_good[final] = _appearance(final)
    return final


def put(staging: Path, final: Path) -> Path:
    """Syncs a folder of files and renames it to `final`, which is so at any moment whole or absent.

    Raises:
        OSError: if the disk refuses; the staging folder is left for `discard`.
    """
    readable = staging.stat().st_mode & 0o666
    for path in (*staging.rglob("*"), staging):
        if path.is_file():
            path.chmod(readable)  # safetensors makes its files unreadable for others
        sync(path)
    old = final.with_name(REPLACED + final.name)
    if final.exists():
        discard(old)
        final.rename(old)  # not deleted before the new one is there
    staging.rename(final)
    sync(final.parent)
    discard(old)
    return final


def damage(checkpoint: Path) -> str:
    """What is wrong with a checkpoint, in a few words; empty if every file is as its manifest says."""
    if why := manifest.damage(checkpoint, step_of(checkpoint)):
        return why
    _known_good[checkpoint] = _appearance(checkpoint)
    return ""


def is_good(checkpoint: Path) -> bool:
    """As `damage`, but without reading what nobody has touched since this process last knew it to be good."""
    known = _known_good.get(checkpoint)
    return (known is not None and known == _appearance(checkpoint)) or not damage(checkpoint)


def _appearance(folder: Path) -> list[tuple[str, int, int, int]]:
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    stats = [(path.relative_to(folder).as_posix(), path.stat()) for path in found]
    # Not the time of the last change, which a link to a file changes too: uploads make them, and delete them.
    return [(name, stat.st_size, stat.st_mtime_ns, stat.st_ino) for name, stat in stats]


def last_good(run_dir: Path) -> Path | None:
    return next((checkpoint for checkpoint in checkpoints(run_dir) if is_good(checkpoint)), None)


def find_checkpoint(where: Path) -> Path:
    """The checkpoint to resume from: `where` itself, or the newest whole one in the run directory `where`.

    Raises:
        UserError: if there is none, or the one that was named is damaged.
    """
    if not where.is_dir():
        raise UserError(f"can't resume from {where}: there is no such folder")
    if re.fullmatch(r"checkpoint-\d+", where.resolve().name):
        why = damage(where)
        if why:
            raise UserError(f"can't resume from {where}: {why}; name the run's folder for the one before it")
        return where
    _finish_replacing(where)
    reasons: list[str] = []
    for checkpoint in checkpoints(where):
        why = damage(checkpoint)
        if not why:
            if reasons:
                logger.warning(f"going back to {checkpoint.name}, the newest good one")
            return checkpoint
        reasons.append(f"{checkpoint.name} ({why})")
        logger.warning(f"{checkpoint.name} is passed over: {why}")
    damaged = f"; damaged: {', '.join(reasons)}" if reasons else ""
    raise UserError(
        f"can't resume from {where}: it holds no whole checkpoint-N{damaged}; start the run again"
    )


def load_weights(checkpoint: Path, model: Any) -> None:
    """Puts the weights of a folder into a model. Tied weights are saved once.

    Raises:
        UserError: if they are of other shapes.
    """
    weights = {}
    for file in sorted(checkpoint.glob("model*.safetensors")):
        weights.update(load_file(file))
    try:
        result = model.load_state_dict(weights, strict=False)
    except RuntimeError as error:
        if "size mismatch" not in str(error):
            raise
        raise UserError(
            f"{checkpoint} has weights of other shapes than this model; put models.* back as they were, or "
            "start a new run"
        ) from error
    own = {name for name, _ in model.named_parameters()}  # each tied one under its first name
    if absent := sorted(own.intersection(result.missing_keys)):
        names = ", ".join(absent[:3])
        raise UserError(f"{checkpoint} lacks the weights {names} of this model; start a new run")


def checkpoints(run_dir: Path) -> Iterator[Path]:
    """`checkpoint-{step}` folders, the newest first; whole or not."""
    found = [path for path in run_dir.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    yield from sorted(found, key=step_of, reverse=True)


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.resolve().name.rsplit("-", 1)[1])


def rotate(
    run_dir: Path,
    keep: int | None,
    best_step: int | None,
    *,
    written: Sequence[int] = (),
    resumed: int | None = None,
) -> None:
    """Deletes what is older than the newest `keep` good checkpoints, but not the best one; `None` keeps all.

    A damaged one counts for nothing: it never pushes out a good one.

    Args:
        written: the steps that this run wrote since it started or went on. The last one is the newest,
            whatever its number.
        resumed: the step that the run went on from, which stays until a good one was written. What others
            wrote behind it is another branch, which ends then: it would be taken for this run's newest.
    """
    newest = written[-1] if written else None
    if resumed is not None and newest is not None and is_good(checkpoint_dir(run_dir, newest)):
        for checkpoint in abandoned(run_dir, resumed, written):
            discard(checkpoint)
    spared, good = {best_step}, 0
    found = sorted(checkpoints(run_dir), key=lambda c: step_of(c) != newest)
    for checkpoint in found if keep else []:
        if good == keep:
            if step_of(checkpoint) not in spared:
                discard(checkpoint)
        elif is_good(checkpoint):
            good += 1
        else:
            if step_of(checkpoint) == newest:
                spared.add(resumed)
            logger.warning(f"{checkpoint.name} is damaged ({damage(checkpoint)}) and doesn't count")


def abandoned(run_dir: Path, resumed: int, written: Sequence[int] = ()) -> list[Path]:
    """Checkpoints of the branch that a run has left by going on from an older step, the newest first.

    Args:
        written: the steps that the run wrote since.
    """
    return [c for c in checkpoints(run_dir) if step_of(c) > resumed and step_of(c) not in written]


def discard(folder: Path) -> None:
    """Deletes a folder so that no half of it can be taken for a whole: it is renamed first."""
    _known_good.pop(folder, None)
    trash = folder.with_name(TRASH + folder.name.removeprefix(STAGING).removeprefix(REPLACED))
    shutil.rmtree(trash, ignore_errors=True)
    if folder.exists():
        folder.rename(trash)
        shutil.rmtree(trash, ignore_errors=True)


def clear_leftovers(run_dir: Path) -> None:
    """Removes what a killed process left half written or half deleted."""
    _finish_replacing(run_dir)
    for pattern in (STAGING, TRASH, UPLOADING):
        for folder in run_dir.glob(f"{pattern}*"):
            shutil.rmtree(folder, ignore_errors=True)


def _finish_replacing(run_dir: Path) -> None:
    """Puts back what a killed process had moved away to make room for its successor."""
    for old in run_dir.glob(f"{REPLACED}*"):
        place = old.with_name(old.name.removeprefix(REPLACED))
        if place.exists():
            discard(old)
        else:
            old.rename(place)
