"""What a request to the server may say: checked as a whole before anything is written.

`check` returns the request as transformers' handlers should see it, and what they can't be told (`Wish`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from craft.serving.limits import Limits
from craft.utils.common import SAMPLE_CHARACTERS, UserError, did_you_mean

if TYPE_CHECKING:
    from craft.data.tokenization import CharTokenizer

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"

LENGTHS = {COMPLETIONS: ("max_tokens",), CHAT: ("max_completion_tokens", "max_tokens")}
SAMPLING = ("model", "stream", "temperature", "top_p", "frequency_penalty", "seed", "stop")
NOTED = (
    "user",
    "metadata",
    "store",
    "service_tier",
    "stream_options",
    "safety_identifier",
    "prompt_cache_key",
)
"""Fields that change nothing in the text, and are let pass."""
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "echo": (False,),
    "logprobs": (0, False),
    "top_logprobs": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "suffix": ("",),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
}
"""Fields of the protocol that aren't supported, with the values that ask for nothing."""

LEAST_TEMPERATURE = 1e-3
"""Below it a division overflows, and the likeliest character is all that is left anyway."""


class Refusal(Exception):
    """An answer instead of a text.

    Args:
        status: of HTTP.
        message: a sentence.
        param: the field it is about.
        code: a word for programs.
        header: what HTTP wants to be said beside this status.
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        header: tuple[bytes, bytes] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code, self.header = status, message, param, code, header

    def body(self) -> bytes:
        """As OpenAI's clients read it."""
        kind = {429: "rate_limit_error", 503: "server_error"}.get(self.status, "invalid_request_error")
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return json.dumps({"error": error}, ensure_ascii=False).encode("utf-8", "replace")


@dataclass(frozen=True)
class Wish:
    """What a request wants that transformers' handlers don't pass on."""

    stop: tuple[str, ...] = ()
    seed: int | None = None
    usage: bool = False
    """Counts in a last piece of their own, where the answer is a stream."""


WISH: ContextVar[Wish] = ContextVar("WISH")
"""Of the request that is being handled."""


@dataclass(frozen=True)
class Served:
    """The model that answers, as far as checking a request needs it."""

    name: str
    tokenizer: CharTokenizer
    context: int | None
    limits: Limits


def parse(raw: bytes) -> dict[str, Any]:
    """The JSON object of a request.

    Raises:
        Refusal: if it is none.
    """
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise Refusal(400, f"the request's body isn't JSON: {error}") from error
    if not isinstance(body, dict):
        raise Refusal(400, f"the request's body must be a JSON object, not {_word(body)}")
    return body


def check(path: str, body: Mapping[str, Any], served: Served) -> tuple[dict[str, Any], Wish]:
    """The request for transformers' handler of `path`, and its wishes.

    Raises:
        Refusal: for the first thing that is wrong with it.
    """
    own = "prompt" if path == COMPLETIONS else "messages"
    body = {key: value for key, value in body.items() if value is not None}
    _check_names(path, body, own)
    name = body.get("model", served.name)
    if name != served.name:
        raise Refusal(
            404,
            f"there is no model {_word(name)} here; this server has {served.name!r}",
            "model",
            "model_not_found",
        )
    stream = body.get("stream", False)
    if not isinstance(stream, bool):
        raise Refusal(400, f"stream={_word(stream)} must be true or false", "stream")
    asked: dict[str, Any] = {"model": served.name, "stream": stream}
    if path == COMPLETIONS:
        asked["prompt"] = text = _prompt(body)
    else:
        asked["messages"] = _messages(body)
        text = _rendered(asked["messages"], served.tokenizer)
    _check_text(text, own, served)
    asked["max_tokens"] = _length(body, LENGTHS[path], served.limits)
    asked |= _sampling(body)
    seed = body.get("seed")
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63):
        raise Refusal(400, f"seed={_word(seed)} must be a whole number from 0 to 2^63 - 1", "seed")
    return asked, Wish(_stop(body), seed, _usage(body))


def _check_names(path: str, body: Mapping[str, Any], own: str) -> None:
    known = (own, *LENGTHS[path], *SAMPLING, *NOTED, *NEUTRAL)
    for key, value in body.items():
        if key not in known:
            raise Refusal(400, f"unknown field {key[:60]!r}{did_you_mean(key[:60], known)}", key[:60])
        if key in NEUTRAL and value not in NEUTRAL[key]:
            raise Refusal(400, f"{key}={_word(value)} isn't supported; leave it out", key)


def _prompt(body: Mapping[str, Any]) -> str:
    prompt = body.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    if isinstance(prompt, list) and prompt and all(isinstance(item, str) for item in prompt):
        raise Refusal(400, f"{len(prompt)} prompts in one request; send a request for each", "prompt")
    if not isinstance(prompt, str):
        raise Refusal(400, f"prompt={_word(prompt)} must be a text", "prompt")
    return prompt


def _messages(body: Mapping[str, Any]) -> list[dict[str, str]]:
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise Refusal(400, f"messages={_word(messages)} must be a list of at least one message", "messages")
    plain = []
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise Refusal(400, f"{where} must be an object with a role and a content", where)
        content = message.get("content")
        if isinstance(content, list):
            parts = [part.get("text") if isinstance(part, dict) else part for part in content]
            texts = [part for part in parts if isinstance(part, str)]
            content = "".join(texts) if len(texts) == len(parts) else None
        if not isinstance(content, str):
            raise Refusal(400, f"{where}.content must be text; this model reads nothing else", where)
        plain.append({"role": message["role"], "content": content})
    return plain


def _rendered(messages: list[dict[str, str]], tokenizer: CharTokenizer) -> str:
    """The messages as the model reads them."""
    if not tokenizer.chat_template:
        raise Refusal(
            400,
            f"this model has no chat template; send a prompt to {COMPLETIONS}",
            "messages",
            "no_chat_template",
        )
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except Exception as error:  # a template is a program, which may stumble over anything in them
        reason = str(error) or type(error).__name__
        raise Refusal(
            400, f"the chat template can't read these messages: {reason[:200]}", "messages"
        ) from error
    return str(text)


def _check_text(text: str, field: str, served: Served) -> None:
    if not text:
        raise Refusal(400, f"{field} is empty; give at least one character, for example a line break", field)
    try:
        length = len(served.tokenizer.encode_ids(text, f"the {field}"))
    except UserError as error:
        raise Refusal(400, str(error), field, "unknown_character") from error
    longest = served.limits.prompt(served.context)
    if length > longest:
        known = served.context is not None and longest == served.context
        what = "the model's context" if known else "the longest that this server reads"
        raise Refusal(
            400, f"{field} has {length:,} characters, {what} is {longest:,}", field, "context_length_exceeded"
        )


def _length(body: Mapping[str, Any], fields: tuple[str, ...], limits: Limits) -> int:
    """How many characters to write."""
    for field in fields:
        wanted = body.get(field)
        if wanted is None:
            continue
        if isinstance(wanted, bool) or not isinstance(wanted, int) or wanted < 1:
            raise Refusal(400, f"{field}={_word(wanted)} must be a whole number, at least 1", field)
        if wanted > limits.max_tokens:
            raise Refusal(
                400, f"{field}={_word(wanted)} is more than this server's {limits.max_tokens}", field
            )
        return wanted
    return min(SAMPLE_CHARACTERS, limits.max_tokens)


def _sampling(body: Mapping[str, Any]) -> dict[str, float]:
    chosen = {}
    ranges = {"temperature": (0, 2), "top_p": (math.ulp(0), 1), "frequency_penalty": (0, 2)}
    for field, (low, high) in ranges.items():
        value = body.get(field)
        if value is None:
            continue
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not low <= value <= high:
            above = "above 0 and at most 1" if field == "top_p" else f"from {low} to {high}"
            raise Refusal(400, f"{field}={_word(value)} must be a number {above}", field)
        chosen[field] = float(value)
    if chosen.get("temperature", 1) < LEAST_TEMPERATURE:
        chosen["temperature"] = 0.0
    return chosen


def _stop(body: Mapping[str, Any]) -> tuple[str, ...]:
    stop = body.get("stop", [])
    texts = [stop] if isinstance(stop, str) else stop
    if not isinstance(texts, list) or not all(isinstance(text, str) and text for text in texts):
        raise Refusal(400, f"stop={_word(stop)} must be a text or a list of texts, none empty", "stop")
    if len(texts) > 16 or any(len(text) > 1024 for text in texts):
        raise Refusal(400, "stop may have 16 texts of 1,024 characters at the most", "stop")
    return tuple(texts)


def _usage(body: Mapping[str, Any]) -> bool:
    options = body.get("stream_options", {})
    wanted = options.get("include_usage") or False if isinstance(options, dict) else None
    if not isinstance(wanted, bool):
        raise Refusal(
            400,
            f"stream_options={_word(options)} must be an object with include_usage true or false",
            "stream_options",
        )
    return wanted


def _word(value: Any) -> str:
    """A value as it was sent, if that is short."""
    try:
        written = json.dumps(value)
    except RecursionError:  # as deep as can just be read
        return "a value of so many levels"
    return written if len(written) <= 60 else f"{written[:57]}…"
