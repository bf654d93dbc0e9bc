"""The application: its routes, what they refuse, and answers whole or as streams of events."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
import uuid
from collections.abc import AsyncIterator, Collection, Sequence
from typing import Annotated, Any

from fastapi import Body, FastAPI, Response
from fastapi import Request as HttpRequest
from fastapi.exceptions import RequestValidationError
from fastapi.responses import StreamingResponse
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException

from craft.serving import protocol
from craft.serving.protocol import Choice, GenerationRequest, Refusal, require, short
from craft.serving.scheduler import Scheduler, Text, Update
from craft.utils.common import SAMPLE_CHARACTERS
from craft.utils.errors import UserError
from craft.utils.hosts import refusal_reason


class Service:
    """A model that writes what requests ask for, by its name or an alias, within caps."""

    def __init__(self, model: Any, tokenizer: Any, name: str, aliases: list[str], caps: Any) -> None:
        self.scheduler, self.tokenizer = Scheduler(model, tokenizer), tokenizer
        # "dummy" is what huggingface_hub's InferenceClient says where its user named no model.
        self.name, self.names = name, (None, name, "dummy", *aliases)
        self.defaults = model.generation_config.to_dict()
        self.max_tokens, self.max_requests = caps["max_tokens"], caps["max_requests"]
        positions = None if model.carries_state else getattr(model.config, "max_position_embeddings", None)
        context = positions or 16_384
        self.max_prompt = caps["max_prompt"] or context

    def check_name(self, name: str | None) -> None:
        why = f"this server has {self.name!r}, not {short(name)}"
        require(name in self.names, why, "model", "model_not_found", 404)

    def render(self, messages: Sequence[protocol.Message]) -> str:
        """The messages as the model reads them."""
        given = [message.model_dump() for message in messages]
        try:
            return str(self.tokenizer.apply_chat_template(given, tokenize=False, add_generation_prompt=True))
        except Exception as error:  # a template is a program, which may fail on anything in them
            raise Refusal(400, f"the chat template failed: {error!s:.200}", "messages") from error

    def encode(self, text: str, field: str) -> list[int]:
        """The ids of a prompt."""
        try:
            ids = self.tokenizer.encode_ids(text, field).tolist()
        except UserError as error:
            raise Refusal(400, str(error), field, "unknown_character") from error
        require(bool(ids), f"{field} is empty; give at least a character, such as a line break", field)
        why = f"{field} has {len(ids):,} characters, more than the {self.max_prompt:,} that can be read"
        require(len(ids) <= self.max_prompt, why, field, "context_length_exceeded")
        return ids

    async def write(
        self, http: HttpRequest, asked: GenerationRequest, prompts: list[str], field: str
    ) -> Response:
        """The answer: `n` texts for each prompt, with seeds that count up from that of the request."""
        self.check_name(asked.model)
        for name, value in asked.generation_config.items():
            supported = value in (None, self.defaults.get(name)) or name == "transformers_version"
            why = f"generation_config.{name[:60]}={short(value)} isn't supported; leave it out"
            require(supported, why, "generation_config")
        number, most, taken = len(prompts) * asked.n, self.max_requests, self.scheduler.running
        length = asked.max_tokens or min(SAMPLE_CHARACTERS, self.max_tokens)
        require(
            length <= self.max_tokens, f"max_tokens={short(length)} is over {self.max_tokens}", "max_tokens"
        )
        why = f"{short(number)} texts in one request; this server writes {most} at once"
        require(number <= most, why, "n" if len(prompts) <= most else field)
        names = [f"{field}[{n}]" for n in range(len(prompts))] if len(prompts) > 1 else [field]
        ids = [*map(self.encode, prompts, names)]
        if taken + number > most:
            why = f"{taken} of {most} places are taken and this request needs {number}; try again"
            raise Refusal(429, why, **{"Retry-After": "1"})
        stop = [asked.stop] if isinstance(asked.stop, str) else asked.stop
        settings, updates, texts = asked.generation_settings(), asyncio.Queue[Update](), []
        for index in range(number):
            prompt, seed = ids[index // asked.n], asked.seed
            seed = None if seed is None else (seed + index % asked.n) % 2**63
            texts.append(Text(prompt, length, settings, seed, stop, index, asked.stream, updates))
            self.scheduler.submit(texts[-1])
        return await Responder(asked, texts, updates, self.name).respond(http)


class Responder:
    """Makes the answer to a request of the texts that are written for it."""

    def __init__(
        self, asked: GenerationRequest, texts: Sequence[Text], updates: asyncio.Queue[Update], model: str
    ) -> None:
        self.asked, self.texts, self.updates = asked, texts, updates
        name, kind = str(uuid.uuid4()), asked.objects[asked.stream]
        self.answer = protocol.Answer(id=name, object=kind, created=int(time.time()), model=model)

    async def respond(self, http: HttpRequest) -> Response:
        if self.asked.stream:
            return StreamingResponse(self._events(), media_type="text/event-stream")
        choices = {}
        try:
            for _ in self.texts:
                text, pieces, _ = await self._next_update(http)
                choices[text.index] = self.asked.choice(text.index, "".join(pieces), text.finish)
        finally:
            for text in self.texts:
                text.cancelled = True
        whole = self._dump([choices[n] for n in sorted(choices)], counts=True)
        return Response(whole, media_type="application/json")

    async def _next_update(self, http: HttpRequest) -> Update:
        """What is written next, unless that failed or the client has hung up."""
        while not await http.is_disconnected():
            with contextlib.suppress(asyncio.TimeoutError):
                update = await asyncio.wait_for(self.updates.get(), timeout=0.5)
                if update[0].error:
                    raise Refusal(*update[0].error)
                return update
        raise Refusal(499, "the client has hung up")

    async def _events(self) -> AsyncIterator[str]:
        """The answer piece by piece, as in OpenAI's streams."""
        choice, running = self.asked.choice, len(self.texts)
        counts_apart = bool(self.asked.stream_options.get("include_usage"))
        chat = isinstance(self.asked, protocol.ChatRequest)
        events = [self._dump([choice(text.index, "", first=True)]) for text in self.texts if chat]
        try:
            while running:
                text, pieces, over = await self.updates.get()
                running -= over
                events += [self._dump([choice(text.index, piece)]) for piece in pieces]
                if text.error:
                    events.append(Refusal(*text.error).body)
                elif over:
                    end = choice(text.index, "", text.finish)
                    events.append(self._dump([end], counts=not running and not counts_apart))
                if not running:
                    events += [self._dump([], counts=True)] * counts_apart + ["[DONE]"]
                yield "".join(f"data: {event}\n\n" for event in events)
                events = []
        finally:
            for text in self.texts:
                text.cancelled = True

    def _dump(self, choices: list[Choice], counts: bool = False) -> str:
        """The answer, or an event of it; with the counts of all texts, each prompt once."""
        read = sum(len(text.prompt) for text in self.texts[:: self.asked.n]) if counts else 0
        written = sum(text.written for text in self.texts) if counts else 0
        usage = {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
        self.answer.choices, self.answer.usage = choices, usage if counts else None
        return self.answer.model_dump_json(exclude_none=True)


class RequestFilter:
    """Lets through what is for us, and small; as JSON, which no page in a browser can send without asking."""

    def __init__(self, app: Any, hosts: Collection[str], largest_body: int) -> None:
        self.app, self.hosts, self.largest_body = app, hosts, largest_body

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        refused = self._refusal(Headers(scope=scope)) if scope["type"] == "http" else None
        await (refused.response() if refused else self.app)(scope, receive, send)

    def _refusal(self, headers: Headers) -> Refusal | None:
        kind, size = headers.get("content-type", "").lower(), int(headers.get("content-length", 0))
        if wrong_host := refusal_reason(headers.get("host", ""), headers.get("origin", ""), self.hosts):
            return Refusal(403, wrong_host)
        if "transfer-encoding" in headers:
            return Refusal(411, "send the header 'Content-Length', not the body in chunks")
        if size > self.largest_body:
            return Refusal(413, f"the request is longer than {self.largest_body:,} bytes")
        wrong = size and kind.split(";")[0].strip() != "application/json"
        return Refusal(415, "send the header 'Content-Type: application/json'") if wrong else None


def build_app(service: Service, hosts: Collection[str] = ()) -> FastAPI:
    """The application for an ASGI server, which answers to `localhost`, addresses and the names `hosts`."""

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.scheduler.start()
        yield
        service.scheduler.close()

    app = FastAPI(openapi_url=None, redirect_slashes=False, lifespan=lifespan)
    app.add_middleware(RequestFilter, hosts=hosts, largest_body=max(1 << 20, 16 * service.max_prompt))
    about = dict[str, str | int](id=service.name, object="model", created=int(time.time()), owned_by="craft")

    @app.exception_handler(HTTPException)
    @app.exception_handler(RequestValidationError)
    @app.exception_handler(Exception)
    async def refuse(http: HttpRequest, error: Any) -> Response:
        if isinstance(error, RequestValidationError):
            error = protocol.invalid_field(error.errors()[-1])
        elif not isinstance(error, HTTPException):
            error = Refusal(500, str(error) or type(error).__name__)
        elif not isinstance(error, Refusal):
            why = f"{http.method[:20]} {http.url.path[:100]}: {error.detail}"
            error = Refusal(error.status_code, why, **(error.headers or {}))
        return error.response()

    @app.post("/v1/completions")
    async def complete(http: HttpRequest, asked: protocol.CompletionRequest) -> Response:
        prompts = [asked.prompt] if isinstance(asked.prompt, str) else asked.prompt
        return await service.write(http, asked, prompts, "prompt")

    @app.post("/v1/chat/completions")
    async def chat(http: HttpRequest, asked: protocol.ChatRequest) -> Response:
        return await service.write(http, asked, [service.render(asked.messages)], "messages")

    @app.post("/load_model")
    async def load_model(model: Annotated[str | None, Body(embed=True)] = None) -> Response:
        """What `transformers chat` waits for before it asks anything: here there is nothing to load."""
        service.check_name(model)
        loaded = json.dumps({"status": "ready", "model": service.name, "cached": True})
        return Response(f"data: {loaded}\n\n", media_type="text/event-stream")

    @app.get("/v1/models")
    async def models() -> dict[str, str | list[dict[str, str | int]]]:
        return {"object": "list", "data": [about]}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, str | int]:
        service.check_name(name)
        return about

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    return app
