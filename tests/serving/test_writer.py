"""The writer behind the server, over models that write what they are told."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from craft.data.tokenization import CharTokenizer
from craft.serving.requests import WISH, Wish
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
            one, LETTERS, {"input_ids": torch.zeros(1, 1)}, SimpleNamespace(max_new_tokens=9), "id"
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
