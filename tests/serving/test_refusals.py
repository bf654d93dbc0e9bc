"""What is answered instead of a text, and what is no JSON."""

from __future__ import annotations

import json

import pytest

from craft.serving.refusals import Refusal, parse


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"\xff", b"[" * 100_000, b'{"a": ' + b"9" * 5000 + b"}"])
def test_what_is_no_json_object_is_refused(raw: bytes) -> None:
    with pytest.raises(Refusal) as caught:
        parse(raw)
    assert (caught.value.status, caught.value.param) == (400, None)
    assert caught.value.message.startswith("the request's body ")


def test_a_refusal_reads_as_openais_clients_expect() -> None:
    kinds = {400: "invalid_request_error", 429: "rate_limit_error", 500: "server_error", 503: "server_error"}
    for status, kind in kinds.items():
        said = json.loads(Refusal(status, "why", "field", "word").body())
        assert said == {"error": {"message": "why", "type": kind, "param": "field", "code": "word"}}
