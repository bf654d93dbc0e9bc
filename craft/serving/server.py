"""Starting the server: a model, a socket, an application, and uvicorn with its own limits."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from craft.utils.common import require_extra
from craft.utils.errors import UserError
from craft.utils.hosts import is_loopback, listen
from craft.utils.outputs import resolve, slug

SIGNALS = signal.SIGINT, signal.SIGTERM
GRACE_PERIOD = 5  # seconds that texts have to end once the server is told to stop
CAPS: dict[str, int | None] = {"max_tokens": 4096, "max_prompt": None, "max_requests": 32}


def serve(
    model: str,
    host: str = "127.0.0.1",
    port: int = 8000,
    template: Path | None = None,
    allowed: Sequence[str] = (),
    say: Callable[[str], None] = print,
    caps: Mapping[str, int | None] = CAPS,
    **hub: Any,
) -> None:
    """Answers requests until SIGTERM or Ctrl-C; `allowed` are further names of the host's."""
    require_extra("serve", "fastapi", "uvicorn")
    import uvicorn

    from craft.data.chat import plain_template, read_template
    from craft.inference import load
    from craft.serving.app import Service, build_app

    where = resolve(model)
    chat_template = read_template(template) if template is not None else None
    with listen(host, port) as listener:  # a taken port is known before the model is loaded
        network, tokenizer = load(where, **hub)
        if not hasattr(network, "prefill"):
            raise UserError(f"{where}: a {type(network).__name__} can't be served", code="model-mismatch")
        tokenizer.chat_template = chat_template or tokenizer.chat_template or plain_template(tokenizer)
        name = slug(Path(where).resolve().name) if Path(where).is_dir() else where
        service = Service(network, tokenizer, name, [model], {**CAPS, **caps})
        address, bound = listener.getsockname()[:2]

        class Server(uvicorn.Server):
            def handle_exit(self, sig: int, frame: Any) -> None:
                timer = threading.Timer(0 if server.should_exit else GRACE_PERIOD, service.scheduler.end)
                timer.daemon = server.should_exit = True
                timer.start()

        own = [] if is_loopback(address) else [socket.gethostname(), socket.getfqdn()]
        app = build_app(service, [name.lower() for name in (host, *allowed, *own)])
        options: Any = {"limit_concurrency": 512, "timeout_graceful_shutdown": GRACE_PERIOD + 2}
        options |= {"log_level": "error", "access_log": False, "server_header": False, "ws": "none"}
        server = Server(uvicorn.Config(app, lifespan="on", **options))
        for number in SIGNALS:  # before uvicorn takes them
            signal.signal(number, server.handle_exit)
        say(f"{name} at http://{f'[{host}]' if ':' in host else host}:{bound}/v1  (Ctrl-C stops)")
        if not is_loopback(address):
            say(f"everyone who reaches {host} can use it: it asks for no password")
        server.run(sockets=[listener])
        for number in SIGNALS:  # the process ends, and needn't be told again
            signal.signal(number, signal.SIG_IGN)
