from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_run
from refusals import refused

from craft.training.arguments import CraftTrainingArguments
from craft.training.precision import Hardware, choose_precision
from craft.utils.errors import Code

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
        ("auto", Hardware("cuda", (6, 1)), "no", "fp32", "capability 6.1"),
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
    ("requested", "hardware", "code", "needed"),
    [
        ("fp16", CPU, "machine-unable", "GPU"),
        ("bf16", Hardware("cuda", (7, 5)), "machine-unable", "8.0"),
    ],
)
def test_precision_that_the_hardware_lacks_is_refused(
    requested: str, hardware: Hardware, code: Code, needed: str
) -> None:
    with refused(code, f"training.precision={requested}", needed):
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
    ("changes", "code", "values"),
    [
        ({"global_batch_size": 10, "gradient_accumulation_steps": 4}, "setting-conflict", [10, 4, 8, 12]),
        ({"global_batch_size": 3, "gradient_accumulation_steps": 4}, "setting-conflict", [3, 4]),
        ({"per_device_train_batch_size": 8, "global_batch_size": 12}, "setting-conflict", [8, 12]),
        ({"precision": "fp1"}, "setting-value", ["training.precision=fp1", "'fp16'"]),
        ({"optim": "muonn"}, "setting-value", ["muonn", "'muon'"]),
        ({"optim": "my_module.Mine"}, "setting-value", ["my_module.Mine", "--plugin my_module"]),
        ({"optim": "os.system"}, "setting-value", ["os.system", "torch.optim.Optimizer"]),
        ({"lr_scheduler_type": "cosin"}, "setting-value", ["cosin", "'cosine'"]),
        ({"eval_protocol": "block"}, "setting-value", ["block", "blocks"]),
        ({"eval_protocol": "sliding-0"}, "setting-value", ["sliding-0"]),
        ({"eval_protocol": "sliding-²"}, "setting-value", ["sliding-²"]),
        ({"metric_for_best_model": "eval_los"}, "setting-value", ["eval_los", "'eval_loss'"]),
        ({"metric_for_best_model": "f1"}, "setting-value", ["f1", "bits_per_char"]),
        (
            {"load_best_model_at_end": True, "eval_strategy": "steps", "save_strategy": "no"},
            "setting-conflict",
            ["load_best_model_at_end=true", "save_strategy"],
        ),
        ({"early_stopping_patience": 3}, "setting-conflict", ["early_stopping_patience=3", "eval_strategy"]),
        ({"lr_scheduler_type": "greedy"}, "setting-conflict", ["lr_scheduler_type=greedy", "eval_strategy"]),
        ({"per_device_train_batch_size": 0}, "setting-value", ["per_device_train_batch_size=0", 1]),
        ({"ema_decay": 1.0}, "setting-value", ["ema_decay=1.0", "below 1"]),
        ({"learning_rate": 0}, "setting-value", ["learning_rate=0"]),
        ({"logging_steps": 2.5}, "setting-value", ["logging_steps=2.5"]),
        ({"logging_nan_inf_filter": True}, "setting-value", ["logging_nan_inf_filter=true", "NaN"]),
        ({"muon_momentum": "fast"}, "setting-type", ["muon_momentum=fast", "number"]),
        ({"dataloader_num_workers": 4}, "setting-no-effect", ["dataloader_num_workers=4"]),
        ({"fsdp": "full_shard"}, "setting-conflict", ["training.fsdp=full_shard"]),
        ({"fp16": True, "use_cpu": True}, "machine-unable", ["training.precision=fp16", "GPU"]),
        ({"bf16": True, "precision": "fp32"}, "setting-conflict", ["bf16=true", "precision=fp32"]),
        ({"output_dir": f"{__file__}/run"}, "file-unwritable", [f"{__file__}/run"]),
    ],
)
def test_settings_that_cannot_be_trained_with_are_refused(
    tmp_path: Path, changes: dict[str, Any], code: Code, values: list[Any]
) -> None:
    with refused(code, *values):
        CraftTrainingArguments(**{"output_dir": str(tmp_path), **changes})


@pytest.mark.parametrize(
    ("changes", "code", "value"),
    [
        ({"optim": "lomo"}, "package-missing", "lomo"),
        ({"report_to": ["wandbb"]}, "setting-value", "wandbb"),
        ({"lr_scheduler_kwargs": {"min_lr": 1}}, "setting-value", "min_lr"),
    ],
)
def test_what_transformers_says_of_settings_and_packages_is_one_line(
    tmp_path: Path, changes: dict[str, Any], code: Code, value: str
) -> None:
    with refused(code, value) as refusal:
        tiny_run.trainer("char_transformer", tmp_path / "run", **changes).train()
    assert "\n" not in str(refusal.value)
    assert not list((tmp_path / "run").glob("*"))


def test_processes_for_gpus_that_are_not_there_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What `accelerate launch --multi_gpu --num_processes 8` does on a machine without GPUs."""
    monkeypatch.setattr("torch.accelerator.is_available", lambda: False)
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    for name, value in {"WORLD_SIZE": 8, "RANK": 0, "LOCAL_RANK": 0, "MASTER_PORT": 29500}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    with refused("launch-invalid", 8):
        CraftTrainingArguments(output_dir=str(tmp_path))


def test_a_world_that_nobody_joined_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The launcher's world is larger than the one that this process ended up in."""
    args = CraftTrainingArguments(output_dir=str(tmp_path))
    monkeypatch.setenv("WORLD_SIZE", "8")
    with refused("launch-invalid", 8, 1):
        args._check_world()


def test_a_tilde_in_the_run_folder_is_the_home_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert CraftTrainingArguments(output_dir="~/x").output_dir == str(tmp_path / "x")
    with refused("path-invalid", "~no-such-user"):
        CraftTrainingArguments(output_dir="~no-such-user/x")
