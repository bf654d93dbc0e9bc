"""How a request wants its text written: what transformers' handlers read, and what only `generate` knows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from craft.serving.limits import Limits
from craft.serving.refusals import Refusal, parse, word
from craft.utils.common import SAMPLE_CHARACTERS

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
LENGTHS = {COMPLETIONS: ("max_tokens",), CHAT: ("max_completion_tokens", "max_tokens")}
RANGES: dict[str, tuple[float, float]] = {
    "temperature": (0, 2),
    "top_p": (math.ulp(0), 1),
    "frequency_penalty": (0, 2),
    "min_p": (0, 1),
    "typical_p": (math.ulp(0), 1),
    "repetition_penalty": (0.01, 100),
}
SETTINGS = (*RANGES, "top_k", "do_sample")
READ_BY_HANDLERS = ("temperature", "top_p", "frequency_penalty")
ELSEWHERE = {"max_new_tokens": "max_tokens", "stop_strings": "stop"}
"""What a GenerationConfig calls them."""

LEAST_TEMPERATURE = 1e-3
"""Below it a division overflows, and the likeliest character is all that is left anyway."""


def unpacked(path: str, body: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that say something, with those of `generation_config` among them.

    That is a GenerationConfig as JSON in a text, by which `transformers chat` says what OpenAI's protocol has
    no words for. What stands outside of it wins; what repeats the model's `own` config asks for nothing.

    Raises:
        Refusal: for a field that isn't supported.
    """
    given: dict[str, Any] = {}
    written = body.get("generation_config")
    if written is not None and not isinstance(written, str):
        raise Refusal(400, "generation_config must be a text that holds a JSON object", "generation_config")
    for key, value in parse(written or "{}", "generation_config").items():
        name = ELSEWHERE.get(key, key)
        if name in (*SETTINGS, "max_tokens", "stop"):
            given[name] = value
        elif value is not None and value != own.get(key) and key != "transformers_version":
            wrong = f"generation_config.{key[:60]}={word(value)} isn't supported; leave it out"
            raise Refusal(400, wrong, "generation_config")
    if any(body.get(name) is not None for name in LENGTHS[path]):
        given.pop("max_tokens", None)
    outside = {key: value for key, value in body.items() if value is not None and key != "generation_config"}
    return {key: value for key, value in given.items() if value is not None} | outside


def length(body: Mapping[str, Any], path: str, limits: Limits) -> int:
    """How many characters to write."""
    for name in LENGTHS[path]:
        wanted = body.get(name)
        if wanted is None:
            continue
        if isinstance(wanted, bool) or not isinstance(wanted, int) or wanted < 1:
            raise Refusal(400, f"{name}={word(wanted)} must be a whole number, at least 1", name)
        if wanted > limits.max_tokens:
            raise Refusal(400, f"{name}={word(wanted)} is more than this server's {limits.max_tokens}", name)
        return wanted
    return min(SAMPLE_CHARACTERS, limits.max_tokens)


def settings(body: Mapping[str, Any]) -> dict[str, Any]:
    """How the next character is chosen, under the names of `SETTINGS`."""
    chosen: dict[str, Any] = {}
    for name in SETTINGS:
        value = body.get(name)
        if value is None:
            continue
        if name == "do_sample":
            right, words = isinstance(value, bool), "true or false"
        elif isinstance(value, bool) or not isinstance(value, (int, float)):
            right, words = False, "a number"
        elif name == "top_k":
            right, words = isinstance(value, int) and value >= 0, "a whole number, 0 (all) or more"
        else:
            low, high = RANGES[name]
            above = "above 0 and at most 1" if low == math.ulp(0) else f"from {low:g} to {high:g}"
            right, words = low <= value <= high, f"a number {above}"
        if not right:
            raise Refusal(400, f"{name}={word(value)} must be {words}", name)
        chosen[name] = float(value) if name in RANGES else value
    if chosen.get("temperature", 1) < LEAST_TEMPERATURE:
        chosen |= {"temperature": 0.0, "do_sample": False}
    return chosen
