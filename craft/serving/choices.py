"""Several texts as the choices of one answer, of what transformers' handlers send, which write one each."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from craft.serving.refusals import Refusal

Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]


class Choices:
    """An answer put together.

    If a text fails, the answer is the first failure as it came; in a stream that has begun, an error there.

    Args:
        texts: how many there are.
        copies: how many after one another are for the same prompt, which is counted once.
        send: takes the answer, as ASGI messages.
    """

    def __init__(self, texts: int, copies: int, send: Send) -> None:
        self.copies, self.send = copies, send
        self.open = self.uncounted = texts
        self.usage: dict[str, int] = {}
        self.starts: dict[int, Message] = {}
        self.whole: dict[int, bytes] = {}
        self.streams = False

    def part(self, index: int) -> Send:
        """Takes the answer with the text `index`."""
        whole = bytearray()

        async def take(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.starts[index] = message
                if not self.streams and self._failed() is None and _is_stream(message):
                    self.streams = True
                    await self.send(message)
                return
            whole.extend(message.get("body", b""))
            more = message.get("more_body", False)
            self.open -= not more
            if self.streams and (self.starts[index]["status"] == 200 or not more):
                events = self._events(index, bytes(whole))
                whole.clear()
                await self.send({**message, "body": events, "more_body": self.open > 0})
            elif not more:
                self.whole[index] = bytes(whole)

        return take

    async def finish(self) -> None:
        """Sends the answer, unless it was sent piece by piece or its client is gone."""
        if self.open or self.streams:
            return
        if (failed := self._failed()) is not None:
            await self.send(self.starts[failed])
            await self.send({"type": "http.response.body", "body": self.whole[failed]})
            return
        parts = [self._numbered(index, json.loads(self.whole[index])) for index in sorted(self.whole)]
        answer = {**parts[-1], "choices": [choice for part in parts for choice in part["choices"]]}
        body = json.dumps({**answer, "usage": self.usage}).encode()
        headers = [(n, v) for n, v in self.starts[0]["headers"] if n != b"content-length"]
        headers.append((b"content-length", str(len(body)).encode()))
        await self.send({**self.starts[0], "headers": headers})
        await self.send({"type": "http.response.body", "body": body})

    def _failed(self) -> int | None:
        """The first text whose answer isn't one."""
        return next((index for index, start in self.starts.items() if start["status"] != 200), None)

    def _events(self, index: int, body: bytes) -> bytes:
        """What a text adds to a stream."""
        status = self.starts[index]["status"]
        if status != 200:
            return b"data: " + Refusal(status, body.decode(errors="replace")).body() + b"\n\n"
        events = [json.loads(event.removeprefix(b"data: ")) for event in body.split(b"\n\n") if event]
        numbered = [json.dumps(self._numbered(index, event), separators=(",", ":")) for event in events]
        return b"".join(b"data: " + event.encode() + b"\n\n" for event in numbered)

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


def _is_stream(start: Message) -> bool:
    return any(n == b"content-type" and v.startswith(b"text/event-stream") for n, v in start["headers"])
