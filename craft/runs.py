"""The folder of a run: named, refused where it holds something else, recorded; the finished model beside it,
with its scores, its card and, if asked for, a copy on the Hub.

A refused run writes nothing, so that a slip of the pen costs no record of an earlier one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from craft.utils import launch
from craft.utils.claims import is_claimed
from craft.utils.common import human
from craft.utils.errors import Failed, UserError
from craft.utils.files import replace_text, sha256
from craft.utils.history import add_event, finished_at
from craft.utils.logging import get_logger, setup_logging
from craft.utils.outputs import OUTPUTS, RUN_CONFIG, RUN_NAMES, RunPaths, unique_timestamp
from craft.utils.paths import typed_path
from craft.utils.resuming import Finished

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

    from craft.config.schema import Run
    from craft.data.loaders import Corpus
    from craft.evaluation.scores import Evaluation
    from craft.training.arguments import CraftTrainingArguments
    from craft.training.base import LanguageModelTrainer

logger = get_logger(__name__)


EARLY = 0.75
"""Part of a run; a best step within it is worth a word of advice."""
DROPOUT = 0.2
"""What helps a model that learns its text by heart; one that has as much of it needs something else."""
AUTO = "auto"
"""As what to resume: the run in `training.output_dir`, or nothing if none was begun there."""


def begun(run: Run, args: CraftTrainingArguments, resume: str | Path | None) -> str | Path | Finished | None:
    """What to resume, the same in all processes: for a launcher that starts lost processes again, and for
    "auto", the run that earlier processes with the same `training.output_dir` began.

    Returns:
        `Finished` if that was this very run, and nothing of it is left to do.

    Raises:
        UserError: for "auto" without `training.output_dir`.
    """
    from craft.training.checkpointing.folders import checkpoints
    from craft.training.distributed.agreement import on_rank0_broadcast

    restarts = launch.number("TORCHELASTIC_MAX_RESTARTS", 0) > 0
    if resume not in (None, AUTO):
        return typed_path(resume)
    if resume is None and not restarts:
        return None
    folder = run.training.get("output_dir")
    if folder is None and resume == AUTO:
        raise UserError(
            "--resume auto goes on with the run in training.output_dir, or starts it there; set "
            "training.output_dir=FOLDER"
        )
    if folder is None:
        if args.process_index == 0:
            logger.warning(
                "processes that the launcher starts again begin a new run, since this one has no fixed "
                "folder; set training.output_dir=FOLDER on a disk that all machines share"
            )
        return None
    place = Path(folder)

    def look() -> Path | Finished | None:
        finished = finished_at(place) is not None
        if finished and _saved_run(place) == run.to_dict():
            return Finished(place)
        if any(checkpoints(place)):
            return place
        if not finished and not is_claimed(place):
            (place / RUN_NAMES).unlink(missing_ok=True)  # begun, and lost before anything was saved
        return None

    return on_rank0_broadcast(look)


def _saved_run(folder: Path) -> Any:
    """The run that a folder keeps, as plain data; None if it can't be read."""
    import yaml

    try:
        return yaml.safe_load((folder / RUN_CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return None


def name_run(
    run: Run, model: PreTrainedModel, args: CraftTrainingArguments, corpus: Corpus, resume: str | Path | None
) -> RunPaths:
    """The run's outputs, named the same in all processes. Nothing is written but the log.

    Raises:
        UserError: if the folder holds another run.
    """
    from craft.training.distributed.agreement import on_rank0_broadcast

    if resume is not None:
        paths = RunPaths.of_run_dir(Path(resume))
        if corpus.n_units is None and paths.text not in (None, corpus.fingerprint):
            # A stream is known by the times of its files, which a copy changes.
            logger.warning(
                f"the files of {corpus.name} were touched since this run started: is it the same text?"
            )
        paths = replace(paths, text=corpus.fingerprint)
    else:
        folder = Path(given) if (given := run.training.get("output_dir")) else None
        size, text = human(model.num_parameters()), corpus.fingerprint

        def name() -> RunPaths:
            if folder is not None:
                check_folder(folder)
            with writable(OUTPUTS):
                stamp = unique_timestamp()
            kind = run.models["model_type"]
            return RunPaths(kind, size, args.precision, stamp=stamp, folder=folder, text=text)

        paths = on_rank0_broadcast(name)
    args.output_dir = str(paths.run_dir)

    def open_log() -> None:
        with writable(paths.log_file):
            setup_logging(paths.log_file)

    on_rank0_broadcast(open_log)
    return paths


@contextmanager
def writable(path: Path) -> Iterator[None]:
    """Says what can't be written, and why, before anything was trained."""
    try:
        yield
    except OSError as error:
        here = f" (the current folder is {Path.cwd()})" if not path.is_absolute() else ""
        raise UserError(
            f"{path} can't be written: {error.strerror}{here}; choose another folder to run in, or another "
            "training.output_dir"
        ) from error


def check_folder(folder: Path) -> None:
    """Refuses a folder whose run would be overwritten."""
    from craft.training.checkpointing.folders import checkpoints

    resumable = any(checkpoints(folder))
    if resumable or (folder / RUN_NAMES).exists():
        way_out = f"go on with it by: craft resume {folder}, or " if resumable else ""
        raise UserError(
            f"{folder} holds a run already; {way_out}choose another training.output_dir, or delete it"
        )


def record(run: Run, paths: RunPaths) -> None:
    """Keeps the resolved run and its names in its folder."""
    with writable(paths.run_dir):
        paths.create()
        replace_text(paths.run_dir / RUN_CONFIG, run.to_yaml())


def finish(paths: RunPaths, step: int) -> None:
    """Notes that a run has nothing left to do."""
    add_event(paths.run_dir, "finished", step=step)


def export(trainer: LanguageModelTrainer, model_dir: Path) -> None:
    """The finished model: weights, config, generation_config, tokenizer, its code and the resolved run; in
    one piece, also where it replaces an earlier one."""
    from craft.training.checkpointing.folders import STAGING, discard, put

    staging = model_dir.with_name(STAGING + model_dir.name)
    discard(staging)
    trainer.save_model(str(staging), _internal_call=True)  # `share` uploads it, with its scores
    put(staging, model_dir)
    best, last = trainer.state.best_global_step, trainer.state.global_step
    if trainer.args.load_best_model_at_end and best not in (None, last):
        logger.info(f"exported  the best weights, of step {best:,} of {last:,}")
        if learnt_by_heart(trainer.state.log_history, best, last):
            logger.info(
                "          later ones knew the training text better, the validation text worse;\n"
                f"          {remedies(trainer.model.config)} help"
            )


def learnt_by_heart(history: Sequence[dict[str, Any]], best: int, last: int) -> bool:
    """Whether the best step was early, and the training loss at the end lower than at that step."""
    losses = [(entry["step"], entry["loss"]) for entry in history if "loss" in entry]
    until = [loss for step, loss in losses if step <= best]
    return best <= EARLY * last and bool(until) and losses[-1][1] < until[-1]


def remedies(config: PreTrainedConfig) -> str:
    """What a model hasn't tried yet against learning by heart; dropout only if it has the field."""
    dropout = getattr(config, "dropout", DROPOUT)
    more = f", models.dropout={DROPOUT}" if dropout < DROPOUT else ""
    return f"more text{more} or a smaller model"


def weights_sum(model_dir: Path) -> str:
    """The SHA-256 of a finished model's weights: what `sha256sum model.safetensors` prints.

    A model in several files has that of all of them in the order of their names, one after the other.
    """
    return sha256(*sorted(model_dir.glob("model*.safetensors")))


def describe_model(
    model_dir: Path, paths: RunPaths, step: int, corpus: Corpus, evaluations: list[Evaluation], sample: str
) -> None:
    """What others want to know of the finished model, in its own folder: scores, facts about the text, loss
    curve, sample, and the card that tells of them."""
    from craft.data.facts import facts
    from craft.sharing.card import write_card
    from craft.sharing.record import CURVE, METRICS_FILE, write_record

    write_record(
        model_dir,
        step=step,
        data=facts(corpus),
        evaluations=[evaluation.to_dict() for evaluation in evaluations],
        sample=sample,
        copies={METRICS_FILE: paths.run_dir / METRICS_FILE, CURVE: paths.figure("loss")},
    )
    write_card(model_dir)


def share(trainer: LanguageModelTrainer, model_dir: Path) -> None:
    """Puts the finished model on the Hub if the run asks for it. It stays here, whatever comes of that.

    Raises:
        UserError, Failed: with the command that uploads it later.
    """
    if not trainer.args.push_to_hub:
        return
    from craft.sharing.upload import push

    name: Any = trainer.hub_model_id
    try:
        url = push(
            model_dir,
            name,
            private=trainer.args.hub_private_repo,
            branch=trainer.args.hub_revision,
            message=f"Step {trainer.state.global_step}, the end of training",
        )
    except (UserError, Failed) as error:
        raise type(error)(f"{error}; upload it with: craft push {model_dir} {name}") from error
    logger.info(f"uploaded   {url}")
