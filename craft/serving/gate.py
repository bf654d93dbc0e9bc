"""What stands before transformers' server: it lets few kinds of request through, checked and counted."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any

from craft.serving.choices import Choices, Message, Send
from craft.serving.names import Names
from craft.serving.refusals import Refusal, parse
from craft.serving.requests import WISH, Served, Wish, check, check_name
from craft.serving.settings import CHAT, COMPLETIONS

Receive = Callable[[], Awaitable[Message]]
App = Callable[[Any, Receive, Send], Awaitable[None]]

LOAD = "/load_model"
ROUTES = {"/health": "GET", "/v1/models": "GET", COMPLETIONS: "POST", CHAT: "POST", LOAD: "POST"}
"""All there is: transformers' others unload models, or need models of another kind."""
OF_THE_BODY = (b"content-length", b"transfer-encoding")
SMALLEST_BODY_LIMIT = 1 << 20


class Gate:
    """An ASGI application around another one.

    A refused request is answered with a 4xx and a sentence, in the form that OpenAI's clients read. Bodies
    must be declared as JSON, so that no page in a browser can send one without being asked first.
    """

    def __init__(self, app: App, served: Served, names: Names) -> None:
        self.app, self.served, self.names = app, served, names
        self.started = int(time.time())
        self.running = 0
        longest = served.limits.prompt(served.context)
        self.largest_body = max(SMALLEST_BODY_LIMIT, 16 * longest)  # an escaped character takes 12 bytes

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        answer = Answer(send)
        try:
            await self._route(scope, receive, answer)
        except Refusal as refusal:
            await answer.refuse(refusal)
        except asyncio.CancelledError:
            await answer.refuse(Refusal(503, "the server was told to stop before the text was complete"))

    async def _route(self, scope: Any, receive: Receive, answer: Answer) -> None:
        headers = dict(scope["headers"])  # in lower case, by the rules of ASGI
        self.names.check(headers)
        path, method = scope["path"], scope["method"]
        known = "GET" if path.startswith("/v1/models/") else ROUTES.get(path)
        if known is None:
            raise Refusal(404, f"there is no {path[:100]} here, but {', '.join(ROUTES)}")
        if method != known:
            wrong = f"{path[:100]} is asked with {known}, not {method[:20]}"
            raise Refusal(405, wrong, header=(b"allow", known.encode()))
        if path.startswith("/v1/models"):
            await answer.whole(200, self._models(path))
        elif path == "/health":
            await self.app(scope, receive, answer)
        else:
            with self._place():
                body = await self._body(headers, receive)
                if path == LOAD:
                    await answer.events(self._loaded(body))
                else:
                    await self._write(scope, body, receive, answer)

    @contextlib.contextmanager
    def _place(self, needed: int = 1, held: int = 0) -> Iterator[None]:
        """Counts what is answered at the same time; refuses what there is no room for.

        Args:
            needed: places of the request, one for each text.
            held: how many of them it has.
        """
        others, places = self.running - held, self.served.limits.max_requests
        if others + needed > places:
            busy = f"{others} of {places} places are taken and this request needs {needed}; try again"
            raise Refusal(429, busy, header=(b"retry-after", b"1"))
        self.running += needed - held
        try:
            yield
        finally:
            self.running -= needed - held

    def _models(self, path: str) -> bytes:
        served = {"id": self.served.name, "object": "model", "created": self.started, "owned_by": "craft"}
        wanted = path.removeprefix("/v1/models").lstrip("/")
        if wanted not in ("", self.served.name):
            raise Refusal(404, f"there is no model {wanted[:100]!r} here", "model", "model_not_found")
        return json.dumps(served if wanted else {"object": "list", "data": [served]}).encode()

    def _loaded(self, body: Mapping[str, Any]) -> bytes:
        """What `transformers chat` waits for before it asks anything: here there is nothing to load."""
        check_name(body, self.served)
        return json.dumps({"status": "ready", "model": self.served.name, "cached": True}).encode()

    async def _body(self, headers: Mapping[bytes, bytes], receive: Receive) -> dict[str, Any]:
        kind = headers.get(b"content-type", b"").split(b";")[0].strip().lower()
        if kind != b"application/json":
            raise Refusal(415, "send the header 'Content-Type: application/json'")
        if headers.get(b"content-encoding", b"identity").lower() != b"identity":
            raise Refusal(415, "send the body as it is, without a Content-Encoding")
        self._check_size(int(headers.get(b"content-length", 0)))
        patience = self.served.limits.patience
        try:
            raw = await asyncio.wait_for(self._read(receive), patience)
        except asyncio.TimeoutError as error:
            raise Refusal(408, f"the request wasn't there within {patience:g} seconds") from error
        return parse(raw)

    async def _write(self, scope: Any, body: dict[str, Any], receive: Receive, answer: Answer) -> None:
        """Hands on what `check` makes of a request, once for each text that it asks for."""
        asked = check(scope["path"], body, self.served)
        answer.usage_apart = asked[0][1].usage

        async def one(request: dict[str, Any], wish: Wish, send: Send) -> None:
            WISH.set(wish)
            await self._pass_on(scope, json.dumps(request).encode(), request["stream"], receive, send)

        if len(asked) == 1:
            await one(*asked[0], answer)
            return
        # One answer has one id; that of a client, which stands before it, wins.
        scope = {**scope, "headers": [*scope["headers"], (b"x-request-id", str(uuid.uuid4()).encode())]}
        choices = Choices(len(asked), body.get("n") or 1, answer)
        with self._place(len(asked), held=1):
            tasks = [asyncio.ensure_future(one(*each, choices.part(n))) for n, each in enumerate(asked)]
            try:
                await asyncio.gather(*tasks)
            finally:
                for task in tasks:
                    task.cancel()
        await choices.finish()

    async def _read(self, receive: Receive) -> bytes:
        raw = bytearray()
        while True:
            message = await receive()
            raw += message.get("body", b"")
            self._check_size(len(raw))
            if message["type"] == "http.disconnect" or not message.get("more_body", False):
                return bytes(raw)

    def _check_size(self, size: int) -> None:
        if size > self.largest_body:
            raise Refusal(413, f"the request is longer than {self.largest_body:,} bytes")

    async def _pass_on(self, scope: Any, raw: bytes, stream: bool, receive: Receive, answer: Send) -> None:
        """Runs the application on the checked body; one whose client hangs up is cancelled."""
        headers = [(n, v) for n, v in scope["headers"] if n not in OF_THE_BODY]
        scope = {**scope, "headers": [*headers, (b"content-length", str(len(raw)).encode())]}
        sent = False

        async def replay() -> Message:
            nonlocal sent
            if not sent:
                sent = True
                return {"type": "http.request", "body": raw, "more_body": False}
            return await receive()

        if stream:  # whose response watches for the end of the connection itself
            await self.app(scope, replay, answer)
            return
        task = asyncio.ensure_future(self.app(scope, replay, answer))
        gone = asyncio.ensure_future(_hung_up(receive))
        try:
            await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                task.cancel()
            await asyncio.gather(task, return_exceptions=gone.done())
        finally:
            task.cancel()
            gone.cancel()


class Answer:
    """What is sent to a client. A stream gets the end that OpenAI's streams have and transformers' don't."""

    def __init__(self, send: Send) -> None:
        self.send = send
        self.begun = self.streams = self.usage_apart = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.begun = True
            self.streams = any(value.startswith(b"text/event-stream") for _, value in message["headers"])
        elif self.streams:
            body = message.get("body", b"")
            if self.usage_apart and b'"usage":{' in body:
                body = _apart(body)
            if not message.get("more_body", False):
                body += b"data: [DONE]\n\n"
            message = {**message, "body": body}
        await self.send(message)

    async def whole(self, status: int, body: bytes, header: tuple[bytes, bytes] | None = None) -> None:
        """An answer of JSON."""
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        headers += [header] if header else []
        await self({"type": "http.response.start", "status": status, "headers": headers})
        await self({"type": "http.response.body", "body": body})

    async def events(self, *data: bytes) -> None:
        """An answer of server-sent events."""
        headers = [(b"content-type", b"text/event-stream; charset=utf-8")]
        await self.send({"type": "http.response.start", "status": 200, "headers": headers})
        body = b"".join(b"data: " + each + b"\n\n" for each in data)
        await self.send({"type": "http.response.body", "body": body})

    async def refuse(self, refusal: Refusal) -> None:
        """A refusal in the place of an answer, or as the end of a stream."""
        if not self.begun:
            await self.whole(refusal.status, refusal.body(), refusal.header)
        elif self.streams:
            await self({"type": "http.response.body", "body": b"data: " + refusal.body() + b"\n\n"})


def _apart(event: bytes) -> bytes:
    """The last piece of transformers' streams as the last two of OpenAI's: the end, then the counts."""
    end = json.loads(event.removeprefix(b"data: "))
    counts = {**end, "choices": []}
    del end["usage"]
    return b"".join(b"data: " + json.dumps(part).encode() + b"\n\n" for part in (end, counts))


async def _hung_up(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
