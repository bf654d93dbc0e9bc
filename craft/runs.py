"""The folder of a run: named, refused where it holds something else, recorded; the finished model beside it,
with its scores, its card and, if asked for, a copy on the Hub.

A refused run writes nothing, so that a typing mistake costs no record of an earlier one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from craft.sharing.record import fields_or_empty
from craft.utils import launch
from craft.utils.common import human
from craft.utils.errors import Failed, UserError
from craft.utils.files import replace_text, staged_folder
from craft.utils.history import finished_at
from craft.utils.locks import is_locked
from craft.utils.logging import get_logger, setup_logging
from craft.utils.outputs import OUTPUTS, RUN_CONFIG, RUN_NAMES, RunPaths, unique_timestamp
from craft.utils.paths import typed_path
from craft.utils.resuming import Finished

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from craft.config.schema import Run
    from craft.data.loaders import Corpus
    from craft.evaluation.scores import Evaluation
    from craft.training.arguments import CraftTrainingArguments
    from craft.training.base import LanguageModelTrainer

logger = get_logger(__name__)


def what_to_resume(
    run: Run, args: CraftTrainingArguments, resume: str | Path | None
) -> str | Path | Finished | None:
    """The folder to resume, the same in all processes; for "auto", and for a launcher that starts processes
    again, that of the run that earlier ones with the same `training.output_dir` began.

    Returns:
        `Finished` if that was this very run, and nothing of it is left to do.

    Raises:
        UserError: for "auto" without `training.output_dir`.
    """
    from craft.training.checkpointing.folders import checkpoints
    from craft.training.distributed.agreement import on_rank0_broadcast

    restarts = launch.number("TORCHELASTIC_MAX_RESTARTS", 0) > 0
    if resume not in (None, "auto"):
        return typed_path(resume)
    if resume is None and not restarts:
        return None
    if (given := run.training.get("output_dir")) is None:
        if resume == "auto":
            raise UserError(
                "--resume auto goes on with the run in training.output_dir, or starts it there; set "
                "training.output_dir=FOLDER",
                code="usage",
            )
        if args.process_index == 0:
            logger.warning(
                "processes that the launcher starts again begin a new run, since this one has no fixed "
                "folder; set training.output_dir=FOLDER on a disk that all machines share"
            )
        return None
    folder = Path(given)

    def look() -> Path | Finished | None:
        finished = finished_at(folder) is not None
        # What was left open when that run began may have become anything.
        left_open = [*run.automatic, *([] if run.training.get("time_plan") else ["training.time_plan"])]
        saved, asked = (
            drop_settings(left_open, plain) for plain in (fields_or_empty(folder / RUN_CONFIG), run.to_dict())
        )
        if finished and saved == asked:
            return Finished(folder)
        if any(checkpoints(folder)):
            return folder
        if not finished and not is_locked(folder):
            (folder / RUN_NAMES).unlink(missing_ok=True)  # begun, and lost before anything was saved
        return None

    return on_rank0_broadcast(look)


def choose_as_before(run: Run, folder: Path) -> Run:
    """A run to resume with its open settings as they were chosen when it began."""
    saved = fields_or_empty(folder / RUN_CONFIG)
    if not run.automatic or not saved:
        return run
    sections = {key: key.partition(".") for key in run.automatic}
    return run.filled(
        {
            key: saved[section][name] if name else saved[section]
            for key, (section, _, name) in sections.items()
        }
    )


def drop_settings(settings: Sequence[str], run: Mapping[str, Any]) -> dict[str, Any]:
    """A saved run but for some settings; a name without a dot is a whole section."""
    rest = {name: section for name, section in run.items() if name not in (*settings, "automatic")}
    for key in settings:
        section, _, name = key.partition(".")
        if isinstance(rest.get(section), Mapping):
            rest[section] = {other: value for other, value in rest[section].items() if other != name}
    return rest


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
            "training.output_dir",
            code="file-unwritable",
        ) from error


def check_folder(folder: Path) -> None:
    """Refuses a folder whose run would be overwritten."""
    from craft.training.checkpointing.folders import checkpoints

    resumable = any(checkpoints(folder))
    if resumable or (folder / RUN_NAMES).exists():
        hint = f"go on with it by: craft resume {folder}, or " if resumable else ""
        raise UserError(
            f"{folder} holds a run already; {hint}choose another training.output_dir, or delete it",
            code="setting-conflict",
        )


def record(run: Run, paths: RunPaths) -> None:
    """Keeps the resolved run and its names in its folder."""
    with writable(paths.run_dir):
        paths.create()
        replace_text(paths.run_dir / RUN_CONFIG, run.to_yaml())


def export(trainer: LanguageModelTrainer, model_dir: Path) -> None:
    """The finished model: weights, config, generation_config, tokenizer, its code and the resolved run; in
    one piece, also where it replaces an earlier one."""
    with staged_folder(model_dir) as staging:
        trainer.save_model(str(staging), _internal_call=True)  # `share` uploads it, with its scores
    best, last = trainer.state.best_global_step, trainer.state.global_step
    if trainer.args.load_best_model_at_end and best not in (None, last):
        logger.info(f"exported  the best weights, of step {best:,} of {last:,}")
        if is_overfit(trainer.state.log_history, best, last):
            logger.info(
                "          later ones knew the training text better, the validation text worse;\n"
                "          more text, more dropout or a smaller model help"
            )


def is_overfit(history: Sequence[dict[str, Any]], best: int, last: int) -> bool:
    """Whether the best step was in the first three quarters, and the training loss fell on after it."""
    losses = [(entry["step"], entry["loss"]) for entry in history if "loss" in entry]
    until = [loss for step, loss in losses if step <= best]
    return best <= 0.75 * last and bool(until) and losses[-1][1] < until[-1]


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
        message = f"{error}; upload it with: craft push {model_dir} {name}"
        raise type(error)(message, code=error.code) from error
    logger.info(f"uploaded   {url}")
