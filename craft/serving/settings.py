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


class Fields(dict[str, Any]):
    """The fields of a request that say something, with those inside its `generation_config` among them.

    That is a GenerationConfig as JSON in a text, by which `transformers chat` says what OpenAI's protocol has
    no words for. What stands outside of it wins; what repeats the model's own asks for nothing.

    Args:
        path: of the request.
        body: its fields as they were sent.
        defaults: the model's generation config.

    Raises:
        Refusal: for a `generation_config` that isn't JSON, or says what isn't supported.
    """

    def __init__(self, path: str, body: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
        super().__init__(
            {key: value for key, value in body.items() if value is not None and key != "generation_config"}
        )
        self._inside: dict[str, str] = {}
        taken = {*self, "max_tokens"} if any(name in self for name in LENGTHS[path]) else set(self)
        written = body.get("generation_config")
        if written is not None and not isinstance(written, str):
            wrong = f"generation_config={word(written)} must be a text that holds a JSON object"
            raise Refusal(400, wrong, "generation_config")
        for key, value in parse(written or "{}", "generation_config").items():
            name = ELSEWHERE.get(key, key)
            if value is None:
                continue
            if name in (*SETTINGS, "max_tokens", "stop"):
                if name not in taken:
                    self[name], self._inside[name] = value, key
            elif value != defaults.get(key) and key != "transformers_version":
                wrong = f"generation_config.{key[:60]}={word(value)} isn't supported; leave it out"
                raise Refusal(400, wrong, "generation_config")

    def wrong(self, name: str, why: str) -> Refusal:
        """What to raise for the value of a field, which it quotes as it was sent."""
        if name in self._inside:
            where, field = f"generation_config.{self._inside[name]}", "generation_config"
        else:
            where = field = name
        return Refusal(400, f"{where}={word(self.get(name))} {why}", field)


def length(fields: Fields, path: str, limits: Limits) -> int:
    """How many characters to write.

    Raises:
        Refusal: if that is no whole number from 1 to the server's limit.
    """
    for name in LENGTHS[path]:
        wanted = fields.get(name)
        if wanted is None:
            continue
        if isinstance(wanted, bool) or not isinstance(wanted, int) or wanted < 1:
            raise fields.wrong(name, "must be a whole number, at least 1")
        if wanted > limits.max_tokens:
            raise fields.wrong(name, f"is more than this server's {limits.max_tokens}")
        return wanted
    return min(SAMPLE_CHARACTERS, limits.max_tokens)


def settings(fields: Fields) -> dict[str, Any]:
    """How the next character is chosen, under the names of `SETTINGS`.

    Raises:
        Refusal: for a value of another type, or out of its range.
    """
    chosen: dict[str, Any] = {}
    for name in SETTINGS:
        value = fields.get(name)
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
            raise fields.wrong(name, f"must be {words}")
        chosen[name] = float(value) if name in RANGES else value
    if chosen.get("temperature", 1) < LEAST_TEMPERATURE:
        chosen |= {"temperature": 0.0, "do_sample": False}
    return chosen
