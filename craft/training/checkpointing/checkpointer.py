"""`Checkpointer`: writes, verifies, finds, rotates and loads the checkpoints of a run.

A checkpoint holds

    model.safetensors, config.json, tokenizer …   a model that any Hugging Face tool opens (with `ema_decay`
                                                  the average, which is what was evaluated)
    training_state.safetensors                    the parts that are the same in all processes, by name
    rank_{r}.safetensors                          the parts of process r, by name
    trainer_state.json                            step and history, as transformers writes them
    progress.json                                 format, number of processes, the settings that decide the
                                                  weights, the versions they were computed with; the parts
                                                  that differ between equal runs
    craft_run.yaml, training_args.json            the run; its arguments as plain text
    manifest.json                                 sizes and hashes of all these, written last

No file is a pickle. The checkpointer knows the names of parts, not what they are; see `parts`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from craft.training.checkpointing import disk, folders
from craft.training.checkpointing.parts import RankStateful, Stateful
from craft.training.checkpointing.safetensors_io import load_tree, save_tree
from craft.training.distributed.agreement import raise_on_all_ranks
from craft.training.distributed.heartbeat import first_line
from craft.training.distributed.rendezvous import is_communication_error, peer_failure_context
from craft.training.memory import is_out_of_memory
from craft.utils.errors import TrainingFailed, UserError
from craft.utils.history import read_history
from craft.utils.logging import get_logger

logger = get_logger(__name__)

FORMAT = 2
"""Of what is written beside the model; another one is refused, its model loads all the same."""
STATE = "training_state.safetensors"
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
        saved_step: the step of the last checkpoint written.
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
    _written: tuple[int, ...] = ()

    # ---- Writing

    def save(
        self,
        step: int,
        write_model: Callable[[Path], None],
        progress: Mapping[str, Any],
        *,
        best_step: int | None,
        only_model: bool,
        needed: int,
    ) -> Path:
        """Writes `checkpoint-{step}` so that it appears whole or not at all, and removes old ones.

        Args:
            write_model: writes model and trainer state into a folder; called in every process.
            progress: for `progress.json`.
            best_step: the step of the best checkpoint, which is never removed.
            only_model: leave the parts out.
            needed: bytes that it will take, for an error message.

        Raises:
            TrainingFailed: in all processes, if the disk or the memory of one of them has no room.
        """
        staging, first = folders.staging_dir(self.run_dir, step), self.rank == 0

        def begin() -> None:
            if first:
                folders.discard(staging)
                staging.mkdir(parents=True)

        def write() -> None:
            write_model(staging)
            if not only_model:
                self._write_parts(staging)
            if first:
                varying = {name: self.parts[name].state_dict() for name in self.varying}
                known = {"format": FORMAT, "processes": self.world, **progress, "parts": varying}
                (staging / PROGRESS).write_text(json.dumps(known, indent=1), encoding="utf-8")

        def publish() -> None:
            self._written = (*self._written, step)
            if first:
                folders.publish(staging, step)
                resumed = self.resumed_step
                folders.rotate(self.run_dir, self.keep, best_step, written=self._written, resumed=resumed)

        for stage in (begin, write, publish):
            try:
                with peer_failure_context(self.recovery_hint):
                    raise_on_all_ranks(partial(self._explain_failure, stage, step, needed))
            except Exception:
                if first:
                    folders.discard(staging)
                raise
        self.saved_step = step
        return folders.checkpoint_dir(self.run_dir, step)

    def _write_parts(self, folder: Path) -> None:
        # Every process asks each part: under DDP an optimizer may have to gather its state from all of them.
        fixed = {name: part for name, part in self.parts.items() if name not in self.varying}
        shared = {name: part.state_dict() for name, part in fixed.items()}
        if self.rank == 0:
            save_tree(shared, folder / STATE)
        own = {name: part.state_dict() for name, part in self.rank_parts.items()}
        save_tree(own, folder / rank_file(self.rank))

    def _explain_failure(self, stage: Callable[[], None], step: int, needed: int) -> None:
        """Runs a stage of saving; an error for want of room becomes a sentence with the way out."""
        try:
            stage()
        except Exception as error:
            if is_communication_error(error):
                raise
            name = f"checkpoint-{step}"
            trouble = first_line(error) + (f" (process {self.rank})" if self.world > 1 else "")
            hint = f"{self.last_good()}; make room{{}}; {self.recovery_hint()}"
            if is_out_of_memory(error):
                raise TrainingFailed(
                    f"out of memory while {name} was written ({trouble}); {hint.format(' in memory')}"
                ) from error
            # Rust has words where Python has a class: a tokenizer that can't be written.
            if not isinstance(error, OSError | SafetensorError) and "(os error" not in str(error):
                raise
            raise TrainingFailed(
                f"{name} can't be written to {self.run_dir} ({trouble}): it needs about {needed:,} bytes and "
                f"{disk.free_bytes(self.run_dir):,} bytes are free there; {hint.format('')}"
            ) from error

    # ---- Finding

    def find(self, resume: str | Path | bool | None) -> Path | None:
        """The whole checkpoint that `resume` asks for: a folder, True for the run directory, None for none.

        A run that was killed before its first checkpoint starts again.

        Raises:
            UserError: if there is none, or its state is in another form.
        """
        if resume is None or resume is False:
            return None
        where = self.run_dir if resume is True else Path(resume)
        if read_history(where) and not any(folders.checkpoints(where)):
            logger.info(f"{where} was stopped before its first checkpoint: it starts at step 0 again")
            return None
        checkpoint = folders.find_checkpoint(where)
        for name in ("optimizer.pt", "optimizer.safetensors"):
            if (checkpoint / name).exists():
                raise UserError(
                    f"can't resume from {checkpoint}: another program, or an earlier version of craft, kept "
                    f"its state in a form of its own ({name}); start a new run from its weights with "
                    f"models.init_from={checkpoint}"
                )
        if is_resumable(checkpoint) and (found := _read_progress(checkpoint).get("format")) != FORMAT:
            raise UserError(
                f"can't resume from {checkpoint}: its format is {found}, this craft reads {FORMAT}; "
                f"use the version that wrote it, or start a new run with models.init_from={checkpoint}"
            )
        return checkpoint

    def progress(self) -> dict[str, Any]:
        """The `progress.json` of the resumed checkpoint."""
        assert self.resumed is not None
        return _read_progress(self.resumed)

    @property
    def resumed_step(self) -> int | None:
        return folders.step_of(self.resumed) if self.resumed else None

    # ---- Loading

    def load(self, *names: str) -> None:
        """Puts back parts of the resumed checkpoint that are the same in all processes."""
        assert self.resumed is not None
        states = {**load_tree(self.resumed / STATE, names=names), **self.progress()["parts"]}
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

    def last_good(self) -> str:
        """For an error message: the newest good checkpoint."""
        return f"last good checkpoint: {folders.last_good(self.run_dir) or 'none yet'}"

    def recovery_hint(self) -> str:
        """For a message: how to go on after a failure or a signal."""
        good = folders.last_good(self.run_dir)
        if good is None:
            return "nothing was saved yet"
        if not is_resumable(good):
            return only_weights(good)
        return f"go on from the last checkpoint with: craft resume {self.run_dir}"

    def once_trained(self) -> str:
        """For a message: what is left of a run that is trained, and ends before its model is made."""
        if any(folders.checkpoints(self.run_dir)):
            return f"the run is trained; 'craft resume {self.run_dir}' makes the model of it"
        return "the run is trained, but training.save_strategy=no kept nothing of it"


def _read_progress(checkpoint: Path) -> dict[str, Any]:
    return json.loads((checkpoint / PROGRESS).read_text(encoding="utf-8"))  # type: ignore[no-any-return]


def is_resumable(checkpoint: Path) -> bool:
    """Whether a checkpoint holds more than the weights."""
    return (checkpoint / STATE).is_file()


def only_weights(checkpoint: Path) -> str:
    """Why a checkpoint can't be resumed from, and what can be done with it."""
    return (
        f"{checkpoint} holds weights alone (training.save_only_model=true, or FSDP) and can't be resumed "
        f"from; start a new run from them with models.init_from={checkpoint}"
    )
