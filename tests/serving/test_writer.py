"""The writer behind the server, over models that write what they are told."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import GenerationConfig

from craft.data.tokenization import CharTokenizer
from craft.serving.requests import WISH, Wish
from craft.serving.settings import READ_BY_HANDLERS, SETTINGS
from craft.serving.writer import Text, Writer

LETTERS = CharTokenizer.train(["ab"])
BYTES = CharTokenizer.train([], unknown="bytes")
words = st.text("ab", min_size=1, max_size=4)


def model(ids: list[int]) -> Any:
    return SimpleNamespace(
        device=torch.device("cpu"), stream=lambda inputs, config: (torch.tensor([i]) for i in ids)
    )


def write(tokenizer: CharTokenizer, ids: list[int], *stop: str) -> tuple[Text, list[str], Any]:
    """The text of a model that writes `ids`, its pieces, and the limit that it may be cut off by."""
    pieces: list[Any] = []
    config = SimpleNamespace(max_new_tokens=len(ids))
    text = Text(model(ids), tokenizer, {"input_ids": None}, config, Wish(stop), pieces.append)
    while text.step():
        pass
    assert pieces.pop() is None
    return text, pieces, config.max_new_tokens


@given(st.text("ab", max_size=30), st.lists(words, max_size=3))
def test_a_text_ends_before_the_first_stop_text_that_is_complete(whole: str, stops: list[str]) -> None:
    ids = LETTERS.encode_ids(whole).tolist()
    text, pieces, limit = write(LETTERS, ids, *stops)
    written = next(
        (whole[:n] for n in range(len(whole) + 1) if any(whole[:n].endswith(stop) for stop in stops)), None
    )
    if written is None:
        assert (text.text, text.total_tokens, limit) == (whole, len(whole), len(whole))
    else:
        assert text.text == written[: min(written.find(stop) for stop in stops if stop in written)]
        assert (text.total_tokens, limit) == (len(written), None)  # it wasn't cut off, wherever it ends
    assert "".join(pieces) == text.text


def test_a_text_that_ends_by_itself_was_not_cut_off() -> None:
    end = LETTERS.eos_token_id
    text, _, limit = write(LETTERS, [*LETTERS.encode_ids("ab").tolist(), end])
    assert (text.total_tokens, limit) == (3, None)
    assert text.text.startswith("ab")


def test_half_a_character_at_the_end_is_left_out_as_craft_generate_does() -> None:
    ids = BYTES.encode_ids("aé漢").tolist()
    for n, written in enumerate(("", "a", "a", "aé", "aé", "aé", "aé漢")):
        text, pieces, _ = write(BYTES, ids[:n])
        assert (text.text, "".join(pieces)) == (written, written)


def test_a_text_that_fails_or_is_cancelled_leaves_the_others_alone() -> None:
    def broken(inputs: Any, config: Any) -> Any:
        yield torch.tensor([LETTERS.encode_ids("a")[0]])
        raise RuntimeError("no memory")

    async def main() -> None:
        writer = Writer()
        begin: Any = lambda one: writer.generate_non_streaming(  # noqa: E731
            one, LETTERS, {"input_ids": torch.zeros(1, 1)}, GenerationConfig(max_new_tokens=9), "id"
        )
        WISH.set(Wish())
        endless = model(LETTERS.encode_ids("ab" * 100_000).tolist())
        cancelled = asyncio.ensure_future(begin(endless))
        failing = asyncio.ensure_future(begin(SimpleNamespace(device=endless.device, stream=broken)))
        with pytest.raises(RuntimeError, match="no memory"):
            await failing
        cancelled.cancel()
        assert (await begin(model(LETTERS.encode_ids("abba").tolist())))[0] == "abba"
        writer.stop()

    asyncio.run(main())


@given(st.text("ab", min_size=1, max_size=20), st.lists(words, max_size=2))
def test_no_more_is_held_back_than_may_begin_a_stop_text(whole: str, stops: list[str]) -> None:
    pieces: list[Any] = []
    held = max(map(len, stops), default=1) - 1
    ids = LETTERS.encode_ids(whole).tolist()
    text = Text(
        model(ids), LETTERS, {"input_ids": None}, SimpleNamespace(), Wish(tuple(stops)), pieces.append
    )
    for written in range(1, len(ids) + 1):
        if not text.step():
            break
        assert len("".join(pieces)) >= written - held


def test_the_random_numbers_of_a_text_are_its_own() -> None:
    """By its seed, whoever else writes meanwhile; without one they differ."""
    dice = SimpleNamespace(
        device=torch.device("cpu"), stream=lambda *_: (torch.randint(4, 6, (1,)) for _ in range(40))
    )

    def begin(seed: int | None) -> Text:
        return Text(dice, LETTERS, {"input_ids": None}, SimpleNamespace(), Wish(seed=seed), lambda _: None)

    alone = [begin(seed) for seed in (1, 2, None, None)]
    for text in alone:
        while text.step():
            pass
    first, second, third, fourth = (text.text for text in alone)
    assert len({first, second, third, fourth}) == 4
    one, other = begin(1), begin(2)
    while one.step() and other.step():
        pass
    assert (one.text, other.text) == (first, second)


def test_texts_take_turns_and_a_cancelled_one_costs_nothing_more() -> None:
    written: list[int] = []

    def endless(inputs: Any, config: Any) -> Any:
        for _ in range(200_000):
            written.append(1)
            yield torch.tensor([LETTERS.encode_ids("a")[0]])

    async def main() -> None:
        writer = Writer()
        begin: Any = lambda one: writer.generate_non_streaming(  # noqa: E731
            one, LETTERS, {"input_ids": torch.zeros(1, 1)}, GenerationConfig(max_new_tokens=9), "id"
        )
        short = model(LETTERS.encode_ids("abba").tolist())
        long = asyncio.ensure_future(begin(SimpleNamespace(device=short.device, stream=endless)))
        await asyncio.sleep(0)
        assert (await begin(short))[0] == "abba"
        assert 0 < len(written) < 100_000
        long.cancel()
        await begin(model(LETTERS.encode_ids("abba").tolist()))
        stopped = len(written)
        await begin(model(LETTERS.encode_ids("abba").tolist()))
        assert len(written) == stopped
        writer.stop()

    asyncio.run(main())


def test_a_text_is_written_by_the_settings_of_its_wish() -> None:
    """`update` lets fall what a GenerationConfig doesn't know: it knows them all."""
    told: list[Any] = []
    wished = {"top_k": 3, "min_p": 0.5, "typical_p": 0.5, "repetition_penalty": 2.0, "do_sample": False}
    assert set(wished) == {*SETTINGS} - {*READ_BY_HANDLERS}

    def note(inputs: Any, config: Any) -> Any:
        told.append({name: getattr(config, name) for name in wished})
        return iter(())

    async def main() -> None:
        writer, inputs = Writer(), {"input_ids": torch.zeros(1, 1)}
        WISH.set(Wish(settings=wished))
        silent = SimpleNamespace(device=torch.device("cpu"), stream=note)
        await writer.generate_non_streaming(silent, LETTERS, inputs, GenerationConfig(), "id")
        writer.stop()

    asyncio.run(main())
    assert told == [wished]
