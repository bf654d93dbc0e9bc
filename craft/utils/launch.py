"""The environment variables of launchers: which process this is, among how many, and on what.

accelerate launch and torchrun set them, and so do schedulers, containers and people. craft reads them here
alone. An empty variable is an unset one, also for the libraries that read it after us.
"""

from __future__ import annotations

import os

from craft.utils.errors import UserError

COUNTS = {
    **{"WORLD_SIZE": 1, "LOCAL_WORLD_SIZE": 1, "RANK": 0, "LOCAL_RANK": 0, "MASTER_PORT": 1},
    "TORCHELASTIC_MAX_RESTARTS": 0,
}
"""Whole numbers, and the least that each may be."""
RENDEZVOUS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What a process needs to join others; of one process alone, none of them need be there."""
EMPTY_IS_UNSET = ("ACCELERATE_", "CRAFT_", "GLOO_", "HF_", "NCCL_", "OMP_", "TORCHELASTIC_", "WANDB_", "XDG_")
"""How such variables begin. An empty CUDA_VISIBLE_DEVICES means something: no GPU."""
PRECISIONS = ("no", "fp16", "bf16")
TRUE, FALSE = ("1", "true", "yes", "on", "t", "y"), ("0", "false", "no", "off", "f", "n")


def drop_empty() -> None:
    """Removes empty variables, before a library takes one for a value."""
    for name, value in list(os.environ.items()):
        if not value.strip() and name.startswith((*EMPTY_IS_UNSET, *RENDEZVOUS, *COUNTS)):
            del os.environ[name]


def number(name: str, default: int) -> int:
    """The value of a variable; the default for one that isn't a number, which `check` refuses."""
    value = os.environ.get(name, "").strip()
    return int(value) if value.isdecimal() else default


def world_size() -> int:
    """How many processes were launched."""
    return max(1, number("WORLD_SIZE", 1))


def flag(name: str) -> bool:
    """Whether a variable says yes, in one of the words that Accelerate knows."""
    return os.environ.get(name, "").strip().lower() in TRUE


def check() -> None:
    """Refuses what no launcher would set, on which torch or Accelerate would end in a traceback, and spells
    truth values in the one way that all of them read.

    Raises:
        UserError: with the variable, its value, and what it may be.
    """
    drop_empty()
    for name, least in COUNTS.items():
        if number(name, least if name not in os.environ else -1) < least:
            _refuse(name, f"must be a whole number from {least}")
    if os.environ.get("ACCELERATE_MIXED_PRECISION", "no") not in PRECISIONS:
        _refuse("ACCELERATE_MIXED_PRECISION", f"must be one of {', '.join(PRECISIONS)}")
    for name in [name for name in os.environ if name.startswith("ACCELERATE_USE_")]:
        if os.environ[name].strip().lower() not in TRUE + FALSE:
            _refuse(name, "must be true or false")
        os.environ[name] = str(flag(name)).lower()
    given = [name for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK") if name in os.environ]
    if given in ([], ["WORLD_SIZE"]) and world_size() == 1:
        return
    if missing := [name for name in RENDEZVOUS if name not in os.environ]:
        _refuse(given[0], f"needs {', '.join(missing)} beside it")
    for name in ("RANK", "LOCAL_RANK"):
        if number(name, 0) >= world_size():
            _refuse(name, f"must be below WORLD_SIZE={world_size()}")


def _refuse(name: str, why: str) -> None:
    raise UserError(
        f"{name}={os.environ[name]} {why}; unset it for one process, or start several with accelerate "
        "launch or torchrun",
        code="launch-invalid",
    )
