"""`craft serve`, asked by the unmodified `openai` client and by bare HTTP."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest

openai = pytest.importorskip("openai")
httpx = pytest.importorskip("httpx")
pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")

from craft.inference import load, sample

from .conftest import CONTEXT, Trained

HEADERS = {"Content-Type": "application/json"}
LONG = {"prompt": "9", "max_tokens": 1_000_000, "stream": True}


class Server:
    """A `craft serve` process."""

    def __init__(self, model: Path, *options: str) -> None:
        self.name = model.name
        command = [sys.executable, "-m", "craft", "serve", str(model), "--port", "0", *options]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
        assert self.process.stderr is not None
        said = ""
        for line in self.process.stderr:
            said += line
            if found := re.search(r"at (http://127\.0\.0\.1:\d+)/v1", line):
                self.url = found[1]
                return
        pytest.fail(f"craft serve didn't start:\n{said}")

    def stop(self, number: int = signal.SIGTERM) -> int:
        assert self.process.stderr is not None
        self.process.send_signal(number)
        assert "Traceback" not in self.process.stderr.read()
        return self.process.wait(timeout=60)

    def post(self, path: str, body: Any, **options: Any) -> Any:
        content = body if isinstance(body, (str, bytes)) else json.dumps(body)
        return httpx.post(
            self.url + path, **{"content": content, "headers": HEADERS, "timeout": 60, **options}
        )

    @property
    def client(self) -> Any:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=60)


@pytest.fixture(scope="module")
def server(trained: Trained) -> Iterator[Server]:
    running = Server(trained.model)
    yield running
    if running.process.poll() is None:
        assert running.stop() == 0


def test_a_completion_equals_the_sample_of_the_same_settings(server: Server, trained: Trained) -> None:
    network, tokenizer = load(trained.model)
    ((expected,),) = sample(network, tokenizer, ["9 green"], max_new_tokens=50, greedy=True)
    asked = {"model": server.name, "prompt": "9 green", "max_tokens": 50, "temperature": 0}
    whole = server.client.completions.create(**asked)
    assert whole.choices[0].text == expected
    listed = server.client.completions.create(**asked | {"prompt": ["9 green"]})
    assert listed.choices[0].text == expected
    assert (whole.choices[0].finish_reason, whole.model) == ("length", server.name)
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (7, 50)
    chunks = list(server.client.completions.create(**asked, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == expected
    assert len(chunks) > 40  # it was streamed
    assert chunks[-1].choices[0].finish_reason == "length"
    *_, end, counts = server.client.completions.create(
        **asked, stream=True, stream_options={"include_usage": True}
    )
    assert (end.choices[0].finish_reason, end.usage, counts.choices) == ("length", None, [])
    assert (counts.usage.prompt_tokens, counts.usage.completion_tokens) == (7, 50)


def test_a_chat_is_continued_after_its_messages(server: Server, trained: Trained) -> None:
    network, tokenizer = load(trained.model)
    ((expected,),) = sample(network, tokenizer, ["1 wall\n2 men"], max_new_tokens=40, greedy=True)
    messages = [{"role": "system", "content": "1 wall"}, {"role": "user", "content": "2 men"}]
    asked = {"model": server.name, "messages": messages, "max_tokens": 40, "temperature": 0}
    assert server.client.chat.completions.create(**asked).choices[0].message.content == expected
    chunks = list(server.client.chat.completions.create(**asked, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == expected
    limits = {"max_completion_tokens": 3, "max_tokens": None, "stream": True}
    *_, counts = server.client.chat.completions.create(
        **asked | limits, stream_options={"include_usage": True}
    )
    assert (counts.usage.prompt_tokens, counts.usage.completion_tokens) == (12, 3)


def test_a_seed_repeats_a_text_and_a_stop_text_ends_it(server: Server, trained: Trained) -> None:
    asked = {"model": server.name, "prompt": "9", "max_tokens": 300, "temperature": 0.9, "seed": 5}
    first, second = (server.client.completions.create(**asked).choices[0] for _ in range(2))
    network, tokenizer = load(trained.model)
    ((expected,),) = sample(network, tokenizer, ["9"], max_new_tokens=300, temperature=0.9, seed=5)
    assert first.text == second.text == expected
    assert first.text != server.client.completions.create(**{**asked, "seed": 6}).choices[0].text
    stop = first.text[40:45]
    short = server.client.completions.create(**asked, stop=[stop, "never"]).choices[0]
    assert short.text == first.text[: first.text.index(stop)]
    assert short.finish_reason == "stop"
    asked["max_tokens"] = len(short.text) + len(stop)  # it ends where it would have been cut off
    assert server.client.completions.create(**asked, stop=stop).choices[0].finish_reason == "stop"
    streamed = server.client.completions.create(**asked, stop=stop, stream=True)
    assert "".join(chunk.choices[0].text for chunk in streamed) == short.text


def test_several_texts_in_one_request_equal_those_of_several_requests(server: Server) -> None:
    asked = {"model": server.name, "max_tokens": 30, "temperature": 1}
    alone = [
        server.client.completions.create(**asked, prompt=prompt, seed=seed).choices[0].text
        for prompt in ("9 green", "men")
        for seed in (5, 6)
    ]
    asked |= {"prompt": ["9 green", "men"], "n": 2, "seed": 5}
    whole = server.client.completions.create(**asked)
    assert [(choice.index, choice.text) for choice in whole.choices] == list(enumerate(alone))
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (10, 120)
    texts, ends = [""] * 4, [""] * 4
    for chunk in server.client.completions.create(**asked, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
            ends[choice.index] += choice.finish_reason or ""
    assert (texts, ends) == (alone, ["length"] * 4)
    chat = server.client.chat.completions.create(
        model=server.name,
        messages=[{"role": "user", "content": "men"}],
        max_tokens=30,
        temperature=1,
        seed=5,
        n=2,
    )
    assert [choice.message.content for choice in chat.choices] == alone[2:]


def test_settings_of_generate_are_accepted_as_fields_and_as_a_config(
    server: Server, trained: Trained
) -> None:
    network, tokenizer = load(trained.model)
    ((expected,),) = sample(network, tokenizer, ["9"], max_new_tokens=90, top_k=6, min_p=0.05, seed=3)
    asked = {"prompt": "9", "max_tokens": 90, "seed": 3}
    answer = server.post("/v1/completions", asked | {"top_k": 6, "min_p": 0.05})
    assert answer.json()["choices"][0]["text"] == expected
    config = network.generation_config
    config.update(top_k=6, min_p=0.05, max_new_tokens=90)
    answer = server.post(
        "/v1/completions", {"prompt": "9", "seed": 3, "generation_config": config.to_json_string()}
    )
    assert answer.json()["choices"][0]["text"] == expected


NAMELESS = """
import sys
from huggingface_hub import InferenceClient
client = InferenceClient(base_url=sys.argv[1])
asked = {"messages": [{"role": "user", "content": "9 green"}], "max_tokens": 20, "temperature": 0}
print(repr(client.chat_completion(**asked).choices[0].message.content))
stream = client.chat_completion(**asked, stream=True)
print(repr("".join(chunk.choices[0].delta.content or "" for chunk in stream)))
"""


def test_the_clients_of_hugging_face_get_an_answer(server: Server, trained: Trained) -> None:
    network, tokenizer = load(trained.model)
    ((expected,),) = sample(network, tokenizer, ["9 green"], max_new_tokens=20, greedy=True)
    chat = ["from transformers.cli.transformers import main; main()", "chat", str(trained.model), server.url]
    chat += ["max_new_tokens=20", "top_k=1", "--user", "me"]  # it samples, here from the likeliest alone
    # Offline they don't ask this machine either; in wide lines none is broken.
    environment = {**os.environ, "HF_HUB_OFFLINE": "0", "COLUMNS": "500"}

    def run(*arguments: str, said: str = "") -> str:
        command = [sys.executable, "-c", *arguments]
        done = subprocess.run(command, env=environment, input=said, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert run(NAMELESS, f"{server.url}/v1").split("\n") == [repr(expected), repr(expected), ""]
    said = run(*chat, said="9 green\nn\n!exit\n")
    assert "was already loaded" in said
    _, _, answer = said.partition(f"<{trained.model}>:\n")
    written = answer.partition("tokens in")[0].rsplit("\n", 1)[0].split()  # rich changes the blanks
    assert written == expected.split() != []


def test_sixteen_clients_are_served_at_once(server: Server) -> None:
    together = Barrier(16)

    def ask(n: int, begin: Any = together.wait) -> tuple[str, float, float]:
        asked = {"model": server.name, "prompt": str(n), "max_tokens": 200, "seed": n}
        begin()
        if n % 2:
            return server.client.completions.create(**asked).choices[0].text, 0, 0
        pieces, times = [], []
        for chunk in server.client.completions.create(**asked, stream=True):
            pieces.append(chunk.choices[0].text)
            times.append(time.monotonic())
        return "".join(pieces), times[0], times[-1]

    with ThreadPoolExecutor(16) as pool:
        crowd = list(pool.map(ask, range(16)))
    alone = [ask(n, begin=int) for n in range(16)]
    assert [text for text, _, _ in crowd] == [text for text, _, _ in alone]  # nobody disturbs another
    streams = [(first, last) for _, first, last in crowd if first]
    assert len(streams) == 8
    # None waits for another, though a thread here may get to its answer late: one after the other, no two
    # would overlap.
    overlap = [a[0] < b[1] and b[0] < a[1] for a, b in combinations(streams, 2)]
    assert sum(overlap) > len(overlap) / 2


BAD: list[tuple[dict[str, Any], str]] = [
    ({"prompt": ["9", "Ä"]}, "prompt[1]"),
    ({"max_tokens": -1}, "max_tokens=-1"),
    ({"temperature": float("nan")}, "temperature=nan"),
    ({"temprature": 1}, "'temperature'"),
    ({"generation_config": '{"num_beams": 2}'}, "generation_config.num_beams=2"),
]
"""Some of those of tests/serving/test_protocol.py: refusals reach the client."""


@pytest.mark.parametrize(("wrong", "said"), BAD, ids=[str(wrong)[:40] for wrong, _ in BAD])
def test_a_bad_request_is_told_the_value(server: Server, wrong: dict[str, Any], said: str) -> None:
    answer = server.post("/v1/completions", {"prompt": "9", "max_tokens": 3, **wrong})
    assert answer.status_code == 400, answer.text
    assert said in answer.json()["error"]["message"]


def test_openai_raises_its_own_errors(server: Server, trained: Trained) -> None:
    with pytest.raises(openai.BadRequestError, match=r"U\+00E9\) at position 1"):
        server.client.chat.completions.create(
            model=server.name, messages=[{"role": "user", "content": "9é"}], max_tokens=3
        )
    with pytest.raises(openai.NotFoundError, match="gpt-5"):
        server.client.completions.create(model="gpt-5", prompt="9")
    limit = CONTEXT if trained.kind == "char_transformer" else 16384
    with pytest.raises(openai.BadRequestError, match=f"{limit:,}") as caught:
        server.client.completions.create(model=server.name, prompt="9" * (limit + 1), max_tokens=3)
    assert caught.value.code == "context_length_exceeded"
    server.client.completions.create(model=server.name, prompt="9" * limit, max_tokens=3)


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([], "messages=[]"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}], "image_url"),
    ],
)
def test_a_bad_chat_is_told_the_value(server: Server, messages: Any, said: str) -> None:
    answer = server.post("/v1/chat/completions", {"messages": messages})
    assert answer.status_code == 400, answer.text
    assert said in answer.json()["error"]["message"]


def test_foreign_hosts_broken_bodies_and_other_paths_are_refused(server: Server) -> None:
    for headers in ({"Host": "evil.example"}, {"Origin": "https://evil.example"}):
        answer = server.post("/v1/completions", {"prompt": "9"}, headers=HEADERS | headers)
        assert (answer.status_code, "evil.example" in answer.json()["error"]["message"]) == (403, True)
    with socket.create_connection(("127.0.0.1", int(server.url.rsplit(":", 1)[1])), timeout=30) as broken:
        broken.sendall(b"\0\r\n\r\n")
        assert broken.recv(1000).startswith(b"HTTP/1.1 400 ")
    for content in (b"{", b"[]", b"\xff", b"[" * 100_000, b'{"prompt": ' + b"9" * 5000 + b"}"):
        assert server.post("/v1/completions", content).status_code == 400
    assert server.post("/v1/completions", {"prompt": "9" * 2_000_000}).status_code == 413
    assert server.post("/v1/completions", "{}", headers={"Content-Type": "text/plain"}).status_code == 415
    assert server.post("/v1/chat/completions", "{}", headers={}).status_code == 415
    for path in (
        "/reset",
        "/v1/responses",
        "/v1/systemone",
        "/v1/audio/transcriptions",
        "/docs",
    ):
        assert server.post(path, {"model": "gpt2"}).status_code == 404
    assert httpx.get(f"{server.url}/v1/completions").status_code == 405
    assert [model.id for model in server.client.models.list()] == [server.name]
    assert server.client.models.retrieve(server.name).owned_by == "craft"
    assert httpx.get(f"{server.url}/health").json() == {"status": "ok"}


def test_a_server_told_to_stop_lets_sixteen_clients_finish(server: Server) -> None:
    async def main() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            begun = asyncio.Semaphore(0)

            async def ask(n: int) -> str:
                asked = {"model": server.name, "prompt": str(n), "max_tokens": 30}
                reasons: list[str] = []
                async for chunk in await client.completions.create(**asked, stream=True):
                    if not reasons:
                        begun.release()
                    reasons.append(chunk.choices[0].finish_reason)
                return reasons[-1]

            async def stop() -> None:
                for _ in range(16):
                    await begun.acquire()
                server.process.send_signal(signal.SIGTERM)

            *reasons, _ = await asyncio.gather(*map(ask, range(16)), stop())
            return reasons

    assert asyncio.run(main()) == ["length"] * 16
    while server.process.poll() is None:  # told again and again until its very end
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.01)
    assert server.stop() == 0


def hang_up(server: Server) -> None:
    """Leaves in the middle of an answer, whole and streamed: the only place becomes free."""
    with pytest.raises(httpx.ReadTimeout):
        server.post("/v1/completions", LONG | {"stream": False}, timeout=0.3)
    wait_for_a_place(server)
    with httpx.stream(
        "POST", f"{server.url}/v1/completions", content=json.dumps(LONG), headers=HEADERS
    ) as answer:
        lines = answer.iter_lines()
        assert next(lines).startswith("data:")
        assert server.post("/v1/completions", {"prompt": "9"}).status_code == 429
    wait_for_a_place(server)


def wait_for_a_place(server: Server) -> None:
    for _ in range(100):
        answer = server.post("/v1/completions", {"prompt": "9", "max_tokens": 2})
        if answer.status_code == 200:
            return
        time.sleep(0.1)
    pytest.fail(answer.text)


def test_caps_chat_templates_hang_ups_and_ctrl_c(transformer: Trained, tmp_path: Path) -> None:
    template = tmp_path / "chat.jinja"
    template.write_text(
        "{% for m in messages %}{% generation %}{{ m.role }} {% endgeneration %}"
        "{{ m.content + (1 if m.role == 'sum' else '') }}{% endfor %}"
    )
    options = ("--max-tokens", "1000000", "--max-prompt", "100", "--max-requests", "1")
    running = Server(transformer.model, *options, "--chat-template", str(template))
    try:
        usage = running.post("/v1/completions", {"prompt": "9" * 100}).json()["usage"]
        assert (usage["prompt_tokens"], usage["completion_tokens"]) == (100, 500)
        assert running.post("/v1/completions", {"prompt": "9", "max_tokens": 1_000_001}).status_code == 400
        chat = running.post("/v1/chat/completions", {"messages": [{"role": "women", "content": "9"}]})
        assert chat.json()["usage"]["prompt_tokens"] == len("women 9")
        chat = running.post("/v1/chat/completions", {"messages": [{"role": "sum", "content": "9"}]})
        assert chat.status_code == 400
        assert chat.json()["error"]["param"] == "messages"
        bodies = [{"prompt": "9" * 100, "seed": n} for n in range(16)]
        with ThreadPoolExecutor(16) as pool:
            answers = list(pool.map(lambda body: running.post("/v1/completions", body), bodies))
        assert {answer.status_code for answer in answers} == {200, 429}
        refused = next(answer for answer in answers if answer.status_code == 429)
        assert refused.headers["retry-after"] == "1"
        assert "1 of 1" in refused.json()["error"]["message"]
        hang_up(running)
        with httpx.stream(
            "POST", f"{running.url}/v1/completions", content=json.dumps(LONG), headers=HEADERS
        ) as answer:
            lines = answer.iter_lines()
            assert next(lines).startswith("data:")
            running.process.send_signal(signal.SIGINT)
            time.sleep(0.5)  # it waits for the text
            assert running.stop(signal.SIGINT) == 0
            *_, error, _, done, _ = lines
            assert json.loads(error[6:])["error"]["type"] == "server_error"
            assert done == "data: [DONE]"
    finally:
        running.process.kill()


@pytest.mark.parametrize(
    ("options", "values"),
    [
        (["/no/model/here"], ["/no/model/here"]),
        (["latest", "--max-tokens", "0"], ["--max-tokens", "0"]),
        (["MODEL", "--host", "203.0.113.7"], ["203.0.113.7:8000", "--host"]),
        (["MODEL", "--port", "TAKEN"], ["TAKEN", "--port"]),
        (["MODEL", "--port", "0", "--chat-template", "BROKEN"], ["chat.jinja:2", "'men'"]),
        (["MODEL", "--port", "0", "--chat-template", "no.jinja"], ["--chat-template", "no.jinja"]),
    ],
)
def test_a_server_that_cannot_start_names_the_value(
    transformer: Trained, tmp_path: Path, options: list[str], values: list[str]
) -> None:
    broken = tmp_path / "chat.jinja"
    broken.write_text("{{ messages }}\n{% men %}")
    with socket.create_server(("127.0.0.1", 0)) as other:
        words = {"MODEL": str(transformer.model), "TAKEN": str(other.getsockname()[1]), "BROKEN": str(broken)}
        command = [sys.executable, "-m", "craft", "serve", *(words.get(word, word) for word in options)]
        done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert all(words.get(value, value) in done.stderr for value in values), done.stderr
    assert "Traceback" not in done.stderr
