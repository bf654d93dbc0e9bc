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
    Fields,
    length,
    settings,
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
        defaults: its generation config.
    """

    name: str
    tokenizer: CharTokenizer
    context: int | None
    limits: Limits
    called: tuple[str, ...] = ()
    defaults: Mapping[str, Any] = field(default_factory=dict)


def check(path: str, body: Mapping[str, Any], served: Served) -> list[tuple[dict[str, Any], Wish]]:
    """For each text to write the request for transformers' handler of `path`, and its wishes.

    The texts are the choices of the answer: `n` for the first prompt, then those for the next. A seed is that
    of the first for each prompt, and counts up from there.

    Raises:
        Refusal: for the first thing that is wrong with it.
    """
    own = "prompt" if path == COMPLETIONS else "messages"
    fields = Fields(path, body, served.defaults)
    _check_names(path, fields, own)
    check_name(fields, served)
    stream = fields.get("stream", False)
    if not isinstance(stream, bool):
        raise fields.wrong("stream", "must be true or false")
    asked: dict[str, Any] = {"model": served.name, "stream": stream}
    starts: list[Any]
    if path == COMPLETIONS:
        starts = texts = _prompts(fields)
    else:
        starts = [_messages(fields)]
        texts = [_rendered(starts[0], served.tokenizer)]
    copies = _copies(fields, len(texts), served.limits)
    for index, text in enumerate(texts):
        _check_text(text, own if len(texts) == 1 else f"{own}[{index}]", served)
    asked["max_tokens"] = length(fields, path, served.limits)
    sampling = settings(fields)
    asked |= {name: sampling.pop(name) for name in READ_BY_HANDLERS if name in sampling}
    seed = fields.get("seed")
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63):
        raise fields.wrong("seed", "must be a whole number from 0 to 2^63 - 1")
    wish = Wish(_stop(fields), seed, _usage(fields), sampling)
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
    name = body.get("model")
    if name not in (None, served.name, *served.called, NAMELESS):
        raise Refusal(
            404,
            f"there is no model {word(name)} here; this server has {served.name!r}",
            "model",
            "model_not_found",
        )


def _check_names(path: str, fields: Fields, own: str) -> None:
    known = (own, *LENGTHS[path], *PLAIN, *SETTINGS, *NOTED, *NEUTRAL)
    for key, value in fields.items():
        if key not in known:
            raise Refusal(400, f"unknown field {key[:60]!r}{did_you_mean(key[:60], known)}", key[:60])
        if key in NEUTRAL and value not in NEUTRAL[key]:
            raise fields.wrong(key, "isn't supported; leave it out")


def _prompts(fields: Fields) -> list[str]:
    prompt = fields.get("prompt")
    prompts: list[Any] = prompt if isinstance(prompt, list) else [prompt]
    if not prompts or not all(isinstance(text, str) for text in prompts):
        raise fields.wrong("prompt", "must be a text, or a list of texts")
    return prompts


def _copies(fields: Fields, prompts: int, limits: Limits) -> int:
    """How many texts to write for each prompt."""
    copies = fields.get("n", 1)
    if isinstance(copies, bool) or not isinstance(copies, int) or copies < 1:
        raise fields.wrong("n", "must be a whole number, at least 1")
    if fields.get("best_of", copies) != copies:
        raise fields.wrong("best_of", "isn't supported unless it is n; leave it out")
    if (texts := prompts * copies) > limits.max_requests:
        wrong = f"{word(texts)} texts in one request; this server writes {limits.max_requests} at once"
        raise Refusal(400, wrong, "n" if prompts <= limits.max_requests else "prompt")
    return copies


def _messages(fields: Fields) -> list[dict[str, str]]:
    messages = fields.get("messages")
    if not isinstance(messages, list) or not messages:
        raise fields.wrong("messages", "must be a list of at least one message")
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


def _stop(fields: Fields) -> tuple[str, ...]:
    stop = fields.get("stop", [])
    texts = [stop] if isinstance(stop, str) else stop
    if not isinstance(texts, list) or not all(isinstance(text, str) and text for text in texts):
        raise fields.wrong("stop", "must be a text or a list of texts, none empty")
    if len(texts) > 16 or any(len(text) > 1024 for text in texts):
        raise fields.wrong("stop", "must be at the most 16 texts of 1,024 characters")
    return tuple(texts)


def _usage(fields: Fields) -> bool:
    options = fields.get("stream_options", {})
    wanted = options.get("include_usage") or False if isinstance(options, dict) else None
    if not isinstance(wanted, bool):
        raise fields.wrong("stream_options", "must be an object with include_usage true or false")
    return wanted
