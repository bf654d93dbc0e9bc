"""`Checkpointer`: writes, verifies, finds, rotates and loads the checkpoints of a run.

A checkpoint holds

    model.safetensors, config.json, tokenizer …   a model that any Hugging Face tool opens (with `ema_decay`
                                                  the average, which is what was evaluated)
    training_state.safetensors                    the parts that are the same in all processes, by name
    rank_{r}.safetensors                          the parts of process r, by name
    trainer_state.json                            step and history, as transformers writes them
    progress.json                                 format, number of processes, the
                                                  settings that decide the weights, the versions they were
                                                  computed with; the parts that differ between equal runs,
                                                  such as the time spent
    craft_run.yaml, training_args.json            the run; its arguments as plain text
    manifest.json                                 sizes and hashes of all these, written last

No file is a pickle. The checkpointer knows the names of parts, not what they are; see `parts`.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.distributed.checkpoint.stateful import Stateful

from craft.training.checkpointing import folders
from craft.training.checkpointing.parts import RankStateful
from craft.training.checkpointing.safetensors_io import load_tree, save_tree
from craft.training.distributed.agreement import on_rank0_broadcast, raise_on_all_ranks
from craft.utils.errors import UserError
from craft.utils.files import explain_disk_errors, restore_replaced, staged_folder
from craft.utils.history import read_history
from craft.utils.logging import get_logger
from craft.utils.manifest import write_manifest
from craft.utils.outputs import RUN_CONFIG

logger = get_logger(__name__)

FORMAT = 2
"""Of what is written beside the model; another one is refused, its model loads all the same."""
TRAINING_STATE = "training_state.safetensors"
PROGRESS = "progress.json"


def rank_file(rank: int) -> str:
    return f"rank_{rank}.safetensors"


@dataclass
class Checkpointer:
    """The checkpoints of one run, seen from one of its processes.

    Args:
        run_dir: holds them as `checkpoint-{step}`.
        parts: what is the same in all processes, by name.
        rank_parts: what each process has for itself, by name.
        keep: how many good ones stay, beside the best; `None` for all.
        varying: names of parts that differ between equal runs, such as times; the rest is equal bit for bit.
        rank, world: of this process, and how many there are.

    Attributes:
        resumed: the checkpoint that this process continues.
        saved_step: the step of the checkpoint written last, or resumed; there nothing needs to be saved.
    """

    run_dir: Path
    parts: Mapping[str, Stateful]
    rank_parts: Mapping[str, RankStateful]
    keep: int | None
    varying: Sequence[str] = ()
    rank: int = 0
    world: int = 1
    resumed: Path | None = None
    saved_step: int | None = None

    # ---- Writing

    def save(
        self,
        step: int,
        write_model: Callable[[Path], None],
        progress: Mapping[str, Any],
        *,
        only_model: bool,
        spared: Collection[int | None] = (),
    ) -> Path:
        """Writes `checkpoint-{step}` so that it appears whole or not at all, and removes old ones.

        All processes write into one folder, which process 0 makes, lists in a manifest, and renames.

        Args:
            write_model: writes all but the parts and `progress.json` into a folder; called in every process.
            progress: for `progress.json`.
            only_model: leave the parts out.
            spared: steps of checkpoints that stay, such as the best one (None before there is one).

        Raises:
            Failed: in all processes, if the disk of one of them refuses; what was written is removed, and the
                message names the last good checkpoint.
        """
        final = folders.checkpoint_dir(self.run_dir, step)
        # All states are collected in every process before anything is written: gathering the state of a
        # sharded optimizer is a collective, and would hang if another process had failed at its disk.
        shared, own = raise_on_all_ranks(lambda: self._states(only_model))
        varying = {name: shared.pop(name) for name in self.varying}
        with ExitStack() as staged:
            explained = explain_disk_errors(final.name, self.run_dir, self.what_is_left)
            begin = explained(lambda: staged.enter_context(staged_folder(final)))
            staging = on_rank0_broadcast(begin)

            def write() -> None:
                write_model(staging)
                if not only_model:
                    save_tree(own, staging / rank_file(self.rank))
                if self.rank == 0:
                    if not only_model:
                        save_tree(shared, staging / TRAINING_STATE)
                    known = {"format": FORMAT, "processes": self.world, **progress, "parts": varying}
                    (staging / PROGRESS).write_text(json.dumps(known, indent=1), encoding="utf-8")

            def publish() -> None:
                write_manifest(staging, step=step)
                staged.close()

            raise_on_all_ranks(explained(write))
            on_rank0_broadcast(explained(publish))
        on_rank0_broadcast(lambda: folders.rotate(self.run_dir, self.keep, spared))
        self.saved_step = step
        return final

    def _states(self, only_model: bool) -> tuple[dict[str, Any], dict[str, Any]]:
        """The states of the parts, those that each process has for itself second."""
        names = self.varying if only_model else self.parts
        shared = {name: self.parts[name].state_dict() for name in names}
        own = {} if only_model else {name: part.state_dict() for name, part in self.rank_parts.items()}
        return shared, own

    # ---- Finding

    def find(self, resume: str | Path | bool | None) -> Path | None:
        """The whole checkpoint that `resume` asks for: a folder, True for the run directory, None for none.

        A run that was killed before its first checkpoint starts again.

        Raises:
            UserError: if there is none, or its state is of another version.
        """
        if resume is None or resume is False:
            return None
        where = self.run_dir if resume is True else Path(resume)
        restore_replaced(folders.run_of(where))
        if read_history(where) and not any(folders.checkpoints(where)):
            logger.info(f"{where} was stopped before its first checkpoint: it starts at step 0 again")
            return None
        checkpoint = folders.find_checkpoint(where)
        if is_resumable(checkpoint) and (found := _read_progress(checkpoint).get("format")) != FORMAT:
            raise UserError(
                f"can't resume from {checkpoint}: its format is {found}, this craft reads {FORMAT}; "
                f"use the version that wrote it, or start a new run with models.init_from={checkpoint}",
                code="checkpoint-old",
            )
        return checkpoint

    def progress(self) -> dict[str, Any]:
        """The `progress.json` of the resumed checkpoint."""
        assert self.resumed is not None
        return _read_progress(self.resumed)

    @property
    def resumed_step(self) -> int:
        return folders.step_of(self.resumed) if self.resumed else 0

    # ---- Loading

    def load(self, *names: str) -> None:
        """Puts back parts of the resumed checkpoint that are the same in all processes."""
        assert self.resumed is not None
        states = {**load_tree(self.resumed / TRAINING_STATE, names=names), **self.progress()["parts"]}
        for name in names:
            if name in states:  # not what the run that wrote it didn't have
                self.parts[name].load_state_dict(states[name])

    def load_rank_parts(self, names: Iterable[str]) -> None:
        """Puts back parts that each process has for itself, from what all processes of that run wrote."""
        assert self.resumed is not None
        names, files = list(names), map(rank_file, range(self.progress()["processes"]))
        saved = [load_tree(self.resumed / file, names=names) for file in files]
        for name in names:
            states = [state[name] for state in saved if name in state]
            if states:
                self.rank_parts[name].load_rank_states(states, self.rank)

    # ---- Messages

    def describe_last_good(self) -> str:
        """For an error message: the newest good checkpoint."""
        return f"last good checkpoint: {folders.last_good(self.run_dir) or 'none yet'}"

    def recovery_hint(self) -> str:
        """For a message: how to go on after a failure or a signal."""
        return self._how_to_go_on(folders.last_good(self.run_dir))

    def what_is_left(self) -> str:
        """For a message of a run that fails: the newest good checkpoint and how to go on."""
        good = folders.last_good(self.run_dir)
        return f"{f'last good checkpoint: {good}; ' if good else ''}{self._how_to_go_on(good)}"

    def once_trained(self) -> str:
        """For a message: what is left of a run that is trained, and ends before its model is made."""
        if any(folders.checkpoints(self.run_dir)):
            return f"the run is trained; make the model of it with: {self._resume_command()}"
        return "the run is trained, but training.save_strategy=no kept nothing of it"

    def _how_to_go_on(self, good: Path | None) -> str:
        if good is not None and not is_resumable(good):
            return only_weights(good)
        if good is not None:
            return f"go on from the last checkpoint with: {self._resume_command()}"
        if read_history(self.run_dir) and not any(folders.checkpoints(self.run_dir)):
            return f"nothing was saved yet; start again at step 0 with: {self._resume_command()}"
        return "nothing was saved yet; start the run again"

    def _resume_command(self) -> str:
        if (self.run_dir / RUN_CONFIG).is_file():
            return f"craft resume {shlex.quote(str(self.run_dir))}"
        return f"trainer.train(resume_from_checkpoint={str(self.run_dir)!r})"  # a trainer made from Python


def _read_progress(checkpoint: Path) -> dict[str, Any]:
    return json.loads((checkpoint / PROGRESS).read_text(encoding="utf-8"))  # type: ignore[no-any-return]


def is_resumable(checkpoint: Path) -> bool:
    """Whether a checkpoint holds more than the weights."""
    return (checkpoint / TRAINING_STATE).is_file()


def only_weights(checkpoint: Path) -> str:
    """Why a checkpoint can't be resumed from, and what can be done with it."""
    return (
        f"{checkpoint} holds weights alone (training.save_only_model=true, FSDP, or an earlier craft) and "
        f"can't be resumed from; start a new run from them with models.init_from={checkpoint}"
    )
