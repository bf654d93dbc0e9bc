"""From `data.path` to the files it names: a file, a folder, a glob pattern or a URL."""

from __future__ import annotations

import difflib
import glob
import os
from collections.abc import Iterator
from pathlib import Path, PurePath
from urllib.parse import urlparse

from craft.data.arguments import DataArguments
from craft.data.containers import format_of, look_into, looks_like_text
from craft.data.hub_dataset import A_COPY, SAVED_TO_DISK, HubDataset
from craft.data.sources import BuiltIn, Source, Tables, TextFiles
from craft.utils.common import UserError
from craft.utils.encodings import codec_name
from craft.utils.hub import meant_as_repo_id
from craft.utils.logging import get_logger


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
    return _files([(path, PurePath(path.name)) for path in _local(args.path, _codec(args))], args)


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
        raise UserError(_unreachable(url, error)) from None
    except Exception as error:
        # The HTTP client behind datasets (fsspec, aiohttp) has no common base for its errors.
        if type(error).__module__.split(".")[0] in ("aiohttp", "httpx", "huggingface_hub", "fsspec"):
            raise UserError(_unreachable(url, error)) from None
        raise


def _unreachable(url: str, error: Exception) -> str:
    """The message for a URL that can't be fetched."""
    from huggingface_hub import constants

    why = (
        "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else str(error.__cause__ or error).splitlines()[0]
    )
    return f"{url} can't be reached ({why}); {A_COPY}"


def _files(files: list[tuple[Path, PurePath]], args: DataArguments) -> Source:
    """Text files or tables, by what is in them."""
    found = [look_into(path, name) for path, name in files]
    formats = sorted({contents.format for contents in found})
    if len(formats) > 1:
        raise UserError(
            f"{args.path} mixes {' and '.join(formats)} files; choose one kind with a pattern, such as "
            f"data.path='{args.path}/**/*.txt'"
        )
    packed = [(path, contents.packing) for (path, _), contents in zip(files, found)]
    encoding = _codec(args)
    if formats == ["text"]:
        return TextFiles(packed, args.errors, encoding)
    return Tables(packed, formats[0], args.text_column, args.errors, encoding)


def _codec(args: DataArguments) -> str:
    return codec_name(args.encoding) or "utf-8"


def _local(pattern: str, encoding: str) -> list[Path]:
    path = Path(os.path.expanduser(pattern))
    if path.is_dir():
        return _folder(path, encoding)
    if path.exists():
        return [path]
    files = sorted(Path(p) for p in glob.glob(str(path), recursive=True) if os.path.isfile(p))
    if files:
        return files
    if glob.has_magic(str(path)):
        raise UserError(
            f"data.path={pattern} matches no file (the current folder is {Path.cwd()}); "
            "'**/' in a pattern stands for any folders"
        )
    if path.is_symlink():
        raise UserError(f"data.path={pattern} is a link to {os.readlink(path)}, which doesn't exist")
    hub = "; for a dataset of the Hub say data.source=hub" if meant_as_repo_id(pattern) else ""
    raise UserError(
        f"data.path={pattern} doesn't exist{_nearest(path)} (the current folder is {Path.cwd()}){hub}"
    )


def _folder(folder: Path, encoding: str) -> list[Path]:
    """Every text or table under a folder, sorted; hidden files are left out, and so is what isn't text."""
    if any((folder / name).is_file() for name in SAVED_TO_DISK):
        raise UserError(f"{folder} is a saved dataset: say data.source=hub data.path={folder}")
    candidates = sorted(_visible(folder))
    unreadable = [p for p in candidates if not os.access(p, os.R_OK)]
    if unreadable:
        raise UserError(f"{unreadable[0]} can't be read: permission denied; leave it out with a pattern")
    files = [p for p in candidates if format_of(p) != "text" or looks_like_text(p, encoding)]
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


def _visible(folder: Path) -> Iterator[Path]:
    """Every file below a folder but hidden ones."""

    def refuse(error: OSError) -> None:
        raise UserError(f"the folder {error.filename} can't be read: {error.strerror}") from None

    for parent, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (p for name in names if not name.startswith(".") and (p := Path(parent, name)).is_file())


def _nearest(path: Path) -> str:
    """`, did you mean …?` with the nearest name in the deepest folder of `path` that exists."""
    folder, missing = path.parent, path.name
    while not folder.is_dir() and folder != folder.parent:
        folder, missing = folder.parent, folder.name
    near = difflib.get_close_matches(missing, os.listdir(folder) if folder.is_dir() else [], n=1, cutoff=0.6)
    return f", did you mean '{folder / near[0]}'?" if near else ""
