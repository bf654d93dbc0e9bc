"""The application, asked by HTTP: who is let in, what is answered, how answers end."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("fastapi")

from craft.data.tokenization import CharTokenizer
from craft.inference import sample

from .conftest import TOKENIZER, make_model

Serve = Callable[..., Any]
COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
SEVERAL = {"prompt": ["9", "ab"], "n": 2, "seed": 1, "max_tokens": 6}
COUNTS = {"prompt_tokens": 3, "completion_tokens": 24, "total_tokens": 27}
"""Each prompt is counted once, whatever is written of it."""


def events(answer: Any) -> list[dict[str, Any]]:
    """Those of a stream before its end."""
    *lines, done, nothing = answer.text.split("\n\n")
    assert (done, nothing) == ("data: [DONE]", "")
    return [json.loads(line.removeprefix("data: ")) for line in lines]


def error(answer: Any) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["message"]


def test_other_paths_and_methods_are_refused(serve: Serve) -> None:
    client = serve()
    for path in ("/reset", "/v1/responses", "/docs", "/openapi.json", "/v1/completions/", "/v1/modelsx", "/"):
        status, said = error(client.post(path, json={}))
        assert (status, path in said) == (404, True)
    for path, method in ((COMPLETIONS, "GET"), ("/v1/models", "POST"), ("/v1/models/mine", "DELETE")):
        assert error(client.request(method, path, json={}))[0] == 405
    preflight = client.options("/v1/models", headers={"Origin": "http://localhost:3000"})
    assert (preflight.status_code, preflight.headers["allow"]) == (405, "GET")
    assert not [name for name in preflight.headers if name.startswith("access-control")]
    assert client.get("/v1/models/other").json()["error"]["code"] == "model_not_found"
    one = client.get("/v1/models/mine").json()
    assert client.get("/v1/models").json()["data"] == [one]
    assert (one["id"], one["owned_by"]) == ("mine", "craft")
    assert client.get("/health").json() == {"status": "ok"}


def test_only_small_json_from_known_hosts_and_pages_is_read(serve: Serve) -> None:
    client, body = serve(), b'{"prompt": "a", "max_tokens": 2}'
    for kind in ("text/plain", "application/x-www-form-urlencoded", "application/json-seq", ""):
        assert client.post(COMPLETIONS, content=body, headers={"Content-Type": kind}).status_code == 415
    for kind in ("application/json", "Application/JSON ; charset=utf-8"):
        assert client.post(COMPLETIONS, content=body, headers={"Content-Type": kind}).status_code == 200
    assert client.post(COMPLETIONS, json={"prompt": "a" * 2**20}).status_code == 413
    chunks = client.post(COMPLETIONS, content=iter([body]), headers={"Content-Type": "application/json"})
    assert chunks.status_code == 411
    for headers in ({"Host": "evil.example"}, {"Origin": "https://evil.example"}):
        status, said = error(client.post(COMPLETIONS, json={"prompt": "a"}, headers=headers))
        assert (status, "evil.example" in said) == (403, True)


def test_the_model_answers_to_its_names_only(serve: Serve) -> None:
    client = serve()
    for name, status in {"mine": 200, "latest": 200, "dummy": 200, None: 200, "gpt-5": 404}.items():
        loaded = client.post("/load_model", json={"model": name})
        written = client.post(COMPLETIONS, json={"model": name, "prompt": "a", "max_tokens": 1})
        assert loaded.status_code == written.status_code == status
        if status == 200:
            event, rest = loaded.text.split("\n\n")
            assert (json.loads(event[6:])["status"], rest) == ("ready", "")
            assert written.json()["model"] == "mine"
        else:
            assert written.json()["error"]["code"] == "model_not_found"


def test_a_text_equals_the_sample_of_the_same_settings(serve: Serve, model: Any) -> None:
    client = serve(model)
    chosen: list[dict[str, Any]] = [
        {"temperature": 0.9, "seed": 5},
        {"temperature": 1, "top_k": 3, "min_p": 0.05},
    ]
    for body in ({"temperature": 0}, chosen[0], chosen[1] | {"seed": 3}):
        sampling = body if body["temperature"] else {"greedy": True}
        ((expected,),) = sample(model, TOKENIZER, ["9"], max_new_tokens=50, **sampling)
        asked = {"prompt": "9", "max_tokens": 50, **body}
        answer = client.post(COMPLETIONS, json=asked)
        (choice,) = answer.json()["choices"]
        assert (choice["text"], choice["finish_reason"]) == (expected, "length")
        pieces = events(client.post(COMPLETIONS, json=asked | {"stream": True}))
        assert "".join(event["choices"][0]["text"] for event in pieces) == expected
        assert len(pieces) == 51  # a character each, and the end


def test_a_chat_is_continued_after_its_messages(serve: Serve) -> None:
    client, model = serve(), make_model()
    parts = [{"type": "text", "text": "b"}, "c"]
    messages = [{"role": "system", "content": "a"}, {"role": "user", "content": parts, "name": "x"}]
    asked = {"messages": messages, "max_tokens": 9, "max_completion_tokens": 8, "temperature": 0}
    ((expected,),) = sample(model, TOKENIZER, ["a\nbc"], max_new_tokens=8, greedy=True)
    answer = client.post(CHAT, json=asked).json()
    assert answer["choices"][0]["message"] == {"role": "assistant", "content": expected}
    assert (answer["object"], answer["usage"]["prompt_tokens"]) == ("chat.completion", 4)
    first, *rest = events(client.post(CHAT, json=asked | {"stream": True}))
    assert (first["object"], first["choices"][0]["delta"]["role"]) == ("chat.completion.chunk", "assistant")
    assert "".join(event["choices"][0]["delta"].get("content", "") for event in rest) == expected
    assert rest[-1]["choices"][0] == {"index": 0, "delta": {}, "finish_reason": "length"}


def test_a_chat_template_that_fails_on_the_messages_is_told(serve: Serve) -> None:
    tokenizer = CharTokenizer.train(["abc9\n"])
    tokenizer.chat_template = "{{ messages[0].content + 1 }}"
    status, said = error(
        serve(None, tokenizer).post(CHAT, json={"messages": [{"role": "user", "content": "a"}]})
    )
    assert (status, "str" in said) == (400, True)
    tokenizer.chat_template = "{{ messages[0].content }}{% if add_generation_prompt %}é{% endif %}"
    answer = serve(None, tokenizer).post(CHAT, json={"messages": [{"role": "user", "content": "a"}]})
    assert answer.json()["error"]["code"] == "unknown_character"  # what the model reads is checked


def test_several_texts_are_the_choices_of_one_answer(serve: Serve) -> None:
    client = serve()
    bodies = [SEVERAL | {"prompt": p, "seed": seed, "n": 1} for p in ("9", "ab") for seed in (1, 2)]
    alone = [client.post(COMPLETIONS, json=body).json()["choices"][0]["text"] for body in bodies]
    answer = client.post(COMPLETIONS, json=SEVERAL).json()
    assert [(choice["index"], choice["text"]) for choice in answer["choices"]] == list(enumerate(alone))
    assert answer["usage"] == COUNTS
    for apart in (True, False):
        wanted = SEVERAL | {"stream": True, "stream_options": {"include_usage": apart}}
        read = events(client.post(COMPLETIONS, json=wanted))
        texts = [""] * 4
        for event in read:
            for choice in event["choices"]:
                texts[choice["index"]] += choice["text"]
        assert texts == alone
        assert len({event["id"] for event in read}) == 1
        assert [event["usage"] for event in read if "usage" in event] == [read[-1]["usage"]] == [COUNTS]
        assert (read[-1]["choices"] == []) == apart


def test_the_prompt_that_is_wrong_is_named(serve: Serve) -> None:
    answer = serve().post(COMPLETIONS, json={"prompt": ["9", "Ä"]}).json()["error"]
    assert (answer["param"], answer["code"]) == ("prompt[1]", "unknown_character")
    assert all(value in answer["message"] for value in ("'Ä'", "U+00C4", "position 0", "prompt[1]"))


def test_a_request_beyond_the_places_gets_429(serve: Serve) -> None:
    client = serve(max_requests=4)
    client.scheduler.running = 3
    answer = client.post(COMPLETIONS, json={"prompt": "a", "n": 2})
    status, message = error(answer)
    assert (status, answer.headers["retry-after"]) == (429, "1")
    assert all(value in message for value in ("3 of 4", "2"))
    client.scheduler.running = 0
    assert client.post(COMPLETIONS, json={"prompt": "a", "n": 4, "max_tokens": 2}).status_code == 200
    assert client.scheduler.running == 0
    assert error(client.post(COMPLETIONS, json={"prompt": ["a", "b", "c"], "n": 2}))[0] == 400


@pytest.mark.parametrize("stream", [False, True])
def test_an_error_in_the_middle_of_an_answer_is_told(
    serve: Serve, stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, steps = make_model(), iter(range(1000))
    step = model.step

    def failing(ids: Any, state: Any) -> Any:
        if next(steps) == 400:
            raise RuntimeError("no memory")
        return step(ids, state)

    monkeypatch.setattr(model, "step", failing)
    client = serve(model)
    answer = client.post(COMPLETIONS, json={"prompt": "a", "max_tokens": 4000, "stream": stream})
    if stream:
        *begun, failed = events(answer)
        assert (answer.status_code, bool(begun)) == (200, True)
    else:
        assert answer.status_code == 500
        failed = answer.json()
    assert (failed["error"]["message"], failed["error"]["type"]) == ("no memory", "server_error")
    assert client.post(COMPLETIONS, json={"prompt": "a", "max_tokens": 4}).status_code == 200


@pytest.mark.parametrize("which", [0, 1])
def test_an_error_of_one_of_several_texts_is_told(
    serve: Serve, which: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model()
    prefill, begun = model.prefill, iter(range(1000))

    def failing(ids: Any) -> Any:
        if next(begun) % 3 == which:
            raise RuntimeError("no memory")
        return prefill(ids)

    monkeypatch.setattr(model, "prefill", failing)
    client, wanted = serve(model), {"prompt": "a", "n": 3, "max_tokens": 4}
    assert error(client.post(COMPLETIONS, json=wanted)) == (500, "no memory")
    read = events(client.post(COMPLETIONS, json=wanted | {"stream": True}))
    assert [event["error"]["message"] for event in read if "error" in event] == ["no memory"]
    ended = {c["index"] for event in read for c in event.get("choices", ()) if "finish_reason" in c}
    assert ended == {0, 1, 2} - {which}
    while client.scheduler.running:  # what was given up leaves its place
        time.sleep(0.01)


def test_a_client_that_hangs_up_frees_its_place(serve: Serve) -> None:
    """Its request says that it is gone, as a server's connection would."""
    import asyncio

    from craft.serving.app import Responder
    from craft.serving.protocol import CompletionRequest, Refusal
    from craft.serving.scheduler import Text

    class Gone:
        async def is_disconnected(self) -> bool:
            return True

    client, text = serve(), Text([5], 1000, {})
    asked = CompletionRequest(prompt="a")
    with pytest.raises(Refusal, match="499"):
        client.portal.call(Responder(asked, [text], asyncio.Queue(), "mine").respond, Gone())
    assert text.cancelled
