"""From `data.path` to the files it names: files, folders, glob patterns and URLs."""

from __future__ import annotations

import glob
import os
import platform
import re
from pathlib import Path

from craft.data.arguments import DataArguments
from craft.data.cache import Cache
from craft.data.containers import HEAD, Span, format_of, is_text, members, packing_of, reading_errors
from craft.data.download import download
from craft.data.hub_dataset import HubDataset
from craft.data.sources import Files, Source
from craft.data.walking import Walk
from craft.utils.common import did_you_mean
from craft.utils.encodings import codec_name
from craft.utils.errors import UserError
from craft.utils.hub import meant_as_repo_id
from craft.utils.logging import get_logger

BUILTIN = "python_docs"
SHOWN = 3
"""How many files a message names."""


def find_source(args: DataArguments, split: str | None = None) -> Source:
    """The source that the arguments name.

    Args:
        split: of a Hub dataset, instead of `args.split`.

    Raises:
        UserError: if there is nothing there, or nothing readable.
    """
    if args.source == "builtin":
        return Files([_builtin(args.shown, Cache(args.cache_dir))])
    if args.source == "hub":
        return HubDataset(
            args.shown,
            args.config_name,
            args.revision,
            split or args.split,
            args.text_column,
            args.streaming,
        )
    return _files(_find(args), args)


def _builtin(name: str, cache: Cache) -> Path:
    """`python_docs`: the language reference topics of the running CPython, 0.46 MB, no download."""
    if name != BUILTIN:
        raise UserError(
            f"data.path={name!r} isn't the built-in corpus {BUILTIN!r}; for a file of your own say "
            "data.source=files",
            code="text-missing",
        )

    def build(folder: Path) -> None:
        from pydoc_data.topics import topics

        text = "\n\n".join(topics[name].strip() for name in sorted(topics)) + "\n"
        (folder / f"{BUILTIN}.txt").write_bytes(text.encode())

    return cache.entry(f"{BUILTIN}-{platform.python_version()}", build) / f"{BUILTIN}.txt"


def _files(paths: list[Path], args: DataArguments) -> Files:
    """Text files or tables, by `data.format` or by what is in them."""
    encoding = codec_name(args.encoding) or "utf-8"
    formats: dict[str, Path] = {}
    for path in paths:
        with reading_errors(path):
            member = next(members(Span(path), encoding))
        format = member.format or format_of(path) if args.format == "auto" else args.format
        formats.setdefault(format, path)
    if len(formats) > 1:
        kinds = " and ".join(f"{format} ({example})" for format, example in formats.items())
        odd = next(example.suffix for format, example in formats.items() if format != "text")
        raise UserError(
            f"data.path={args.shown} mixes {kinds}; choose one kind with a pattern (data.path='**/*.txt'), "
            f"leave others out (data.exclude='*{odd}'), or read all of them as text (data.format=text)",
            code="text-format",
        )
    (format,) = formats
    if (
        format == "text"
        and args.separator is None
        and (fused := next(filter(_is_open_ended, paths[:-1]), None))
    ):
        get_logger(__name__).warning(
            f"{fused} ends without a line end, so its last line and the first of the next file become "
            "one; data.separator='\\n' puts a line end between all files"
        )
    separator = _unescaped(args.separator or "")
    return Files(
        paths, format, args.text_column, args.errors, encoding, separator, by_name=args.format == "auto"
    )


def _is_open_ended(path: Path) -> bool:
    """Whether a file is plain text whose last line has no end, as far as its last byte tells."""
    with reading_errors(path), path.open("rb") as stream:
        packed = packing_of(stream.read(HEAD))
        stream.seek(max(0, path.stat().st_size - 1))
        return not packed and stream.read() not in (b"\r", b"\n", b"\0", b"")  # NUL: of a wide line end


def _unescaped(text: str) -> str:
    """A text with `\\n`, `\\r`, `\\t` and `\\\\` as in C: line ends are hard to type in a shell."""
    meant = {"n": "\n", "r": "\r", "t": "\t", "\\": "\\"}
    return re.sub(r"\\([nrt\\])", lambda found: meant[found[1]], text)


def _find(args: DataArguments) -> list[Path]:
    """Every file that `data.path` names, in its order; the log says what was left out."""
    cache = Cache(args.cache_dir)
    exclude = [args.exclude] if isinstance(args.exclude, str) else args.exclude or []
    walk = Walk(exclude, cache.root)
    found: dict[str, Path] = {}
    for path in args.paths:
        if path.startswith(("http://", "https://")):
            named = [download(path, cache, args.format == "text")]
        else:
            named = _local(path, walk, args)
        for file in named:
            if (real := os.path.realpath(file)) in found:
                walk.left_out["are reached more than once and are read once"].append(file)
            found.setdefault(real, file)
    logger = get_logger(__name__)
    for reason, paths in walk.left_out.items():
        logger.warning(f"{_listed(paths)} {reason}")
    if walk.unused:
        logger.warning(f"data.exclude={', '.join(sorted(walk.unused))} matches nothing in {args.shown}")
    if not found:
        raise _no_text(args.shown, walk, args)
    return list(found.values())


def _local(pattern: str, walk: Walk, args: DataArguments) -> list[Path]:
    """The files of one path, folder or pattern; of a path that is excluded, none."""
    path, encoding = Path(pattern), codec_name(args.encoding) or "utf-8"

    def readable(file: Path) -> bool:
        format = format_of(file) if args.format == "auto" else args.format
        with file.open("rb") as stream:
            return format != "text" or is_text(stream.read(HEAD), file, encoding)

    is_folder = os.path.isdir(path)
    if os.path.exists(path) and not is_folder:
        return [] if walk.excludes(path) else [path]
    if not glob.has_magic(pattern) and not is_folder:
        near = did_you_mean(path.name, os.listdir(path.parent)) if os.path.isdir(path.parent) else ""
        hub = "; for a dataset of the Hub say data.source=hub" if meant_as_repo_id(pattern) else ""
        raise UserError(
            f"data.path={pattern} doesn't exist{near} (the current folder is {Path.cwd()}){hub}",
            code="file-missing",
        )
    folder = path
    while not os.path.exists(folder):  # the one above everything that the pattern may match
        folder = folder.parent
    files = walk.files(folder, path.relative_to(folder).parts or ("**",), readable)
    if not files:
        raise _no_text(pattern, walk, args)
    return files


def _no_text(path: str, walk: Walk, args: DataArguments) -> UserError:
    left_out = "".join(f"; {_listed(paths)} {reason}" for reason, paths in walk.left_out.items())
    exclude = f" but for data.exclude={args.exclude}" if args.exclude else ""
    return UserError(
        f"data.path={path} holds no text file{exclude} (the current folder is {Path.cwd()}; in a pattern "
        f"'**/' stands for any folders, '**' at its end for all files){left_out}",
        code="text-missing",
    )


def _listed(paths: list[Path]) -> str:
    shown = ", ".join(map(str, paths[:SHOWN]))
    return f"{shown} and {len(paths) - SHOWN} more" if len(paths) > SHOWN else shown
