"""The gate before the server, without a server: who is let in, what is counted, how answers end."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from craft.serving.requests import WISH, Wish
from craft.serving.settings import COMPLETIONS

from .conftest import PROMPT, Client, echo, gate, letters, reason


async def nobody(scope: Any, receive: Any, send: Any) -> None:
    pytest.fail(f"{scope['path']} reached the application")


def test_nothing_but_what_is_offered_reaches_the_application() -> None:
    for path in ("/reset", "/v1/responses", "/docs", "/v1/completions/", "/v1/modelsx", "/"):
        assert asyncio.run(Client(path=path).ask(gate(nobody)))[0] == 404
    for path, method in ((COMPLETIONS, "GET"), ("/v1/models", "POST"), ("/v1/models/model", "DELETE")):
        assert asyncio.run(Client(path=path, method=method).ask(gate(nobody)))[0] == 405
    for path in ("/v1/models/other", "/v1/models/models"):
        status, text = asyncio.run(Client(path=path, method="GET").ask(gate(nobody)))
        assert (status, json.loads(text)["error"]["code"]) == (404, "model_not_found")
    one = asyncio.run(Client(path="/v1/models/model", method="GET").ask(gate(nobody)))
    several = asyncio.run(Client(path="/v1/models", method="GET").ask(gate(nobody)))
    assert json.loads(several[1])["data"] == [json.loads(one[1])]
    assert json.loads(one[1])["id"] == "model"
    assert asyncio.run(Client(b"", path="/health", method="GET").ask(gate()))[0] == 200


def test_a_body_must_say_that_it_is_json() -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded", "application/json-seq", ""):
        answer = asyncio.run(Client(PROMPT, content_type=kind).ask(gate(nobody)))
        assert (answer[0], reason(answer)) == (415, "send the header 'Content-Type: application/json'")
    for kind in ("application/json", "Application/JSON ; charset=utf-8"):
        assert asyncio.run(Client(PROMPT, content_type=kind).ask(gate()))[0] == 200


def test_the_application_sees_the_checked_request_and_its_wishes() -> None:
    seen: list[Any] = []

    async def look(scope: Any, receive: Any, send: Any) -> None:
        seen.extend((scope, (await receive())["body"], WISH.get()))
        await echo(scope, nothing, send)

    sent = b'{"prompt": ["a"], "user": "me", "seed": 7, "stop": "b"}'
    client = Client(sent, content_length=str(len(sent)), transfer_encoding="chunked", x_other="kept")
    assert asyncio.run(client.ask(gate(look)))[0] == 200
    scope, body, wish = seen
    assert json.loads(body) == {"model": "model", "stream": False, "prompt": "a", "max_tokens": 500}
    assert wish == Wish(("b",), 7, False)
    headers = [(name, value) for name, value in scope["headers"] if name not in (b"host", b"content-type")]
    assert headers == [(b"x-other", b"kept"), (b"content-length", str(len(body)).encode())]


async def nothing() -> dict[str, Any]:
    return {"body": b""}


@pytest.mark.parametrize("apart", [False, True])
def test_counts_come_in_a_piece_of_their_own_where_they_were_asked_for(apart: bool) -> None:
    pieces = [{"choices": [{"text": "b"}]}, {"choices": [{"text": ""}], "usage": {"total_tokens": 3}}]

    async def write(scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for piece in pieces:
            event = json.dumps(piece, separators=(",", ":")).encode()
            await send({"type": "http.response.body", "body": b"data: " + event + b"\n\n", "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    body = b'{"prompt": "a", "stream": true, "stream_options": {"include_usage": %s}}'
    _, text = asyncio.run(Client(body % json.dumps(apart).encode()).ask(gate(write)))
    *events, done, _ = text.split("\n\n")
    assert done == "data: [DONE]"
    last = [{"choices": [{"text": ""}]}, {"choices": [], "usage": {"total_tokens": 3}}]
    assert [json.loads(event[6:]) for event in events] == [pieces[0], *(last if apart else pieces[1:])]


def test_what_is_written_for_a_client_that_hangs_up_is_given_up() -> None:
    given_up: list[bool] = []

    async def endless(scope: Any, receive: Any, send: Any) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            given_up.append(True)

    class Leaving(Client):
        async def receive(self) -> dict[str, Any]:
            return await super().receive() if self.pieces else {"type": "http.disconnect"}

    async def main() -> None:
        client, door = Leaving(PROMPT), gate(endless)
        await door(client.scope, client.receive, client.send)
        assert door.running == 0

    asyncio.run(main())
    assert given_up == [True]


def test_a_request_counts_before_it_is_read_and_has_its_time() -> None:
    async def main() -> None:
        door = gate(max_requests=1, patience=0.2)
        slow = asyncio.ensure_future(Client(b'{"prompt": "a",').ask(door))
        await asyncio.sleep(0)
        late = Client(PROMPT)
        assert (await late.ask(door))[0] == 429
        assert (b"retry-after", b"1") in late.told[0]["headers"]
        answer = await slow
        assert (answer[0], reason(answer)) == (408, "the request wasn't there within 0.2 seconds")
        assert (await Client(PROMPT).ask(door))[0] == 200
        assert door.running == 0

    asyncio.run(main())


def test_a_request_too_long_is_refused_before_and_while_it_is_read() -> None:
    door = gate()
    assert gate(max_prompt=10**6).largest_body == 16 * 10**6  # of escaped characters
    assert asyncio.run(Client(content_length=str(2**20 + 1)).ask(door))[0] == 413
    assert asyncio.run(Client(*[b" " * 2**16 + b","] * 17).ask(door))[0] == 413
    assert door.running == 0


def test_a_compressed_request_is_refused() -> None:
    answer = asyncio.run(Client(b"\x1f\x8b", content_encoding="gzip").ask(gate()))
    assert (answer[0], reason(answer)) == (415, "send the body as it is, without a Content-Encoding")


@pytest.mark.parametrize("began", [None, b"text/event-stream; charset=utf-8"])
def test_a_request_that_is_cut_off_is_told_so(began: bytes | None) -> None:
    async def never(scope: Any, receive: Any, send: Any) -> None:
        if began:
            start = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", began)]}
            await send(start)
            await send({"type": "http.response.body", "body": b"data: {}\n\n", "more_body": True})
        await asyncio.Event().wait()

    async def main() -> tuple[int, str]:
        client = Client(PROMPT[:-1] + b', "stream": true}' if began else PROMPT)
        task = asyncio.ensure_future(client.ask(gate(never)))
        await asyncio.sleep(0.1)
        task.cancel()
        return await task

    status, body = asyncio.run(main())
    said = "the server was told to stop before the text was complete"
    if began:
        _, error, done, _ = body.split("\n\n")
        assert (status, json.loads(error[6:])["error"]["message"], done) == (200, said, "data: [DONE]")
    else:
        assert (status, reason((status, body))) == (503, said)


@pytest.mark.parametrize(
    "field", ["prompt", "tools", "stop", "model", "seed", "n", "top_k", "generation_config", "other"]
)
def test_no_depth_of_a_value_is_too_much(field: str) -> None:
    async def main() -> set[int]:
        door = gate()
        bodies = (f'{{"{field}": {"[" * depth}{"]" * depth}}}' for depth in range(700, 1001))
        return {(await Client(body.encode()).ask(door))[0] for body in bodies}

    assert asyncio.run(main()) <= {400, 404}


def test_what_was_sent_is_quoted_in_short() -> None:
    for body in (b'{"%s": 1}' % (b"k" * 100_000), b'{"prompt": "a", "max_tokens": %s}' % (b"9" * 4000)):
        status, text = asyncio.run(Client(body).ask(gate()))
        assert status == 400
        assert len(text) < 500


def test_a_wrong_method_is_told_the_right_one() -> None:
    client = Client(path="/v1/models", method="OPTIONS", origin="http://localhost:3000")
    assert asyncio.run(client.ask(gate()))[0] == 405
    headers = dict(client.told[0]["headers"])
    assert headers[b"allow"] == b"GET"
    assert not [name for name in headers if name.startswith(b"access-control")]


def test_the_gate_asks_for_the_name() -> None:
    status, _ = asyncio.run(Client(PROMPT, host="evil.example").ask(gate()))
    assert status == 403


def test_each_text_takes_a_place() -> None:
    async def main() -> None:
        done = asyncio.Event()

        async def wait(scope: Any, receive: Any, send: Any) -> None:
            await done.wait()
            await letters(scope, receive, send)

        door = gate(wait, max_requests=4)
        first = asyncio.ensure_future(Client(b'{"prompt": "a", "n": 3}').ask(door))
        await asyncio.sleep(0.1)
        assert door.running == 3
        answer = await Client(b'{"prompt": "a", "n": 2}').ask(door)
        taken = "3 of 4 places are taken and this request needs 2; try again"
        assert (answer[0], reason(answer), door.running) == (429, taken, 3)
        gone = asyncio.ensure_future(Client(PROMPT).ask(door))
        await asyncio.sleep(0.1)
        assert door.running == 4
        answer = await Client(PROMPT).ask(door)
        taken = "4 of 4 places are taken and this request needs 1; try again"
        assert (answer[0], reason(answer), door.running) == (429, taken, 4)
        gone.cancel()
        assert (await gone)[0] == 503
        done.set()
        assert (await first)[0] == 200
        assert door.running == 0
        answer = await Client(b'{"prompt": ["a", "b", "c"], "n": 2}').ask(door)
        assert (answer[0], reason(answer)) == (400, "6 texts in one request; this server writes 4 at once")

    asyncio.run(main())


def test_a_client_may_wait_for_the_model_to_be_loaded() -> None:
    names = {"model": 200, "latest": 200, "dummy": 200, None: 200, "gpt2": 404}
    for name, status in names.items():
        client = Client(json.dumps({"model": name}).encode(), path="/load_model")
        answer = asyncio.run(client.ask(gate()))
        assert answer[0] == status
        if status == 200:
            event, rest = answer[1].split("\n\n")
            assert (json.loads(event[6:])["status"], rest) == ("ready", "")
