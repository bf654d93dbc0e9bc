"""Hand-computed figures: models whose every probability is known."""

from __future__ import annotations

import json
import math
import tracemalloc
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny_run
import torch
from refusals import refused

from craft.evaluation import protocols
from craft.evaluation.figures import block_variance, calibration_error
from craft.evaluation.scores import Evaluation, evaluate_split, table


class Counting:
    """Gives id 0 the odds c : 2 after reading c ids, so a prediction's cost tells how much it was made from.

    Recurrent if asked: the state is the number of ids read so far.
    """

    def __init__(self, recurrent: bool = False, vocab_size: int = 2) -> None:
        self.carries_state, self.training, self.device = recurrent, True, torch.device("cpu")
        self.lookahead = 1
        self.config = SimpleNamespace(vocab_size=vocab_size, max_position_embeddings=None)

    def eval(self) -> None:
        self.training = False

    def train(self, mode: bool) -> None:
        self.training = mode

    def __call__(self, input_ids: torch.Tensor, past_key_values: Any, use_cache: bool) -> Any:
        before = past_key_values or 0
        read = before + 1 + torch.arange(input_ids.shape[1])
        logits = torch.zeros(*input_ids.shape, self.config.vocab_size)
        logits[..., 0] = (read / 2).log()
        return SimpleNamespace(logits=logits, past_key_values=int(read[-1]) if use_cache else None)


def test_sampled_windows_are_read_from_nothing_and_scored_whole() -> None:
    found = evaluate_split(Counting(recurrent=True), ZEROS, protocol="nanogpt-sampled", block_size=4)
    assert found.predictions == 200 * 64 * 4
    assert found.nats_per_unit == pytest.approx(sum(cost(read) for read in (1, 2, 3, 4)) / 4)


def test_a_model_of_another_objective_is_not_scored() -> None:
    model = Counting()
    model.lookahead = 0
    with refused("model-mismatch", "Counting"):
        evaluate_split(model, ZEROS, block_size=4)


def cost(read: int) -> float:
    """Nats that id 0 costs after `read` ids: -ln(c / (c + 2))."""
    return math.log((read + 2) / read)


ZEROS = np.zeros(11, dtype=np.int64)  # 10 predictions


@pytest.mark.parametrize(
    ("protocol", "reads"),
    [
        ("blocks", [1, 2, 3, 4, 1, 2, 3, 4, 1, 2]),
        ("sliding-1", [1, 2, 3, 4, 4, 4, 4, 4, 4, 4]),
        ("sliding-2", [1, 2, 3, 4, 3, 4, 3, 4, 3, 4]),
        ("sliding-3", [1, 2, 3, 4, 2, 3, 4, 2, 3, 4]),
        ("sliding-4", [1, 2, 3, 4, 1, 2, 3, 4, 3, 4]),
        ("stateful", [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]),
    ],
)
@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_what_each_protocol_lets_a_model_see(protocol: str, reads: list[int], batch_size: int) -> None:
    model = Counting(recurrent=True)
    result = evaluate_split(model, ZEROS, protocol=protocol, block_size=4, batch_size=batch_size)
    costs = [cost(read) for read in reads]
    assert result.nats == pytest.approx(sum(costs))
    mean = sum(costs) / 10  # of a text this short each prediction is a stretch
    assert result.variance == pytest.approx(10 / 9 * sum((c - mean) ** 2 for c in costs))
    assert (result.predictions, result.characters, result.bytes) == (10, 10, 10)
    assert result.correct == sum(read >= 2 for read in reads)  # after one id, the other id is the likelier
    assert model.training


def test_parallel_streams_read_what_precedes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocols, "WARM_UP", 3)
    result = evaluate_split(Counting(True), ZEROS, protocol="stateful", block_size=2, streams=2)
    reads = [1, 2, 3, 4, 5, 4, 5, 6, 7, 8]
    assert result.nats == pytest.approx(sum(cost(read) for read in reads))


def test_bits_per_byte_count_the_bytes_of_wide_characters() -> None:
    """Five ids of a, é, 世 with 1, 2 and 3 bytes and a uniform model over 4 ids: 2 bits each."""
    model = Counting(vocab_size=4)
    model.__class__ = type("Uniform", (Counting,), {"__call__": uniform})
    ids = np.array([1, 2, 3, 3, 1])
    result = evaluate_split(
        model, ids, block_size=2, tokenizer=counting("character", [0, 1, 1, 1], [0, 1, 2, 3])
    )
    assert (result.predictions, result.characters, result.bytes) == (4, 4, 2 + 3 + 3 + 1)
    assert result.bits_per_char == pytest.approx(2)
    assert result.bits_per_byte == pytest.approx(8 / 9)
    assert result.perplexity == pytest.approx(4)
    assert result.standard_error == pytest.approx(0, abs=1e-6)


def counting(unit: str, id_units: list[int], id_bytes: list[int]) -> Any:
    """A tokenizer, as far as scores ask it."""
    return SimpleNamespace(unit=unit, id_units=np.array(id_units), id_bytes=np.array(id_bytes))


def test_bits_per_character_add_up_over_its_bytes() -> None:
    """世 as three bytes, of which the first stands for the character: bits per character add up its bytes."""
    model = Counting(vocab_size=4)
    model.__class__ = type("Uniform", (Counting,), {"__call__": uniform})
    ids = np.array([0, 1, 2, 3, 0])  # a 世 a, and the first a isn't predicted
    result = evaluate_split(
        model, ids, block_size=8, tokenizer=counting("character", [1, 1, 0, 0], [1, 1, 1, 1])
    )
    assert (result.predictions, result.characters, result.bytes) == (4, 2, 4)
    assert result.bits_per_char == pytest.approx(4)
    assert result.bits_per_byte == pytest.approx(2)
    assert result.perplexity == pytest.approx(4)


@pytest.mark.parametrize(
    ("unit", "count", "bits", "nats", "heading"),
    [
        ("byte", "bytes", "bits_per_byte", "nats_per_byte", ["nats/byte", "bits/byte"]),
        ("pixel", "pixels", "bits_per_dim", "nats_per_dim", ["nats/dim", "bits/dim"]),
        ("note", "notes", "bits_per_note", "nats_per_note", ["nats/note", "bits/note"]),
    ],
)
def test_figures_are_named_by_the_unit(
    unit: str, count: str, bits: str, nats: str, heading: list[str]
) -> None:
    model = Counting(vocab_size=4)
    model.__class__ = type("Uniform", (Counting,), {"__call__": uniform})
    tokenizer = counting(unit, [1, 1, 1, 1], [1, 1, 1, 1])
    result = evaluate_split(model, np.array([0, 1, 2, 3, 0]), block_size=8, tokenizer=tokenizer)
    written = result.to_dict()
    assert (written[count], written[bits]) == (4, pytest.approx(2))
    assert {name for name in written if "_per_" in name} == {bits, nats}
    assert getattr(result, bits) == written[bits]
    assert "char" not in json.dumps(written)
    first, head, _ = table([result]).splitlines()
    assert f"4 predicted {count}" in first
    assert head.split()[1:4] == [heading[0], "±", *heading[1:]]
    assert "char" not in table([result])


def uniform(self: Counting, input_ids: torch.Tensor, past_key_values: Any, use_cache: bool) -> Any:
    return SimpleNamespace(logits=torch.zeros(*input_ids.shape, 4), past_key_values=None)


def test_the_standard_error_equals_one_computed_by_hand() -> None:
    """Stretches of 4, 4 and 2 predictions, at 1 nat each as a whole, and one that another process scored."""
    variance = block_variance(torch.tensor([5.0, 2.0, 3.0, 0.0]), torch.tensor([4.0, 4.0, 2.0, 0.0]))
    assert variance == pytest.approx(3 / 2 * (1**2 + 2**2 + 1**2))
    result = Evaluation(
        protocol="blocks", split="test", nats=10.0, variance=variance,
        predictions=10, units=5, bytes=10, correct=1, block_size=8,
    )  # fmt: skip
    assert result.standard_error == pytest.approx(3 / 5)
    assert result.accuracy == 0.1
    assert result.nats_per_char == 2.0
    assert block_variance(torch.tensor([5.0]), torch.tensor([4.0])) == 0.0


MOODS = np.array([[0.931, 0.049, 0.01, 0.01], [0.019, 0.001, 0.49, 0.49]])
"""Chances of the next id in two moods, of which each lasts for about 50 ids; 0 and 1 belong to the first."""


class KnowsMoods(Counting):
    def __call__(self, input_ids: torch.Tensor, past_key_values: Any, use_cache: bool) -> Any:
        return SimpleNamespace(logits=torch.tensor(MOODS).log()[input_ids // 2], past_key_values=None)


def test_the_entropy_of_a_known_source_lies_within_two_standard_errors() -> None:
    """In 19 of 20 texts, where errors for independent predictions would be too small."""
    random, model = np.random.default_rng(1), KnowsMoods(vocab_size=4)
    entropy = float(-(MOODS * np.log(MOODS)).sum() / 2)
    inside = inside_naive = 0
    for _ in range(20):
        mood = np.cumsum(random.random(60_000) < 0.02) % 2
        ids = 2 * mood + (random.random(60_000) < np.where(mood, 0.5, 0.05))
        result = evaluate_split(model, ids, block_size=1000)
        costs = -np.log(MOODS[ids[:-1] // 2, ids[1:]])
        assert result.nats_per_char == pytest.approx(costs.mean(), rel=1e-5)
        away = abs(result.nats_per_char - entropy)
        inside += away < 1.96 * result.standard_error
        inside_naive += away < 1.96 * costs.std() / math.sqrt(len(costs))
    assert inside >= 19
    assert inside_naive < inside - 3


def test_extreme_scores_stay_finite() -> None:
    """Of a model that is lost, and of one that is equally sure everywhere but for rounding."""
    fields: dict[str, Any] = {"protocol": "blocks", "split": "test", "correct": 0, "block_size": 8}
    lost = Evaluation(**fields, nats=1e6, variance=0.0, predictions=1, units=1, bytes=1)
    assert math.isfinite(lost.perplexity)
    even = torch.full((3,), 1 / 3)
    assert 0 <= block_variance(even, torch.ones(3)) < 1e-12


@pytest.mark.parametrize("protocol", ["blocks", "sliding-2", "stateful"])
@pytest.mark.parametrize("batch_size", [1, 2])
def test_processes_share_the_windows(protocol: str, batch_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each its own, in turns; their sums are added up."""
    monkeypatch.setattr(protocols, "WARM_UP", 1)
    settings: dict[str, Any] = {"protocol": protocol, "block_size": 4, "batch_size": batch_size, "streams": 5}
    whole = evaluate_split(Counting(True), ZEROS, **settings)
    added: list[torch.Tensor] = []
    monkeypatch.setattr("torch.distributed.all_reduce", added.append)
    parts = [evaluate_split(Counting(True), ZEROS, **settings, rank=rank, world=2) for rank in range(2)]
    assert sum(part.predictions for part in parts) == whole.predictions
    assert sum(part.nats for part in parts) == pytest.approx(whole.nats)
    assert [int(sums[2]) for sums in added] == [part.predictions for part in parts]
    bins = sum(sums[3:48] for sums in added).reshape(3, 15)
    assert calibration_error(bins.numpy()) == pytest.approx(whole.calibration_error)
    assert whole.calibration_error > 0.1
    assert min(part.predictions for part in parts) > 0


def test_rounded_logits_are_scored_in_full_precision() -> None:
    class Rounded(Counting):
        def __call__(self, **inputs: Any) -> Any:
            out = super().__call__(**inputs)
            return SimpleNamespace(logits=out.logits.bfloat16(), past_key_values=out.past_key_values)

    tokenizer = counting("character", [1, 1], [2**25 + 1, 1])
    result = evaluate_split(Rounded(), ZEROS[:6], block_size=8, tokenizer=tokenizer)
    logits = torch.stack([(torch.arange(1, 6) / 2).log(), torch.zeros(5)], dim=1).bfloat16().float()
    assert result.nats == pytest.approx(-logits.log_softmax(dim=1)[:, 0].sum().item(), rel=1e-6)
    assert result.bytes == 5 * (2**25 + 1)  # which float32 can't hold


def test_a_batch_is_no_larger_than_its_logits_allow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 2 ids in windows of 4, so 8 for each row; one row is read however large it is."""
    shapes: list[tuple[int, ...]] = []

    class Looking(Counting):
        def __call__(self, input_ids: torch.Tensor, **rest: Any) -> Any:
            shapes.append(tuple(input_ids.shape))
            return super().__call__(input_ids, **rest)

    for largest, rows in ((24, 3), (31, 3), (7, 1)):
        monkeypatch.setattr("craft.evaluation.scores.LARGEST_LOGITS", largest)
        shapes.clear()
        result = evaluate_split(Looking(True), np.zeros(25, np.int64), block_size=4)
        assert (max(shapes), result.predictions) == ((rows, 4), 24)
        shapes.clear()  # read in chunks of the window, however long a row is
        evaluate_split(Looking(True), np.zeros(25, np.int64), protocol="stateful", block_size=4, streams=6)
        assert max(shapes)[0] == rows


@pytest.mark.parametrize("protocol", ["blocks", "stateful"])
def test_a_text_on_disk_takes_no_memory_for_its_length(protocol: str, tmp_path: Path) -> None:
    peaks = []
    for size in (500_000, 4_000_000):
        np.zeros(size, np.uint16).tofile(tmp_path / "ids")
        ids = np.memmap(tmp_path / "ids", np.uint16, "r")
        tracemalloc.start()
        result = evaluate_split(Counting(True), ids, protocol=protocol, block_size=4096)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert result.predictions == size - 1
    assert peaks[1] < peaks[0] + 1_000_000  # the second has 7 MB more, 28 MB as the model reads them


def test_an_evaluation_may_be_stopped_and_leaves_the_mode_as_it_was() -> None:
    left = iter([False, True, True, True])
    model = Counting()
    part = evaluate_split(model, ZEROS, block_size=4, batch_size=1, stopped=lambda: next(left))
    assert part.predictions == 4
    assert model.training
    model.eval()
    evaluate_split(model, ZEROS, block_size=4)
    assert not model.training


@pytest.mark.parametrize("kind", ["char_lstm", "char_transformer"])
def test_real_models_score_as_a_plain_loop_does(kind: str) -> None:
    model, ids = tiny_run.model(kind, dropout=0.5), tiny_run.split_ids()[1][:100]
    result = evaluate_split(model, ids, protocol="blocks", block_size=8, batch_size=5)
    model.eval()
    nats = 0.0
    for start in range(0, 99, 8):
        window = torch.from_numpy(ids[start : start + 9].astype(np.int64))
        logits = model(window[None, :-1]).logits[0]
        nats += torch.nn.functional.cross_entropy(logits, window[1:], reduction="sum").item()
    assert result.nats == pytest.approx(nats, rel=1e-5)
    assert result.predictions == 99


def test_the_lstm_reads_statefully() -> None:
    model, ids = tiny_run.model("char_lstm"), tiny_run.split_ids()[1]
    result = evaluate_split(model, ids, protocol="stateful", block_size=7)
    text = torch.from_numpy(ids.astype(np.int64))
    logits = model.eval()(text[None, :-1]).logits[0]
    expected = torch.nn.functional.cross_entropy(logits, text[1:], reduction="sum").item()
    assert result.nats == pytest.approx(expected, rel=1e-5)
    in_blocks = evaluate_split(model, ids, protocol="blocks", block_size=7)
    assert in_blocks.nats != pytest.approx(expected, rel=1e-5)


def test_a_transformer_is_read_on_with_a_rolling_window() -> None:
    """As by its own fast step, one id after the other: however it is cut into chunks, streams and batches."""
    model, ids = tiny_run.model("char_transformer", zero_init=False).eval(), tiny_run.split_ids()[1][:150]
    text, expected = torch.from_numpy(ids.astype(np.int64)), 0.0
    logits, state = model.prefill(text[None, :1])
    for target in text[1:]:
        expected += torch.nn.functional.cross_entropy(logits[0], target).item()
        logits, state = model.step(target[None], state)
    for chunk, streams, batch_size in ((1, 1, 1), (3, 1, 7), (8, 4, 1), (8, None, 7), (5, 9, 64)):
        result = evaluate_split(
            model, ids, protocol="stateful", block_size=chunk, streams=streams, batch_size=batch_size
        )
        assert result.nats == pytest.approx(expected, rel=1e-6)
        assert result.predictions == len(ids) - 1
    with refused("setting-conflict", "'sliding-4'"):
        evaluate_split(
            tiny_run.model("char_transformer", position="learned"), ids, protocol="stateful", block_size=8
        )


@pytest.mark.parametrize("kind", ["char_lstm", "char_transformer"])
@pytest.mark.parametrize("protocol", ["blocks", "sliding-3", "stateful", "nanogpt-sampled"])
def test_figures_depend_neither_on_the_batch_nor_on_the_processes(
    kind: str, protocol: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a text that is long enough for several streams; each process adds its sums to those before it."""
    monkeypatch.setattr(protocols, "SAMPLED_WINDOWS", 50)
    monkeypatch.setattr(protocols, "WARM_UP", 30)
    model, ids = tiny_run.model(kind), tiny_run.split_ids()[0][:400]
    settings: dict[str, Any] = {"protocol": protocol, "block_size": 8, "tokenizer": tiny_run.tokenizer()}
    whole = evaluate_split(model, ids, **settings)
    for world, batch_size in ((1, 1), (1, 7), (2, 64), (3, 7)):
        before: list[torch.Tensor] = []

        def add_up(sums: torch.Tensor, before: list[torch.Tensor] = before) -> None:
            before.append(sums.add_(before[-1] if before else 0).clone())

        monkeypatch.setattr("torch.distributed.all_reduce", add_up)
        shared = {**settings, "batch_size": batch_size, "world": world}
        last = [evaluate_split(model, ids, **shared, rank=rank) for rank in range(world)][-1]
        assert last.predictions == whole.predictions
        assert last.figures() == pytest.approx(whole.figures(), rel=1e-5)


@pytest.mark.precision
def test_bf16_is_near_and_fp32_is_the_default() -> None:
    model, ids = tiny_run.model("char_lstm"), tiny_run.split_ids()[1]
    exact, rounded = (evaluate_split(model, ids, block_size=8, precision=p) for p in ("fp32", "bf16"))
    assert exact.nats == evaluate_split(model, ids, block_size=8).nats
    assert rounded.nats == pytest.approx(exact.nats, rel=1e-2)
    assert rounded.nats != exact.nats


def test_a_text_of_one_id_is_refused() -> None:
    with refused("text-short", "test", 1):
        evaluate_split(Counting(), ZEROS[:1], block_size=4, split="test")


def test_a_table_fits_80_columns_and_json_has_the_figures() -> None:
    result = evaluate_split(Counting(True), ZEROS, protocol="stateful", block_size=4, dataset="zeros")
    lines = table([result, result]).splitlines()
    assert len({len(line) for line in lines[1:]}) == 1
    assert f"{result.characters:,} predicted characters" in lines[0]
    assert max(map(len, lines)) <= 80
    assert lines[0].startswith("zeros, validation split, ")
    assert lines[1].split() == [
        "protocol",
        "nats/char",
        "±",
        "bits/char",
        "bits/byte",
        "perplexity",
        "accuracy",
    ]
    assert lines[2].split()[0] == "stateful"
    written = json.loads(json.dumps(result.to_dict()))
    assert written["bits_per_char"] == result.bits_per_char
    assert written["dataset"] == "zeros"
