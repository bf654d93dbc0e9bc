"""Texts on the web: fetched once, whole, and no web pages; whatever goes wrong is one sentence."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from refusals import refused

from craft.data.arguments import DataArguments
from craft.data.finding import find_source
from craft.utils.errors import Code

PAGE = b"<!doctype html><title>Sign in</title>"


def text_of(path: Any, **fields: Any) -> str:
    return "".join(piece.text for piece in find_source(DataArguments(path=path, **fields)).pieces())


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A web server of this test: `server.files[path]` is served, `server.requests` counts.

    Some paths misbehave: `/stall.txt` and `/mute.txt` wait until the test is over, `/cut.txt` ends early,
    `/login.txt` leads to a page, `/round.txt` to itself.
    """
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)  # this machine alone is asked
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", 0.5)
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)  # between retries
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    over = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            web.requests.append(self.path)
            path = self.path.split("?")[0]
            if path == "/mute.txt":
                over.wait()
                return
            led = {"/login.txt": "/signin", "/round.txt": "/round.txt"}.get(path)
            data = web.files.get(path, b"abc" if path in ("/stall.txt", "/cut.txt") else None)
            self.send_response(302 if led else 200 if data is not None else 404)
            if led:
                self.send_header("Location", led)
            self.send_header("Content-Type", web.types.get(path, "text/plain; charset=utf-8"))
            short = 97 if path in ("/stall.txt", "/cut.txt") else 0
            self.send_header("Content-Length", str(len(data or b"") + short))
            self.end_headers()
            self.wfile.write(data or b"")
            if path == "/stall.txt":
                self.wfile.flush()
                over.wait()

        def log_message(self, *args: Any) -> None:
            pass

    web: Any = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    web.files, web.types, web.requests = {"/signin": PAGE}, {"/signin": "text/html; charset=utf-8"}, []
    web.url = f"http://127.0.0.1:{web.server_port}"
    threading.Thread(target=web.serve_forever, daemon=True).start()
    yield web
    over.set()
    web.shutdown()
    web.server_close()


def test_a_url_is_downloaded_once_and_read_by_its_suffix(
    server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.files["/data/input.txt"] = b"caf\xc3\xa9\r\n"
    server.files["/text.gz"] = gzip.compress(b"packed")
    server.files["/rows.jsonl"] = b'{"text": "row"}\n'
    assert text_of(f"{server.url}/data/input.txt") == "café\r\n"
    asked = len(server.requests)
    assert asked > 0
    assert text_of(f"{server.url}/data/input.txt") == "café\r\n"
    assert len(server.requests) == asked
    assert text_of(f"{server.url}/text.gz?download=1") == "packed"
    assert text_of(f"{server.url}/rows.jsonl") == "row"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert text_of(f"{server.url}/data/input.txt") == "café\r\n"


@pytest.mark.parametrize(
    ("path", "code", "values"),
    [
        ("no.txt", "network", ["404"]),
        ("mute.txt", "network", []),
        ("stall.txt", "network", []),
        ("cut.txt", "network", []),
        ("login.txt", "text-format", ["data.format=text"]),
        ("round.txt", "network", []),
        ("empty.txt", "text-missing", []),
        ("page.txt", "text-format", ["data.format=text"]),
        ("unmarked.txt", "text-format", ["data.format=text"]),
    ],
)
def test_a_download_that_fails_is_one_line_and_leaves_nothing(
    server: Any, path: str, code: Code, values: list[str]
) -> None:
    server.files.update({"/empty.txt": b"", "/page.txt": PAGE, "/unmarked.txt": b"\n" + PAGE})
    server.types["/page.txt"] = "text/html"
    with refused(code, f"{server.url}/{path}", "data.path=", *values) as caught:
        text_of(f"{server.url}/{path}")
    assert "\n" not in str(caught.value)
    server.files[f"/{path}"], server.types[f"/{path}"] = b"text", "text/plain"
    if path in ("no.txt", "empty.txt", "page.txt", "unmarked.txt"):
        assert text_of(f"{server.url}/{path}") == "text"


def test_a_web_page_may_be_asked_for(server: Any) -> None:
    server.files.update({"/page.html": PAGE, "/page.txt": PAGE})
    server.types.update({"/page.html": "text/html", "/page.txt": "text/html"})
    assert text_of(f"{server.url}/page.html") == PAGE.decode()
    assert text_of(f"{server.url}/page.txt", format="text") == PAGE.decode()
    with refused("text-format", f"{server.url}/page.txt", "data.format=text"):
        text_of(f"{server.url}/page.txt")


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:9/x.txt", "http://nowhere.invalid/x.txt", "http://", "http://[::x/a.txt"]
)
def test_an_address_that_leads_nowhere_is_refused_with_a_way_out(server: Any, url: str) -> None:
    with refused("network", url, "data.source=files data.path="):
        text_of(url)


def test_addresses_and_files_go_together(server: Any, tmp_path: Path) -> None:
    server.files["/a.txt"] = b"web\n"
    (tmp_path / "b.txt").write_text("disk")
    assert text_of([f"{server.url}/a.txt", str(tmp_path / "b.txt")]) == "web\ndisk"
