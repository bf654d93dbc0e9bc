"""`craft serve`."""

from __future__ import annotations

from pathlib import Path

import click

from craft.serving.limits import UNBOUNDED_PROMPT, Limits


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
    help="Requests answered at once; more are told to try again.",
)
@click.option(
    "--chat-template",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Jinja template that makes a text of a chat.  [default: the model's, else the messages as lines]",
)
def command(model: str, host: str, port: int, chat_template: Path | None, **limits: int) -> None:
    """Serve a model to OpenAI's clients: completions and chat, whole or streamed.

    MODEL is 'latest', a folder, or a model on the Hugging Face Hub. Needs the extra 'serve'. The server asks
    for no password, so it listens on this machine alone unless --host says otherwise.

    \b
    craft serve latest
    craft serve outputs/models/MODEL --port 9000 --max-tokens 1000
    """
    caps = Limits(**limits)
    from craft.serving.server import serve

    serve(model, host, port, caps, chat_template, say=lambda line: click.echo(line, err=True))
