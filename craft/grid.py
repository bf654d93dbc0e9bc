"""A grid of runs: every combination of settings, each trained in a process of its own, so that the end of one
is not the end of the others.
"""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from craft.utils.errors import UserError
from craft.utils.history import finished_at
from craft.utils.logging import get_logger
from craft.utils.outputs import compared_run, finished_model
from craft.utils.stopping import TrainingInterrupted, exit_code, signal_handler

logger = get_logger(__name__)

SEED = "training.seed="


@dataclass(frozen=True)
class Cell:
    """A run of a grid.

    Args:
        configuration: its settings that differ from other cells', but for the seed.
        words: what `craft train` is told.
    """

    configuration: str
    seed: int | None
    words: tuple[str, ...]

    @property
    def run_dir(self) -> Path:
        """Where it is trained: the same folder for the same words, whatever grid they are part of."""
        pairs = [word.partition("=") for word in self.words]
        chosen = [value for key, _, value in pairs if value and "." not in key]  # files of groups
        seed = [] if self.seed is None else ["seed", str(self.seed)]
        return compared_run("_".join([*chosen, *seed]), self.words)

    @property
    def model_dir(self) -> Path | None:
        """The finished model, once there is one."""
        step = finished_at(self.run_dir)
        return None if step is None else finished_model(self.run_dir, step)


def grid(arguments: Sequence[str]) -> list[Cell]:
    """All combinations of what a command line of `craft train` lists with commas, as Hydra reads them:
    `models=char_lstm,transformer training.seed=1,2`; a value in brackets is one.

    Raises:
        UserError: for a value that Hydra can't read.
    """
    choices = [_choices(word) for word in arguments]
    swept = [i for i, options in enumerate(choices) if len(options) > 1 and not options[0].startswith(SEED)]
    cells = []
    for words in itertools.product(*choices):
        names = [words[i].partition("=") for i in swept]
        name = " ".join(v if "." not in key else f"{key.rpartition('.')[2]}={v}" for key, _, v in names)
        seeds = [word.removeprefix(SEED) for word in words if word.startswith(SEED)]
        seed = int(seeds[-1]) if seeds and seeds[-1].isdigit() else None
        cells.append(Cell(name or "run", seed, words))
    return cells


def _choices(word: str) -> list[str]:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    from craft.config.command_line import OVERRIDE

    if "," not in word or not OVERRIDE.fullmatch(word):
        return [word]
    try:
        override = OverridesParser.create().parse_override(word)
        if not override.is_sweep_override():
            return [word]
        return [f"{override.key_or_group}={value}" for value in override.sweep_string_iterator()]
    except HydraException as error:
        reason = " ".join(str(error).split())
        raise UserError(f"can't read {word!r} as a list: {reason}; quote a comma", code="usage") from error


def run_grid(cells: Sequence[Cell], config_dir: Path | None = None) -> list[str]:
    """Trains what isn't finished yet, one run after the other; an interrupted one goes on.

    Returns:
        Which runs failed.

    Raises:
        UserError: for settings that are no run; nothing was trained then.
        TrainingInterrupted: after a signal, which the run in training has obeyed.
    """
    from craft.config.command_line import split_text
    from craft.config.compose import compose

    for cell in cells:
        compose(split_text(cell.words), config_dir=config_dir, choose=None)
    failed = []
    for number, cell in enumerate(cells, start=1):
        seed = "" if cell.seed is None else f", seed {cell.seed}"
        about = f"{number}/{len(cells)} {cell.configuration}{seed}"
        if cell.model_dir is not None:
            logger.info(f"{about}: is finished, {cell.model_dir}")
            continue
        logger.info(f"{about}: {cell.run_dir}")
        own = [] if config_dir is None else ["--config-dir", str(config_dir)]
        if _train([*cell.words, f"training.output_dir={cell.run_dir}", "--resume", "auto", *own]):
            failed.append(about)
    return failed


def _train(words: Iterable[str]) -> int:
    """`craft train` in another process, to which signals are passed on; its exit status."""
    command = [sys.executable, "-m", "craft", "train", *words]
    # In a session of its own: else Ctrl-C in a terminal would reach it twice.
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
    received: list[int] = []

    def pass_on(number: int, frame: object) -> None:
        received.append(number)
        child.send_signal(number)

    with signal_handler(pass_on):
        status = child.wait()
    if received:
        raise TrainingInterrupted(exit_code(received[0]))
    return status
