"""What a request to the server may say: checked as a whole before anything is written.

`check` returns the request as transformers' handlers should see it, and what they can't be told (`Wish`).
"""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from craft.serving.limits import Limits
from craft.serving.refusals import Refusal, word
from craft.serving.settings import (
    COMPLETIONS,
    LENGTHS,
    READ_BY_HANDLERS,
    SETTINGS,
    length,
    settings,
    unpacked,
)
from craft.utils.common import UserError, did_you_mean

if TYPE_CHECKING:
    from craft.data.tokenization import CharTokenizer

PLAIN = ("model", "stream", "n", "best_of", "seed", "stop")
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
    "echo": (False,),
    "logprobs": (0, False),
    "top_logprobs": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "suffix": ("",),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "functions": ([],),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
}
"""Fields of the protocol that aren't supported, with the values that ask for nothing."""

NAMELESS = "dummy"
"""What huggingface_hub's InferenceClient says where its user named no model."""


@dataclass(frozen=True)
class Wish:
    """What a request wants that transformers' handlers don't pass on."""

    stop: tuple[str, ...] = ()
    seed: int | None = None
    usage: bool = False
    """Counts in a last piece of their own, where the answer is a stream."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the GenerationConfig."""


WISH: ContextVar[Wish] = ContextVar("WISH")
"""Of the request that is being handled."""


@dataclass(frozen=True)
class Served:
    """The model that answers, as far as checking a request needs it.

    Args:
        called: other names by which it may be asked for.
        own: its generation config; what a request repeats of it asks for nothing.
    """

    name: str
    tokenizer: CharTokenizer
    context: int | None
    limits: Limits
    called: tuple[str, ...] = ()
    own: Mapping[str, Any] = field(default_factory=dict)


def check(path: str, body: Mapping[str, Any], served: Served) -> list[tuple[dict[str, Any], Wish]]:
    """For each text to write the request for transformers' handler of `path`, and its wishes.

    The texts are the choices of the answer: `n` for the first prompt, then those for the next. A seed is that
    of the first for each prompt, and counts up from there.

    Raises:
        Refusal: for the first thing that is wrong with it.
    """
    own = "prompt" if path == COMPLETIONS else "messages"
    body = unpacked(path, body, served.own)
    _check_names(path, body, own)
    check_name(body, served)
    stream = body.get("stream", False)
    if not isinstance(stream, bool):
        raise Refusal(400, f"stream={word(stream)} must be true or false", "stream")
    asked: dict[str, Any] = {"model": served.name, "stream": stream}
    starts: list[Any]
    if path == COMPLETIONS:
        starts = texts = _prompts(body)
    else:
        starts = [_messages(body)]
        texts = [_rendered(starts[0], served.tokenizer)]
    copies = _copies(body, len(texts), served.limits)
    for index, text in enumerate(texts):
        _check_text(text, own if len(texts) == 1 else f"{own}[{index}]", served)
    asked["max_tokens"] = length(body, path, served.limits)
    sampling = settings(body)
    asked |= {name: sampling.pop(name) for name in READ_BY_HANDLERS if name in sampling}
    seed = body.get("seed")
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63):
        raise Refusal(400, f"seed={word(seed)} must be a whole number from 0 to 2^63 - 1", "seed")
    wish = Wish(_stop(body), seed, _usage(body), sampling)
    return [
        ({**asked, own: start}, wish if seed is None else replace(wish, seed=(seed + copy) % 2**63))
        for start in starts
        for copy in range(copies)
    ]


def check_name(body: Mapping[str, Any], served: Served) -> None:
    """Refuses a request for another model than is served.

    Raises:
        Refusal: with status 404.
    """
    name = body.get("model", served.name)
    if name not in (served.name, *served.called, NAMELESS):
        raise Refusal(
            404,
            f"there is no model {word(name)} here; this server has {served.name!r}",
            "model",
            "model_not_found",
        )


def _check_names(path: str, body: Mapping[str, Any], own: str) -> None:
    known = (own, *LENGTHS[path], *PLAIN, *SETTINGS, *NOTED, *NEUTRAL)
    for key, value in body.items():
        if key not in known:
            raise Refusal(400, f"unknown field {key[:60]!r}{did_you_mean(key[:60], known)}", key[:60])
        if key in NEUTRAL and value not in NEUTRAL[key]:
            raise Refusal(400, f"{key}={word(value)} isn't supported; leave it out", key)


def _prompts(body: Mapping[str, Any]) -> list[str]:
    prompt = body.get("prompt")
    prompts: list[Any] = prompt if isinstance(prompt, list) else [prompt]
    if not prompts or not all(isinstance(text, str) for text in prompts):
        raise Refusal(400, f"prompt={word(prompt)} must be a text, or a list of texts", "prompt")
    return prompts


def _copies(body: Mapping[str, Any], prompts: int, limits: Limits) -> int:
    """How many texts to write for each prompt."""
    copies = body.get("n", 1)
    if isinstance(copies, bool) or not isinstance(copies, int) or copies < 1:
        raise Refusal(400, f"n={word(copies)} must be a whole number, at least 1", "n")
    if body.get("best_of", copies) != copies:
        wrong = f"best_of={word(body['best_of'])} isn't supported unless it is n; leave it out"
        raise Refusal(400, wrong, "best_of")
    if (texts := prompts * copies) > limits.max_requests:
        wrong = f"{word(texts)} texts in one request; this server writes {limits.max_requests} at once"
        raise Refusal(400, wrong, "n" if prompts <= limits.max_requests else "prompt")
    return copies


def _messages(body: Mapping[str, Any]) -> list[dict[str, str]]:
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise Refusal(400, f"messages={word(messages)} must be a list of at least one message", "messages")
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
        characters = len(served.tokenizer.encode_ids(text, field if "[" in field else f"the {field}"))
    except UserError as error:
        raise Refusal(400, str(error), field, "unknown_character") from error
    longest = served.limits.prompt(served.context)
    if characters > longest:
        known = served.context is not None and longest == served.context
        what = "the model's context" if known else "the longest that this server reads"
        raise Refusal(
            400,
            f"{field} has {characters:,} characters, {what} is {longest:,}",
            field,
            "context_length_exceeded",
        )


def _stop(body: Mapping[str, Any]) -> tuple[str, ...]:
    stop = body.get("stop", [])
    texts = [stop] if isinstance(stop, str) else stop
    if not isinstance(texts, list) or not all(isinstance(text, str) and text for text in texts):
        raise Refusal(400, f"stop={word(stop)} must be a text or a list of texts, none empty", "stop")
    if len(texts) > 16 or any(len(text) > 1024 for text in texts):
        raise Refusal(400, "stop may have 16 texts of 1,024 characters at the most", "stop")
    return tuple(texts)


def _usage(body: Mapping[str, Any]) -> bool:
    options = body.get("stream_options", {})
    wanted = options.get("include_usage") or False if isinstance(options, dict) else None
    if not isinstance(wanted, bool):
        raise Refusal(
            400,
            f"stream_options={word(options)} must be an object with include_usage true or false",
            "stream_options",
        )
    return wanted
