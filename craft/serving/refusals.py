"""Answers instead of a text, and reading what a request may hold anything in."""

from __future__ import annotations

import json
from typing import Any


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
        other = "server_error" if self.status >= 500 else "invalid_request_error"
        kind = "rate_limit_error" if self.status == 429 else other
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return json.dumps({"error": error}, ensure_ascii=False).encode("utf-8", "replace")


def parse(raw: bytes | str, field: str | None = None) -> dict[str, Any]:
    """The JSON object of a request, or of a field in it.

    Raises:
        Refusal: if it is none.
    """
    what = field or "the request's body"
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise Refusal(400, f"{what} isn't JSON: {error}", field) from error
    if not isinstance(body, dict):
        raise Refusal(400, f"{what} must be a JSON object, not {word(body)}", field)
    return body


def word(value: Any) -> str:
    """A value as it was sent, if that is short."""
    try:
        written = json.dumps(value)
    except RecursionError:  # as deep as can just be read
        return "a value of so many levels"
    return written if len(written) <= 60 else f"{written[:57]}…"
