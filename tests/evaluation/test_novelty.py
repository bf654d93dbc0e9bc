"""What a text has in common with the training text, beside the same found by trying everything."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from refusals import refused

from craft.building import build_model
from craft.cli.novelty import command
from craft.data.tokenization import CharTokenizer
from craft.evaluation import novelty as room
from craft.evaluation.novelty import BREAK, in_words, longest_matches, novelty, table

pytest.importorskip("pydivsufsort", reason="the novelty extra is not installed")

SHORT = st.text("abé世", max_size=30)


@given(SHORT, st.lists(SHORT, min_size=1, max_size=3))
@settings(max_examples=150, deadline=None)
def test_the_longest_match_is_that_of_trying_everything(train: str, texts: list[str]) -> None:
    read, text = train.encode(), b"".join(each.encode() + BREAK for each in texts)
    lengths, places = longest_matches(read, text)
    for place, (length, at) in enumerate(zip(lengths.tolist(), places.tolist())):
        assert text[place : place + length] == read[at : at + length]
        longer = text[place : place + length + 1]
        assert BREAK in longer or longer not in read


@given(SHORT, SHORT.filter(bool), st.integers(1, 4))
@settings(max_examples=100, deadline=None)
def test_characters_inside_passages_are_those_of_trying_everything(train: str, text: str, least: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(room, "LEAST", (least,))
        (found,) = novelty(train.encode(), [[text]])
    pieces = {
        (begin, end)
        for begin in range(len(text))
        for end in range(begin + 1, len(text) + 1)
        if text[begin:end] in train
    }
    inside = {at for begin, end in pieces if end - begin >= least for at in range(begin, end)}
    assert found[f"inside_{least}"] == pytest.approx(len(inside) / len(text))
    assert found["longest_overlap"] == max((end - begin for begin, end in pieces), default=0)
    if pieces:
        assert train.startswith(found["passage"], found["place"])


def random_text(characters: int, seed: int) -> str:
    return "".join(np.random.default_rng(seed).choice(list("abcdefghijklmnopqrstuvwxyz é世"), characters))


def test_a_copied_passage_is_found_with_its_place() -> None:
    train = random_text(20_000, seed=0)
    copied = train[7_000:7_120]
    texts = [random_text(500, seed=1), random_text(300, seed=2) + copied + random_text(80, seed=3)]
    ((found),) = novelty(train.encode(), [texts])
    assert found["longest_overlap"] == pytest.approx(120, abs=2)  # a neighbour may be the same by chance
    assert found["place"] == pytest.approx(7_000, abs=2)
    assert copied in found["passage"]
    for least in (20, 50, 100):
        assert found[f"inside_{least}"] == pytest.approx(120 / 1000, abs=0.003)
    assert found["characters"] == 1000


def test_a_text_of_random_characters_has_nothing_in_common() -> None:
    (found,) = novelty(random_text(20_000, seed=0).encode(), [[random_text(5000, seed=1)]])
    assert found["longest_overlap"] < 10
    assert found["inside_20"] == found["inside_20_error"] == found["repetition"] == 0


def test_a_passage_ends_where_a_text_does() -> None:
    train = "the quick brown fox jumps over the lazy dog"
    (found,) = novelty(train.encode(), [[train[:20], train[20:]]])
    assert found["longest_overlap"] == 23
    assert found["inside_20"] == 1


def test_words_are_known_or_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "CHUNK", 3)  # words and characters lie across the pieces that are read
    (found,) = novelty("Größe, don't 世界\nend".encode(), [["Größe! größe don 世界 en end"]])
    assert found["known_words"] == pytest.approx(4 / 6)


def test_n_grams_are_counted_in_texts_of_one_length() -> None:
    one, two = novelty(b"xyz", [["abcdabcd"], ["ab", "cdab", "cd" * 500]])
    assert one["distinct_of"] == two["distinct_of"] == {"characters": 8, "words": 1}
    assert (one["distinct_2"], two["distinct_2"]) == (4 / 7, 3 / 5)


def test_a_group_needs_text_and_the_training_text_must_be_utf8() -> None:
    with refused("text-short"):
        novelty(b"abc", [["abc"], ["", ""]])
    with refused("text-encoding"):
        novelty(b"abc\xff", [["abc"]])


def figures(inside: float, error: float = 0.001) -> dict[str, Any]:
    return {"inside_50": inside, "inside_50_error": error, "longest_overlap": 64}


@pytest.mark.parametrize(
    ("samples", "validation", "said"),
    [
        (figures(0.03), figures(0.002), "copies more than"),
        (figures(0.0035), figures(0.002), "copies no more than"),  # within two standard errors
        (figures(0.0), figures(0.002), "copies no more than"),
        (figures(0.03), None, "no validation text"),
    ],
)
def test_the_words_say_what_the_figures_mean(samples: Any, validation: Any, said: str) -> None:
    assert said in in_words(samples, validation)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with random weights, and the record of its run on 2,000 characters."""
    torch.manual_seed(0)
    home = tmp_path_factory.mktemp("model")
    text = random_text(2000, seed=0)
    (home / "own.txt").write_text(text, encoding="utf-8")
    tokenizer, path = CharTokenizer.train([text]), home / "model_step_1"
    config = {"model_type": "char_lstm", "hidden_size": 8, "num_hidden_layers": 1}
    build_model(config, tokenizer, block_size=16, documents=False).save_pretrained(path)
    tokenizer.save_pretrained(path)
    data = {"block_size": 16, "path": str(home / "own.txt"), "cache_dir": str(home / "cache")}
    (path / "craft_run.yaml").write_text(yaml.safe_dump({"data": data}))
    return path


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*words: object) -> Any:
    return CliRunner().invoke(command, [str(word) for word in words], catch_exceptions=False)


def test_the_command_samples_and_keeps_what_it_prints(folder: Path, here: Path) -> None:
    words = (folder, "--chars", 3000, "--seed", 5, "--top-k", 7, "--json")
    done = run(*words)
    printed = json.loads(done.stdout)
    (file,) = (here / "outputs" / "evaluation").glob("novelty_char_lstm_own_*.json")
    assert json.loads(file.read_text(encoding="utf-8")) == printed
    assert printed["samples"]["characters"] == 4000  # in texts of 2,000 side by side
    assert printed["sampling"] == {"temperature": 0.8, "top_k": 7, "top_p": 1.0, "seed": 5}
    assert (printed["train"]["characters"], printed["validation"]["characters"]) == (1800, 200)
    assert printed["samples"]["inside_20"] == printed["validation"]["inside_20"] == 0
    assert json.loads(run(*words).stdout)["samples"] == printed["samples"]


def test_the_command_judges_a_text_that_is_there(folder: Path, here: Path) -> None:
    text = (folder.parent / "own.txt").read_text(encoding="utf-8")
    (here / "story.txt").write_text(text[100:400] + "?" * 300, encoding="utf-8")
    done = run(folder, "--samples", "story.txt", "--json")
    found = json.loads(done.stdout)["samples"]
    assert (found["longest_overlap"], found["place"], found["inside_100"]) == (300, 100, 0.5)
    shown = run(folder, "--samples", "story.txt", "--chars", 300).stdout
    assert max(map(len, shown.splitlines())) <= 80
    assert "100.00%" in shown
    assert "from character 100 of it" in shown


def test_what_cannot_be_judged_is_refused(folder: Path, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with refused("file-missing", "missing.txt"):
        run(folder, "--samples", "missing.txt")
    (here / "old.txt").write_bytes(b"caf\xe9")
    with refused("text-encoding", "old.txt"):
        run(folder, "--samples", "old.txt")
    with refused("setting-value", "temperature"):
        run(folder, "--temperature", 0)
    monkeypatch.setattr("craft.utils.common.find_spec", lambda name: None)
    with refused("package-missing", "pip install 'craft-lm[novelty]'"):
        run(folder)


def test_a_table_names_what_is_common() -> None:
    own, other = novelty(b"the quick brown fox", [["a quick brown dog"], ["zzz"]])
    shown = table({"samples": own, "validation": other})
    assert "' quick brown '" in shown
    assert "from character 3 of it" in shown
    assert "validation, " not in shown
