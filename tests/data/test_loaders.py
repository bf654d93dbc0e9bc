"""From arguments to splits: the numbers of the field, every source, and every refusal."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from refusals import refused

from craft.data.arguments import DataArguments
from craft.data.loaders import Corpus, cut, load_corpus, train_dataset
from craft.data.tokenization import ByteTokenizer, CharTokenizer
from craft.utils.errors import Code


def load(path: Any, **fields: Any) -> Corpus:
    tokenizer = fields.pop("tokenizer_object", None)
    return load_corpus(DataArguments(path=str(path), **{"block_size": 1, **fields}), tokenizer)


def decoded(corpus: Corpus, split: str) -> str:
    return corpus.tokenizer.decode(getattr(corpus, split))


def test_tiny_shakespeare_is_cut_as_nanogpt_cuts_it(shakespeare: Path) -> None:
    corpus = load(shakespeare)
    with shakespeare.open(encoding="utf-8", newline="") as file:
        text = file.read()
    assert (len(corpus.train), len(corpus.validation), corpus.test) == (1_003_854, 111_540, None)
    assert (corpus.n_units, corpus.documents) == (len(text), False)
    assert corpus.train.dtype == np.uint8
    assert isinstance(corpus.train, np.memmap)
    # nanoGPT's vocabulary is sorted(set(text)); ours has four specials before it.
    table = {c: i + 4 for i, c in enumerate(sorted(set(text)))}
    assert corpus.train.tolist() == [table[c] for c in text[: int(len(text) * 0.9)]]
    assert corpus.validation.tolist() == [table[c] for c in text[int(len(text) * 0.9) :]]
    assert corpus.name == "tinyshakespeare"
    assert load(shakespeare).fingerprint == corpus.fingerprint
    assert load(shakespeare, validation_size=0.2).fingerprint != corpus.fingerprint


@settings(deadline=None)
@given(
    st.integers(2, 2 * 10**6),
    st.sampled_from([0.0, 0.01, 0.05, 0.1, 0.2, 0.25]),
    st.sampled_from([0.0, 0.05, 0.1, 0.3]),
)
def test_fractions_are_cut_as_nanogpt_would_cut_them(n: int, validation: float, test: float) -> None:
    tokenizer = CharTokenizer.train(["a"])
    train = (100 - round(validation * 100) - round(test * 100)) / 100  # not 1 - 0.05 - 0.05, which isn't 0.9
    if int(n * train) < 1:
        return
    ids = np.broadcast_to(np.uint8(4), n)
    parts = cut(ids, validation, test, tokenizer)
    assert len(parts[0]) == int(n * train)
    assert sum(len(p) for p in parts if p is not None) == n
    assert [p is None for p in parts] == [False, not validation, not test]
    if test:
        assert len(parts[2]) == n - int(n * ((100 - round(test * 100)) / 100))


def test_a_fraction_of_a_long_text_is_one_of_two_million() -> None:
    ids, tokenizer = np.broadcast_to(np.uint8(4), 30_000_000), CharTokenizer.train(["a"])
    assert [len(part) for part in cut(ids, 0.1, 0.05, tokenizer) if part is not None] == [
        29_700_000,
        200_000,
        100_000,
    ]
    assert [len(part) for part in cut(ids, 3_000_000, 0, tokenizer) if part is not None] == [
        27_000_000,
        3_000_000,
    ]


def test_sizes_above_one_count_characters() -> None:
    ids, tokenizer = np.arange(4, 104, dtype=np.uint8), CharTokenizer.train(["a"])
    train, validation, test = cut(ids, 10, 20, tokenizer)
    assert [len(train), len(validation), len(test)] == [70, 10, 20]
    assert np.concatenate([train, validation, test]).tolist() == ids.tolist()
    assert [len(p) for p in cut(ids, 0.1, 20, tokenizer)] == [70, 10, 20]
    with refused("text-short", "data.validation_size=60", "data.test_size=40", 100):
        cut(ids, 60, 40, tokenizer)


@settings(max_examples=200, deadline=None)
@given(st.text(st.sampled_from("aé世👩"), min_size=30, max_size=60), st.floats(0.01, 0.4), st.integers(1, 20))
def test_no_cut_falls_inside_a_character_in_bytes(text: str, validation: float, test: int) -> None:
    tokenizer = ByteTokenizer.create()
    ids = tokenizer.encode_ids(text)
    parts = cut(ids, validation, test, tokenizer)
    texts = [bytes((p - 4).astype(np.uint8)).decode() for p in parts]  # raises inside a character
    assert "".join(texts) == text
    assert test - 3 <= len(parts[2]) <= test  # moved forward by at most three bytes


def test_every_policy_reaches_the_tokenizer(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("aaaabbbc" * 10)
    assert load(path).tokenizer.alphabet == ["a", "b", "c"]
    rare = load(path, unknown="unk", min_frequency=20)
    assert rare.tokenizer.alphabet == ["a", "b"]
    assert decoded(rare, "train").startswith("aaaabbb<unk>")
    small = load(path, unknown="bytes", max_vocab_size=1)
    assert small.tokenizer.alphabet == ["a"]
    assert decoded(small, "train").startswith("aaaabbbc")
    assert isinstance(load(path, tokenizer="byte").tokenizer, ByteTokenizer)
    with refused("setting-conflict", "data.min_frequency=20", "data.unknown"):
        load(path, min_frequency=20)


def test_a_given_tokenizer_is_used_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("abcé")
    mine = CharTokenizer.train(["abc"], unknown="unk")
    corpus = load(path, tokenizer_object=mine, validation_size=0)
    assert corpus.tokenizer is mine
    assert corpus.train.tolist() == [4, 5, 6, 3]
    assert corpus.validation is None
    strict = CharTokenizer.train(["abc"])
    with refused("character-unknown", "'é'", "U+00E9", "position 3 ", path):
        load(path, tokenizer_object=strict, validation_size=0)


def test_errors_replace_reads_invalid_utf8(tmp_path: Path) -> None:
    path = tmp_path / "latin.txt"
    path.write_bytes(b"caf\xe9 " * 20)
    with refused("text-encoding", path, "data.errors=replace"):
        load(path)
    assert decoded(load(path, errors="replace"), "train").startswith("caf\ufffd ")


ROWS = ["first\r\nrow", "", "NA", "null", "dernière é", "x"]


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet", ".jsonl.gz"])
@pytest.mark.parametrize("streaming", [False, True])
def test_rows_of_tables_are_documents(suffix: str, streaming: bool, tmp_path: Path) -> None:
    path = tmp_path / f"rows{suffix}"
    table = datasets.Dataset.from_dict({"n": list(range(len(ROWS))), "body": ROWS})
    if suffix == ".csv":
        table.to_csv(path)
    elif suffix == ".parquet":
        table.to_parquet(path)
    else:
        table.to_json(path, compression="infer", force_ascii=False)
    fields = {"validation_size": 20, "unknown": "bytes"} if streaming else {"validation_size": 0}
    corpus = load(path, text_column="body", streaming=streaming, **fields)
    assert corpus.documents
    text = "".join(row + "<eos>" for row in ROWS)
    if streaming:
        ids = np.concatenate([corpus.validation, *corpus.train.blocks()])
        assert corpus.tokenizer.decode(ids) == text
        return
    assert decoded(corpus, "train") == text
    assert corpus.n_units == sum(map(len, ROWS))
    # An edited table is read anew, though datasets would find it in its cache.
    if suffix == ".jsonl":
        stat = path.stat()
        path.write_text(path.read_text().replace("first", "fixed"))
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        assert decoded(load(path, text_column="body", validation_size=0), "train").startswith("fixed")


@pytest.fixture
def dataset_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A dataset as it lies on the Hub, with splits of its own."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    folder = tmp_path / "stories"
    folder.mkdir()
    for split, rows in (("train", ["ab", "ba"]), ("validation", ["cab"]), ("test", ["d"])):
        datasets.Dataset.from_dict({"text": rows * 30}).to_json(folder / f"{split}.jsonl")
    return folder


@pytest.mark.parametrize("streaming", [False, True])
def test_a_dataset_keeps_its_own_splits(dataset_folder: Path, streaming: bool) -> None:
    policy = {"tokenizer": "byte"} if streaming else {}
    corpus = load(
        dataset_folder,
        source="hub",
        validation_split="validation",
        test_split="test",
        streaming=streaming,
        **policy,
    )
    train = np.concatenate(list(corpus.train.blocks())) if streaming else corpus.train
    assert corpus.tokenizer.decode(train) == "ab<eos>ba<eos>" * 30
    assert decoded(corpus, "validation") == "cab<eos>" * 30
    assert decoded(corpus, "test") == "d<eos>" * 30
    assert corpus.name == "stories"
    if not streaming:
        assert corpus.tokenizer.alphabet == list("abcd")  # of all splits, so that strict holds
        assert corpus.n_units == 30 * 8


@pytest.mark.parametrize("streaming", [False, True])
def test_texts_nested_in_a_dataset(streaming: bool, tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "bot", "content": "b"}]
    datasets.Dataset.from_dict({"messages": [turns] * 9}).save_to_disk(tmp_path / "chat")
    fields = {"source": "hub", "streaming": streaming, "unknown": "bytes", "validation_size": 0}
    corpus = load(tmp_path / "chat", text_column="messages[].content", **fields)
    ids = np.concatenate(list(corpus.train.blocks())) if streaming else corpus.train
    assert corpus.tokenizer.decode(ids) == "a\nb<eos>" * 9
    with refused("text-column", "messages[].contant", "'messages[].content'"):
        load(tmp_path / "chat", text_column="messages[].contant", **fields)


@pytest.mark.parametrize("streaming", [False, True])
def test_a_dataset_that_was_saved_to_disk_is_read(streaming: bool, tmp_path: Path) -> None:
    table = datasets.Dataset.from_dict({"text": ["one", "two", None, "é"] * 9})
    table.save_to_disk(tmp_path / "one")
    datasets.DatasetDict(train=table, validation=table).save_to_disk(tmp_path / "two")
    fields = {"source": "hub", "streaming": streaming, "unknown": "bytes", "validation_size": 2}
    for folder, split in (("one", None), ("two", "validation")):
        corpus = load(tmp_path / folder, validation_split=split, **fields)
        ids = np.concatenate(list(corpus.train.blocks())) if streaming else corpus.train
        text = "one<eos>two<eos>é<eos>" * 9
        if split is None:  # a stream holds out its beginning
            text = text[2:] if streaming else "one<eos>two<eos>é<eos>" * 8 + "one<eos>two<eos>"
        assert corpus.tokenizer.decode(ids) == text
    with refused("data-invalid", tmp_path / "two" / "test"):
        load(tmp_path / "two", test_split="test", **fields)


def test_a_dataset_without_splits_of_its_own_is_cut(dataset_folder: Path) -> None:
    corpus = load(dataset_folder, source="hub", split="train", validation_size=0.5, test_split="test")
    assert len(corpus.train) == len(corpus.validation) == 90
    assert decoded(corpus, "test") == "d<eos>" * 30


def test_unknown_splits_and_configurations_are_refused_with_those_there_are(dataset_folder: Path) -> None:
    with refused("data-invalid", dataset_folder, "valid", "train", "validation"):
        load(dataset_folder, source="hub", validation_split="valid")
    with refused("data-invalid", dataset_folder, "'large'", "'default'"):
        load(dataset_folder, source="hub", config_name="large")


def test_a_setting_without_effect_is_refused_unless_it_is_of_an_earlier_run(tmp_path: Path) -> None:
    text, table = tmp_path / "a.txt", tmp_path / "a.parquet"
    text.write_text("some text " * 20)
    pyarrow.parquet.write_table(pa.table({"text": ["some text"] * 20}), table)
    for file, field, value in ((text, "text_column", "body"), (table, "encoding", "cp1252")):
        args = DataArguments(path=str(file), block_size=8, **{field: value})  # type: ignore[arg-type]
        with refused("setting-no-effect", f"data.{field}={value}", file):
            load_corpus(args)
        tokenizer = load_corpus(DataArguments(path=str(file), block_size=8, text_column="text")).tokenizer
        assert load_corpus(args, tokenizer=tokenizer).n_units  # of a run whose settings were for another text


def test_an_unreachable_hub_is_an_error_with_a_way_out(tmp_path: Path) -> None:
    code = (
        "from craft.data.arguments import DataArguments\n"
        "from craft.data.loaders import load_corpus\n"
        "from craft.utils.errors import UserError\n"
        "try: load_corpus(DataArguments(source='hub', path='some/dataset'))\n"
        "except UserError as error: print(error.code, error)\n"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    for value in ("some/dataset", "HF_HUB_OFFLINE", "data.source=files data.path="):
        assert value in done.stdout, done.stderr


@pytest.mark.parametrize("content", [b"", "gz"])
def test_empty_files_are_refused(content: Any, tmp_path: Path) -> None:
    import gzip

    path = tmp_path / ("empty.txt" if content == b"" else "empty.gz")
    path.write_bytes(gzip.compress(b"") if content == "gz" else content)
    with refused("text-missing", path):
        load(path)


@pytest.mark.parametrize(
    ("text", "fields", "code", "values"),
    [
        ("a" * 3_000_000, {}, "data-invalid", []),
        ("a" * 900 + "b" * 100, {}, "data-invalid", []),
        ("ab" * 50, {"test_size": 1}, "text-short", ["data.test_size", "1 characters"]),
        ("ab" * 50, {"validation_size": 1}, "text-short", ["data.validation_size", "1 characters"]),
        ("ab" * 50, {"validation_size": 4, "block_size": 8}, "text-short", ["at most 3"]),
        ("ab" * 50, {"block_size": 64}, "text-short", ["validation", "at most 9"]),
        ("ab" * 50, {"block_size": 64, "validation_size": 0}, "text-short", ["at most 33"]),
    ],
)
def test_a_text_without_anything_to_learn_or_to_score_is_refused(
    text: str, fields: dict[str, Any], code: Code, values: list[str], tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_text(text)
    args = DataArguments(path=str(tmp_path / "a.txt"), **{"block_size": 4, **fields})
    with refused(code, *values):
        train_dataset(load_corpus(args), args, 2, seed=0)


def test_damaged_ids_are_rebuilt(shakespeare: Path, cache: Path) -> None:
    before = load(shakespeare)
    expected = before.train[:100].tolist()
    (entry,) = cache.glob("ids-*")
    os.truncate(entry / "ids.bin", 500_000)
    assert load(shakespeare).train[:100].tolist() == expected


def test_train_dataset_follows_the_arguments(shakespeare: Path) -> None:
    args = DataArguments(path=str(shakespeare), block_size=32, order="random")
    corpus = load_corpus(args)
    assert train_dataset(corpus, args, 8, seed=3).order == "random"
    streams = train_dataset(corpus, args, 8, seed=3, order="streams")
    assert (streams.order, streams.block_size, streams.global_batch_size, streams.seed) == (
        "streams",
        32,
        8,
        3,
    )
