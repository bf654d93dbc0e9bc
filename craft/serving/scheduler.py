"""One thread that writes the texts of all requests in one batch."""

from __future__ import annotations

import asyncio
import codecs
import copy
import queue
import threading
import time
from dataclasses import dataclass, field
from typing import Any

from craft.models.batching import Batch, Row

FLUSH_SECONDS = 0.04  # between two deliveries: waking the other thread costs more than a character
Update = tuple["Text", list[str], bool]
"""What was written of a text since its last update, and whether it is over."""


@dataclass(eq=False)
class Text:
    """A text that is being written, at `index` in its request, of up to `limit` ids. `settings` replace the
    model's own; its `updates` come every FLUSH_SECONDS if it `streams`, else once, at the end."""

    prompt: list[int]
    limit: int
    settings: dict[str, Any]
    seed: int | None = None
    stop: list[str] = field(default_factory=list)
    index: int = 0
    streams: bool = False
    updates: asyncio.Queue[Update] = field(default_factory=asyncio.Queue)
    row: Row | None = None
    written: int = 0
    pieces: list[str] = field(default_factory=list)
    finish: str | None = None
    error: tuple[int, str] | None = None
    cancelled: bool = False

    def __post_init__(self) -> None:
        self._held, self._decoder = "", codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._hold = max(map(len, self.stop), default=1) - 1  # this much may be the beginning of a stop text

    @property
    def over(self) -> bool:
        return self.cancelled or self.finish is not None or self.error is not None

    def fail(self, status: int, reason: object) -> None:
        self.error = self.error or (status, str(reason) or type(reason).__name__)

    def read(self, piece: bytes, ends: bool) -> None:
        """Adds what was written; what may be the beginning of a stop text is held back from `pieces`."""
        self.written += 1
        self._held += self._decoder.decode(piece)
        found = [at for at in map(self._held.find, self.stop) if at >= 0]
        self.finish = "stop" if found or ends else "length" if self.written == self.limit else None
        until = len(self._held) if self.finish else max(0, len(self._held) - self._hold)
        if until := min(found, default=until):
            self.pieces.append(self._held[:until])
            self._held = self._held[until:]


class Scheduler:
    """The thread; it is used from an event loop, in which it counts the texts that are `running`."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model, self.table, self.eos = model, tokenizer.token_bytes, tokenizer.eos_token_id
        self.running, self._end_reason = 0, ""
        self._new: queue.SimpleQueue[Text | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="scheduler", daemon=True)

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def submit(self, text: Text) -> None:
        self.running += 1
        self._new.put(text)

    def end(self) -> None:
        """Ends all texts, also those still to come, with an error."""
        self._end_reason = "the server was told to stop before the text was complete"

    def close(self) -> None:
        self.end()
        self._new.put(None)
        self._thread.join(timeout=10)

    def _run(self) -> None:
        live: list[Text] = []
        batch, flushed = Batch(self.model), 0.0
        while True:
            while not live or not self._new.empty():
                if (new := self._new.get()) is None:
                    return
                live.append(new)
                self._join(batch, new)
            try:
                batch.step()
                for text in live:
                    if text.row and not text.over:
                        token = text.row.ids[-1]
                        text.read(self.table[token], token == self.eos or token in text.row.ends)
            except Exception as error:
                batch = Batch(self.model)
                for text in live:
                    text.fail(500, error)
            for text in live if self._end_reason else ():
                text.fail(503, self._end_reason)
            ended = {text for text in live if text.over}
            if ended or time.monotonic() > flushed + FLUSH_SECONDS:
                updates = [(t, t.pieces, t in ended) for t in live if t in ended or t.streams]
                for text, _, _ in updates:
                    text.pieces = []
                self._loop.call_soon_threadsafe(self._deliver, updates)
                batch.leave({text.row for text in ended})
                live, flushed = [text for text in live if text not in ended], time.monotonic()

    def _join(self, batch: Batch, text: Text) -> None:
        try:
            config = copy.deepcopy(self.model.generation_config)
            config.update(**text.settings)
            text.row = Row(self.model, text.prompt, config, text.seed)
            batch.join(text.row)
        except Exception as error:  # of this text alone
            text.fail(500, error)

    def _deliver(self, updates: list[Update]) -> None:
        for text, pieces, over in updates:
            self.running -= over
            text.updates.put_nowait((text, pieces, over))
