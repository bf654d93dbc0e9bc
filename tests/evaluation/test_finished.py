"""What is scored when a user asks for a split of a text, and every refusal."""

from __future__ import annotations

import hashlib
import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from click.testing import CliRunner
from refusals import refused
from transformers import AutoModelForCausalLM

from craft.building import build_model
from craft.cli.evaluate import command
from craft.data.arguments import DataArguments
from craft.data.loaders import load_corpus
from craft.data.tokenization import CharTokenizer
from craft.evaluation import audit, finished
from craft.evaluation.finished import evaluate_model
from craft.evaluation.scores import Evaluation
from craft.inference import load

LSTM = {"model_type": "char_lstm", "hidden_size": 8, "num_hidden_layers": 1}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model with random weights that a run of 200 characters made."""
    torch.manual_seed(0)
    (tmp_path / "own.txt").write_text("abcd" * 50)
    tokenizer = CharTokenizer.train(["abcd"])
    path = tmp_path / "model_step_1"
    model = build_model(LSTM, tokenizer, block_size=16, documents=False)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    trained_on(path, path=str(tmp_path / "own.txt"))
    return path


def test_an_unknown_protocol_is_refused_without_torch() -> None:
    code = (
        "import sys\nfrom craft.cli.main import main\n"
        "try: main(['evaluate', '--protocol', 'nonsense'])\n"
        "finally: print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "False\n"), done.stderr
    assert done.stderr.startswith("error: ")
    assert "'nonsense'" in done.stderr


def trained_on(folder: Path, **data: Any) -> None:
    fields = {"block_size": 16, "cache_dir": str(folder.parent / "cache"), **data}
    (folder / "craft_run.yaml").write_text(yaml.safe_dump({"data": fields, "training": {"seed": 7}}))


def evaluate(folder: Path, *args: Any, **settings: Any) -> list[Evaluation]:
    return evaluate_model(*load(folder), folder, *args, **settings)


def predictions(*args: Any, **settings: Any) -> int:
    (figures,) = evaluate(*args, **settings)
    return figures.predictions


@pytest.mark.parametrize(("split", "size"), [("train", 180), ("validation", 20), ("all", 200)])
def test_each_split_of_the_runs_own_text_is_scored_whole(folder: Path, split: str, size: int) -> None:
    assert predictions(folder, split=split) == size - 1


def test_a_text_shorter_than_a_window_is_scored(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("abcda")
    assert predictions(folder, str(tmp_path / "short.txt"), split="all") == 4
    with refused("text-short", "validation", 1):
        evaluate(folder, str(tmp_path / "short.txt"))


def test_a_window_of_one_gives_each_id_no_context(folder: Path) -> None:
    """In windows of one character nothing but that character is known: as for each character alone."""
    (figures,) = evaluate(folder, split="all", protocols=["blocks"], window=1)
    assert figures.block_size == 1
    model = AutoModelForCausalLM.from_pretrained(folder)
    ids = CharTokenizer.from_pretrained(folder)("abcd" * 50, return_tensors="pt").input_ids[0]
    expected = torch.nn.functional.cross_entropy(model(ids[:-1, None]).logits[:, 0], ids[1:])
    assert figures.nats_per_char == pytest.approx(expected.item(), rel=1e-5)


def test_a_given_text_is_prepared_where_the_runs_text_was(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "other.txt").write_text("dcba" * 50)
    evaluate(folder, str(tmp_path / "other.txt"))
    assert list((tmp_path / "cache").glob("ids-*"))


def test_counts_of_the_runs_text_are_not_cut_from_another(folder: Path, tmp_path: Path) -> None:
    trained_on(folder, path=str(tmp_path / "own.txt"), validation_size=150, test_size=10)
    (tmp_path / "other.txt").write_text("dcba" * 25)
    assert predictions(folder, str(tmp_path / "other.txt")) == 9
    assert predictions(folder) == 149


def test_all_means_a_datasets_own_splits_too(folder: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows"
    rows.mkdir()
    for name, text in (("train", "abcd"), ("validation", "dcb")):
        (rows / f"{name}.jsonl").write_text(json.dumps({"text": text}) + "\n")
    trained_on(folder, source="hub", path=str(rows), validation_split="validation")
    assert predictions(folder, split="validation") == 3
    assert predictions(folder, split="all") == len("abcd") + len("dcb") + 2 - 1


def test_a_stream_has_only_the_splits_it_held_out(folder: Path, tmp_path: Path) -> None:
    fields = {"path": str(tmp_path / "own.txt"), "streaming": True, "unknown": "bytes", "test_size": 0}
    trained_on(folder, **fields, validation_size=40)
    assert predictions(folder, split="validation") == 39
    for split in ("train", "all"):
        with refused("setting-conflict", f"--split {split}", "--split validation"):
            evaluate(folder, split=split)
    with refused("text-missing", "test"):
        evaluate(folder, split="test")


def test_a_split_that_is_compared_and_scored_is_loaded_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stream is read from its beginning each time."""
    loaded: list[DataArguments] = []
    monkeypatch.setattr(
        finished, "load_corpus", lambda *given: (loaded.append(given[0]), load_corpus(*given))[1]
    )
    assert predictions(folder, window=8) == 19
    assert [arguments.block_size for arguments in loaded] == [8]


def trained_with(folder: Path, **texts: str) -> None:
    """Records the texts of splits as a run does."""
    splits = {name: {"sha256": hashlib.sha256(text.encode()).hexdigest()} for name, text in texts.items()}
    (folder / "data.json").write_text(json.dumps({"splits": splits}))


def test_a_text_that_changed_since_training_is_refused_unless_allowed(folder: Path, tmp_path: Path) -> None:
    text = "abcd" * 50
    trained_with(folder, train=text[:180], validation=text[180:])
    assert predictions(folder) == 19
    assert predictions(folder, split="all") == 199
    (tmp_path / "own.txt").write_text("dbca" + text[4:])  # in its training split
    assert predictions(folder) == 19
    for split in ("train", "all"):
        hashes = [
            hashlib.sha256(part.encode()).hexdigest()[:12] for part in ("dbca" + text[4:180], text[:180])
        ]
        with refused("text-changed", *hashes, "--allow-changes"):
            evaluate(folder, split=split)
        assert predictions(folder, split=split, allow_changes=True) == (179 if split == "train" else 199)
    assert predictions(folder, str(tmp_path / "own.txt"), split="all") == 199  # named by the user


def test_figures_carry_the_hash_of_their_text_and_the_seed_of_their_model(
    folder: Path, tmp_path: Path
) -> None:
    for figures in evaluate(folder, protocols=["blocks", "dynamic-0.001"]):
        assert figures.to_dict()["sha256"] == hashlib.sha256(b"abcd" * 5).hexdigest()
        assert figures.seed == 7
    (folder / "craft_run.yaml").unlink()
    (figures,) = evaluate(folder, str(tmp_path / "own.txt"), split="all")
    assert figures.seed is None


def test_a_model_without_a_record_of_its_text_is_scored_with_a_warning(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    logging.getLogger("craft").propagate = True  # a test before this may have set up craft's own handlers
    evaluate(folder)
    assert {record.levelname for record in caplog.records} == {"WARNING"}
    assert len({record.getMessage() for record in caplog.records}) == 1
    caplog.clear()
    evaluate(folder, str(tmp_path / "own.txt"))
    assert not caplog.records


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("data: {block_sise: 3}", "block_sise"),
        ("data: [1", ""),
        ("models: {}", "'data'"),
        ("data: 3", ""),
        ("", ""),
    ],
)
def test_a_damaged_run_is_named(folder: Path, text: str, said: str) -> None:
    (folder / "craft_run.yaml").write_text(text)
    with refused("file-unreadable", folder / "craft_run.yaml", said) as caught:
        evaluate(folder)
    assert "\n" not in str(caught.value)


def test_a_model_without_its_run_needs_a_text(folder: Path, tmp_path: Path) -> None:
    (folder / "craft_run.yaml").unlink()
    with refused("text-missing", "craft_run.yaml", "craft evaluate MODEL my.txt"):
        evaluate(folder)
    assert predictions(folder, str(tmp_path / "own.txt"), split="all") == 199
    with refused("setting-value", "'validtion'", "validation"):
        evaluate(folder, split="validtion")


def test_the_command_prints_figures_and_keeps_them(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [str(folder), "--protocol", "stateful", "--protocol", "blocks", "--json"]
    done = CliRunner().invoke(command, words)
    assert done.exit_code == 0, done.stderr
    (file,) = (tmp_path / "outputs" / "evaluation").iterdir()
    assert str(file.relative_to(tmp_path)) in done.stderr
    assert file.name.startswith("eval_char_lstm_own_")
    record = json.loads(file.read_text())
    assert record["model"] == str(folder)
    printed = json.loads(done.stdout)
    assert record["evaluations"] == printed
    expected = [each.to_dict() for each in evaluate(folder, protocols=["stateful", "blocks"])]
    assert printed == expected


def test_an_audit_is_printed_and_kept_and_its_failure_is_the_exit_status(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for right in (True, False):
        done = CliRunner().invoke(command, [str(folder), "--audit"])
        assert done.exit_code == (0 if right else 1), done.output
        file = max((tmp_path / "outputs" / "evaluation").iterdir())
        record = json.loads(file.read_text())["audit"]
        assert record["passed"] is right
        assert len(record["checks"]) == done.stdout.count("audit  ") == 8
        assert done.stdout.count("FAILED") == (0 if right else 1)
        monkeypatch.setattr(audit, "SUM_TOLERANCE", -1.0)
