"""`craft train my.txt --minutes`: ended, killed, continued and repeated, in real processes.

No test here asserts how long something takes.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

SMALL = [
    *("my.txt", "models=char_lstm", "models.hidden_size=16", "models.dropout=0.2", "data.block_size=16"),
    *("training.global_batch_size=4", "training.report_to=none", "training.sample_chars=20"),
    *("training.precision=fp32", "training.save_steps=0.1"),
]
UNSAID = [
    "my.txt",
    "training.report_to=none",
    "training.sample_chars=20",
    "training.precision=fp32",
    "training.save_steps=0.1",
]
"""Nothing of the model."""
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m"]
CRAFT = [sys.executable, "-m", "craft"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "my.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 60)
    return tmp_path


def start(folder: Path, *command: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command,
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CRAFT_CACHE": str(folder / "cache")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(folder: Path, *command: str) -> tuple[str, str]:
    """The last line of what a command wrote for programs, and what it said to people."""
    process = start(folder, *command)
    out, said = process.communicate(timeout=400)
    assert process.returncode == 0, said
    return out.splitlines()[-1], said


def planned(folder: Path, *command: str) -> tuple[subprocess.Popen[str], Path]:
    """A run that has its plan and its first checkpoint. A busy machine may need more time for its start."""
    for minutes in (0.3, 0.6, 2, 6):
        process = start(folder, *command, "--minutes", str(minutes), "training.output_dir=run")
        while process.poll() is None:
            if any((folder / "run").glob("checkpoint-*/manifest.json")):
                return process, folder / "run"
            time.sleep(0.05)
        _, said = process.communicate()
        assert "training.max_minutes" in said, said
    raise AssertionError("six minutes are too little for this machine")


def settings(saved: Path) -> dict[str, object]:
    training: dict[str, object] = yaml.safe_load((saved / "craft_run.yaml").read_text())["training"]
    return training


def test_a_killed_run_ends_as_its_plan_repeated_from_the_start(folder: Path) -> None:
    """Also that of a model that was chosen: neither is decided anew."""
    process, run_dir = planned(folder, *CRAFT, "train", *UNSAID)
    process.send_signal(signal.SIGKILL)
    _, said = process.communicate()
    assert re.search(r"size +\w+ \d+x\d+, dropout", said)
    assert "automatic" not in yaml.safe_load((run_dir / "craft_run.yaml").read_text())
    plan = settings(run_dir)["time_plan"]
    assert isinstance(plan, list)
    resumed, said = run(folder, *CRAFT, "train", *UNSAID, "--resume", "auto", "training.output_dir=run")
    assert f"{plan[-1][1]:,} steps" in said
    assert "took " in said
    assert "size   " not in said
    (model,) = folder.glob(f"run_step_{plan[-1][1]}")
    assert settings(model)["time_plan"] == settings(run_dir)["time_plan"] == plan
    config = str(run_dir / "craft_run.yaml")
    again, _ = run(folder, *CRAFT, "train", "--config", config, "training.output_dir=again")
    assert again == resumed
    assert again.startswith("FINAL ")


def test_two_processes_have_one_plan(folder: Path) -> None:
    process, run_dir = planned(folder, *TORCHRUN, "craft.train", *SMALL, "training.use_cpu=true")
    out, said = process.communicate(timeout=400)
    assert process.returncode == 0, said
    plan = settings(run_dir)["time_plan"]
    config = ("train", "--config", str(run_dir / "craft_run.yaml"), "training.output_dir=again")
    again, _ = run(folder, *TORCHRUN, "craft", *config)
    assert again == out.splitlines()[-1]
    assert settings(folder / "again")["time_plan"] == plan


@pytest.mark.slow
def test_two_processes_choose_one_size(folder: Path) -> None:
    process, run_dir = planned(folder, *TORCHRUN, "craft.train", *UNSAID, "training.use_cpu=true")
    _, said = process.communicate(timeout=400)
    assert process.returncode == 0, said
    assert said.count("size      ") == 1
    assert "automatic" not in yaml.safe_load((run_dir / "craft_run.yaml").read_text())


def test_too_little_time_is_one_line(folder: Path) -> None:
    process = start(folder, *CRAFT, "train", *SMALL, "--minutes", "0.01", "training.output_dir=run")
    out, said = process.communicate(timeout=200)
    assert process.returncode == 2
    (line,) = [line for line in said.splitlines() if line.startswith("error: ")]
    assert "training.max_minutes=0.01" in line
    assert json.loads(out.splitlines()[-1])["error"]
    assert not (folder / "run" / "craft_run.yaml").exists()
