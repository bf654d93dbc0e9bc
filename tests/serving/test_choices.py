"""Several texts as one answer, whole and streamed, also where one of them fails."""

from __future__ import annotations

import asyncio
import json
from functools import partial
from typing import Any

import pytest

from craft.serving.requests import WISH

from .conftest import Client, gate, letters

SEVERAL = {"prompt": ["a", "bb"], "n": 2, "seed": 1}
TEXTS = {0: "ax", 1: "axx", 2: "bbx", 3: "bbxx"}
COUNTS = {"prompt_tokens": 3, "completion_tokens": 10, "total_tokens": 13}
"""Each prompt is counted once, whatever is written of it."""


def test_several_texts_are_the_choices_of_one_answer() -> None:
    door = gate(letters)
    client = Client(json.dumps(SEVERAL).encode())
    status, body = asyncio.run(client.ask(door))
    answer = json.loads(body)
    assert (status, answer["usage"], door.running) == (200, COUNTS, 0)
    assert [(choice["index"], choice["text"]) for choice in answer["choices"]] == list(TEXTS.items())
    assert dict(client.told[0]["headers"])[b"content-length"] == str(len(body)).encode()


@pytest.mark.parametrize("apart", [True, False])
def test_several_texts_are_one_stream(apart: bool) -> None:
    wanted = SEVERAL | {"stream": True, "stream_options": {"include_usage": apart}}
    client = Client(json.dumps(wanted).encode())
    status, body = asyncio.run(client.ask(gate(letters)))
    *events, done, nothing = body.split("\n\n")
    assert (status, done, nothing) == (200, "data: [DONE]", "")
    assert [message["type"] for message in client.told].count("http.response.start") == 1
    assert [message.get("more_body", False) for message in client.told[1:]].count(False) == 1
    read = [json.loads(event.removeprefix("data: ")) for event in events]
    assert len({event["id"] for event in read}) == 1
    texts = dict.fromkeys(TEXTS, "")
    for event in read:
        for choice in event["choices"]:
            texts[choice["index"]] += choice["text"]
    assert texts == TEXTS
    assert [event["usage"] for event in read if "usage" in event] == [COUNTS]
    assert read[-1]["usage"] == COUNTS
    assert (read[-1]["choices"] == []) == apart


def test_one_of_several_texts_that_fails_ends_the_others() -> None:
    ended = []

    async def fail(scope: Any, receive: Any, send: Any) -> None:
        if (WISH.get().seed or 0) == 2:
            raise RuntimeError("no memory")
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(True)

    door = gate(fail)
    with pytest.raises(RuntimeError, match="no memory"):
        asyncio.run(Client(b'{"prompt": "a", "n": 3, "seed": 1}').ask(door))
    assert (ended, door.running) == ([True, True], 0)


async def fail_second(scope: Any, receive: Any, send: Any, late: bool) -> None:
    """The text of the second seed isn't written, which is told before or after the others begin."""
    seed, body = WISH.get().seed or 0, (await receive())["body"]

    async def again() -> Any:
        return {"body": body}

    if seed != 2:
        await asyncio.sleep(0 if late else 0.1)
        await letters(scope, again, send)
        return
    await asyncio.sleep(0.1 if late else 0)
    headers = [(b"content-type", b"application/json"), (b"retry-after", b"7")]
    await send({"type": "http.response.start", "status": 507, "headers": headers})
    await send({"type": "http.response.body", "body": b'{"detail": "no ', "more_body": True})
    await asyncio.sleep(0)
    await send({"type": "http.response.body", "body": b'memory"}'})


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("stream", [False, True])
def test_the_failure_of_one_of_several_texts_is_told(late: bool, stream: bool) -> None:
    client = Client(json.dumps({"prompt": "a", "n": 3, "seed": 1, "stream": stream}).encode())
    door = gate(partial(fail_second, late=late))
    status, body = asyncio.run(client.ask(door))
    assert door.running == 0
    assert [message["type"] for message in client.told].count("http.response.start") == 1
    if not (stream and late):  # nothing was sent before it
        assert (status, body) == (507, '{"detail": "no memory"}')
        assert (b"retry-after", b"7") in client.told[0]["headers"]
        return
    *events, done, _ = body.split("\n\n")
    read = [json.loads(event.removeprefix("data: ")) for event in events]
    (error,) = (event["error"] for event in read if "error" in event)
    assert (error["message"], error["type"]) == ('{"detail": "no memory"}', "server_error")
    texts = {0: "", 2: ""}
    for event in read:
        for choice in event.get("choices", ()):
            texts[choice["index"]] += choice["text"]
    assert (status, texts, done) == (200, {0: "ax", 2: "axxx"}, "data: [DONE]")
