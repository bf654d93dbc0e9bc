"""The thread that writes: what is shown of a text, and texts that fail, end early or are ended."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from craft.data.tokenization import CharTokenizer
from craft.serving.scheduler import Scheduler, Text

from .conftest import TOKENIZER, make_model

BYTES = CharTokenizer.train([], unknown="bytes")
words = st.text("ab", min_size=1, max_size=4)
LONG = 100_000


def show(tokenizer: CharTokenizer, ids: list[int], *stop: str) -> Text:
    """The text of a model that writes `ids` and is then cut off."""
    text = Text([5], len(ids) or 1, {}, stop=list(stop))
    for token in ids:
        text.read(tokenizer.processor.token_bytes[token], token == tokenizer.eos_token_id)
        if text.over:
            break
    return text


@given(st.text("ab", max_size=30), st.lists(words, max_size=3))
def test_a_text_ends_before_its_first_stop_text(whole: str, stops: list[str]) -> None:
    text = show(TOKENIZER, TOKENIZER.encode_ids(whole).tolist(), *stops)
    written = next(
        (whole[:n] for n in range(len(whole) + 1) if any(whole[:n].endswith(stop) for stop in stops)), None
    )
    if written is None:
        assert ("".join(text.pieces), text.written) == (whole, len(whole))
        assert text.finish == ("length" if whole else None)
    else:
        assert "".join(text.pieces) == written[: min(written.find(s) for s in stops if s in written)]
        assert (text.written, text.finish) == (len(written), "stop")  # not cut off, wherever it ends


@given(st.text("ab", min_size=1, max_size=20), st.lists(words, max_size=2))
def test_only_the_possible_beginning_of_a_stop_text_is_held_back(whole: str, stops: list[str]) -> None:
    text = Text([5], LONG, {}, stop=stops)
    for written, token in enumerate(TOKENIZER.encode_ids(whole).tolist(), 1):
        text.read(TOKENIZER.processor.token_bytes[token], False)
        if text.over:
            break
        assert len("".join(text.pieces)) >= written - max(map(len, stops), default=1) + 1


def test_a_text_that_ends_itself_finishes_by_stop() -> None:
    text = show(TOKENIZER, [*TOKENIZER.encode_ids("ab").tolist(), TOKENIZER.eos_token_id])
    assert (text.written, text.finish) == (3, "stop")


def test_half_a_character_at_the_end_is_left_out() -> None:
    ids = BYTES.encode_ids("aé漢").tolist()
    for n, written in enumerate(("", "a", "a", "aé", "aé", "aé", "aé漢")):
        assert "".join(show(BYTES, ids[:n]).pieces) == written


def with_scheduler(model: Any, work: Callable[[Scheduler], Awaitable[None]]) -> None:
    async def main() -> None:
        scheduler = Scheduler(model, TOKENIZER)
        scheduler.start()
        try:
            await asyncio.wait_for(work(scheduler), 60)
            assert scheduler.running == 0
        finally:
            scheduler.close()

    asyncio.run(main())


async def finished(text: Text) -> Text:
    while not (await text.updates.get())[2]:
        pass
    return text


def prompt(text: str = "ab") -> list[int]:
    return TOKENIZER.encode_ids(text).tolist()


def test_a_text_that_fails_or_is_cancelled_leaves_the_others_alone(model: Any) -> None:
    async def work(scheduler: Scheduler) -> None:
        endless, unreadable = Text(prompt(), LONG, {}), Text([10_000], 5, {})
        nonsense = Text(prompt(), 5, {"num_beams": 4})
        for text in (endless, unreadable, nonsense):
            scheduler.submit(text)
        for text in (unreadable, nonsense):
            await finished(text)
            assert text.error is not None
            assert text.error[0] == 500
        short = Text(prompt("9"), 4, {})
        scheduler.submit(short)
        assert ((await finished(short)).finish, short.written) == ("length", 4)
        assert not endless.over
        endless.cancelled = True
        await finished(endless)
        written = endless.written
        scheduler.submit(again := Text(prompt(), 20, {}))
        await finished(again)
        assert endless.written == written < LONG

    with_scheduler(model, work)


def test_an_error_of_the_model_ends_its_texts_but_not_the_scheduler(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model()
    step = model.step

    def broken(ids: Any, state: Any) -> Any:
        monkeypatch.setattr(model, "step", step)
        raise RuntimeError("no memory")

    async def work(scheduler: Scheduler) -> None:
        monkeypatch.setattr(model, "step", broken)
        scheduler.submit(text := Text(prompt(), 9, {}))
        assert (await finished(text)).error == (500, "no memory")
        scheduler.submit(text := Text(prompt(), 9, {}))
        assert (await finished(text)).finish == "length"

    with_scheduler(model, work)


def test_ending_the_scheduler_ends_running_and_late_texts(model: Any) -> None:
    async def work(scheduler: Scheduler) -> None:
        scheduler.submit(text := Text(prompt(), LONG, {}))
        await asyncio.sleep(0.1)
        scheduler.end()
        scheduler.submit(late := Text(prompt(), 5, {}))
        for ended in (text, late):
            await finished(ended)
            assert ended.error is not None
            assert ended.error[0] == 503

    with_scheduler(model, work)


def test_sixteen_texts_together_equal_each_alone(model: Any) -> None:
    def text(n: int) -> Text:
        settings = [{}, {"do_sample": False}, {"temperature": 0.5}, {"repetition_penalty": 1.5}][n % 4]
        return Text(prompt("9abc"[n % 4 :]), 20 + 5 * n, settings, seed=n)

    async def work(scheduler: Scheduler) -> None:
        crowd = [text(n) for n in range(16)]
        for each in crowd:
            scheduler.submit(each)
            await asyncio.sleep(0.002)
        together = [(await finished(each)).row for each in crowd]
        for n in range(16):
            scheduler.submit(alone := text(n))
            row = (await finished(alone)).row
            assert row is not None
            assert row.ids == together[n].ids

    with_scheduler(model, work)
