"""What a text costs without a model, compared with the same computed slowly, and with known sources."""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from craft.cli.baselines import command
from craft.data.arguments import DataArguments
from craft.data.loaders import load_corpus
from craft.evaluation import baselines
from craft.evaluation.baselines import Baseline, baselines_of, between, ngram_nats
from tests.refusals import refused

texts = st.lists(st.integers(0, 3), min_size=2, max_size=60)


def slow_nats(train: list[int], held_out: list[int], order: int) -> float:
    """Witten and Bell's method C as one would write it down."""
    size = len({*train, *held_out})
    followers: dict[tuple[int, ...], Counter[int]] = defaultdict(Counter)
    for n in range(order):
        for end in range(n, len(train)):
            followers[tuple(train[end - n : end])][train[end]] += 1

    def chance(context: tuple[int, ...], wanted: int, n: int) -> float:
        if n < 0:
            return 1 / size
        shorter = chance(context[1:], wanted, n - 1)
        seen = followers.get(context)
        if not seen:
            return shorter
        return (seen[wanted] + len(seen) * shorter) / (seen.total() + len(seen))

    nats = 0.0
    for place in range(1, len(held_out)):
        n = min(order - 1, place)
        nats -= math.log(chance(tuple(held_out[place - n : place]), held_out[place], n))
    return nats


@given(texts, texts, st.integers(1, 6))
@settings(max_examples=60, deadline=None)
def test_ngrams_are_those_of_witten_and_bell(train: list[int], held_out: list[int], order: int) -> None:
    *_, last = ngram_nats(np.array(train), np.array(held_out), order)
    assert last.sum() == pytest.approx(slow_nats(train, held_out, order))


@given(texts, texts)
@settings(max_examples=20, deadline=None)
def test_ngrams_of_a_large_alphabet_are_the_same(train: list[int], held_out: list[int]) -> None:
    many = [*range(300), *(299 * each for each in train)]  # more ids than a byte tells apart
    *_, last = ngram_nats(np.array(many), np.array([299 * each for each in held_out]), 4)
    assert last.sum() == pytest.approx(slow_nats(many, [299 * each for each in held_out], 4))


@given(texts, st.lists(st.integers(0, 3), min_size=1, max_size=6))
@settings(max_examples=40, deadline=None)
def test_the_chances_of_all_next_ids_sum_to_one(train: list[int], begun: list[int]) -> None:
    known = np.array([0, 1, 2, 3, *train])
    fixed = 0.0
    if len(begun) > 1:
        fixed = list(ngram_nats(known, np.array(begun), 3))[-1].sum()
    whole = (list(ngram_nats(known, np.array([*begun, each]), 3))[-1].sum() for each in range(4))
    assert sum(math.exp(fixed - nats) for nats in whole) == pytest.approx(1)


def test_a_bigram_finds_the_entropy_of_a_source_that_remembers_one_id() -> None:
    random, moves = np.random.default_rng(0), np.array([[0.9, 0.1, 0.0], [0.1, 0.1, 0.8], [0.5, 0.25, 0.25]])
    ids = [0]
    for draw in random.random(60_000):
        ids.append(int(np.searchsorted(np.cumsum(moves[ids[-1]]), draw)))
    train, held_out = np.array(ids[:50_000]), np.array(ids[50_000:])
    truth = -sum(math.log(moves[a, b]) for a, b in pairwise(held_out))
    uniform, unigram, bigram, trigram = (nats.sum() for nats in ngram_nats(train, held_out, 3))
    assert uniform == pytest.approx((len(held_out) - 1) * math.log(3))
    assert unigram > 1.2 * truth
    assert bigram == pytest.approx(truth, rel=0.005)
    assert trigram == pytest.approx(truth, rel=0.01)


def test_figures_count_characters_and_bytes_of_the_split(tmp_path: Path) -> None:
    (tmp_path / "my.txt").write_text("größere Bäume wachsen über 日本 hinaus\n" * 40, encoding="utf-8")
    corpus = load_corpus(DataArguments(path=str(tmp_path / "my.txt")))
    assert corpus.validation is not None
    found = {each.name: each for each in baselines_of(corpus, corpus.validation, "validation")}
    assert {"uniform", "1-gram", "8-gram", "gzip -9", "bzip2 -9", "xz -9"} <= set(found)
    uniform = found["uniform"]
    assert uniform.units == len(corpus.validation) - 1
    assert uniform.bytes > uniform.units
    assert uniform.figures()["bits_per_char"] == pytest.approx(math.log2(len(np.unique(corpus.train))))
    assert found["8-gram"].nats < 0.1 * found["1-gram"].nats < 0.1 * uniform.nats  # a line, repeated
    assert found["xz -9"].nats < 0.2 * uniform.nats
    assert (uniform.variance, found["xz -9"].variance) == (pytest.approx(0), None)
    assert found["1-gram"].to_dict()["standard_error"] > 0


@pytest.mark.parametrize(
    ("bits", "said"),
    [
        (2.0, ["better than every n-gram", "a 2-gram (3.00)"]),
        (3.5, ["between a 1-gram (4.00) and a 2-gram (3.00)"]),
        (5.0, ["worse than a 1-gram (4.00)"]),
    ],
)
def test_a_model_is_placed_among_the_baselines(bits: float, said: list[str]) -> None:
    costs = {"uniform": 6.0, "1-gram": 4.0, "2-gram": 3.0, "gzip -9": 3.2, "xz -9": 2.9}
    found = [
        Baseline(name, "test", cost * math.log(2), None, 1, 1, 1, "t", "") for name, cost in costs.items()
    ]
    sentence = between(found, bits)
    for words in (*said, "xz -9 needs 2.90"):
        assert words in sentence


def test_the_command_keeps_what_it_prints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 60)
    done = CliRunner().invoke(command, ["my.txt", "--json"], catch_exceptions=False)
    printed = json.loads(done.stdout)
    (file,) = Path("outputs/evaluation").glob("eval_baselines_my_*.json")
    assert json.loads(file.read_text())["baselines"] == printed
    assert {"baseline", "bits_per_char", "characters", "predictions", "sha256", "split"} <= set(printed[0])
    shown = CliRunner().invoke(command, ["my.txt", "data.tokenizer=byte"], catch_exceptions=False).stdout
    assert max(map(len, shown.splitlines())) <= 80
    with refused("text-missing", "data.test_size"):
        CliRunner().invoke(command, ["my.txt", "--split", "test"], catch_exceptions=False)


def test_packers_whose_packages_are_missing_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("zstandard", "pyppmd"):
        monkeypatch.setitem(__import__("sys").modules, name, None)
    assert set(baselines.packers()) == {"gzip -9", "bzip2 -9", "xz -9"}
