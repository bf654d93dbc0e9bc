"""`craft serve`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from craft.cli.options import PATH, from_the_hub
from craft.serving.limits import UNBOUNDED_PROMPT, Limits
from craft.utils.terminal import echo


@click.command("serve")
@click.argument("model", default="latest")
@click.option("--host", default="127.0.0.1", show_default=True, help="Where to listen; 0.0.0.0: everywhere.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0 takes a free one."
)
@click.option(
    "--max-tokens",
    type=int,
    default=Limits.max_tokens,
    show_default=True,
    help="Characters that one request may have written.",
)
@click.option(
    "--max-prompt",
    type=int,
    help=f"Characters of a prompt.  [default: the model's context; without one {UNBOUNDED_PROMPT}]",
)
@click.option(
    "--max-requests",
    type=int,
    default=Limits.max_requests,
    show_default=True,
    help="Texts written at once; requests for more are told to try again.",
)
@click.option(
    "--patience",
    type=float,
    default=Limits.patience,
    show_default=True,
    help="Seconds that a client may take to send a request, or not read its answer.",
)
@click.option(
    "--allow-host",
    multiple=True,
    metavar="NAME",
    help="A host under which clients and web pages may come; may be given more than once.  "
    "[default: this machine's own]",
)
@click.option(
    "--chat-template",
    type=PATH,
    metavar="FILE",
    help="Jinja template that makes a text of a chat.  [default: the model's, else the messages as lines]",
)
@from_the_hub
def command(
    model: str,
    host: str,
    port: int,
    allow_host: tuple[str, ...],
    chat_template: Path | None,
    revision: str | None,
    trust_remote_code: bool,
    **limits: Any,
) -> None:
    """Serve a model to OpenAI's clients: completions and chat, whole or streamed.

    MODEL is 'latest', a folder, or a model on the Hugging Face Hub. Needs the extra 'serve'. The server asks
    for no password, so it listens on this machine alone unless --host says otherwise.

    \b
    craft serve latest
    craft serve outputs/models/MODEL --port 9000 --max-tokens 1000
    """
    caps = Limits(**limits)
    from craft.serving.server import serve

    serve(
        model,
        host,
        port,
        caps,
        chat_template,
        allow_host,
        say=lambda line: echo(line, err=True),
        revision=revision,
        trust_remote_code=trust_remote_code,
    )
