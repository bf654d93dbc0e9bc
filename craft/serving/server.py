"""transformers' server around a craft model, between the gate and the writer."""

from __future__ import annotations

import errno
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from craft.serving.limits import Limits
from craft.serving.names import Names, is_loopback
from craft.utils.common import UserError, require_extra
from craft.utils.outputs import resolve, slug

ONE_AFTER_THE_OTHER = (
    "{% for message in messages %}{{ message.content }}{% if not loop.last %}SEPARATOR{% endif %}{% endfor %}"
)
"""How a model without a chat template reads a chat: as one text, which it goes on with."""


def build_app(
    model: Any, tokenizer: Any, name: str, limits: Limits, names: Names, called: Sequence[str] = ()
) -> tuple[Any, Any]:
    """The application for an ASGI server, and what is to be shut down after it.

    Args:
        called: other names by which clients may ask for the model.
    """
    from transformers.cli.serving.chat_completion import ChatCompletionHandler
    from transformers.cli.serving.completion import CompletionHandler
    from transformers.cli.serving.model_manager import ModelManager, TimedModel
    from transformers.cli.serving.server import build_server

    from craft.serving.gate import Gate
    from craft.serving.requests import Served
    from craft.serving.writer import OneWriter

    # Given the model, not its name: transformers would look for its class among its own.
    manager: Any = ModelManager(model_timeout=-1)
    manager.process_model_name = lambda name: name  # not `name@main`
    manager.loaded_models[name] = TimedModel(model, -1, processor=tokenizer)
    manager.force_model = name
    state = OneWriter()
    parts = {"model_manager": manager, "generation_state": state}
    unused: Any = None  # handlers of routes that the gate doesn't open
    app = build_server(
        manager,
        ChatCompletionHandler(**parts),
        completion_handler=CompletionHandler(**parts),
        response_handler=unused,
        transcription_handler=unused,
        systemone_handler=unused,
        generation_state=state,
    )
    context = None if model.carries_state else model.config.max_position_embeddings
    served = Served(name, tokenizer, context, limits, tuple(called), model.generation_config.to_dict())
    return Gate(app, served, names), state


def read_template(file: Path) -> str:
    """A Jinja template that makes one text of the messages of a chat.

    Raises:
        UserError: if the file can't be read, or isn't a template.
    """
    from jinja2 import TemplateSyntaxError
    from transformers.utils.chat_template_utils import _compile_jinja_template

    try:
        text = file.read_text(encoding="utf-8")
        _compile_jinja_template(text)  # with the tags and filters that transformers' templates have
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"can't read --chat-template {file}: {error}") from error
    except TemplateSyntaxError as error:
        raise UserError(f"--chat-template {file}:{error.lineno}: {error.message}") from error
    return text


def plain_template(tokenizer: Any) -> str:
    """The messages' contents one after the other, on lines of their own where line breaks are known."""
    newline = "" if tokenizer.alphabet and "\n" not in tokenizer.alphabet else "{{ '\\n' }}"
    return ONE_AFTER_THE_OTHER.replace("SEPARATOR", newline)


def listen(host: str, port: int) -> socket.socket:
    """An open socket, so that a taken port is known before a model is loaded.

    Raises:
        UserError: if nobody can listen there.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError, UnicodeError) as error:
        reason = (getattr(error, "strerror", None) or str(error)).split(" (while")[0]
        taken = getattr(error, "errno", None) in (errno.EADDRINUSE, errno.EACCES)
        other = "--port (0: any free one)" if taken else "--host"
        raise UserError(f"can't listen on {host}:{port}: {reason}; choose another {other}") from error


def serve(
    model: str,
    host: str = "127.0.0.1",
    port: int = 8000,
    limits: Limits | None = None,
    template: Path | None = None,
    allowed: Sequence[str] = (),
    say: Any = print,
    **of_the_hub: Any,
) -> None:
    """Answers requests until the process is told to stop (SIGTERM, Ctrl-C).

    Args:
        model: as for `craft.inference.load`.
        template: a Jinja file that turns the messages of a chat into a text.
        allowed: names besides the host's under which clients and pages may come.
        say: gets the one line that tells where the server is.
        **of_the_hub: `revision` and `trust_remote_code` of `craft.inference.load`.

    Raises:
        UserError: for an unknown model, a taken port, or if the extra `serve` isn't installed.
    """
    require_extra("serve", "fastapi", "uvicorn", "openai")
    where = resolve(model)
    chat_template = read_template(template) if template is not None else None
    limits = limits or Limits()
    with listen(host, port) as listener:
        from craft.inference import load
        from craft.serving.http import Server

        network, tokenizer = load(where, **of_the_hub)
        tokenizer.chat_template = chat_template or tokenizer.chat_template or plain_template(tokenizer)
        name = slug(Path(where).resolve().name) if Path(where).is_dir() else where
        address, bound = listener.getsockname()[:2]
        private = is_loopback(address)
        hosts = Names((host, *allowed), not private)
        app, state = build_app(network, tokenizer, name, limits, hosts, called=[model])

        def ready() -> None:
            say(f"{name} at http://{f'[{host}]' if ':' in host else host}:{bound}/v1  (Ctrl-C stops)")
            if not private:
                say(f"everyone who reaches {host} can use it: it asks for no password")

        try:
            Server(app, limits.patience, ready).run(sockets=[listener])
        finally:
            state.shutdown()
