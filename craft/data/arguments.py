"""What a corpus is: the schema of `configs/data/*.yaml`.

Torch-free and literal: the fields below are the keys of the YAML files and of `data.*` overrides, and
`craft.config` reads their names, types and defaults from this source without importing it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, Literal, get_args, get_type_hints

from craft.utils.common import UserError, did_you_mean
from craft.utils.encodings import wrong_encoding
from craft.utils.labels import wrong_language
from craft.utils.paths import typed_setting


@dataclass
class DataArguments:
    """One corpus, how it is split, cut into windows and tokenized.

    Args:
        name: label in the names of outputs; None derives it from `path` (`input.txt` -> `input`).
        source: `builtin` (a corpus that needs no download), `files` (text or tables on this machine, or
            a URL) or `hub` (a dataset of the Hugging Face Hub, or a local dataset folder).
        path: builtin: `python_docs`. files: a file, folder, glob or http(s) URL, or a list of them; text may
            be compressed (.gz .bz2 .xz .zst) or in archives (.zip .tar), tables are .jsonl .json .csv .tsv
            .parquet. hub: the dataset id.
        exclude: a name or list of names that are left out of `path` at any depth, such as `node_modules` or
            `*.min.js`; one with slashes is compared with the end of a path (`docs/api`).
        format: what files are read as; `auto` goes by their suffixes.
        separator: put between text files, such as `\\n`; None joins them as they are.
        language: the language of the text for the model card, as a code of ISO 639 (`en`, `de`, `yue`),
            `multilingual`, or `code` for programs; where it is known.
        config_name: the configuration of a Hub dataset.
        revision: the branch, tag or commit of a Hub dataset.
        split: which split of a Hub dataset is trained on; datasets' slicing (`train[:1%]`) works.
        validation_split: the Hub dataset's own validation split; None cuts one by `validation_size`.
        test_split: the Hub dataset's own test split; None cuts one by `test_size`.
        text_column: the column of a table or Hub dataset that holds the text, or a path to texts nested in
            one (`messages[].content`), which become lines. Each row is a document: an end-of-text id follows.
        streaming: train while reading, nothing is prepared on disk; the run's length is then `max_steps`.
        lanes: when streaming, how many places of the corpus are read at once. A process reads only the lanes
            of its rows, so with N processes make it a multiple of N times `gradient_accumulation_steps`. The
            order of the data depends on it, and memory grows with it, by some megabytes a lane.
        encoding: what text files and tables are written in, as Python names it (`cp1252`, `shift_jis`,
            `utf-16`); None is UTF-8, and for tables what their byte-order mark says.
        errors: bytes that aren't of the encoding are refused (`strict`) or become U+FFFD (`replace`).
        validation_size: a fraction below 1, or a number of characters (bytes for the byte tokenizer), cut
            from the end of the corpus; 0 leaves no validation split.
        test_size: as `validation_size`; the test split lies behind the validation split.
        block_size: T, the number of characters a window predicts; windows hold T + 1 ids.
        order: `shuffled` (an epoch visits non-overlapping windows, shuffled, from a random phase) or `random`
            (independent random offsets, as nanoGPT draws them).
        tokenizer: `char` (one id per character of the corpus) or `byte` (one id per UTF-8 byte).
        unknown: what an unseen character becomes: an error (`strict`), `<unk>` (`unk`), its bytes (`bytes`).
        min_frequency: characters rarer than this are left out of the alphabet.
        max_vocab_size: the largest number of characters in the alphabet; the most frequent are kept.
        cache_dir: where prepared ids are kept; None is `$CRAFT_CACHE`, else `~/.cache/craft`.
    """

    name: str | None = None
    source: Literal["builtin", "files", "hub"] = "files"
    path: str | list[str] | None = None
    exclude: str | list[str] | None = None
    format: Literal["auto", "text", "jsonl", "json", "csv", "tsv", "parquet"] = "auto"
    separator: str | None = None
    language: str | None = None
    config_name: str | None = None
    revision: str | None = None
    split: str = "train"
    validation_split: str | None = None
    test_split: str | None = None
    text_column: str = "text"
    streaming: bool = False
    lanes: int = 16
    encoding: str | None = None
    errors: Literal["strict", "replace"] = "strict"
    validation_size: float | int = 0.1
    test_size: float | int = 0.0
    block_size: int = 64
    order: Literal["shuffled", "random"] = "shuffled"
    tokenizer: Literal["char", "byte"] = "char"
    unknown: Literal["strict", "unk", "bytes"] = "strict"
    min_frequency: int = 1
    max_vocab_size: int | None = None
    cache_dir: str | None = None

    def __post_init__(self) -> None:
        for key in ("path", "cache_dir"):
            setattr(self, key, typed_setting(getattr(self, key), f"data.{key}="))
        for key, kind in get_type_hints(DataArguments).items():
            value, choices = getattr(self, key), [c for c in get_args(kind) if isinstance(c, str)]
            if choices and value not in choices:
                hint = did_you_mean(str(value), choices)
                raise UserError(f"data.{key}={value!r} is none of {', '.join(choices)}{hint}")
        for key in ("path", "exclude"):
            value = getattr(self, key)
            if isinstance(value, list) and not all(isinstance(each, str) and each for each in value):
                raise UserError(f"data.{key}={value} must hold texts alone, none of them empty")
        if self.source != "files" and isinstance(self.path, list):
            raise UserError(f"data.path={self.path} is a list; data.source={self.source} takes one name")
        for key in ("block_size", "min_frequency", "lanes"):
            if getattr(self, key) < 1:
                raise UserError(f"data.{key}={getattr(self, key)} must be at least 1")
        for key in ("validation_size", "test_size"):
            size = getattr(self, key)
            if size < 0 or (size >= 1 and size != int(size)):
                raise UserError(
                    f"data.{key}={size} must be a fraction below 1 or a whole number of characters"
                )
        if complaint := without_alphabet(vars(self)):
            raise UserError(complaint[1])
        if self.encoding is not None and (wrong := wrong_encoding(self.encoding, "data.encoding=")):
            raise UserError(wrong)
        if self.language is not None and (wrong := wrong_language(self.language, "data.language=")):
            raise UserError(wrong)

    @property
    def paths(self) -> list[str]:
        """Every `path`."""
        return self.path if isinstance(self.path, list) else [self.path] if self.path else []

    @property
    def shown(self) -> str:
        """`path` in messages: of a list the first, and how many follow."""
        first, *more = self.paths or [""]
        return f"{first} and {len(more)} more" if more else first

    @property
    def label(self) -> str:
        """The name of the corpus in the names of outputs: `name`, else the stem of the last part of `path`
        that is no pattern; of several the first, and how many follow."""
        first, *more = dict.fromkeys(map(_stem, self.paths)) or ["corpus"]
        return self.name or (f"{first}-and-{len(more)}-more" if more else first)


def _stem(path: str) -> str:
    stems = [part.strip("/").split(".")[0] for part in PurePath(path).parts]
    return next((s for s in reversed(stems) if s and not set(s) & set("*?[")), "corpus")


OF_ALPHABET = ("unknown", "min_frequency", "max_vocab_size")
"""Settings of the alphabet, which a byte tokenizer doesn't have."""


def without_alphabet(data: Mapping[str, Any]) -> tuple[str, str] | None:
    """A setting of the alphabet that the byte tokenizer would ignore: its key, and what to say.

    `unknown=bytes` is what that tokenizer does anyway.
    """
    for key in OF_ALPHABET if data["tokenizer"] == "byte" else ():
        if data[key] not in (getattr(DataArguments, key), "bytes"):
            return (
                f"data.{key}",
                f"data.{key}={data[key]} is about an alphabet; data.tokenizer=byte has none, leave it out",
            )
    return None


def of_saved_run(data: Mapping[str, Any]) -> dict[str, Any]:
    """The section `data` of a saved run, without what earlier versions accepted beside the byte tokenizer."""
    byte = data.get("tokenizer") == "byte"
    return {key: value for key, value in data.items() if not (byte and key in OF_ALPHABET)}
