"""Several texts as the choices of one answer, of what transformers' handlers send, which write one each."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]


class Choices:
    """An answer put together.

    Args:
        texts: how many there are.
        copies: how many after one another are for the same prompt, which is counted once.
        send: takes the answer, as ASGI messages.
    """

    def __init__(self, texts: int, copies: int, send: Send) -> None:
        self.copies, self.send = copies, send
        self.open = self.uncounted = texts
        self.usage: dict[str, int] = {}
        self.whole: dict[int, bytes] = {}
        self.start: Message | None = None

    def part(self, index: int) -> Send:
        """Takes the answer with the text `index`."""
        whole = bytearray()

        async def take(message: Message) -> None:
            if message["type"] == "http.response.start":
                if self.start is None:
                    self.start = message
                    if self._streams():
                        await self.send(message)
                return
            whole.extend(message.get("body", b""))
            more = message.get("more_body", False)
            self.open -= not more
            if self._streams():
                events = [self._event(index, event) for event in bytes(whole).split(b"\n\n") if event]
                whole.clear()
                await self.send({**message, "body": b"".join(events), "more_body": self.open > 0})
            elif not more:
                self.whole[index] = bytes(whole)

        return take

    async def finish(self) -> None:
        """Sends the answer, unless it was sent piece by piece or its client is gone."""
        if self.start is None or self.open or self._streams():
            return
        parts = [self._numbered(index, json.loads(self.whole[index])) for index in sorted(self.whole)]
        answer = {**parts[-1], "choices": [choice for part in parts for choice in part["choices"]]}
        body = json.dumps({**answer, "usage": self.usage}).encode()
        headers = [(n, v) for n, v in self.start["headers"] if n != b"content-length"]
        headers.append((b"content-length", str(len(body)).encode()))
        await self.send({**self.start, "headers": headers})
        await self.send({"type": "http.response.body", "body": body})

    def _streams(self) -> bool:
        headers = dict(self.start["headers"]) if self.start is not None else {}
        return bool(headers.get(b"content-type", b"").startswith(b"text/event-stream"))

    def _event(self, index: int, event: bytes) -> bytes:
        read = self._numbered(index, json.loads(event.removeprefix(b"data: ")))
        return b"data: " + json.dumps(read, separators=(",", ":")).encode() + b"\n\n"

    def _numbered(self, index: int, read: dict[str, Any]) -> dict[str, Any]:
        """With the number of its choice; the counts come with the last text that ends, those of all."""
        for choice in read.get("choices", ()):
            choice["index"] = index
        if usage := read.pop("usage", None):
            if index % self.copies:
                usage = {**usage, "prompt_tokens": 0, "total_tokens": usage["completion_tokens"]}
            self.usage = {name: self.usage.get(name, 0) + count for name, count in usage.items()}
            self.uncounted -= 1
            if not self.uncounted:
                read["usage"] = self.usage
        return read
