"""Texts compressed by a model: they come back byte for byte, and take what the model's figure says."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_run
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from refusals import refused

from craft.cli.compress import command as compress_command
from craft.cli.decompress import command as decompress_command
from craft.data.tokenization import ByteTokenizer, CharTokenizer
from craft.evaluation import coder
from craft.evaluation.compress import compress, decompress, join, read_header, sizes, split
from craft.evaluation.scores import evaluate_split
from craft.models import CharLSTMConfig, CharLSTMForCausalLM

pytest.importorskip("constriction", reason="the extra 'compress' isn't installed")

GUIDES = Path(__file__).resolve().parents[2] / "docs" / "guides"
TEXT = "".join(path.read_text(encoding="utf-8") for path in sorted(GUIDES.glob("*.md")))
TOKENIZERS = {
    "strict": CharTokenizer.train([TEXT]),
    "unk": CharTokenizer.train([TEXT], "unk"),
    "bytes": CharTokenizer.train([TEXT], "bytes"),
    "byte": ByteTokenizer.create(),
}
HOSTILE = {
    "empty": b"",
    "one known byte": b"a",
    "one unknown byte": b"\xff",
    "NULs": b"a\0\0b\0",
    "CRLF and CR": b"a\r\nb\rc\r\n",
    "a byte order mark": "\ufeffa mark\ufeff".encode(),
    "only unknown characters": "\u4e16\u754c\U0001f469\u200d\U0001f680".encode() * 20,
    "emoji": "so \U0001f469\u200d\U0001f680 and so \U0001f44d\U0001f3fd".encode(),
    "all bytes": bytes(range(256)) * 2,
    "cut characters": "é".encode()[:1] + b"a" + "é".encode()[1:] + b"\xf0\x9f\x91",
    "surrogates": "a\ud800b\udc80\udfff".encode("utf-8", "surrogatepass"),
    "what stands for bytes in Python": "\udcff".encode("utf-8", "surrogatepass") + b"\xff",
    "UTF-16": "abc é".encode("utf-16"),
    "special tokens": b"<pad><unk><0x41></s>",
    "the format itself": b"\x8aCRAFT\x01\0\0\0\0{}\n",
}


def lstm(tokenizer: CharTokenizer, width: int = 16) -> Any:
    torch.manual_seed(0)
    config = CharLSTMConfig(vocab_size=len(tokenizer), hidden_size=width, num_hidden_layers=1)
    return CharLSTMForCausalLM(config).eval()


@pytest.fixture(scope="module")
def trained() -> Any:
    """An LSTM that has learnt for a second or two."""
    model = lstm(TOKENIZERS["strict"], 48)
    ids = torch.from_numpy(TOKENIZERS["strict"].encode_ids(TEXT).astype(np.int64))
    optimizer = torch.optim.AdamW(model.parameters(), 0.01)
    for _ in range(80):
        windows = ids.unfold(0, 33, 1)[torch.randint(len(ids) - 33, (32,))]
        loss = model(**model.make_batch(windows)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


@pytest.mark.parametrize("policy", TOKENIZERS)
@pytest.mark.parametrize("name", HOSTILE)
def test_any_file_comes_back(name: str, policy: str) -> None:
    tokenizer = TOKENIZERS[policy]
    packed = compress(model := lstm(tokenizer), tokenizer, HOSTILE[name])
    assert decompress(model, tokenizer, packed) == HOSTILE[name]


def test_a_hundred_thousand_times_one_character_come_back() -> None:
    tokenizer = TOKENIZERS["strict"]
    for char in ("a", "\u4e16"):
        data = char.encode() * 100_000
        packed = compress(model := lstm(tokenizer), tokenizer, data, streams=64 if char == "a" else None)
        assert decompress(model, tokenizer, packed) == data


@settings(max_examples=60, deadline=None)
@given(st.lists(st.binary(max_size=9) | st.text(max_size=9).map(str.encode)), st.sampled_from([*TOKENIZERS]))
def test_what_is_split_is_joined(pieces: list[bytes], policy: str) -> None:
    data, tokenizer = b"".join(pieces), TOKENIZERS[policy]
    ids, runs, aside = split(data, tokenizer)
    assert join(ids, runs, aside, tokenizer) == data
    assert bool(aside) == bool(runs)
    if tokenizer.unknown == "bytes":
        assert not runs


def test_known_characters_are_coded_as_if_there_were_no_others(trained: Any) -> None:
    """What the tokenizer lacks costs a few bytes in a place of its own, and nothing where it is absent."""
    tokenizer, text = TOKENIZERS["strict"], TEXT[:3000]
    strange = text[:1000] + "\u4e16" + text[1000:]
    parts = [split(each.encode(), tokenizer) for each in (text, strange)]
    assert np.array_equal(parts[0][0], parts[1][0])
    assert (parts[0][1:], parts[1][1]) == ((0, b""), 1)
    assert len(parts[1][2]) < 30


@pytest.mark.parametrize(("characters", "streams"), [(16_000, 1), (40_000, 8)])
def test_the_payload_is_what_the_figure_says(trained: Any, characters: int, streams: int) -> None:
    tokenizer = TOKENIZERS["strict"]
    ids = split(TEXT[:characters].encode(), tokenizer)[0]
    lengths = coder.parts_of(len(ids), streams)
    nats = streams * math.log(len(tokenizer))  # the first id of each, which no protocol predicts, is uniform
    for end, length in zip(np.cumsum(lengths), lengths):
        piece = ids[end - length : end]
        nats += evaluate_split(trained, piece, protocol="stateful", block_size=500, streams=1).nats
    window, words = coder.encode(trained, ids, streams)
    assert window == 0
    assert 8 * len(words) * math.log(2) == pytest.approx(nats, rel=0.002)
    assert nats < 0.8 * len(ids) * math.log(len(tokenizer))


@pytest.mark.parametrize("position", ["rope", "learned"])
def test_a_transformer_goes_on_beyond_its_context_in_the_way_that_takes_fewer_bits(
    position: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_run.model("char_transformer", position=position, initializer_range=0.5).eval()
    tokenizer, data = tiny_run.tokenizer(), tiny_run.TEXT[:600].encode()
    chosen = read_header(compress(model, tokenizer, data, streams=3))[0].window
    packed = {}
    for window in (0, tiny_run.BLOCK):
        monkeypatch.setattr(coder, "_best_window", lambda *_, window=window: window)
        packed[window] = compress(model, tokenizer, data, streams=3)
        assert read_header(packed[window])[0].window == window
        assert decompress(model, tokenizer, packed[window]) == data
    sizes = {window: len(each) for window, each in packed.items()}
    assert sizes[chosen] == min(sizes.values())
    # Learned positions are read anew by the model itself.
    assert (sizes[0] == sizes[tiny_run.BLOCK]) == (position == "learned")


def resealed(packed: bytes, change: Any) -> bytes:
    """With another header or payload, and a checksum that fits."""
    header, rest = read_header(packed)
    header, rest = change(header, rest)
    body = json.dumps(dataclasses.asdict(header)).encode() + b"\n" + rest
    return packed[:7] + zlib.crc32(body).to_bytes(4, "little") + body


def test_what_cannot_be_decompressed_is_refused(trained: Any) -> None:
    tokenizer, data = TOKENIZERS["strict"], TEXT[:500].encode()
    packed = compress(trained, tokenizer, data, name="outputs/models/a")
    for damaged in (packed[:-1], packed[:60], packed[:200] + b"?" + packed[201:], packed[:8]):
        with refused("file-unreadable"):
            decompress(trained, tokenizer, damaged)
    with refused("file-unreadable"):
        decompress(trained, tokenizer, data)
    with refused("file-unreadable", "version"):
        decompress(trained, tokenizer, packed[:6] + b"\x02" + packed[7:])
    with refused("model-mismatch", "outputs/models/a"):
        decompress(lstm(tokenizer, 48), tokenizer, packed)
    with refused("model-mismatch"):
        decompress(trained, TOKENIZERS["bytes"], packed)


def test_another_torch_is_tried_and_the_text_verified(trained: Any) -> None:
    tokenizer, data = TOKENIZERS["strict"], TEXT[:500].encode()
    packed = compress(trained, tokenizer, data)
    older = resealed(packed, lambda header, rest: (dataclasses.replace(header, torch="2.0.1"), rest))
    assert decompress(trained, tokenizer, older) == data
    other = resealed(older, lambda header, rest: (header, rest[:40] + b"????" + rest[44:]))
    with refused("machine-unable", "torch 2.0.1", torch.__version__):
        decompress(trained, tokenizer, other)


def test_more_streams_than_characters_are_refused() -> None:
    with refused("setting-value", "--streams 3", 2):
        compress(lstm(TOKENIZERS["strict"]), TOKENIZERS["strict"], b"ab", streams=3)


def test_sizes_are_those_of_the_file_and_of_the_models_part(trained: Any) -> None:
    data = TEXT[:4000].encode() + "\u4e16".encode()
    packed = compress(trained, TOKENIZERS["strict"], data)
    header, rest = read_header(packed)
    payload = len(rest) - header.aside
    shown = sizes(data, packed)
    for figure in (f"{len(packed):,}", f"{payload:,}", f"{8 * payload / 4000:.4f}", "1 runs"):
        assert figure in shown


@pytest.fixture
def desk(tmp_path: Path, trained: Any, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model and a text."""
    monkeypatch.chdir(tmp_path)
    trained.save_pretrained("model")
    TOKENIZERS["strict"].save_pretrained("model")
    Path("my.txt").write_text(TEXT[:2000], encoding="utf-8", newline="")
    return tmp_path


def status(command: Any, *words: str) -> Any:
    result = CliRunner().invoke(command, words)
    return (
        result.exit_code if result.exception is None else getattr(result.exception, "code", result.exception)
    )


def test_the_commands_keep_files_that_are_there(desk: Path) -> None:
    original = Path("my.txt").read_bytes()
    assert status(compress_command, "model", "my.txt") == 0
    assert status(compress_command, "model", "my.txt") == "setting-conflict"
    assert status(compress_command, "model", "my.txt", "--force", "--streams", "2") == 0
    assert read_header(Path("my.txt.craft").read_bytes())[0].streams == 2
    assert status(decompress_command, "my.txt.craft") == "setting-conflict"
    Path("my.txt").write_text("something else")
    assert status(decompress_command, "my.txt.craft", "-o", "again.txt") == 0
    assert Path("again.txt").read_bytes() == original
    assert Path("my.txt").read_text() == "something else"
    assert status(decompress_command, "again.txt", "--force") == "usage"
    assert status(compress_command, "model", "none.txt") == "file-missing"
    assert status(compress_command, "model", "my.txt", "-o", "nowhere/my.craft") == "file-missing"


def test_another_process_decompresses_and_a_failure_leaves_nothing(desk: Path) -> None:
    assert status(compress_command, str(desk / "model"), "my.txt") == 0
    packed = Path("my.txt.craft").read_bytes()
    assert str(desk).encode() not in packed
    original = Path("my.txt").read_bytes()
    Path("my.txt").unlink()
    done = subprocess.run(
        [sys.executable, "-m", "craft", "decompress", "my.txt.craft"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert Path("my.txt").read_bytes() == original
    Path("my.txt").unlink()
    os.rename("model", "elsewhere")
    assert status(decompress_command, "my.txt.craft") == "model-missing"
    assert status(decompress_command, "my.txt.craft", "--model", "elsewhere") == 0
    Path("my.txt").unlink()
    wrong = resealed(packed, lambda header, rest: (header, rest[:40] + b"????" + rest[44:]))
    Path("my.txt.craft").write_bytes(wrong)
    assert status(decompress_command, "my.txt.craft", "--model", "elsewhere") == "machine-unable"
    assert sorted(path.name for path in desk.iterdir()) == ["elsewhere", "my.txt.craft"]
