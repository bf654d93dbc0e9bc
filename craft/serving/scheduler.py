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
News = tuple[
    "Text", list[str], bool
]  # what was written of a text since the last time, and whether it is over


@dataclass(eq=False)
class Text:
    """A text of up to `limit` ids, at `index` in its request; `news` tell of it, often if it `streams`."""

    prompt: list[int]
    limit: int
    settings: dict[str, Any]
    seed: int | None = None
    stop: list[str] = field(default_factory=list)
    index: int = 0
    streams: bool = False
    news: asyncio.Queue[News] = field(default_factory=asyncio.Queue)
    row: Row | None = None
    written: int = 0
    pieces: list[str] = field(default_factory=list)
    finish: str | None = None
    error: tuple[int, str] | None = None
    cancelled: bool = False

    def __post_init__(self) -> None:
        self._unseen, self._decoder = "", codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._kept = max(map(len, self.stop), default=1) - 1  # this much may be the beginning of a stop text

    @property
    def over(self) -> bool:
        return self.cancelled or self.finish is not None or self.error is not None

    def fail(self, status: int, reason: object) -> None:
        self.error = self.error or (status, str(reason) or type(reason).__name__)

    def read(self, piece: bytes, ends: bool) -> None:
        """Takes what was written, and shows what can't be the beginning of a stop text any more."""
        self.written += 1
        self._unseen += self._decoder.decode(piece)
        found = [at for at in map(self._unseen.find, self.stop) if at >= 0]
        self.finish = "stop" if found or ends else "length" if self.written == self.limit else None
        until = len(self._unseen) if self.finish else max(0, len(self._unseen) - self._kept)
        if until := min(found, default=until):
            self.pieces.append(self._unseen[:until])
            self._unseen = self._unseen[until:]


class Scheduler:
    """The thread; it is used from an event loop, in which it counts the texts that are `running`."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model, self.table, self.eos = model, tokenizer.token_bytes, tokenizer.eos_token_id
        self.running, self._ended = 0, ""
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
        self._ended = "the server was told to stop before the text was complete"

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
            for text in live if self._ended else ():
                text.fail(503, self._ended)
            ended = {text for text in live if text.over}
            if ended or time.monotonic() > flushed + FLUSH_SECONDS:
                news = [(text, text.pieces, text in ended) for text in live if text in ended or text.streams]
                for text, _, _ in news:
                    text.pieces = []
                self._loop.call_soon_threadsafe(self._deliver, news)
                batch.leave({text.row for text in ended})
                live, flushed = [text for text in live if text not in ended], time.monotonic()

    def _join(self, batch: Batch, text: Text) -> None:
        try:
            config = copy.deepcopy(self.model.generation_config)
            config.update(**text.settings)
            text.row = Row(self.model, text.prompt, config, text.seed)
            batch.join(text.row)
        except Exception as error:  # which is not that of the others
            text.fail(500, error)

    def _deliver(self, news: list[News]) -> None:
        for text, pieces, over in news:
            self.running -= over
            text.news.put_nowait((text, pieces, over))
