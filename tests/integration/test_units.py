"""What is counted is said by the tokenizer alone, from the first logged step to the card of the model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from matplotlib.figure import Figure
from matplotlib.text import Text
from refusals import refused
from transformers import AutoTokenizer

from craft.building import build_model
from craft.cli.evaluate import command
from craft.config.compose import compose
from craft.data.processors import ImageProcessor
from craft.data.tokenization import ByteTokenizer, CharTokenizer, load_tokenizer
from craft.train import train

pytest.importorskip("matplotlib", reason="the plots extra is not installed")

LSTM = {"model_type": "char_lstm", "hidden_size": 8, "num_hidden_layers": 1}
SETTINGS = [
    *("data.source=files", "data.path=my.txt"),
    *("data.block_size=8", "training.max_steps=4", "training.eval_steps=2", "training.logging_steps=1"),
    *("training.global_batch_size=2", "training.report_to=none", "training.precision=fp32"),
    *("training.use_cpu=true", "training.sample_chars=0", "training.eval_chars=20"),
]


def trained(folder: Path, monkeypatch: pytest.MonkeyPatch, *settings: str) -> dict[str, Any]:
    """What a run and `craft evaluate` leave: logged steps, scores, the card, and the words of the picture."""
    monkeypatch.chdir(folder)
    pictures: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, path: (pictures.append(self), save(self, path)))
    result = train(compose([*SETTINGS, *settings, f"data.cache_dir={folder / 'cache'}"]))
    assert result is not None
    scores = CliRunner().invoke(command, [str(result.model_dir), "--json"])
    shown = CliRunner().invoke(command, [str(result.model_dir)])
    assert scores.exit_code == shown.exit_code == 0, scores.stderr + shown.stderr
    lines = (result.model_dir / "metrics.jsonl").read_text().splitlines()
    return {
        "model": result.model_dir,
        "steps": [json.loads(line) for line in lines],
        "scores": json.loads(scores.stdout)[0],
        "table": shown.stdout,
        "card": (result.model_dir / "README.md").read_text(encoding="utf-8"),
        "data": json.loads((result.model_dir / "data.json").read_text()),
        "picture": " ".join(text.get_text() for text in pictures[-1].findobj(Text)),
    }


def test_a_byte_level_run_counts_bytes_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "Größe 世界\n" * 60
    (tmp_path / "my.txt").write_text(text, encoding="utf-8")
    found = trained(tmp_path, monkeypatch, "models=char_lstm", "models.hidden_size=8", "data.tokenizer=byte")
    logged, scored = {}, {}
    for step in found["steps"]:
        (scored if "eval_loss" in step else logged).update(step)
    assert {"bytes", "bits_per_byte", "bytes_per_second"} <= set(logged)
    assert {"bytes", "eval_bits_per_byte"} <= set(scored)
    assert logged["bytes"] == 4 * 2 * 8
    assert found["data"]["bytes"] == len(text.encode())
    assert sum(split["bytes"] for split in found["data"]["splits"].values()) == len(text.encode())
    assert found["scores"]["bytes"] == found["scores"]["predictions"]
    assert {name for name in found["scores"] if "_per_" in name} == {"nats_per_byte", "bits_per_byte"}
    assert {"nats/byte", "bits/byte"} <= set(found["table"].split())
    assert "training bytes" in found["picture"]
    assert "bits per byte" in found["picture"]
    assert "first 20 bytes" in found["picture"]
    assert "Byte-level" in found["card"]
    assert "byte-level" in found["card"]
    assert "bits_per_byte" in found["card"]
    keys = [*logged, *scored, *found["scores"], *found["data"], *found["data"]["splits"]["train"]]
    assert [key for key in keys if "char" in key] == []
    for shown in ("table", "picture"):
        assert "char" not in found[shown].replace("char_lstm", "")
    assert "character" not in found["card"]
    assert AutoTokenizer.from_pretrained(found["model"]).init_kwargs["unit"] == "byte"


def test_a_unit_of_the_users_own_flows_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tune in letters, a note each; the run starts from a model that was saved with its tokenizer."""
    tune = "cdefgabc" * 40
    (tmp_path / "my.txt").write_text(tune)
    tokenizer = CharTokenizer.train([tune], unit="note")
    base = tmp_path / "base"
    build_model(LSTM, tokenizer, block_size=8, documents=False).save_pretrained(base)
    tokenizer.save_pretrained(base)
    found = trained(tmp_path, monkeypatch, f"models.init_from={base}")
    logged = {key for step in found["steps"] for key in step}
    assert {"notes", "bits_per_note", "notes_per_second", "eval_bits_per_note"} <= logged
    assert found["data"]["notes"] == len(tune)
    assert {name for name in found["scores"] if "_per_" in name} == {"nats_per_note", "bits_per_note"}
    assert "predicted notes" in found["table"]
    for words in ("note-level", "bits per note", "bits/note", "predicted notes", "likeliest note"):
        assert words in found["card"]
    assert "bits per note" in found["picture"]
    keys = [*logged, *found["scores"], *found["data"], *found["data"]["splits"]["train"]]
    assert [key for key in keys if "char" in key or "byte" in key] == []
    assert "character" not in found["card"]
    assert load_tokenizer(found["model"]).unit == "note"


def test_units_are_kept_when_an_alphabet_grows_or_is_trained_anew() -> None:
    tokenizer = CharTokenizer.train(["abc"], unit="note")
    assert tokenizer.extended("d").unit == "note"
    assert tokenizer.train_new_from_iterator(["xyz"], vocab_size=50).unit == "note"
    assert CharTokenizer.train(["abc"]).unit == "character"


def test_bytes_of_an_image_are_pixels(tmp_path: Path) -> None:
    ByteTokenizer.create(unit=ImageProcessor.unit).save_pretrained(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.unit == "pixel"
    assert tokenizer.id_units[4:].tolist() == [1] * 256


def test_a_tokenizer_saved_without_a_unit_counts_characters(tmp_path: Path) -> None:
    ByteTokenizer.create().save_pretrained(tmp_path)
    file = tmp_path / "tokenizer_config.json"
    config = json.loads(file.read_text())
    assert config.pop("unit") == "byte"
    file.write_text(json.dumps(config))
    assert load_tokenizer(tmp_path).unit == "character"


@pytest.mark.parametrize("unit", ["Musical note", "", "é", "a" * 33, "../x"])
def test_a_unit_that_is_no_word_is_refused(unit: str) -> None:
    with refused("setting-value", repr(unit)):
        CharTokenizer.train(["abc"], unit=unit)


def test_the_best_model_is_not_chosen_by_another_units_figure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my.txt").write_text("abc" * 200)
    metric = "training.metric_for_best_model=bits_per_char"
    with refused("setting-conflict", "bits_per_char", "bytes"):
        trained(tmp_path, monkeypatch, "models=char_lstm", "data.tokenizer=byte", metric)
