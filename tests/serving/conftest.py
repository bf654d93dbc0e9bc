"""A gate without a server behind it, and a client of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

from craft.data.tokenization import CharTokenizer
from craft.serving.gate import Gate
from craft.serving.limits import Limits
from craft.serving.names import Names
from craft.serving.requests import WISH, Served
from craft.serving.settings import COMPLETIONS

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
    return Served("model", CharTokenizer.train(["abc\n"]), 32, Limits(**limits), ("latest",))


def gate(app: Callable[..., Awaitable[None]] = echo, **limits: Any) -> Gate:
    return Gate(app, served(**limits), Names(["127.0.0.1"]))


def reason(answer: tuple[int, str]) -> str:
    return str(json.loads(answer[1])["error"]["message"])


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
