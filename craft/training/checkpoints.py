"""Checkpoints that are whole or not there: staged, synced to disk, listed with hashes, then renamed into
place.

A manifest of sizes and SHA-256 sums is written last. What it doesn't vouch for (a torn copy, a flipped bit,
a file that went missing) is never resumed from; the checkpoint before it is.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from craft.utils.common import UserError
from craft.utils.files import sync
from craft.utils.logging import get_logger

logger = get_logger(__name__)

MANIFEST = "manifest.json"
STAGING, TRASH = ".staging-", ".trash-"


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
    files = sorted(path for path in staging.rglob("*") if path.is_file())
    entries = {}
    for path in files:
        entries[path.relative_to(staging).as_posix()] = {"size": path.stat().st_size, "sha256": sha256(path)}
    manifest = json.dumps({"step": step, "files": entries}, indent=1)
    (staging / MANIFEST).write_text(manifest, encoding="utf-8")
    return put(staging, checkpoint_dir(staging.parent, step))


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
    if final.exists():
        discard(final)
    staging.rename(final)
    sync(final.parent)
    return final


def damage(checkpoint: Path) -> str:
    """What is wrong with a checkpoint, in a few words; empty if every file is as its manifest says."""
    try:
        entries = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))["files"]
    except FileNotFoundError:
        return f"it has no {MANIFEST}, so writing it was never finished"
    except (OSError, ValueError, KeyError, TypeError):
        return f"its {MANIFEST} can't be read"
    for name, entry in entries.items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != entry["size"]:
            return f"{name} has {path.stat().st_size} bytes instead of {entry['size']}"
        if sha256(path) != entry["sha256"]:
            return f"{name} has changed since it was written"
    return ""


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
    for checkpoint in checkpoints(where):
        why = damage(checkpoint)
        if not why:
            return checkpoint
        logger.warning(f"{checkpoint.name} is passed over: {why}")
    raise UserError(f"can't resume from {where}: it holds no whole checkpoint-N; start the run again")


def checkpoints(run_dir: Path) -> Iterator[Path]:
    """`checkpoint-{step}` folders, the newest first; whole or not."""
    found = [path for path in run_dir.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    yield from sorted(found, key=step_of, reverse=True)


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rsplit("-", 1)[1])


def rotate(run_dir: Path, keep: int | None, best_step: int | None) -> None:
    """Deletes all checkpoints but the newest `keep` and the best one; `None` keeps all."""
    for checkpoint in list(checkpoints(run_dir))[keep or None :] if keep else []:
        if step_of(checkpoint) != best_step:
            discard(checkpoint)


def discard(folder: Path) -> None:
    """Deletes a folder so that no half of it can be taken for a whole: it is renamed first."""
    trash = folder.with_name(TRASH + folder.name.removeprefix(STAGING))
    shutil.rmtree(trash, ignore_errors=True)
    if folder.exists():
        folder.rename(trash)
        shutil.rmtree(trash, ignore_errors=True)


def clear_leftovers(run_dir: Path) -> None:
    """Removes what a killed process left half written or half deleted."""
    for pattern in (STAGING, TRASH):
        for folder in run_dir.glob(f"{pattern}*"):
            shutil.rmtree(folder, ignore_errors=True)


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
