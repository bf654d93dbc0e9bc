"""`craft serve` as a command: what its words reach, and a process that is told to stop."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from craft.cli import serve as command

from .conftest import TOKENIZER, make_model


def test_every_option_of_craft_serve_reaches_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(command, "serve", lambda *words, **named: asked.append((words, named)))
    words = (
        "ada/char-lstm --revision v1 --trust-remote-code --host ::1 --port 0 --max-tokens 9 --max-prompt 8"
    )
    words += " --max-requests 7 --allow-host a.example --allow-host b.example"
    assert CliRunner().invoke(command.command, words.split()).exit_code == 0
    ((positional, named),) = asked
    assert positional == ("ada/char-lstm", "::1", 0, None, ("a.example", "b.example"))
    assert named["caps"] == {"max_tokens": 9, "max_prompt": 8, "max_requests": 7}
    assert (named["revision"], named["trust_remote_code"]) == ("v1", True)


@pytest.mark.parametrize("cap", ["--max-tokens", "--max-prompt", "--max-requests"])
def test_a_cap_is_at_least_one(cap: str) -> None:
    done = CliRunner().invoke(command.command, [cap, "0"])
    assert (done.exit_code, cap in done.output, "0" in done.output) == (2, True, True)


@pytest.mark.parametrize("again", [False, True])
def test_a_server_told_to_stop_says_so_in_mid_stream_and_ends_with_0(tmp_path: Path, again: bool) -> None:
    pytest.importorskip("uvicorn")
    httpx = pytest.importorskip("httpx")
    make_model("lstm").save_pretrained(tmp_path / "mine")
    TOKENIZER.save_pretrained(tmp_path / "mine")
    arguments = ["serve", str(tmp_path / "mine"), "--port", "0", "--max-tokens", "10000000"]
    process = subprocess.Popen([sys.executable, "-m", "craft", *arguments], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        said, _, url = process.stderr.readline().split()[:3]
        assert said == "mine"
        body = {"prompt": "a", "max_tokens": 10_000_000, "stream": True}
        with httpx.stream("POST", f"{url}/completions", json=body, timeout=60) as answer:
            lines = answer.iter_lines()
            assert json.loads(next(lines)[6:])["choices"]
            process.send_signal(signal.SIGTERM)
            if again:  # which doesn't wait for the texts
                next(lines)
                process.send_signal(signal.SIGINT)
            *_, error, _, done, _ = lines
        assert json.loads(error[6:])["error"]["type"] == "server_error"
        assert done == "data: [DONE]"
        assert process.wait(timeout=60) == 0
        assert "Traceback" not in process.stderr.read()
    finally:
        process.kill()
