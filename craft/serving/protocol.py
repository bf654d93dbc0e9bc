"""What clients may say and are told: OpenAI's completions and chats, and `generate`'s own settings."""

from __future__ import annotations

import json
from collections.abc import Mapping
from reprlib import repr as short
from typing import Annotated, Any, ClassVar

from fastapi import HTTPException, Response
from pydantic import BaseModel, BeforeValidator, Field, model_validator

from craft.utils.common import did_you_mean

IGNORED = {"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"}
IGNORED |= {"parallel_tool_calls"}
UNSUPPORTED = {"echo", "logprobs", "top_logprobs", "logit_bias", "suffix", "tools", "tool_choice", "best_of"}
UNSUPPORTED |= {"functions", "response_format", "modalities", "presence_penalty", "frequency_penalty"}
NEUTRAL: tuple[Any, ...] = (False, 0, "", [], {}, "none", "auto", ["text"], {"type": "text"})
"""Values of unsupported fields that ask for nothing."""


class Refusal(HTTPException):
    """An answer instead of a text: a status, a sentence, the field it is about, and a word for programs."""

    def __init__(self, status: int, why: str, param: Any = None, code: Any = None, **headers: str) -> None:
        super().__init__(status, why, headers)
        kind = "server_error" if status >= 500 else "invalid_request_error"
        kind = "rate_limit_error" if status == 429 else kind
        self.body = json.dumps({"error": {"message": why, "type": kind, "param": param, "code": code}})

    def response(self) -> Response:
        return Response(self.body, self.status_code, self.headers, "application/json")


def require(condition: bool, why: str, param: str, code: str | None = None, status: int = 400) -> None:
    """Refuses a request unless the condition holds."""
    if not condition:
        raise Refusal(status, why, param, code)


def invalid_field(error: Mapping[str, Any]) -> Refusal:
    """One of pydantic's errors as a sentence."""
    _, *names = error["loc"]
    if error["type"] == "json_invalid" or not names:
        return Refusal(400, "the request's body isn't a JSON object")
    value = "" if error["type"] == "missing" else f"={short(error['input'])}"
    return Refusal(400, f"{names[0]}{value}: {error['msg']}", names[0])


def _joined(content: Any) -> Any:
    """The content of a message as one text, where it is a list of texts."""
    parts = content if isinstance(content, list) else [content]
    texts: list[Any] = [part.get("text") if isinstance(part, dict) else part for part in parts]
    return "".join(texts) if all(isinstance(text, str) for text in texts) else content


Stop = Annotated[str, Field(min_length=1, max_length=1024)]


class Message(BaseModel):
    role: str
    content: Annotated[str, BeforeValidator(_joined)]


class Settings(BaseModel, strict=True, allow_inf_nan=False):
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    min_p: float | None = Field(None, ge=0, le=1)
    typical_p: float | None = Field(None, gt=0, le=1)
    repetition_penalty: float | None = Field(None, ge=0.01, le=100)
    top_k: int | None = Field(None, ge=0)
    do_sample: bool | None = None

    def generation_settings(self) -> dict[str, Any]:
        """As fields of a GenerationConfig."""
        chosen = self.model_dump(include=set(Settings.model_fields), exclude_none=True)
        if chosen.get("temperature", 1) < 1e-3:  # a division would overflow
            chosen |= {"temperature": 1.0, "do_sample": False}
        return chosen


class GenerationRequest(Settings, extra="allow"):
    """What completions and chats share. `generation_config` is a GenerationConfig as JSON in a text, as from
    `transformers chat`; what stands outside of it wins, and what is no setting of ours is left in it."""

    model: str | None = None
    stream: bool = False
    stream_options: dict[str, bool | None] = {}
    n: int = Field(1, ge=1)
    seed: int | None = Field(None, ge=0, lt=2**63)
    max_tokens: int | None = Field(None, ge=1)
    stop: Stop | Annotated[list[Stop], Field(max_length=16)] = []
    generation_config: dict[str, Any] = {}
    objects: ClassVar = ("text_completion", "text_completion")

    def choice(self, index: int, text: str, finish: str | None = None, first: bool = False) -> Choice:
        """A text, or a piece of it in a stream."""
        return Choice(index=index, text=text, finish_reason=finish)

    @model_validator(mode="before")
    @classmethod
    def _unpack(cls, body: Any) -> Any:
        if not isinstance(body, dict):
            return body
        given = {name: value for name, value in body.items() if value is not None}
        try:
            config = dict(json.loads(given.pop("generation_config", "{}")))
        except (TypeError, ValueError, RecursionError) as error:
            raise Refusal(400, f"generation_config isn't JSON: {error}", "generation_config") from error
        names = {name: name for name in Settings.model_fields}
        names |= {"max_new_tokens": "max_tokens", "stop_strings": "stop"}
        ours = {names[name]: config.pop(name) for name in [*config] if name in names}
        ours = {name: value for name, value in ours.items() if value is not None}
        if "messages" in given and "max_completion_tokens" in given:
            given["max_tokens"] = given["max_completion_tokens"]
        return {**ours, **given, "generation_config": config}

    @model_validator(mode="after")
    def _check(self) -> GenerationRequest:
        known = {*type(self).model_fields, *UNSUPPORTED, *IGNORED}
        for name, value in (self.model_extra or {}).items():
            require(name in known, f"unknown field {name[:60]!r}{did_you_mean(name[:60], known)}", name[:60])
            asks_nothing = name in IGNORED or value in NEUTRAL
            require(asks_nothing, f"{name}={short(value)} isn't supported; leave it out", name)
        return self


class CompletionRequest(GenerationRequest):
    prompt: str | Annotated[list[str], Field(min_length=1)]


class ChatRequest(GenerationRequest):
    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    objects: ClassVar = ("chat.completion", "chat.completion.chunk")

    def choice(self, index: int, text: str, finish: str | None = None, first: bool = False) -> Choice:
        if not self.stream:
            message = {"role": "assistant", "content": text}
            return Choice(index=index, message=message, finish_reason=finish)
        delta = {"role": "assistant"} if first else {"content": text} if text else {}
        return Choice(index=index, delta=delta, finish_reason=finish)


class Choice(BaseModel):
    index: int
    text: str | None = None
    message: dict[str, str] | None = None
    delta: dict[str, str] | None = None
    finish_reason: str | None


class Answer(BaseModel):
    id: str
    object: str
    created: int
    model: str
    choices: list[Choice] = []
    usage: dict[str, int] | None = None
