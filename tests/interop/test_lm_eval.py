"""lm-evaluation-harness and `craft evaluate` agree on bits per byte, window for window."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("lm_eval")

from craft.evaluation.finished import evaluate_model
from craft.inference import load

from .conftest import CONTEXT, Trained


def harness(trained: Trained, folder: Path, tasks: Path, prefix: int, window: int) -> float:
    """What the harness' command says."""
    arguments = (
        f"pretrained={trained.model},trust_remote_code=True,prefix_token_id={prefix},max_length={window}"
    )
    command = [sys.executable, "-m", "lm_eval", "--model", "hf", "--model_args", arguments]
    command += ["--tasks", "craft_bits_per_byte", "--include_path", str(tasks), "--device", "cpu"]
    command += ["--batch_size", "16", "--output_path", str(folder / "out")]
    environment = {**os.environ, "HF_DATASETS_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (results,) = (folder / "out").rglob("results_*.json")
    figures = json.loads(results.read_text())["results"]["craft_bits_per_byte"]
    return next(value for name, value in figures.items() if name.startswith("bits_per_byte,"))


@pytest.mark.parametrize("window", [CONTEXT, 11, 0], ids=["context", "shorter", "whole"])
def test_both_say_the_same(trained: Trained, tmp_path: Path, checkout: Path, window: int) -> None:
    if not window and trained.kind == "char_transformer":
        pytest.skip("a transformer carries no state")
    # The first character is predicted from the line break before it, which craft has in its text and the
    # harness as its prefix token. The length is no multiple of the windows: both end with a whole one.
    text = trained.other.read_text()[:401]
    (tmp_path / "text.txt").write_text("\n" + text)
    (tmp_path / "text.jsonl").write_text(json.dumps({"page": text}) + "\n")
    _, tokenizer = load(trained.model)
    tasks, prefix = checkout / "docs/guides/lm-eval", tokenizer.convert_tokens_to_ids("\n")
    theirs = harness(trained, tmp_path, tasks, prefix, window or 1 << 16)  # or the whole text at once
    protocol = f"sliding-{window}" if window else "stateful"
    data, size = str(tmp_path / "text.txt"), window or None
    (ours,) = evaluate_model(*load(trained.model), trained.model, data, [protocol], split="all", window=size)
    assert ours.characters == len(text)
    assert theirs == pytest.approx(ours.bits_per_byte, abs=1e-5)
