"""The whole workflow, top to bottom: configuration, dataset, model, trainer, training, evaluation, inference.

    craft train my.txt
    python -m craft.train experiments=shakespeare_lstm
    accelerate launch --config_file accelerate_config.yaml -m craft.train experiments=nanogpt_gpu

are the same run, on one device or many.
"""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from craft.building import build_model, saved_tokenizers, starting_tokenizer, training_windows
from craft.runs import choose_as_before, describe_model, export, name_run, record, share, what_to_resume
from craft.utils import launch
from craft.utils.common import SAMPLE_CHARACTERS, human
from craft.utils.files import explain_disk_errors, sha256
from craft.utils.history import add_event
from craft.utils.locks import run_lock
from craft.utils.logging import get_logger, setup_logging
from craft.utils.outputs import OUTPUTS, RunPaths
from craft.utils.resuming import Finished
from craft.utils.stopping import NOTHING_YET, SignalHandler, exit_on_signal
from craft.utils.units import unit_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from craft.config.schema import Run
    from craft.data.arguments import DataArguments
    from craft.data.loaders import Corpus
    from craft.data.tokenization import CharTokenizer
    from craft.evaluation.scores import Evaluation
    from craft.training.arguments import CraftTrainingArguments
    from craft.training.base import LanguageModelTrainer

logger = get_logger(__name__)


@dataclass(frozen=True)
class TrainResult:
    """What a finished run left behind.

    Attributes:
        model_dir: the finished model, a folder that any Hugging Face tool opens.
        evaluations: scores of the finished model over the whole validation split, one for each protocol.
        sample: a text that it wrote.
    """

    model_dir: Path
    evaluations: list[Evaluation]
    sample: str


def train(
    run: Run, resume: str | Path | None = None, allow_changes: bool = False, began: float | None = None
) -> TrainResult | None:
    """Trains, evaluates and saves one model.

    Args:
        run: what `craft.config.compose.compose` returns.
        resume: the folder of an interrupted run to go on with; `run` is then the one saved in it. Or "auto":
            the run in its `training.output_dir` if one was begun there.
        allow_changes: go on although settings changed that decide the weights; the run keeps a record.
        began: from when on `training.max_minutes` are counted, in seconds since 1970; by default from now on.

    Returns:
        What was made; `None` in processes other than the first, for a run that was stopped by a signal, and
        for "auto" if it is finished.

    Raises:
        UserError: for a mistake of the user; nothing was trained then.
        Failed: if the disk is full; as `TrainingFailed`, if training can't go on, as at a loss that is NaN.
    """
    launch.check()
    began = time.time() if began is None else began
    with exit_on_signal(NOTHING_YET) as handler:
        from craft.training.distributed.rendezvous import peer_failure_context

        with peer_failure_context(last=True), ExitStack() as locks:
            return workflow(run, resume, allow_changes, began, handler, locks)


def workflow(
    run: Run,
    resume: str | Path | None,
    allow_changes: bool,
    began: float,
    handler: SignalHandler,
    locks: ExitStack,
) -> TrainResult | None:
    """The seven steps of `train`, in every process.

    Args:
        began: when the clock of the run starts.
        handler: what is said if a signal ends the program.
        locks: keeps the run's folder for this process until all is done.
    """
    # 1. Configuration
    from transformers import set_seed

    data, args = arguments(run)
    setup_logging(main_process=args.process_index == 0)
    found = what_to_resume(run, args, resume)
    if isinstance(found, Finished):
        logger.info(str(found))
        return None
    resume = found
    if resume is not None and run.automatic:
        run = choose_as_before(run, Path(resume))
        data, args = arguments(run)

    # 2. Dataset
    from craft.data.loaders import load_corpus

    tokenizer = starting_tokenizer(run.models, resume)
    with args.main_process_first(desc="preparing the text"):
        corpus = load_corpus(data, tokenizer, extend=run.models.get("extend_vocab", False))
    corpus.tokenizer.encode_ids(args.sample_prompt or "", "training.sample_prompt")  # not after training
    logger.info(f"data      {describe(corpus)}")
    tried = None
    if run.automatic:
        from craft.sizing import choose_size

        run, tried = choose_size(run, corpus, began)
        data, args = arguments(run)

    # 3. Model
    set_seed(args.seed)
    resumed = bool(saved_tokenizers(resume))  # rather than started again
    model = build_model(run.models, corpus.tokenizer, data.block_size, corpus.documents, resumed)
    args.settle_precision()
    windows = training_windows(model, corpus, data, args)
    paths = name_run(run, model, args, corpus, resume)
    logger.info(f"model     {run.models['model_type']}, {human(model.num_parameters())} parameters")
    logger.info(f"precision {args.precision}: {args.precision_reason}")
    logger.info(f"run       {paths.run_dir}")

    # 4. Trainer
    from craft.config.schema import Run
    from craft.evaluation.protocols import final_protocols
    from craft.training.base import LanguageModelTrainer
    from craft.training.callbacks.step_lines import StepLines

    trainer = LanguageModelTrainer(
        model=model,
        args=args,
        train_dataset=windows,
        eval_ids=corpus.validation,
        tokenizer=corpus.tokenizer,
        run_config=run.to_dict(),
        text=corpus.fingerprint if corpus.n_units is not None else None,
    )

    trainer.budget.process_began, trainer.budget.tried = began, tried
    trainer.budget.protocols = final_protocols(model, args.eval_protocols)

    def on_run_validated() -> None:
        locks.enter_context(run_lock(paths.run_dir))
        record(Run(**trainer.run_config), paths)

    trainer.on_run_validated = on_run_validated
    trainer.add_callback(lines := StepLines())

    # 5. Training
    trainer.train(resume_from_checkpoint=str(resume) if resume else None, allow_changes=allow_changes)
    if args.process_index != 0:
        return None
    handler.state = trainer.checkpointer.once_trained()
    locks.enter_context(explain_disk_errors("the finished model", OUTPUTS, lambda: handler.state))
    model_dir = paths.export_dir(trainer.state.global_step)
    export(trainer, model_dir)

    # 6. Evaluation
    from craft.inference import load

    finished, tokenizer = load(model_dir)  # as a user would
    protocols = final_protocols(finished, args.eval_protocols)
    evaluations = evaluate(
        finished, tokenizer, corpus, protocols, data.block_size, args.seed, model_dir, paths
    )

    # 7. Inference
    sample = write_sample(finished, tokenizer, args, paths)
    plot_loss(paths, run, corpus, trainer)
    describe_model(model_dir, paths, trainer.state.global_step, corpus, evaluations, sample)
    add_event(paths.run_dir, "finished", step=trainer.state.global_step)
    print_next_steps(model_dir, paths)
    trainer.budget.report()
    # What `sha256sum model.safetensors` prints; of several files, of all in the order of their names.
    lines.final(sha256(*sorted(model_dir.glob("model*.safetensors"))))
    share(trainer, model_dir)
    return TrainResult(model_dir, evaluations, sample)


def arguments(run: Run) -> tuple[DataArguments, CraftTrainingArguments]:
    """What the sections `data` and `training` of a run say."""
    from craft.data.arguments import DataArguments
    from craft.training.arguments import CraftTrainingArguments

    training = {"output_dir": str(OUTPUTS / "models"), **run.training}
    return DataArguments(**run.data), CraftTrainingArguments(**training)


def describe(corpus: Corpus) -> str:
    """Name, size and alphabet on one line, the splits below."""
    from craft.data.streaming import TextStream

    if isinstance(corpus.train, TextStream):
        n_shards, n_ids = len(corpus.train.shards), len(corpus.tokenizer)
        return f"{corpus.name}, streamed in {n_shards:,} shards, {n_ids:,} ids"
    splits = {"training": corpus.train, "validation": corpus.validation, "test": corpus.test}
    parts = [f"{len(ids):,} for {name}" for name, ids in splits.items() if ids is not None]
    size = f"{corpus.n_units:,} {unit_of(corpus.tokenizer).plural}"
    return f"{corpus.name}, {size}, {len(corpus.tokenizer):,} ids\n          {', '.join(parts)}"


def evaluate(
    model: PreTrainedModel,
    tokenizer: CharTokenizer,
    corpus: Corpus,
    protocols: Sequence[str],
    block_size: int,
    seed: int,
    model_dir: Path,
    paths: RunPaths,
) -> list[Evaluation]:
    """Scores of the finished model over the whole validation split, if there is one; shown and kept."""
    from craft.evaluation.scores import save_scores, score, table

    if corpus.validation is None:
        return []
    evaluations = score(
        model,
        tokenizer,
        corpus.validation,
        protocols,
        block_size=block_size,
        dataset=corpus.name,
        seed=seed,
    )
    if evaluations:
        save_scores(evaluations, str(model_dir), paths.evaluation_file(corpus.name))
        logger.info(f"\n{table(evaluations)}\n")
    return evaluations


def write_sample(
    model: PreTrainedModel, tokenizer: CharTokenizer, args: CraftTrainingArguments, paths: RunPaths
) -> str:
    """A text by the finished model, shown and kept."""
    from craft.inference import sample

    prompt = args.sample_prompt or ""
    text = prompt + sample(model, tokenizer, [prompt], max_new_tokens=SAMPLE_CHARACTERS, seed=args.seed)[0][0]
    paths.sample_file.parent.mkdir(parents=True, exist_ok=True)
    paths.sample_file.write_text(text + "\n", encoding="utf-8", newline="")
    logger.info(f"{text}\n")
    return text


def plot_loss(paths: RunPaths, run: Run, corpus: Corpus, trainer: LanguageModelTrainer) -> None:
    """The loss curve of the whole run, from its metrics."""
    from craft.training.logging import read_metrics
    from craft.views.loss_curve import loss_curve
    from craft.views.png import draw_loss_curve

    unit, scored, ids = unit_of(corpus.tokenizer), "whole split", corpus.validation
    if ids is not None and len(trainer.validation.scored_in_training(ids)) < len(ids):
        scored = f"first {trainer.args.eval_chars:,} {unit.plural}"
    title = f"{run.models['model_type']} {paths.size} on {corpus.name}"
    draw_loss_curve(loss_curve(read_metrics(paths.run_dir), unit, scored, title), paths.figure("loss"))


def print_next_steps(model_dir: Path, paths: RunPaths) -> None:
    """Shows where everything is, and what one would type next."""
    kept = {"loss curve": paths.figure("loss"), "sample": paths.sample_file, "log": paths.log_file}
    lines = [f"{name:<10} {file}" for name, file in kept.items() if file.exists()]
    folder = shlex.quote(str(model_dir))
    lines += ["", "next:", f"  craft generate {folder}", f"  craft evaluate {folder}"]
    logger.info("\n".join([f"model      {model_dir}", *lines]))


if __name__ == "__main__":
    from craft.cli.main import main

    main(["train", *sys.argv[1:]])
