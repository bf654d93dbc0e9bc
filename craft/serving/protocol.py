"""What clients may say and are told: OpenAI's completions and chats, and `generate`'s own settings."""

from __future__ import annotations

import json
from collections.abc import Mapping
from reprlib import repr as short
from typing import Annotated, Any, ClassVar

from fastapi import HTTPException, Response
from pydantic import BaseModel, BeforeValidator, Field, model_validator

from craft.utils.common import did_you_mean

# Fields that change nothing in the text; those that aren't supported; and what these say to ask for nothing.
NOTED = {"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"}
NOTED |= {"parallel_tool_calls"}
UNSUPPORTED = {"echo", "logprobs", "top_logprobs", "presence_penalty", "logit_bias", "suffix", "tools"}
UNSUPPORTED |= {"tool_choice", "functions", "response_format", "modalities"}
NOTHING: tuple[Any, ...] = (False, 0, "", [], {}, "none", "auto", ["text"], {"type": "text"})


class Refusal(HTTPException):
    """An answer instead of a text: a status, a sentence, the field it is about, and a word for programs."""

    def __init__(self, status: int, why: str, param: Any = None, code: Any = None, **headers: str) -> None:
        super().__init__(status, why, headers)
        kind = "invalid_request_error" if status < 500 else "server_error"
        kind = "rate_limit_error" if status == 429 else kind
        self.body = json.dumps({"error": {"message": why, "type": kind, "param": param, "code": code}})

    def response(self) -> Response:
        return Response(self.body, self.status_code, self.headers, "application/json")


def check(right: bool, why: str, param: str, code: str | None = None, status: int = 400) -> None:
    """Refuses a request in which something isn't right."""
    if not right:
        raise Refusal(status, why, param, code)


def refusal(wrong: Mapping[str, Any]) -> Refusal:
    """One of pydantic's errors as a sentence."""
    _, *names = wrong["loc"]
    if wrong["type"] == "json_invalid" or not names:
        why = wrong.get("ctx", {}).get("error", short(wrong["input"]))
        return Refusal(400, f"the request's body isn't a JSON object: {why}")
    value = "" if wrong["type"] == "missing" else f"={short(wrong['input'])}"
    return Refusal(400, f"{names[0]}{value}: {wrong['msg'][0].lower()}{wrong['msg'][1:]}", names[0])


def _text(content: Any) -> Any:
    parts = content if isinstance(content, list) else [content]
    texts: list[Any] = [part.get("text") if isinstance(part, dict) else part for part in parts]
    return "".join(texts) if all(isinstance(text, str) for text in texts) else content


Stop = Annotated[str, Field(min_length=1, max_length=1024)]


class Message(BaseModel):
    role: str
    content: Annotated[str, BeforeValidator(_text)]


class Settings(BaseModel, strict=True, allow_inf_nan=False):
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    frequency_penalty: float | None = Field(None, ge=0, le=2)
    min_p: float | None = Field(None, ge=0, le=1)
    typical_p: float | None = Field(None, gt=0, le=1)
    repetition_penalty: float | None = Field(None, ge=0.01, le=100)
    top_k: int | None = Field(None, ge=0)
    do_sample: bool | None = None

    def chosen(self) -> dict[str, Any]:
        """As fields of a GenerationConfig."""
        chosen = self.model_dump(include=set(Settings.model_fields), exclude_none=True)
        if "frequency_penalty" in chosen:  # of which transformers' own server makes the same
            chosen = {"repetition_penalty": 1 + chosen.pop("frequency_penalty"), **chosen}
        if chosen.get("temperature", 1) < 1e-3:  # a division would overflow
            chosen |= {"temperature": 1.0, "do_sample": False}
        return chosen


class Request(Settings, extra="allow"):
    """What completions and chats share. `generation_config` is a GenerationConfig as JSON in a text, as from
    `transformers chat`; what stands outside of it wins, and what is no setting of ours is left in it."""

    model: str | None = None
    stream: bool = False
    stream_options: dict[str, bool | None] = {}
    n: int = Field(1, ge=1)
    best_of: int | None = None
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
        said = {name: value for name, value in body.items() if value is not None}
        try:
            config = dict(json.loads(said.pop("generation_config", "{}")))
        except (TypeError, ValueError, RecursionError) as error:
            why = "generation_config must be a text that holds a JSON object"
            raise Refusal(400, f"{why}: {error}", "generation_config") from error
        names = {"max_new_tokens": "max_tokens", "stop_strings": "stop"} | {
            n: n for n in Settings.model_fields
        }
        ours = {names[name]: config.pop(name) for name in [*config] if name in names}
        ours = {name: value for name, value in ours.items() if value is not None}
        if "messages" in said and "max_completion_tokens" in said:
            said["max_tokens"] = said["max_completion_tokens"]
        return {**ours, **said, "generation_config": config}

    @model_validator(mode="after")
    def _check(self) -> Request:
        known = {*type(self).model_fields, *UNSUPPORTED, *NOTED}
        for name, value in (self.model_extra or {}).items():
            check(name in known, f"unknown field {name[:60]!r}{did_you_mean(name[:60], known)}", name[:60])
            right = name in NOTED or value in NOTHING
            check(right, f"{name}={short(value)} isn't supported; leave it out", name)
        why = f"best_of={short(self.best_of)} isn't supported unless it is n"
        check(self.best_of in (None, self.n), why, "best_of")
        return self


class CompletionRequest(Request):
    prompt: str | Annotated[list[str], Field(min_length=1)]


class ChatRequest(Request):
    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    objects: ClassVar = ("chat.completion", "chat.completion.chunk")

    def choice(self, index: int, text: str, finish: str | None = None, first: bool = False) -> Choice:
        said: dict[str, str] = {"content": text} if text or not self.stream else {}
        said |= {"role": "assistant"} if first or not self.stream else {}
        message, delta = (None, said) if self.stream else (said, None)
        return Choice(index=index, message=message, delta=delta, finish_reason=finish)


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
