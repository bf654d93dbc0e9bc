"""FSDP2 by Accelerate's configuration, over gloo: parts in training, whole models everywhere else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from launched import free_port
from refusals import refused
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

TESTS = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(TESTS / "training"))

import tiny_run  # noqa: E402

from craft.training.logging import read_metrics  # noqa: E402

SHARDED = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "ACCELERATE_USE_CPU": "true",
}
SETTINGS: dict[str, Any] = {"sample_chars": 10, "load_best_model_at_end": True, "max_grad_norm": 0.5}
PROGRAM = f"""
import sys
import tiny_run
import torch
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback

class Look(TrainerCallback):
    def on_step_end(self, args, state, control, model, **kwargs):
        parts = [p for p in model.parameters() if isinstance(p, DTensor)]
        assert len(parts) == len(list(model.parameters()))
        assert sum(p.to_local().numel() for p in parts) < 0.6 * sum(p.numel() for p in parts)

torch.set_num_threads(1)
trainer = tiny_run.trainer("char_transformer", "sharded", **{SETTINGS!r})
trainer.add_callback(Look())
trainer.train()
assert not any(isinstance(p, DTensor) for p in trainer.model.parameters())
if trainer.is_world_process_zero():
    trainer.save_model("exported")
"""


def test_two_processes_with_half_a_model_each(tmp_path: Path) -> None:
    """They see the losses of one, and leave an ordinary model."""
    port = free_port()
    path = os.pathsep.join([str(TESTS / "training"), str(TESTS.parent)])
    env = {**os.environ, **SHARDED, "PYTHONPATH": path, "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    env.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    both = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM],
            cwd=tmp_path,
            env={**env, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    trainer = tiny_run.trainer("char_transformer", tmp_path / "alone", **SETTINGS)
    trainer.train()
    said = [process.communicate(timeout=200)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], "\n".join(said)

    events = [read_metrics(tmp_path / name) for name in ("alone", "sharded")]
    for name in ("loss", "eval_loss", "grad_norm"):
        alone, sharded = ([event[name] for event in one if name in event] for one in events)
        assert sharded == pytest.approx(alone, abs=1e-5)
    weights = [
        load_file(tmp_path / name / "checkpoint-20/model.safetensors") for name in ("alone", "sharded")
    ]
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, atol=1e-5, rtol=1e-4)
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "exported")
    for name, tensor in trainer.model.named_parameters():
        torch.testing.assert_close(exported.get_parameter(name), tensor, atol=1e-5, rtol=1e-4)
    assert not list((tmp_path / "sharded/checkpoint-20").glob("*optimizer*"))


@pytest.mark.parametrize(
    ("kind", "changes", "setting"),
    [
        ("char_transformer", {"ema_decay": 0.9}, "training.ema_decay"),
        ("char_transformer", {"optim": "muon"}, "training.optim=muon"),
        ("char_transformer", {"torch_compile": True}, "training.torch_compile"),
        ("char_transformer", {"auto_find_batch_size": True}, "training.auto_find_batch_size"),
        ("char_transformer", {"skip_nonfinite_batches": 1}, "training.skip_nonfinite_batches"),
        ("char_lstm", {}, "models.model_type=char_lstm"),
    ],
)
def test_what_needs_whole_weights_is_refused(
    kind: str, changes: dict[str, Any], setting: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in SHARDED.items():
        monkeypatch.setenv(name, value)
    with refused("setting-conflict", setting, "--use_fsdp"):
        tiny_run.trainer(kind, tmp_path, **changes)


def test_the_first_version_of_fsdp_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**SHARDED, "FSDP_VERSION": "1"}.items():
        monkeypatch.setenv(name, value)
    with refused("launch-invalid", "--fsdp_version 2"):
        tiny_run.trainer("char_transformer", tmp_path)


def test_a_sharded_run_is_not_resumed(tmp_path: Path) -> None:
    tiny_run.trainer("char_transformer", tmp_path, max_steps=4, eval_strategy="no").train()
    again = tiny_run.trainer("char_transformer", tmp_path, eval_strategy="no")
    again.is_fsdp_enabled = True
    with refused("setting-conflict", "--use_fsdp", "models.init_from="):
        again.train(resume_from_checkpoint=True)
