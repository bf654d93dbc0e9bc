"""From a path, pattern or URL to a source; what isn't there is named with its nearest neighbour."""

from __future__ import annotations

import gzip
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from craft.data.arguments import DataArguments
from craft.data.finding import find_source
from craft.utils.common import UserError


def text_of(path: Any, **fields: Any) -> str:
    return "".join(piece.text for piece in find_source(DataArguments(path=str(path), **fields)).pieces())


def test_folders_and_patterns_are_sorted_and_joined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in (
        ("b.txt", "B"),
        ("a.txt", "A\r\n"),
        ("deep/c.md", "C"),
        (".hidden", "H"),
        (".git/x.txt", "G"),
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(text.encode())
    (tmp_path / "deep" / "d.txt.gz").write_bytes(gzip.compress(b"D"))
    (tmp_path / "photo.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0")
    assert text_of(tmp_path) == "A\r\nBCD"
    assert text_of(tmp_path / "*.txt") == "A\r\nB"
    assert text_of(tmp_path / "**" / "*.md") == "C"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert text_of("~/b.txt") == "B"


def test_a_name_with_pattern_characters_is_taken_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "x[1].txt").write_text("bracket")
    assert text_of(tmp_path / "x[1].txt") == "bracket"
    (tmp_path / "y[1].jsonl").write_text('{"text": "row"}\n')
    assert text_of(tmp_path / "y[1].jsonl") == "row"


def test_what_is_missing_is_named_with_its_neighbour(tmp_path: Path) -> None:
    (tmp_path / "poems.txt").write_text("x")
    with pytest.raises(UserError, match=r"peoms.txt doesn't exist, did you mean '.*/poems.txt'\?"):
        find_source(DataArguments(path=str(tmp_path / "peoms.txt")))
    with pytest.raises(UserError, match=r"\*.csv matches no file \(the current folder"):
        find_source(DataArguments(path=str(tmp_path / "*.csv")))
    with pytest.raises(UserError, match=r"roneneldan/TinyStories doesn't exist .*say data.source=hub"):
        find_source(DataArguments(path="roneneldan/TinyStories"))
    with pytest.raises(UserError, match=r"data.path is empty"):
        find_source(DataArguments())


def test_links_folders_without_permission_and_saved_datasets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "dead.txt").symlink_to(tmp_path / "gone.txt")
    with pytest.raises(UserError, match=r"dead.txt is a link to .*gone.txt, which doesn't exist"):
        find_source(DataArguments(path=str(tmp_path / "dead.txt")))
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "loop").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    assert text_of(tmp_path) == "text"
    monkeypatch.setattr(os, "access", lambda path, mode: path.name != "a.txt")  # root may read everything
    with pytest.raises(UserError, match=r"a.txt can't be read: permission denied; leave it out"):
        find_source(DataArguments(path=str(tmp_path)))
    (tmp_path / "state.json").write_text("{}")
    with pytest.raises(UserError, match=r"is a saved dataset: say data.source=hub data.path="):
        find_source(DataArguments(path=str(tmp_path)))


def test_a_folder_without_text_and_a_mixed_one_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"\xff\xfe\xfd")
    with pytest.raises(UserError, match="holds no text file"):
        find_source(DataArguments(path=str(tmp_path)))
    (tmp_path / "b.txt").write_text("text")
    (tmp_path / "c.csv").write_text("text\nx\n")
    with pytest.raises(UserError, match=r"mixes csv and text files.*\*\*/\*\.txt"):
        find_source(DataArguments(path=str(tmp_path)))


def test_split_names_belong_to_datasets(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(
        UserError, match=r"data.validation_split and data.test_split name splits of a dataset"
    ):
        find_source(DataArguments(path=str(tmp_path / "a.txt"), validation_split="validation"))


def test_the_builtin_corpus_is_the_same_every_time_and_others_are_unknown() -> None:
    text = text_of("python_docs", source="builtin")
    assert text == text_of("python_docs", source="builtin")
    assert len(text) > 400_000
    assert '"lambda"' in text
    with pytest.raises(UserError, match=r"'python_doc' isn't a built-in corpus .*did you mean 'python_docs'"):
        find_source(DataArguments(source="builtin", path="python_doc"))


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A web server of this test: `server.files[path]` is served, `server.requests` counts."""
    import datasets.config

    monkeypatch.setattr(datasets.config, "DOWNLOADED_DATASETS_PATH", tmp_path / "downloads")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "downloads")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)  # this machine alone is asked
    monkeypatch.setenv("no_proxy", "127.0.0.1")

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            web.requests.append((self.command, self.path))
            data = web.files.get(self.path.split("?")[0])
            self.send_response(200 if data is not None else 404)
            self.send_header("Content-Length", str(len(data or b"")))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(data or b"")

        do_HEAD = do_GET

        def log_message(self, *args: Any) -> None:
            pass

    web: Any = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    web.files, web.requests = {}, []
    web.url = f"http://127.0.0.1:{web.server_port}"
    threading.Thread(target=web.serve_forever, daemon=True).start()
    yield web
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
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    assert text_of(f"{server.url}/data/input.txt") == "café\r\n"


def test_a_url_that_cannot_be_reached_is_refused_with_a_way_out(server: Any) -> None:
    with pytest.raises(UserError, match=r"/no.txt can't be reached .*data.source=files data.path="):
        find_source(DataArguments(path=f"{server.url}/no.txt"))
    with pytest.raises(UserError, match=r"http://127.0.0.1:9/x.txt can't be reached"):
        find_source(DataArguments(path="http://127.0.0.1:9/x.txt"))
