"""A text on the web as a file in the cache of `datasets`; fetched once, whole or not at all."""

from __future__ import annotations

from pathlib import Path, PurePath
from urllib.parse import urlsplit

from craft.data.hub_dataset import A_COPY
from craft.utils.errors import UserError
from craft.utils.files import sync
from craft.utils.hub import is_network_error

PAGES = (".html", ".htm", ".xhtml")
"""Suffixes of those who want the source of a web page."""
_PAGE_TYPES = ("text/html", "application/xhtml+xml")
_PAGE_STARTS = (b"<!doctype html", b"<html")


def download(url: str, as_text: bool = False) -> Path:
    """The file of a URL.

    Args:
        as_text: whether a web page is wanted as the text that it is.

    Raises:
        UserError: if it can't be fetched as a whole, or is a web page where a text is meant.
    """
    import datasets
    from datasets.utils.file_utils import hash_url_to_filename
    from filelock import FileLock

    try:
        pages = as_text or PurePath(urlsplit(url).path).suffix.lower() in PAGES
    except ValueError as error:
        raise _unreachable(url, str(error)) from None
    folder = Path(datasets.config.DOWNLOADED_DATASETS_PATH)
    place = folder / hash_url_to_filename(url)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not place.exists():
            with FileLock(f"{place}.lock"):
                if not place.exists():
                    incomplete = place.with_name(f"{place.name}.incomplete")
                    try:
                        _fetch(url, incomplete, pages)
                        sync(incomplete)
                        incomplete.replace(place)
                    finally:
                        incomplete.unlink(missing_ok=True)
        _check(url, place, pages)
    except OSError as error:
        raise UserError(
            f"{url} can't be kept in {folder}: {error.strerror or error}; choose another folder with the "
            "environment variable HF_DATASETS_CACHE"
        ) from None
    return place


def _fetch(url: str, file: Path, pages: bool) -> None:
    """Writes what a URL answers, by the client of huggingface_hub (with its proxies and certificates)."""
    from huggingface_hub import constants
    from huggingface_hub.utils import build_hf_headers, get_session, tqdm

    if constants.HF_HUB_OFFLINE:
        raise _unreachable(url, "HF_HUB_OFFLINE is set")
    of_the_hub = url.startswith(f"{constants.ENDPOINT}/")  # where a login opens what is private
    headers = build_hf_headers(library_name="craft") if of_the_hub else {"user-agent": "craft"}
    headers["accept-encoding"] = "identity"  # the bytes of the file, and their number
    seconds = constants.HF_HUB_DOWNLOAD_TIMEOUT
    came, total = 0, None
    try:
        with get_session().stream("GET", url, headers=headers, timeout=seconds) as answer:
            if answer.is_error:
                raise _unreachable(url, f"HTTP {answer.status_code} {answer.reason_phrase}".strip())
            if answer.headers.get("content-type", "").lower().startswith(_PAGE_TYPES) and not pages:
                raise _page(url, str(answer.url).partition("?")[0])
            total = int(answer.headers.get("content-length") or 0) or None
            with (
                file.open("wb") as out,
                tqdm(total=total, unit="B", unit_scale=True, desc="Downloading", disable=None) as bar,
            ):
                for part in answer.iter_bytes():
                    out.write(part)
                    came += len(part)
                    bar.update(len(part))
    except Exception as error:
        # Which HTTP client it is depends on the version of huggingface_hub.
        if not (is_network_error(error) or isinstance(error, ValueError)):
            raise
        after = f"after {came:,}{f' of {total:,}' if total else ''} bytes" if came else ""
        if type(error).__name__.endswith("Timeout"):
            why = f"nothing came for {seconds} s {after}".strip()
            why += "; HF_HUB_DOWNLOAD_TIMEOUT=SECONDS in the environment allows more"
        elif came:
            why = f"the connection was cut {after}"
        else:
            why = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
        raise _unreachable(url, why) from None


def _check(url: str, file: Path, pages: bool) -> None:
    """Refuses what was fetched though it is no text, by whichever version of craft."""
    with file.open("rb") as stream:
        start = stream.read(1 << 10).removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if not pages and start.startswith(_PAGE_STARTS):
        file.unlink()  # it may be the text next time
        raise _page(url, url)
    if not file.stat().st_size:
        file.unlink()
        raise UserError(f"{url} is empty; {A_COPY}")


def _page(url: str, final: str) -> UserError:
    led = f" ({final}, to which it leads)" if final != url.partition("?")[0] else ""
    return UserError(
        f"{url} answers with a web page{led}, not with a text or table; take the address of the file itself "
        f"(on GitHub that of 'Raw'), or {A_COPY}; data.format=text trains on the page's HTML"
    )


def _unreachable(url: str, why: str) -> UserError:
    return UserError(f"{url} can't be reached ({why}); {A_COPY}")
