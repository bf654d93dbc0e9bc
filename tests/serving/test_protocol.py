"""What a request may say: every field's limits, what is made of it, and what is refused with its value."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("fastapi")

from craft.serving.protocol import ChatRequest, CompletionRequest, Refusal

from .conftest import CONTEXT

Serve = Callable[..., Any]
COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
SAID = [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]
BAD: list[tuple[dict[str, Any], str]] = [
    ({"prompt": ""}, "empty"),
    ({"prompt": None}, "required"),
    ({"prompt": ["a"] * 33}, "33"),
    ({"prompt": []}, "[]"),
    ({"prompt": [[1, 2]]}, "[1, 2]"),
    ({"prompt": "9 Ä"}, "(U+0020) at position 1"),
    ({"prompt": "\ud800"}, "U+D800"),
    ({"prompt": "a" * (CONTEXT + 1)}, f"{CONTEXT + 1} characters"),
    ({"max_tokens": -1}, "-1"),
    ({"max_tokens": 0}, "0"),
    ({"max_tokens": 1.5}, "1.5"),
    ({"max_tokens": True}, "True"),
    ({"max_tokens": 4097}, "4097"),
    ({"max_completion_tokens": 1}, "'max_completion_tokens'"),
    ({"temperature": -1}, "-1"),
    ({"temperature": 2.1}, "2.1"),
    ({"temperature": float("nan")}, "nan"),
    ({"temperature": "hot"}, "'hot'"),
    ({"temperature": True}, "True"),
    ({"top_p": 0}, "0"),
    ({"top_p": 1.1}, "1.1"),
    ({"frequency_penalty": 0.5}, "0.5"),
    ({"seed": -1}, "-1"),
    ({"seed": 2**63}, str(2**63)),
    ({"seed": True}, "True"),
    ({"seed": 1.0}, "1.0"),
    ({"stop": ["a", ""]}, "''"),
    ({"stop": ["a", 1]}, "1"),
    ({"stop": 7}, "7"),
    ({"stop": ["a"] * 17}, "16"),
    ({"stop": "a" * 1025}, "'aaaa"),
    ({"stream": "yes"}, "'yes'"),
    ({"stream": 1}, "1"),
    ({"stream_options": True}, "True"),
    ({"stream_options": {"include_usage": 1}}, "1"),
    ({"n": 0}, "0"),
    ({"n": True}, "True"),
    ({"n": 33}, "33"),
    ({"best_of": 3}, "3"),
    ({"min_p": 1.1}, "1.1"),
    ({"typical_p": 0}, "0"),
    ({"repetition_penalty": 0}, "0"),
    ({"do_sample": 1}, "1"),
    ({"top_k": 1.5}, "1.5"),
    ({"top_k": True}, "True"),
    ({"logprobs": 3}, "3"),
    ({"presence_penalty": 0.5}, "0.5"),
    ({"echo": True}, "True"),
    ({"tools": [{"type": "function"}]}, "function"),
    ({"messages": []}, "messages"),
    ({"temprature": 1}, "'temperature'"),
    ({"generation_config": "{"}, "JSON"),
    ({"generation_config": "[1]"}, "JSON"),
    ({"generation_config": {"top_k": 3}}, "JSON"),
    ({"generation_config": '{"num_beams": 3}'}, "num_beams=3"),
    ({"generation_config": '{"eos_token_id": 7}'}, "eos_token_id=7"),
    ({"generation_config": '{"seed": 5}'}, "seed=5"),
]


@pytest.fixture(scope="module")
def client() -> Any:
    from .conftest import make_model, serving

    with serving() as serve:
        yield serve(make_model())


@pytest.mark.parametrize(("wrong", "value"), BAD, ids=[str(wrong)[:40] for wrong, _ in BAD])
def test_a_bad_request_is_told_the_field_and_its_value(
    client: Any, wrong: dict[str, Any], value: str
) -> None:
    answer = client.post(COMPLETIONS, content=json.dumps({"prompt": "a", **wrong}), headers=JSON)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, next(iter(wrong)))
    assert value in error["message"]
    assert len(error["message"]) < 400


JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize(
    ("inside", "field", "value"),
    [
        ({"max_new_tokens": 0}, "max_tokens", "0"),
        ({"max_new_tokens": "many"}, "max_tokens", "'many'"),
        ({"max_new_tokens": 9999}, "max_tokens", "9999"),
        ({"stop_strings": 7}, "stop", "7"),
        ({"top_k": -1}, "top_k", "-1"),
    ],
)
def test_a_bad_value_inside_a_generation_config_is_named(
    client: Any, inside: Any, field: str, value: str
) -> None:
    answer = client.post(COMPLETIONS, json={"prompt": "a", "generation_config": json.dumps(inside)})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, field)
    assert value in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([], "[]"),
        ("9", "'9'"),
        ([{"role": "user", "content": ""}], "empty"),
        ([{"content": "9"}], "required"),
        ([*SAID, 9], "9"),
        ([{"role": "user", "content": ["a", {"type": "image_url"}]}], "image_url"),
        ([{"role": "user", "content": None}], "None"),
        ([{"role": "user", "content": "ab" * 17}], "34 characters"),
    ],
)
def test_a_bad_chat_is_told_the_value(client: Any, messages: Any, said: str) -> None:
    answer = client.post(CHAT, json={"messages": messages})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "messages")
    assert said in answer.json()["error"]["message"]


def test_values_at_every_limit_are_accepted(client: Any) -> None:
    edges = {"prompt": "a" * CONTEXT, "temperature": 2, "top_p": 1, "frequency_penalty": 0, "top_k": 0}
    edges |= {"min_p": 0.0, "typical_p": 1.0, "seed": 2**63 - 1, "n": 1, "max_tokens": 1}
    assert client.post(COMPLETIONS, json=edges).status_code == 200
    many = {"prompt": ["a", "b"], "n": 16, "max_tokens": 1, "stop": ["a" * 1024] * 16}
    assert len(client.post(COMPLETIONS, json=many).json()["choices"]) == 32


def test_missing_null_and_neutral_fields_have_their_default() -> None:
    plain = CompletionRequest.model_validate({"prompt": "a"})
    nulls = ("model", "stream", "temperature", "top_p", "seed", "stop", "max_tokens", "n", "stream_options")
    assert CompletionRequest.model_validate({"prompt": "a", **dict.fromkeys(nulls)}) == plain
    neutral: dict[str, Any] = {"echo": False, "logit_bias": {}, "suffix": "", "user": "me", "tools": []}
    neutral |= {"tool_choice": "auto", "parallel_tool_calls": True, "response_format": {"type": "text"}}
    assert (
        CompletionRequest.model_validate({"prompt": "a", **neutral}).generation_settings()
        == plain.generation_settings()
        == {}
    )


def test_settings_are_those_of_a_generation_config() -> None:
    def settings(**body: Any) -> dict[str, Any]:
        return CompletionRequest.model_validate({"prompt": "a", **body}).generation_settings()

    assert settings(temperature=1e-3) == {"temperature": 1e-3}
    assert settings(temperature=1e-4)["do_sample"] is False  # below which a division overflows
    assert settings(repetition_penalty=2) == {"repetition_penalty": 2.0}
    assert settings(top_k=5, min_p=0.1, do_sample=True) == {"top_k": 5, "min_p": 0.1, "do_sample": True}


def test_fields_of_the_request_win_over_its_generation_config() -> None:
    config = {"max_new_tokens": 7, "top_k": 5, "temperature": 0.5, "stop_strings": ["b"], "num_beams": None}
    body: dict[str, Any] = {"messages": SAID, "generation_config": json.dumps(config)}
    asked = ChatRequest.model_validate(body)
    assert (asked.max_tokens, asked.stop) == (7, ["b"])
    assert asked.generation_settings() == {"temperature": 0.5, "top_k": 5}
    asked = ChatRequest.model_validate(body | {"max_completion_tokens": 3, "temperature": 2, "stop": "a"})
    assert (asked.max_tokens, asked.stop, asked.temperature) == (3, "a", 2)
    wrong = json.dumps({"max_new_tokens": "a", "top_k": -1, "stop_strings": 7})
    outside = {"max_tokens": 3, "top_k": 2, "stop": "b"}
    CompletionRequest.model_validate({"prompt": "a", "generation_config": wrong, **outside})


def test_the_models_own_generation_config_is_accepted(client: Any) -> None:
    from .conftest import make_model

    config = make_model().generation_config.to_json_string(use_diff=False)
    body = {"prompt": "a", "max_tokens": 2, "generation_config": config}
    assert client.post(COMPLETIONS, json=body).status_code == 200


@pytest.mark.parametrize(
    "raw", [b"", b"{", b"[]", b"\xff", b"[" * 100_000, b'{"prompt": ' + b"9" * 5000 + b"}"]
)
def test_a_body_that_is_no_json_object_is_refused(client: Any, raw: bytes) -> None:
    answer = client.post(COMPLETIONS, content=raw, headers=JSON)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, None)


@pytest.mark.parametrize(
    "field", ["prompt", "tools", "stop", "model", "seed", "n", "generation_config", "other"]
)
def test_deeply_nested_values_are_refused(client: Any, field: str) -> None:
    for depth in (100, 700, 800, 900, 1000):
        body = f'{{"{field}": {"[" * depth}{"]" * depth}}}'
        assert client.post(COMPLETIONS, content=body, headers=JSON).status_code in (400, 404)


def test_a_refusal_has_the_shape_that_openais_clients_read() -> None:
    kinds = {400: "invalid_request_error", 429: "rate_limit_error", 500: "server_error", 503: "server_error"}
    for status, kind in kinds.items():
        said = json.loads(Refusal(status, "why", "field", "word").body)
        assert said == {"error": {"message": "why", "type": kind, "param": "field", "code": "word"}}
