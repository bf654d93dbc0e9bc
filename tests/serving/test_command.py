"""What `craft serve` makes of its words."""

from __future__ import annotations

from typing import Any

import pytest
from click.testing import CliRunner

from craft.cli.serve import command
from craft.serving import server
from craft.serving.limits import Limits


def test_every_option_reaches_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(server, "serve", lambda *words, **named: asked.append((words, named)))
    words = (
        "ada/char-lstm --revision v1 --trust-remote-code --host ::1 --port 0 --max-tokens 9 --max-prompt 8"
    )
    words += " --max-requests 7 --patience 2.5 --allow-host a.example --allow-host b.example"
    assert CliRunner().invoke(command, words.split()).exit_code == 0
    ((positional, named),) = asked
    limits = Limits(max_tokens=9, max_prompt=8, max_requests=7, patience=2.5)
    assert positional == ("ada/char-lstm", "::1", 0, limits, None, ("a.example", "b.example"))
    assert (named["revision"], named["trust_remote_code"]) == ("v1", True)
