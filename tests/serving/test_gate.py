"""The gate before the server, without a server: who is let in, what is counted, how answers end."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from craft.data.tokenization import CharTokenizer
from craft.serving.gate import Gate
from craft.serving.limits import Limits
from craft.serving.names import Names
from craft.serving.refusals import Refusal
from craft.serving.requests import WISH, Served, Wish, check
from craft.serving.settings import CHAT, COMPLETIONS
from craft.utils.common import UserError

JSON = {"content-type": "application/json", "host": "localhost:8000"}
PROMPT = b'{"prompt": "a", "max_tokens": 2}'


class Client:
    """One request: sends `pieces` and then stays silent; keeps what it is told."""

    def __init__(self, *pieces: bytes, path: str = COMPLETIONS, method: str = "POST", **headers: str) -> None:
        self.pieces = list(pieces)
        sent = JSON | {name.replace("_", "-"): value for name, value in headers.items()}
        pairs = [(name.encode(), value.encode()) for name, value in sent.items()]
        self.scope = {"type": "http", "path": path, "method": method, "headers": pairs}
        self.told: list[Any] = []

    async def receive(self) -> dict[str, Any]:
        if not self.pieces:
            await asyncio.Event().wait()
        body = self.pieces.pop(0)
        return {"type": "http.request", "body": body, "more_body": bool(self.pieces) or body[-1:] == b","}

    async def send(self, message: Any) -> None:
        self.told.append(message)

    async def ask(self, gate: Gate) -> tuple[int, str]:
        await gate(self.scope, self.receive, self.send)
        return self.told[0]["status"], b"".join(part.get("body", b"") for part in self.told[1:]).decode()


async def echo(scope: Any, receive: Any, send: Any) -> None:
    body = (await receive())["body"]
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})


def served(**limits: Any) -> Served:
    tokenizer = CharTokenizer.train(["abc\n"])
    tokenizer.chat_template = "{{ messages[0].content }}"
    return Served("model", tokenizer, 32, Limits(**limits), ("latest",), {"eos_token_id": 2})


def gate(app: Callable[..., Awaitable[None]] = echo, **limits: Any) -> Gate:
    return Gate(app, served(**limits), Names(["127.0.0.1"]))


def reason(answer: tuple[int, str]) -> str:
    return str(json.loads(answer[1])["error"]["message"])


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


OURS = ["localhost", "LocalHost:8000", "127.0.0.1:1", "127.0.0.2", "[::1]", "[::1]:80", "named.example:8000"]
THEIRS = [
    "evil.example",
    "127.0.0.1.evil.example",
    "localhost.evil.example:80",
    "169.254.1.1",
    "[::1",
    "",
    "x:y",
]


@pytest.mark.parametrize("host", OURS + THEIRS)
def test_only_names_of_this_machine_are_answered(host: str) -> None:
    names = Names(["named.example", "127.0.0.1"])
    for headers in ({b"host": host.encode()}, {b"host": b"localhost", b"origin": f"http://{host}".encode()}):
        if host in OURS:
            names.check(headers)
        else:
            with pytest.raises(Refusal, match="--allow-host") as caught:
                names.check(headers)
            assert caught.value.status == 403


def everyone(monkeypatch: pytest.MonkeyPatch) -> Names:
    monkeypatch.setattr("socket.gethostname", lambda: "Box")
    monkeypatch.setattr("socket.getfqdn", lambda: "box.home.example")
    return Names(["0.0.0.0", "proxy.example"], everywhere=True)


@pytest.mark.parametrize(
    "host", [*OURS[:-1], "box", "box.home.example:1", "proxy.example", "10.0.0.7", "[fe80::1]:8000"]
)
def test_a_server_for_everyone_answers_to_its_names_and_any_address(
    monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    names = everyone(monkeypatch)
    names.check({b"host": host.encode()})
    names.check({b"host": host.encode(), b"origin": f"http://{host}".encode()})
    for origin in (b"https://evil.example", b"http://10.0.0.8", b"null", b"file://"):
        with pytest.raises(Refusal, match="pages of"):
            names.check({b"host": host.encode(), b"origin": origin})


@pytest.mark.parametrize(
    "host", ["evil.example", "box.evil.example", "10.0.0.7.evil.example:8000", "10.0.0", ""]
)
def test_a_name_that_somebody_has_point_here_is_not_answered(
    monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    """The page and its server seem to be one to the browser; only the name gives it away."""
    names = everyone(monkeypatch)
    for headers in ({}, {b"origin": f"http://{host}".encode()}):
        with pytest.raises(Refusal, match="--allow-host") as caught:
            names.check({b"host": host.encode(), **headers})
        assert caught.value.status == 403


def test_the_gate_asks_for_the_name() -> None:
    status, _ = asyncio.run(Client(PROMPT, host="evil.example").ask(gate()))
    assert status == 403


@pytest.mark.parametrize("patience", [0, -1, float("nan"), float("inf")])
def test_patience_is_a_time(patience: float) -> None:
    with pytest.raises(UserError, match="--patience is"):
        Limits(patience=patience)


async def letters(scope: Any, receive: Any, send: Any) -> None:
    """Answers as transformers' handlers do: the prompt, and the seed as so many characters."""
    body = json.loads((await receive())["body"])
    seed, asked = WISH.get().seed or 0, len(body["prompt"])
    pieces = [body["prompt"], *"x" * seed]
    usage = {"prompt_tokens": asked, "completion_tokens": len(pieces), "total_tokens": asked + len(pieces)}
    name = dict(scope["headers"])[b"x-request-id"].decode()

    def choice(text: str, **more: Any) -> dict[str, Any]:
        return {"id": name, "choices": [{"index": 0, "text": text}], **more}

    kind = b"text/event-stream" if body["stream"] else b"application/json"
    headers = [(b"content-type", kind), (b"content-length", b"1")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    if not body["stream"]:
        whole = json.dumps(choice("".join(pieces), usage=usage)).encode()
        await send({"type": "http.response.body", "body": whole})
        return
    for event in (*map(choice, pieces), choice("", usage=usage)):
        await asyncio.sleep(0)
        part = b"data: " + json.dumps(event, separators=(",", ":")).encode() + b"\n\n"
        await send({"type": "http.response.body", "body": part, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


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
        assert (await Client(b'{"prompt": "a", "n": 2}').ask(door))[0] == 429
        gone = asyncio.ensure_future(Client(PROMPT).ask(door))
        await asyncio.sleep(0.1)
        assert door.running == 4
        gone.cancel()
        assert (await gone)[0] == 503
        done.set()
        assert (await first)[0] == 200
        assert door.running == 0
        answer = await Client(b'{"prompt": ["a", "b", "c"], "n": 2}').ask(door)
        assert (answer[0], reason(answer)) == (400, "6 texts in one request; this server writes 4 at once")

    asyncio.run(main())


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


def test_settings_may_stand_in_a_generation_config() -> None:
    config = {"max_new_tokens": 7, "top_k": 5, "temperature": 0.5, "eos_token_id": 2, "num_beams": None}
    body = {"messages": [{"role": "user", "content": "a"}], "generation_config": json.dumps(config)}
    ((asked, wish),) = check(CHAT, body, served())
    assert (asked["max_tokens"], asked["temperature"], wish.settings) == (7, 0.5, {"top_k": 5})
    outside = {"max_completion_tokens": 3, "temperature": 0, "model": "latest"}
    ((asked, wish),) = check(CHAT, body | outside, served())
    assert (asked["max_tokens"], asked["temperature"]) == (3, 0)
    assert wish.settings == {"top_k": 5, "do_sample": False}
    assert asked["model"] == "model"


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ("{", "generation_config isn't JSON"),
        ("[1]", "generation_config must be a JSON object, not [1]"),
        ({"top_k": 3}, "generation_config must be a text that holds a JSON object"),
        ('{"num_beams": 3}', "generation_config.num_beams=3 isn't supported; leave it out"),
        ('{"eos_token_id": 5}', "generation_config.eos_token_id=5 isn't supported"),
        ('{"max_new_tokens": 0}', "max_tokens=0 must be a whole number, at least 1"),
        ('{"top_k": -1}', "top_k=-1 must be a whole number, 0 (all) or more"),
    ],
)
def test_a_bad_generation_config_is_refused(config: Any, said: str) -> None:
    with pytest.raises(Refusal) as caught:
        check(COMPLETIONS, {"prompt": "a", "generation_config": config}, served())
    assert caught.value.status == 400
    assert said in caught.value.message


def test_a_client_may_wait_for_the_model_to_be_loaded() -> None:
    for name, status in (("model", 200), ("latest", 200), ("dummy", 200), ("gpt2", 404)):
        client = Client(json.dumps({"model": name}).encode(), path="/load_model")
        answer = asyncio.run(client.ask(gate()))
        assert answer[0] == status
        if status == 200:
            event, rest = answer[1].split("\n\n")
            assert (json.loads(event[6:])["status"], rest) == ("ready", "")
