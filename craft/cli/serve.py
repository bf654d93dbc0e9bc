"""`craft serve`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import click

from craft.cli.options import COUNT, PATH, hub_options
from craft.serving.server import CAPS, serve
from craft.utils.terminal import echo


@click.command("serve")
@click.argument("model", default="latest")
@click.option("--host", default="127.0.0.1", help="Where to listen; 0.0.0.0: everywhere.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, help="0 takes a free one.")
@click.option("--max-tokens", type=COUNT, default=CAPS["max_tokens"], help="Characters that a text may have.")
@click.option(
    "--max-prompt",
    type=COUNT,
    help="Characters of a prompt.  [default: the model's context; without one 16384]",
)
@click.option(
    "--max-requests",
    type=COUNT,
    default=CAPS["max_requests"],
    help="Texts written at once; requests for more are told to try again.",
)
@click.option(
    "--allow-host",
    multiple=True,
    metavar="NAME",
    help="A host under which clients and web pages may come; repeatable.  [default: this machine's own]",
)
@click.option(
    "--chat-template",
    type=PATH,
    metavar="FILE",
    help="Jinja template that makes a text of a chat.  [default: the model's, else the messages as lines]",
)
@hub_options
def command(
    model: str, host: str, port: int, allow_host: tuple[str, ...], chat_template: Path | None, **more: Any
) -> None:
    """Serve a model to OpenAI's clients: completions and chat, whole or streamed.

    MODEL is 'latest', a folder, or a model on the Hugging Face Hub. Needs the extra 'serve'. The server asks
    for no password, so it listens on this machine alone unless --host says otherwise.

    \b
    craft serve latest
    craft serve outputs/models/MODEL --port 9000 --max-tokens 1000
    """
    caps = {name: more.pop(name) for name in ("max_tokens", "max_prompt", "max_requests")}
    say = partial(echo, err=True)
    serve(model, host, port, chat_template, allow_host, say=say, caps=caps, **more)
