from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_run

from craft.training.arguments import CraftTrainingArguments
from craft.training.precision import Hardware, choose_precision
from craft.utils.errors import UserError

CPU = Hardware("cpu", native_bf16=True)
OLD_CPU = Hardware("cpu")


@pytest.mark.parametrize(
    ("requested", "hardware", "launcher", "chosen", "because"),
    [
        ("auto", CPU, "no", "bf16", "natively"),
        ("auto", OLD_CPU, "no", "fp32", "natively"),
        ("auto", CPU, "fp16", "bf16", "doesn't exist on a CPU"),
        ("auto", OLD_CPU, "fp16", "fp32", "doesn't exist on a CPU"),
        ("auto", CPU, "bf16", "bf16", "accelerate"),
        ("auto", Hardware("cuda", (9, 0)), "no", "bf16", "capability 9.0"),
        ("auto", Hardware("cuda", (9, 0)), "fp16", "fp16", "accelerate"),
        ("auto", Hardware("cuda", (7, 5)), "no", "fp16", "capability 7.5"),
        ("auto", Hardware("cuda", (6, 1)), "no", "fp32", "no tensor cores"),
        ("fp32", CPU, "fp16", "fp32", "asked for"),
        ("bf16", OLD_CPU, "no", "bf16", "asked for"),
        ("auto", Hardware("mps"), "no", "fp32", "on mps"),
    ],
)
def test_precision_and_its_reason(
    requested: str, hardware: Hardware, launcher: str, chosen: str, because: str
) -> None:
    precision, reason = choose_precision(requested, hardware=hardware, launcher=launcher)
    assert precision == chosen
    assert because in reason


@pytest.mark.parametrize(
    ("requested", "hardware", "message"),
    [
        ("fp16", CPU, "precision=fp16 needs a GPU"),
        ("bf16", Hardware("cuda", (7, 5)), r"needs a GPU of capability 8.0 \(here capability 7.5\)"),
        ("fp1", CPU, "'fp1' isn't known, did you mean 'fp16'"),
    ],
)
def test_precision_that_is_refused(requested: str, hardware: Hardware, message: str) -> None:
    with pytest.raises(UserError, match=message):
        choose_precision(requested, hardware=hardware, launcher="no")


@pytest.mark.parametrize("native", [False, True])
def test_the_trainer_settles_precision(native: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    monkeypatch.setattr(
        Hardware, "detect", classmethod(lambda cls, use_cpu: Hardware("cpu", native_bf16=native))
    )
    trainer = tiny_run.trainer("char_transformer", tmp_path, precision="auto")
    expected = ("bf16", "bf16", "eager") if native else ("fp32", "no", "sdpa")
    attention = trainer.model.config._attn_implementation
    assert (trainer.args.precision, trainer.accelerator.mixed_precision, attention) == expected
    assert "fp16 doesn't exist on a CPU" in trainer.args.precision_reason


@pytest.mark.parametrize(
    ("requested", "launcher", "words"),
    [
        ("bf16", "no", "training.precision=bf16"),
        ("auto", "bf16", "accelerate's mixed_precision=bf16"),
        ("auto", "no", ""),
        ("fp32", "bf16", ""),
    ],
)
def test_only_a_precision_that_was_asked_for_is_to_be_tried(
    requested: str, launcher: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launcher)
    args = CraftTrainingArguments(output_dir=str(tmp_path), precision=requested)
    args.settle_precision()
    assert args.precision_wanted == words


def test_bf16_is_another_word_for_precision(tmp_path: Path) -> None:
    args = CraftTrainingArguments(output_dir=str(tmp_path), bf16=True)
    args.settle_precision()
    assert (args.precision, args.bf16, args.mixed_precision) == ("bf16", True, "bf16")


def test_the_global_batch_is_shared_out(tmp_path: Path) -> None:
    args = CraftTrainingArguments(
        output_dir=str(tmp_path), global_batch_size=12, gradient_accumulation_steps=3
    )
    assert args.per_device_train_batch_size == 4
    args = CraftTrainingArguments(
        output_dir=str(tmp_path), per_device_train_batch_size=4, gradient_accumulation_steps=3
    )
    assert args.global_batch_size == 12
    args = CraftTrainingArguments(output_dir=str(tmp_path), gradient_accumulation_steps=2)
    assert (args.per_device_train_batch_size, args.global_batch_size) == (8, 16)
    args = CraftTrainingArguments(
        output_dir=str(tmp_path), per_device_train_batch_size=8, global_batch_size=8
    )
    assert args.global_batch_size == 8


@pytest.mark.parametrize(
    ("metric", "greater"), [("loss", False), ("eval_bits_per_char", False), ("accuracy", True)]
)
def test_which_way_a_metric_is_better(tmp_path: Path, metric: str, greater: bool) -> None:
    args = CraftTrainingArguments(output_dir=str(tmp_path), metric_for_best_model=metric)
    assert args.greater_is_better is greater


def test_muon_and_best_model_pass_hugging_face(tmp_path: Path) -> None:
    args = CraftTrainingArguments(
        output_dir=str(tmp_path),
        optim="muon",
        eval_strategy="steps",
        eval_steps=10,
        save_steps=7,
        load_best_model_at_end=True,
    )
    assert (args.optim, args.load_best_model_at_end, args.metric_for_best_model) == ("muon", True, "loss")
    assert args.greater_is_better is False
    assert args.logging_nan_inf_filter is False


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"global_batch_size": 10, "gradient_accumulation_steps": 4}, "= 4; use 8 or 12"),
        ({"global_batch_size": 3, "gradient_accumulation_steps": 4}, "= 4; use 4$"),
        ({"optim": "muonn"}, "did you mean 'muon'"),
        ({"lr_scheduler_type": "cosin"}, "did you mean 'cosine'"),
        ({"eval_protocol": "block"}, "did you mean 'blocks'"),
        ({"eval_protocol": "sliding-0"}, "isn't a protocol"),
        ({"eval_protocol": "sliding-²"}, "isn't a protocol"),
        ({"metric_for_best_model": "eval_los"}, "did you mean 'eval_loss'"),
        ({"metric_for_best_model": "f1"}, "one of loss, bits_per_char"),
        (
            {"load_best_model_at_end": True, "eval_strategy": "steps", "save_strategy": "no"},
            "needs checkpoints",
        ),
        ({"per_device_train_batch_size": 8, "global_batch_size": 12}, "contradicts .*that is 12 per device"),
        ({"per_device_train_batch_size": 0}, "at least 1"),
        ({"ema_decay": 1.0}, "ema_decay=1.0 must be above 0 and below 1"),
        ({"early_stopping_patience": 3}, "early_stopping_patience=3 needs evaluations"),
        ({"learning_rate": 0}, "training.learning_rate=0 must be above 0"),
        ({"muon_momentum": "fast"}, "training.muon_momentum=fast is not valid; expected a number"),
        ({"dataloader_num_workers": 4}, "training.dataloader_num_workers=4 has no effect"),
        ({"optim": "lomo"}, "training.optim=lomo needs the package lomo_optim"),
        ({"report_to": ["wandbb"]}, "training.report_to=wandbb, did you mean 'wandb'"),
        ({"fsdp": "full_shard"}, "training.fsdp=full_shard"),
        ({"fp16": True, "use_cpu": True}, "training.fp16=true needs a GPU"),
        ({"lr_scheduler_kwargs": {"min_lr": 1}}, "lr_scheduler_kwargs.min_lr; .*=linear takes none"),
        ({"bf16": True, "precision": "fp32"}, "contradicts"),
        ({"logging_steps": 2.5}, "training.logging_steps=2.5"),
    ],
)
def test_what_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        CraftTrainingArguments(output_dir=str(tmp_path), **changes)


def test_processes_for_gpus_that_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `accelerate launch --multi_gpu --num_processes 8` does on a machine without GPUs."""
    monkeypatch.setattr("torch.accelerator.is_available", lambda: False)
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    for name, value in {"WORLD_SIZE": 8, "RANK": 0, "LOCAL_RANK": 0, "MASTER_PORT": 29500}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    with pytest.raises(UserError, match="8 processes were launched for GPUs, but this machine has none"):
        CraftTrainingArguments(output_dir=str(tmp_path))


def test_a_world_that_nobody_joined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The launcher's world is larger than the one that this process ended up in."""
    args = CraftTrainingArguments(output_dir=str(tmp_path))
    monkeypatch.setenv("WORLD_SIZE", "8")
    with pytest.raises(UserError, match="8 processes were launched, but this one sees a world of 1"):
        args._check_world()


def test_a_tilde_in_the_run_folder_is_the_home_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert CraftTrainingArguments(output_dir="~/x").output_dir == str(tmp_path / "x")
    with pytest.raises(UserError):
        CraftTrainingArguments(output_dir="~no-such-user/x")
