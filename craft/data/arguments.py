"""What a corpus is: the schema of `configs/data/*.yaml`, and every rule about it.

Torch-free: the fields below are the keys of the YAML files and of `data.*` overrides, their annotations and
validators the rules of single values; the functions at the end are about several.
"""

from __future__ import annotations

import functools
import glob
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, Literal

from huggingface_hub.dataclasses import validated_field

from craft.utils.encodings import check_encoding
from craft.utils.errors import UserError
from craft.utils.hub import is_repo_id
from craft.utils.labels import LANGUAGE
from craft.utils.paths import typed_settings
from craft.utils.settings import (
    COUNT,
    Field,
    check_type,
    check_values,
    fields_of,
    must,
    validators,
    yaml_word,
)

_NAMES = must(
    "hold texts alone, none of them empty",
    lambda x: not isinstance(x, list) or all(isinstance(each, str) and each for each in x),
)
SHARED = 2_000_000
"""Ids of a corpus, at its beginning if it is a stream, of which a fraction is one: scoring a tenth of a long
text would take more time than it tells."""
_SHARE = must(
    "be 0 or more: a fraction below 1 or a whole number of characters",
    lambda x: 0 <= x < 1 or (x >= 1 and x == int(x)),
)


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
            from the end of the corpus; 0 leaves no validation split. A fraction is one of two million
            characters at most, so that a tenth is never more than 200,000.
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
    path: str | list[str] | None = validated_field(_NAMES, default=None)
    exclude: str | list[str] | None = validated_field(_NAMES, default=None)
    format: Literal["auto", "text", "jsonl", "json", "csv", "tsv", "parquet"] = "auto"
    separator: str | None = None
    language: str | None = validated_field(LANGUAGE, default=None)
    config_name: str | None = None
    revision: str | None = None
    split: str = "train"
    validation_split: str | None = None
    test_split: str | None = None
    text_column: str = "text"
    streaming: bool = False
    lanes: int = validated_field(COUNT, default=16)
    encoding: str | None = validated_field(check_encoding, default=None)
    errors: Literal["strict", "replace"] = "strict"
    validation_size: float | int = validated_field(_SHARE, default=0.1)
    test_size: float | int = validated_field(_SHARE, default=0.0)
    block_size: int = validated_field(COUNT, default=64)
    order: Literal["shuffled", "random"] = "shuffled"
    tokenizer: Literal["char", "byte"] = "char"
    unknown: Literal["strict", "unk", "bytes"] = "strict"
    min_frequency: int = validated_field(COUNT, default=1)
    max_vocab_size: int | None = validated_field(COUNT, default=None)
    cache_dir: str | None = None

    def __post_init__(self) -> None:
        for name, value in check_data(vars(self)).items():
            setattr(self, name, value)

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
        """The name of the corpus in the names of outputs: `name`, else the stem of the last part of the first
        `path` that is no pattern."""
        parts = reversed(PurePath(self.paths[0]).parts if self.paths else ())
        stems = (part.strip("/").split(".")[0] for part in parts if not glob.has_magic(part))
        return self.name or next(filter(None, stems), "corpus")


@functools.cache
def data_fields() -> dict[str, Field]:
    """The keys of the section `data`."""
    return fields_of(DataArguments)


def check_data(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of all fields, as their types have them.

    Raises:
        UserError: at the first rule that is broken.
    """
    data = {name: check_type("data", field, values[name]) for name, field in data_fields().items()}
    data = typed_settings("data", data)
    check_values("data", validators(DataArguments), data)
    source, path = data["source"], data["path"]
    if source != "files" and isinstance(path, list):
        raise UserError(
            f"data.path={yaml_word(path)} is a list; data.source={source} takes one name",
            code="setting-conflict",
        )
    if source == "hub" and isinstance(path, str) and is_repo_id(path) and Path(path).exists():
        data["path"] = f"./{path}"  # a folder, which no reader of the record should look for on the Hub
    sizes = {name: data[f"{name}_size"] for name in ("validation", "test")}
    if all(size < 1 for size in sizes.values()) and sum(sizes.values()) >= 1:
        raise UserError(
            f"data.test_size={sizes['test']} and data.validation_size={sizes['validation']} leave nothing to "
            "train on; their sum must be below 1",
            code="setting-conflict",
        )
    for name in ("unknown", "min_frequency", "max_vocab_size") if data["tokenizer"] == "byte" else ():
        # `unknown=bytes` is what that tokenizer does anyway.
        if data[name] not in (data_fields()[name].default, "bytes"):
            raise UserError(
                f"data.{name}={data[name]} is about an alphabet; data.tokenizer=byte has none, leave it out",
                code="setting-no-effect",
            )
    return data


READ_BY = {
    **dict.fromkeys(("config_name", "revision", "split", "validation_split", "test_split"), ("hub",)),
    **dict.fromkeys(("encoding", "errors", "exclude", "format", "separator"), ("files",)),
    "text_column": ("files", "hub"),
}
"""Fields that only some sources look at."""


def check_corpus(data: Mapping[str, Any]) -> None:
    """Refuses what is no corpus to train on, and settings that would have no effect on it.

    Raises:
        UserError: with what is missing, or to be left out.
    """
    source = data["source"]
    if not data["path"]:
        ways = {"hub": "data.path=USER/DATASET", "builtin": "data.path=NAME"}
        raise UserError(
            f"data.path is missing, and data.source={source} needs one: "
            f"{ways.get(source, 'craft train my.txt, or data.path=my.txt')}",
            code="text-missing",
        )
    for name, sources in READ_BY.items():
        if source not in sources and data[name] != data_fields()[name].default:
            raise UserError(
                f"data.{name}={yaml_word(data[name])} has an effect with data.source={' or '.join(sources)} "
                f"alone, not with data.source={source}; leave it out",
                code="setting-no-effect",
            )
    if data["lanes"] != data_fields()["lanes"].default and not data["streaming"]:
        raise UserError(
            f"data.lanes={data['lanes']} has no effect without data.streaming=true; leave it out",
            code="setting-no-effect",
        )
