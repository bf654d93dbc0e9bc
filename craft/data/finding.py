"""From `data.path` to the files it names: files, folders, glob patterns and URLs."""

from __future__ import annotations

import difflib
import glob
import itertools
import os
import re
from pathlib import Path, PurePath
from urllib.parse import urlparse

from craft.data.arguments import DataArguments
from craft.data.cache import Cache
from craft.data.containers import format_of, look_into, looks_like_text
from craft.data.download import download
from craft.data.hub_dataset import SAVED_TO_DISK, HubDataset
from craft.data.sources import BuiltIn, Source, Tables, TextFiles
from craft.data.walking import Walk
from craft.utils.encodings import codec_name
from craft.utils.errors import UserError
from craft.utils.hub import meant_as_repo_id
from craft.utils.logging import get_logger

SHOWN = 3
"""How many files a message names."""


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
        return BuiltIn(args.paths[0])
    if args.source == "hub":
        return HubDataset(
            args.paths[0],
            args.config_name,
            args.revision,
            split or args.split,
            args.text_column,
            args.streaming,
        )
    if args.validation_split or args.test_split:
        raise UserError(
            "data.validation_split and data.test_split name splits of a dataset (data.source=hub, which also "
            "takes a local folder); text files are cut by data.validation_size and data.test_size"
        )
    return _files(_find(args), args)


def _files(files: list[tuple[Path, PurePath]], args: DataArguments) -> Source:
    """Text files or tables, by `data.format` or by what is in them."""
    found = [look_into(path, name, args.format) for path, name in files]
    by_format = {contents.format: str(path) for (path, _), contents in reversed(list(zip(files, found)))}
    if len(by_format) > 1:
        kinds = " and ".join(f"{format} ({example})" for format, example in sorted(by_format.items()))
        pattern = _fixed(args.paths[0]) / "**" / "*.txt"
        odd = next(PurePath(example).suffix for format, example in by_format.items() if format != "text")
        raise UserError(
            f"data.path={args.shown} mixes {kinds}; choose one kind with a pattern (data.path='{pattern}'), "
            f"leave others out (data.exclude='*{odd}'), or read all of them as text (data.format=text)"
        )
    packed = [(path, contents.packing) for (path, _), contents in zip(files, found)]
    encoding, by_name = _codec(args), args.format == "auto"
    (format,) = by_format
    if format != "text":
        return Tables(packed, format, args.text_column, args.errors, encoding, by_name)
    if args.separator is None and (
        fused := next((f for f in packed[:-1] if _open_ended(*f, encoding)), None)
    ):
        get_logger(__name__).warning(
            f"{fused[0]} ends without a line end, so its last line and the first of the next file become "
            "one; data.separator='\\n' puts a line end between all files"
        )
    separator = _unescaped(args.separator or "")
    return TextFiles(packed, args.errors, encoding, "text" if by_name else None, separator)


def _open_ended(path: Path, packing: str, encoding: str) -> bool:
    """Whether a file is plain text whose last line has no end, as far as its last byte tells."""
    try:
        if packing or len("\n".encode(encoding)) > 1 or not path.is_file() or not path.stat().st_size:
            return False
        with path.open("rb") as stream:
            stream.seek(-1, os.SEEK_END)
            return stream.read() not in b"\r\n"
    except OSError:  # which is told when it is read
        return False


def _unescaped(text: str) -> str:
    """A text with `\\n`, `\\r`, `\\t` and `\\\\` as in C: line ends are hard to type in a shell."""
    meant = {"n": "\n", "r": "\r", "t": "\t", "\\": "\\"}
    return re.sub(r"\\([nrt\\])", lambda found: meant[found[1]], text)


def _codec(args: DataArguments) -> str:
    return codec_name(args.encoding) or "utf-8"


def _find(args: DataArguments) -> list[tuple[Path, PurePath]]:
    """(file, original name) of everything that `data.path` names, in its order; the log says what was left
    out."""
    exclude = [args.exclude] if isinstance(args.exclude, str) else args.exclude or []
    walk = Walk(exclude, Path(os.path.realpath(Cache(args.cache_dir).root)))
    found: dict[str, tuple[Path, PurePath]] = {}
    again = []
    for path in args.paths:
        if path.startswith(("http://", "https://")):
            named = [(download(path, args.format == "text"), PurePath(urlparse(path).path))]
        else:
            named = [(file, PurePath(file.name)) for file in _local(path, walk, args)]
        for file, name in named:
            real = os.path.realpath(file)
            again += [file] if real in found else []
            found.setdefault(real, (file, name))
    logger = get_logger(__name__)
    if walk.own:
        logger.info(f"text      what craft wrote itself is left out: {_listed(walk.own)}")
    if walk.cycles:
        logger.warning(f"links to a folder around them aren't followed: {_listed(walk.cycles)}")
    if again:
        logger.warning(f"files that are reached more than once are read once: {_listed(again)}")
    if unused := [pattern for pattern in exclude if pattern not in walk.excluding]:
        logger.warning(f"data.exclude={', '.join(unused)} matches nothing in {args.shown}")
    if not found:
        raise UserError(f"data.exclude={', '.join(exclude)} leaves nothing of data.path={args.shown}")
    return list(found.values())


def _listed(paths: list[Path]) -> str:
    paths = list(dict.fromkeys(paths))
    shown = ", ".join(map(str, paths[:SHOWN]))
    return f"{shown} and {len(paths) - SHOWN} more" if len(paths) > SHOWN else shown


def _local(pattern: str, walk: Walk, args: DataArguments) -> list[Path]:
    """The files of one path, folder or pattern; what isn't text is left out of the latter two.

    Raises:
        UserError: if there is none, unless they are excluded.
    """
    path, excluded = Path(pattern), walk.excluding.total()
    if os.path.isdir(path):
        if any((path / name).is_file() for name in SAVED_TO_DISK):
            raise UserError(f"{path} is a saved dataset: say data.source=hub data.path={path}")
        candidates = walk.below(path)
    elif os.path.exists(path):
        return [] if walk.excludes(path) else [path]
    elif glob.has_magic(str(path)):
        folder = _fixed(pattern)
        candidates = walk.below(folder, path.relative_to(folder).parts) if folder.is_dir() else []
    else:
        raise _missing(pattern, path)
    for file in candidates:
        if not os.access(file, os.R_OK) and (os.path.exists(file) or not os.path.islink(file)):
            raise UserError(f"{file} can't be read: permission denied; leave it out with data.exclude={file}")

    def readable(file: Path) -> bool:
        format = format_of(file) if args.format == "auto" else args.format
        return os.path.isfile(file) and (format != "text" or looks_like_text(file, _codec(args)))

    files = list(filter(readable, candidates))
    if not files and walk.excluding.total() == excluded:
        raise _nothing(pattern, path, walk, candidates)
    if odd := sorted(set(candidates) - set(files)):
        get_logger(__name__).warning(
            f"{path}: {len(odd)} of {len(candidates)} files aren't text and are left out: {_listed(odd)}"
        )
    return files


def _fixed(pattern: str) -> Path:
    """The folder above everything that a path or pattern names."""
    path = Path(pattern)
    if os.path.exists(path):
        return path if path.is_dir() else path.parent
    return Path(*itertools.takewhile(lambda part: not glob.has_magic(part), path.parts))


def _missing(pattern: str, path: Path) -> UserError:
    """What to say of a path that isn't there."""
    if path.is_symlink():
        return UserError(f"data.path={pattern} is a link to {os.readlink(path)}, which doesn't exist")
    if "://" in pattern:
        return UserError(f"data.path={pattern} can't be fetched: addresses begin with http:// or https://")
    hub = "; for a dataset of the Hub say data.source=hub" if meant_as_repo_id(pattern) else ""
    return UserError(
        f"data.path={pattern} doesn't exist{_nearest(path)} (the current folder is {Path.cwd()}){hub}"
    )


def _nothing(pattern: str, path: Path, walk: Walk, candidates: list[Path]) -> UserError:
    """What to say of a folder or pattern without a text."""
    own = f", but for what craft wrote itself ({_listed(walk.own)})" if walk.own else ""
    other = f", only {_listed(candidates)} (name one to learn what is wrong with it)" if candidates else ""
    if os.path.isdir(path):
        return UserError(
            f"the folder {path} holds no text file (.txt, .txt.gz, .jsonl, .csv, .parquet, …){other}{own}"
        )
    if candidates:
        return UserError(f"data.path={pattern} matches no text{other}{own}")
    if walk.folders:
        return UserError(
            f"data.path={pattern} matches only folders ({_listed(walk.folders)}); for the files in them say "
            f"data.path='{pattern.rstrip('/')}/**'"
        )
    return UserError(
        f"data.path={pattern} matches no file{own} (the current folder is {Path.cwd()}); "
        "'**/' in a pattern stands for any folders"
    )


def _nearest(path: Path) -> str:
    """`, did you mean …?` with the nearest name in the deepest folder of `path` that exists."""
    folder, missing = path.parent, path.name
    while not folder.is_dir() and folder != folder.parent:
        folder, missing = folder.parent, folder.name
    near = difflib.get_close_matches(missing, os.listdir(folder) if folder.is_dir() else [], n=1, cutoff=0.6)
    return f", did you mean '{folder / near[0]}'?" if near else ""
