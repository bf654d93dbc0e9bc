"""What of a model's folder is taken, and what its files are believed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from record_folder import folder_of
from refusals import refused

from craft.sharing.bundle import bundle, sanitized_file
from craft.sharing.card import render
from craft.sharing.record import Record

TAKEN = (
    *("model.safetensors", "model-00001-of-00002.safetensors", "config.json", "generation_config.json"),
    *("model.safetensors.index.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
    *("chat_template.jinja", "own.py", "README.md", "craft_run.yaml", "data.json", "evaluation.json"),
    *("metrics.jsonl", "sample.txt", "loss_curve.png"),
)
LEFT = (
    *(".env", ".netrc.json", ".hidden.py", "training_args.bin", "training_args.json", "optimizer.pt"),
    *("pytorch_model.bin", "model.safetensors.bak", "my.safetensors", "notes.txt", "trainer_state.json"),
    *("scheduler.json", "rng_state.pth", "other.yaml", "metrics.jsonl.old", "own.pyc", "photo.png", "a b.py"),
)


def test_only_what_belongs_to_a_model_is_taken(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "m")
    weights = (folder / "model.safetensors").read_bytes()
    content = {".safetensors": weights, ".json": b"{}", ".png": b"\x89PNG\r\n\x1a\n"}
    for name in (*TAKEN, *LEFT):
        if not (folder / name).exists():
            (folder / name).write_bytes(content.get(Path(name).suffix, b""))
    (folder / "logs").mkdir()
    (folder / "logs" / "config.json").write_text("{}")
    assert set(bundle(folder, "ada/x")) == set(TAKEN)


def test_damaged_or_missing_weights_are_not_uploaded(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "m")
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    assert Record.of(folder).parameters == 1
    for cut in (whole[:-1], whole + b"\0", whole[:20], whole[:7], whole[:1] + b"\xff" + whole[2:]):
        weights.write_bytes(cut)
        with refused("model-invalid", weights):
            sanitized_file(weights)
        assert Record.of(folder).parameters == 0
        with refused("model-invalid", weights):
            bundle(folder, "ada/x")
    weights.unlink()
    with refused("model-missing", folder, "model.safetensors"):
        bundle(folder, "ada/x")


@pytest.mark.parametrize(
    ("name", "facts", "field"),
    [
        ("data.json", {"characters": True}, "characters"),
        ("data.json", {"characters": -1}, "characters"),
        ("data.json", {"vocabulary": 2**63}, "vocabulary"),
        ("data.json", {"name": ""}, "name"),
        ("trainer_state.json", {"global_step": 1.5}, "step"),
        ("config.json", {"model_type": "<b>"}, "model_type"),
        ("config.json", {"model_type": "a\n---"}, "model_type"),
        ("config.json", {"model_type": "a" * 97}, "model_type"),
        ("craft_run.yaml", {"data": ["path"]}, "data"),
    ],
)
def test_values_of_another_kind_count_as_missing(tmp_path: Path, name: str, facts: Any, field: str) -> None:
    folder = folder_of(tmp_path / "m")
    (folder / "evaluation.json").unlink()  # which names a step as well
    (folder / name).write_text(json.dumps(facts))
    record = Record.of(folder)
    known = record.corpus | {"data": record.run["data"], "step": record.step, "model_type": record.model_type}
    assert not known[field]


def test_each_score_and_split_is_checked_by_itself(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "m")
    splits = {"a": {"characters": 3, "sha256": ["beef"]}, "b": {"sha256": "ab" * 32}, "c": [], "d": {}}
    (folder / "data.json").write_text(json.dumps({"splits": splits}))
    scores = [
        {"protocol": "blocks", "bits_per_char": True, "accuracy": 0.5},
        {"protocol": "blocks", "bits_per_char": True},
        {"bits_per_char": 1.0},
    ]
    (folder / "evaluation.json").write_text(json.dumps({"step": 7, "evaluations": scores}))
    record = Record.of(folder)
    assert record.splits == {
        "a": {"characters": 3, "sha256": None},
        "b": {"characters": None, "sha256": "ab" * 32},
        "d": {"characters": None, "sha256": None},
    }
    assert [(e["bits_per_char"], e["accuracy"]) for e in record.evaluations] == [(None, 0.5)]
    assert record.step == 7
    (folder / "trainer_state.json").write_text('{"global_step": 9}')
    assert Record.of(folder).step == 9
    assert record.sample == "words"


def test_a_stateful_score_names_no_window(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "m")
    scores = [
        {"protocol": kind, "split": "test", "block_size": 16, "bits_per_char": 2.0}
        for kind in ("stateful", "blocks")
    ]
    (folder / "evaluation.json").write_text(json.dumps({"evaluations": scores}))
    card = render(folder)
    assert "(stateful)" in card
    assert "(blocks, windows of 16)" in card


def test_no_secret_is_in_the_name_of_a_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TOKEN", "planted-in-a-name")
    assert "planted" not in render(folder_of(tmp_path / "m"), name="x-planted-in-a-name").partition("# x-")[2]
