"""What a launcher says by environment variables: which process this is, among how many, and on what.

accelerate launch and torchrun set them, and so do schedulers, containers and people. Everything that craft
reads of them is read here. An empty variable is an unset one, also for the libraries that read it after us.
"""

from __future__ import annotations

import os

from craft.utils.common import did_you_mean
from craft.utils.errors import UserError

COUNTS = {"WORLD_SIZE": 1, "LOCAL_WORLD_SIZE": 1, "RANK": 0, "LOCAL_RANK": 0, "TORCHELASTIC_MAX_RESTARTS": 0}
"""Whole numbers, and the least that each may be."""
MEETING = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What a process needs to join others; of one process alone, none of them need be there."""
BELOW = (("RANK", "WORLD_SIZE"), ("LOCAL_RANK", "WORLD_SIZE"))
"""Not LOCAL_WORLD_SIZE, which Accelerate writes itself where a launcher left it out."""
PRECISIONS = ("no", "fp16", "bf16")
EMPTY_IS_UNSET = ("ACCELERATE_", "CRAFT_", "GLOO_", "HF_", "NCCL_", "OMP_", "TORCHELASTIC_", "WANDB_", "XDG_")
"""How such variables begin. An empty CUDA_VISIBLE_DEVICES means something: no GPU."""
TRUE, FALSE = ("1", "true", "yes", "on", "t", "y"), ("0", "false", "no", "off", "f", "n")

BY_HAND = "unset it for one process, or start several with accelerate launch or torchrun"


def drop_empty() -> None:
    """Removes empty variables, before a library takes one for a value."""
    for name, value in list(os.environ.items()):
        if not value.strip() and name.startswith((*EMPTY_IS_UNSET, *MEETING, *COUNTS)):
            del os.environ[name]


def number(name: str, default: int) -> int:
    """The value of a variable; the default for one that `check` refuses, so that errors can be told."""
    value = os.environ.get(name, "").strip()
    return int(value) if _is_count(value) else default


def world_size() -> int:
    """How many processes were launched."""
    return max(1, number("WORLD_SIZE", 1))


def flag(name: str) -> bool:
    """Whether a variable says yes, in one of the words that Accelerate knows."""
    return os.environ.get(name, "").strip().lower() in TRUE


def check() -> None:
    """Refuses what no launcher would set, before torch or Accelerate end in a traceback of it, and spells
    truth values in the one way that all of them read.

    Raises:
        UserError: with the variable, its value, and what it may be.
    """
    drop_empty()
    for name, least in COUNTS.items():
        value = os.environ.get(name, str(least)).strip()
        if not _is_count(value) or int(value) < least:
            raise UserError(f"{name}={value} must be a whole number from {least}; {BY_HAND}")
    port = os.environ.get("MASTER_PORT", "1")
    if not _is_count(port) or not 1 <= int(port) <= 65535:
        raise UserError(f"MASTER_PORT={port} must be a port, 1 to 65535")
    threads = os.environ.get("OMP_NUM_THREADS", "1")
    if not all(_is_count(part) and int(part) for part in threads.split(",")):
        raise UserError(f"OMP_NUM_THREADS={threads} must be a whole number from 1")
    precision = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if precision not in PRECISIONS:
        near = did_you_mean(precision, PRECISIONS)
        raise UserError(
            f"ACCELERATE_MIXED_PRECISION={precision} isn't known{near}; use {', '.join(PRECISIONS)}"
        )
    for name in [name for name in os.environ if name.startswith("ACCELERATE_USE_")]:
        if os.environ[name].strip().lower() not in TRUE + FALSE:
            raise UserError(f"{name}={os.environ[name]} must be true or false")
        os.environ[name] = str(flag(name)).lower()
    _check_meeting()


def _check_meeting() -> None:
    """All that is needed to join the others is there, or nothing."""
    names = [name for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK") if name in os.environ]
    given = [f"{name}={os.environ[name]}" for name in names]
    if not given or given == ["WORLD_SIZE=1"]:
        return
    missing = [name for name in MEETING if name not in os.environ]
    if missing:
        raise UserError(f"{' '.join(given)} needs {', '.join(missing)} beside it; {BY_HAND}")
    for name, of in BELOW:
        if of in os.environ and number(name, 0) >= number(of, 1):
            raise UserError(
                f"{name}={os.environ[name]} must be below {of}={os.environ[of]}, for processes are counted "
                f"from 0; {BY_HAND}"
            )


def _is_count(value: str) -> bool:
    return value.isascii() and value.isdigit()
