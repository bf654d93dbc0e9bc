"""From `data.path` to the files it names: a file, a folder, a glob pattern or a URL."""

from __future__ import annotations

import difflib
import glob
import os
import re
from pathlib import Path, PurePath
from urllib.parse import urlparse

from craft.data.arguments import DataArguments
from craft.data.reading import COMPRESSED, looks_like_text
from craft.data.sources import BuiltIn, HubDataset, Source, Tables, TextFiles, unreachable
from craft.utils.common import UserError
from craft.utils.logging import get_logger

TABLES = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}


def find_source(args: DataArguments, split: str | None = None) -> Source:
    """The source that the arguments name.

    Args:
        split: of a Hub dataset, instead of `args.split`.

    Raises:
        UserError: if there is nothing there, or nothing readable.
    """
    if not args.path:
        raise UserError(
            "data.path is empty: name a text file, folder, URL or dataset, such as data.path=my.txt"
        )
    if args.source == "builtin":
        return BuiltIn(args.path)
    if args.source == "hub":
        return HubDataset(
            args.path, args.config_name, args.revision, split or args.split, args.text_column, args.streaming
        )
    if args.validation_split or args.test_split:
        raise UserError(
            "data.validation_split and data.test_split name splits of a dataset (data.source=hub, which also "
            "takes a local folder); text files are cut by data.validation_size and data.test_size"
        )
    if args.path.startswith(("http://", "https://")):
        name = PurePath(urlparse(args.path).path)
        return _files([(download(args.path), name)], args)
    return _files([(path, PurePath(path.name)) for path in _local(args.path)], args)


def download(url: str) -> Path:
    """A URL as a file in the cache of `datasets`; fetched once.

    Raises:
        UserError: if it can't be reached.
    """
    from datasets import DownloadConfig, DownloadManager

    # Without an ETag the file is found again without asking the server.
    manager = DownloadManager(download_config=DownloadConfig(use_etag=False))
    try:
        return Path(manager.download(url))
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(unreachable(url, error)) from None
    except Exception as error:
        # The HTTP client behind datasets (fsspec, aiohttp) has no common base for its errors.
        if type(error).__module__.split(".")[0] in ("aiohttp", "httpx", "huggingface_hub", "fsspec"):
            raise UserError(unreachable(url, error)) from None
        raise


def _files(files: list[tuple[Path, PurePath]], args: DataArguments) -> Source:
    """Text files or tables, by the suffixes of their original names."""
    formats = sorted({_format(name) for _, name in files})
    if len(formats) > 1:
        raise UserError(
            f"{args.path} mixes {' and '.join(formats)} files; choose one kind with a pattern, such as "
            f"data.path='{args.path}/**/*.txt'"
        )
    if formats == ["text"]:
        return TextFiles([(path, name.suffix.lower()) for path, name in files], args.errors)
    return Tables([path for path, _ in files], formats[0], args.text_column)


def _format(name: PurePath) -> str:
    """`text`, or the name of a table format: the suffix under that of a compression counts."""
    suffixes = [s.lower() for s in name.suffixes]
    if suffixes and suffixes[-1] in COMPRESSED:
        suffixes.pop()
    return TABLES.get(suffixes[-1], "text") if suffixes else "text"


def _local(pattern: str) -> list[Path]:
    path = Path(os.path.expanduser(pattern))
    if path.is_dir():
        return _folder(path)
    if path.exists():
        return [path]
    files = sorted(Path(p) for p in glob.glob(str(path), recursive=True) if os.path.isfile(p))
    if files:
        return files
    hub = (
        "; for a dataset of the Hub say data.source=hub" if re.fullmatch(r"[\w.-]+/[\w.-]+", pattern) else ""
    )
    raise UserError(
        f"data.path={pattern} doesn't exist{_nearest(path)} (the current folder is {Path.cwd()}){hub}"
    )


def _folder(folder: Path) -> list[Path]:
    """Every text or table under a folder, sorted; hidden files are left out, and so is what isn't text."""
    candidates = [
        p
        for p in sorted(folder.rglob("*"))
        if p.is_file() and not any(part.startswith(".") for part in p.relative_to(folder).parts)
    ]
    files = [p for p in candidates if _format(p) != "text" or looks_like_text(p)]
    if not files:
        raise UserError(f"the folder {folder} holds no text file (.txt, .txt.gz, .jsonl, .csv, .parquet, …)")
    if len(files) < len(candidates):
        get_logger(__name__).warning(
            "%s: %d of %d files aren't text and are left out",
            folder,
            len(candidates) - len(files),
            len(candidates),
        )
    return files


def _nearest(path: Path) -> str:
    """`, did you mean …?` with the nearest name in the deepest folder of `path` that exists."""
    folder, missing = path.parent, path.name
    while not folder.is_dir() and folder != folder.parent:
        folder, missing = folder.parent, folder.name
    near = difflib.get_close_matches(missing, os.listdir(folder) if folder.is_dir() else [], n=1, cutoff=0.6)
    return f", did you mean '{folder / near[0]}'?" if near else ""
