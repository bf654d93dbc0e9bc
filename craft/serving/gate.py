"""What stands before transformers' server: it lets three kinds of request through, checked and counted."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from craft.serving.requests import CHAT, COMPLETIONS, WISH, Refusal, Served, check, parse

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Any, Receive, Send], Awaitable[None]]

ROUTES = {"/health": "GET", "/v1/models": "GET", COMPLETIONS: "POST", CHAT: "POST"}
"""All there is: transformers' others load and unload models, or need models of another kind."""
OF_THE_BODY = (b"content-length", b"transfer-encoding")
SMALLEST_BODY_LIMIT = 1 << 20


class Gate:
    """An ASGI application around another one.

    A refused request is answered with a 4xx and a sentence, in the form that OpenAI's clients read. Bodies
    must be declared as JSON, so that no page in a browser can send one without being asked first.
    """

    def __init__(self, app: App, served: Served) -> None:
        self.app, self.served = app, served
        self.started = int(time.time())
        self.running = 0
        longest = served.limits.prompt(served.context)
        self.largest_body = max(SMALLEST_BODY_LIMIT, 16 * longest)  # an escaped character takes 12 bytes

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            try:
                await self._route(scope, receive, send)
            except Refusal as refusal:
                await _answer(send, refusal.status, refusal.body())

    async def _route(self, scope: Any, receive: Receive, send: Send) -> None:
        path, method = scope["path"], scope["method"]
        known = "GET" if path.startswith("/v1/models/") else ROUTES.get(path)
        if known is None:
            raise Refusal(404, f"there is no {path} here, but {', '.join(ROUTES)}")
        if method != known:
            raise Refusal(405, f"{path} is read with {known}, not {method}")
        if path.startswith("/v1/models"):
            await _answer(send, 200, self._models(path))
        elif path == "/health":
            await self.app(scope, receive, send)
        else:
            await self._write(scope, receive, send)

    def _models(self, path: str) -> bytes:
        served = {"id": self.served.name, "object": "model", "created": self.started, "owned_by": "craft"}
        wanted = path.removeprefix("/v1/models").lstrip("/")
        if wanted not in ("", self.served.name):
            raise Refusal(404, f"there is no model {wanted!r} here", "model", "model_not_found")
        return json.dumps(served if wanted else {"object": "list", "data": [served]}).encode()

    async def _write(self, scope: Any, receive: Receive, send: Send) -> None:
        """Hands a checked request on, unless too many are being answered."""
        headers = {name.lower(): value for name, value in scope["headers"]}
        kind = headers.get(b"content-type", b"").split(b";")[0].strip().lower()
        if kind != b"application/json":
            raise Refusal(415, "send the header 'Content-Type: application/json'")
        raw = await self._read(receive)
        body, wish = check(scope["path"], parse(raw), self.served)
        if self.running >= self.served.limits.max_requests:
            raise Refusal(
                429, f"{self.running} requests are being answered, as many as this server takes; try again"
            )
        self.running += 1
        WISH.set(wish)
        try:
            await self._pass_on(scope, json.dumps(body).encode(), body["stream"], receive, send)
        finally:
            self.running -= 1

    async def _read(self, receive: Receive) -> bytes:
        raw = b""
        while True:
            message = await receive()
            raw += message.get("body", b"")
            if len(raw) > self.largest_body:
                raise Refusal(413, f"the request is longer than {self.largest_body:,} bytes")
            if message["type"] == "http.disconnect" or not message.get("more_body", False):
                return raw

    async def _pass_on(self, scope: Any, raw: bytes, stream: bool, receive: Receive, send: Send) -> None:
        """Runs the application on the checked body; one whose client hangs up is cancelled."""
        headers = [(n, v) for n, v in scope["headers"] if n.lower() not in OF_THE_BODY]
        scope = {**scope, "headers": [*headers, (b"content-length", str(len(raw)).encode())]}
        sent = streams = False

        async def replay() -> Message:
            nonlocal sent
            if not sent:
                sent = True
                return {"type": "http.request", "body": raw, "more_body": False}
            return await receive()

        async def finish(message: Message) -> None:
            # OpenAI's streams end with a word of their own, which transformers' don't.
            nonlocal streams
            if message["type"] == "http.response.start":
                streams = message["status"] == 200
            elif streams and not message.get("more_body", False):
                message = {**message, "body": message.get("body", b"") + b"data: [DONE]\n\n"}
            await send(message)

        if stream:  # whose response watches for the end of the connection itself
            await self.app(scope, replay, finish)
            return
        task = asyncio.ensure_future(self.app(scope, replay, send))
        gone = asyncio.ensure_future(_hung_up(receive))
        try:
            await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                task.cancel()
            await asyncio.gather(task, return_exceptions=gone.done())
        finally:
            task.cancel()
            gone.cancel()


async def _hung_up(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _answer(send: Send, status: int, body: bytes) -> None:
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if status == 429:
        headers.append((b"retry-after", b"1"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
