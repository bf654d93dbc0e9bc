"""One thread that writes for all clients: each request in turn gets its next character.

transformers' own manager runs one `generate` after the other, so that the last of sixteen clients waits for
fifteen whole texts. This one goes round `stream` iterators, which are also several times faster.
"""

from __future__ import annotations

import asyncio
import codecs
import queue
import secrets
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from transformers.cli.serving.utils import BaseGenerateManager, GenerationState, _StreamError

from craft.serving.requests import WISH, Wish


class Text:
    """A text in the making: what `step` adds goes to `emit`, None at its end.

    Attributes:
        ids: written so far.
        total_tokens: how many; transformers' handlers ask for it.
        text: what they mean, without the stop text and what follows.
    """

    def __init__(
        self, model: Any, tokenizer: Any, inputs: Any, config: Any, wish: Wish, emit: Callable[[Any], None]
    ) -> None:
        self.model, self.config, self.emit, self.stop = model, config, emit, wish.stop
        self.ids: list[int] = []
        self.text = ""
        self._shown = 0
        self._cancelled = threading.Event()
        self._table, self._eos = tokenizer.processor.token_bytes, tokenizer.eos_token_id
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = max(map(len, wish.stop), default=1) - 1  # this much may be the beginning of a stop text
        self._random = _Random(model.device, secrets.randbits(63) if wish.seed is None else wish.seed)
        self._stream: Iterator[torch.Tensor] = model.stream(inputs["input_ids"], config)

    @property
    def total_tokens(self) -> int:
        return len(self.ids)

    def cancel(self) -> None:
        """The client is gone; the writer drops the text at its next turn."""
        self._cancelled.set()

    def step(self) -> bool:
        """Writes one id; False if the text is complete, or isn't wanted any more."""
        if self._cancelled.is_set():
            self.emit(None)
            return False
        with self._random:
            ids = next(self._stream, None)
        token = None if ids is None else int(ids[0])
        if token is not None:
            self.ids.append(token)
            self.text += self._decoder.decode(self._table[token])
        if token == self._eos:
            self._end_by_itself()
        return self._show(ended=token is None or token == self._eos)

    def _end_by_itself(self) -> None:
        """Not for its length, whatever that is: transformers' handlers compare it with the limit."""
        self.config.max_new_tokens = None

    def _show(self, ended: bool) -> bool:
        begin = max(0, self._shown - self._held)
        found = [at for at in (self.text.find(stop, begin) for stop in self.stop) if at >= 0]
        if found:
            self.text, ended = self.text[: min(found)], True
            self._end_by_itself()
        until = len(self.text) if ended else max(self._shown, len(self.text) - self._held)
        if until > self._shown:
            self.emit(self.text[self._shown : until])
            self._shown = until
        if ended:
            self.emit(None)
        return not ended


class _Random:
    """Random numbers of its own for a text: within the block they go on where they stopped."""

    def __init__(self, device: torch.device, seed: int) -> None:
        self.modules: list[Any] = [torch.random]
        kinds: list[Any] = ["cpu"]
        if device.type != "cpu":
            kinds.append(device)
            self.modules.append(torch.get_device_module(device))
        self.states = [torch.Generator(kind).manual_seed(seed).get_state() for kind in kinds]

    def __enter__(self) -> None:
        for module, state in zip(self.modules, self.states):
            module.set_rng_state(state)

    def __exit__(self, *error: object) -> None:
        self.states = [module.get_rng_state() for module in self.modules]


class Writer(BaseGenerateManager):
    """The thread, in the place of transformers' managers."""

    def __init__(self) -> None:
        self._new: queue.SimpleQueue[Text | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="writer", daemon=True)
        self._thread.start()

    def generate_streaming(
        self,
        model: Any,
        processor: Any,
        inputs: Any,
        gen_config: Any,
        request_id: str,
        response_parser: Any = None,
    ) -> tuple[asyncio.Queue[Any], Text]:
        """The queue in which the pieces of the text appear, then None; and the text, to be cancelled."""
        loop = asyncio.get_running_loop()
        pieces: asyncio.Queue[Any] = asyncio.Queue()

        def emit(piece: Any) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(pieces.put_nowait, piece)

        wish = WISH.get(Wish())
        gen_config.update(**wish.settings)
        text = Text(model, processor, inputs, gen_config, wish, emit)
        self._new.put(text)
        return pieces, text

    async def generate_non_streaming(
        self, model: Any, processor: Any, inputs: Any, gen_config: Any, request_id: str
    ) -> tuple[str, int, list[int]]:
        """(text, length of the prompt, ids)."""
        pieces, text = self.generate_streaming(model, processor, inputs, gen_config, request_id)
        try:
            while (piece := await pieces.get()) is not None:
                if isinstance(piece, _StreamError):
                    raise RuntimeError(piece.msg)
        except asyncio.CancelledError:
            text.cancel()
            raise
        return text.text, inputs["input_ids"].shape[-1], text.ids

    def stop(self) -> None:
        """Drops what is being written and ends the thread."""
        self._new.put(None)
        self._thread.join(timeout=10)

    def _run(self) -> None:
        texts: list[Text] = []
        while True:
            while not texts or not self._new.empty():
                new = self._new.get()
                if new is None:
                    return
                texts.append(new)
            texts = [text for text in texts if self._step(text)]

    @staticmethod
    def _step(text: Text) -> bool:
        try:
            return text.step()
        except Exception as error:  # one text's failure isn't the others'
            text.emit(_StreamError(str(error).replace('"', "'").replace("\\", "/").replace("\n", " ")))
            return False


class OneWriter(GenerationState):
    """Hands transformers' handlers the writer, for every model and request."""

    def __init__(self) -> None:
        super().__init__()
        self.writer = Writer()

    def get_manager(self, model_id: str, use_cb: bool = False) -> Writer:
        return self.writer

    def shutdown(self) -> None:
        self.writer.stop()
