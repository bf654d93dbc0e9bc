"""A text on the web as a file in craft's cache; fetched once, whole or not at all."""

from __future__ import annotations

import hashlib
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from craft.data.cache import Cache
from craft.data.hub_dataset import LOCAL_COPY_HINT
from craft.utils.errors import UserError, first_line
from craft.utils.hub import is_network_error, quiet

PAGES = (".html", ".htm", ".xhtml")
"""Suffixes of those who want the source of a web page."""


def download(url: str, cache: Cache, as_text: bool = False) -> Path:
    """The file of a URL, with its suffix.

    Args:
        as_text: whether a web page is wanted as the text that it is.

    Raises:
        UserError: if it can't be fetched as a whole, is empty, or a web page where a text is meant.
    """
    try:
        name = f"web-{PurePosixPath(urlsplit(url).path).name[-100:]}"  # never that of the cache's own files
    except ValueError as error:
        raise _unreachable(url, error) from None
    pages = as_text or name.lower().endswith(PAGES)
    key = hashlib.sha256(repr((url, pages)).encode()).hexdigest()[:32]
    return cache.entry(f"url-{key}", lambda folder: _fetch(url, folder / name, pages)) / name


def _fetch(url: str, file: Path, pages: bool) -> None:
    """Writes what a URL answers, by the client of huggingface_hub (with its proxies and certificates)."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    if constants.HF_HUB_OFFLINE:
        raise _unreachable(url, "HF_HUB_OFFLINE is set")
    quiet()
    of_the_hub = url.startswith(f"{constants.ENDPOINT}/")  # where a login opens what is private
    headers = build_hf_headers(library_name="craft") if of_the_hub else {"user-agent": "craft"}
    try:
        with file.open("wb") as stream:
            http_get(url, stream, headers=headers)
    except Exception as error:
        # Which HTTP client it is depends on the version of huggingface_hub.
        if not (is_network_error(error) or isinstance(error, OSError | ValueError)):
            raise
        raise _unreachable(url, error) from None
    with file.open("rb") as stream:
        start = stream.read(1 << 10).removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if not start:
        raise UserError(f"{url} is empty; {LOCAL_COPY_HINT}", code="text-missing")
    if not pages and start.startswith((b"<!doctype html", b"<html")):
        raise UserError(
            f"{url} answers with a web page, not with a text or table; take the address of the file itself "
            f"(on GitHub that of 'Raw'), or {LOCAL_COPY_HINT}; data.format=text trains on the page's HTML",
            code="text-format",
        )


def _unreachable(url: str, why: object) -> UserError:
    return UserError(f"{url} can't be fetched ({first_line(why)}); {LOCAL_COPY_HINT}", code="network")
