"""The tokenizers: exact, strict where they say so, and stock Hugging Face tokenizers once saved."""

from __future__ import annotations

import copy
import gc
import json
import pickle
import subprocess
import sys
import weakref
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets.fingerprint import Hasher
from hypothesis import given, settings
from hypothesis import strategies as st
from refusals import refused
from transformers import AutoTokenizer

from craft.data.tokenization import ByteTokenizer, CharTokenizer, first_id, load_tokenizer
from craft.utils.errors import UserError

TRICKY = "a\r\n\tb\0 \ufeffe\u0301 👩‍👩‍👧 \u2028\u0085<eos><0x41>▁Ġ##"
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
# Half of what is drawn lies in the alphabet of the tokenizers below.
MIXED = st.one_of(TEXT, st.text(st.sampled_from(TRICKY + "xyz世"), max_size=60))
POLICIES = ("strict", "unk", "bytes")
TOKENIZERS = {policy: CharTokenizer.train([TRICKY], unknown=policy) for policy in POLICIES}
TOKENIZERS["byte"] = ByteTokenizer.create()


@settings(deadline=None)
@given(MIXED)
@pytest.mark.parametrize("name", list(TOKENIZERS))
def test_numpy_and_hugging_face_agree(name: str, text: str) -> None:
    tokenizer = TOKENIZERS[name]
    if name == "strict" and not set(text) <= set(TRICKY):
        with pytest.raises(UserError) as fast:
            tokenizer.encode_ids(text)
        with pytest.raises(UserError) as slow:
            tokenizer(text)
        assert str(fast.value) == str(slow.value)
        return
    ids = tokenizer(text).input_ids
    assert tokenizer.encode_ids(text).tolist() == ids
    if name != "unk" or set(text) <= set(TRICKY):
        assert tokenizer.decode(ids) == text
        assert tokenizer.decode(ids, skip_special_tokens=True) == text


@settings(deadline=None)
@given(TEXT)
def test_decode_inverts_encode_over_the_alphabet(text: str) -> None:
    tokenizer = CharTokenizer.train([text])
    ids = tokenizer.encode(text)
    assert len(ids) == len(text)
    assert tokenizer.decode(ids) == text


def test_ids_are_specials_then_characters_by_code_point() -> None:
    tokenizer = CharTokenizer.train(["bba", "éb"])
    assert tokenizer.convert_ids_to_tokens(range(7)) == ["<pad>", "<bos>", "<eos>", "<unk>", "a", "b", "é"]
    assert (
        tokenizer.pad_token_id,
        tokenizer.bos_token_id,
        tokenizer.eos_token_id,
        tokenizer.unk_token_id,
    ) == (0, 1, 2, 3)
    assert len(tokenizer) == tokenizer.vocab_size == len(tokenizer.id_chars) == len(tokenizer.id_bytes) == 7
    assert len(TOKENIZERS["byte"]) == 260
    assert TOKENIZERS["byte"]("é").input_ids == [4 + 0xC3, 4 + 0xA9]


@pytest.mark.parametrize("name", list(TOKENIZERS))
def test_id_chars_and_id_bytes_add_up_to_the_text(name: str) -> None:
    tokenizer = TOKENIZERS[name]
    ids = tokenizer.encode_ids(TRICKY)
    assert tokenizer.id_chars[ids].sum() == len(TRICKY)
    assert tokenizer.id_bytes[ids].sum() == len(TRICKY.encode())
    assert tokenizer.id_chars[:4].tolist() == [0, 0, 0, 1]


def test_strict_holds_for_every_way_to_encode() -> None:
    tokenizer = TOKENIZERS["strict"]
    for encode in (
        lambda: tokenizer("aé"),
        lambda: tokenizer(["a", "aé"]),
        lambda: tokenizer("a", "aé"),
        lambda: tokenizer([("a", "aé")]),
        lambda: tokenizer([["a", "aé"]], is_split_into_words=True),
        lambda: tokenizer.encode("aé"),
        lambda: tokenizer.tokenize("aé"),
        lambda: tokenizer.encode_ids("aé"),
    ):
        with refused("character-unknown", "'é'", "U+00E9", "position 1 "):
            encode()
    with refused("character-unknown", "'é'", "U+00E9", "position 101 ", "my.txt"):
        tokenizer.encode_ids("aé", "my.txt", 100)
    with refused("character-unknown", "'<'", "U+003C", "position 1 "):
        CharTokenizer.train(["ab"])("a<pad>b")  # which stands for nothing there


def test_an_unpaired_surrogate_is_refused() -> None:
    for tokenizer in TOKENIZERS.values():
        with refused("text-encoding", "U+D83D", "position 1 "):
            tokenizer("a\ud83d")


def test_unseen_characters_are_unk_one_by_one_or_bytes() -> None:
    assert TOKENIZERS["unk"]("é世").input_ids == [3, 3]
    assert TOKENIZERS["unk"].decode([3, 3]) == "<unk><unk>"
    assert TOKENIZERS["bytes"]("é").input_ids == [4 + 0xC3, 4 + 0xA9]


def test_rare_characters_are_left_out_and_the_most_frequent_kept() -> None:
    counts = Counter("aaaabbbccd")
    assert CharTokenizer.from_counts(counts, "unk", min_frequency=2).alphabet == ["a", "b", "c"]
    assert CharTokenizer.from_counts(counts, "bytes", max_vocab_size=2).alphabet == ["a", "b"]
    assert CharTokenizer.from_counts(Counter("xyab"), "unk", max_vocab_size=3).alphabet == ["a", "b", "x"]
    with refused("setting-conflict", "data.min_frequency=2", "1 characters", "'d'", "data.unknown"):
        CharTokenizer.from_counts(counts, "strict", min_frequency=2)


def test_an_unknown_policy_is_refused_and_an_empty_alphabet_is_none() -> None:
    with refused("setting-value", "'skip'", "strict, unk, bytes"):
        CharTokenizer.train(["aaab"], "skip")
    assert CharTokenizer.train(["aaab"], "bytes", min_frequency=9).decode([101, 102]) == "ab"
    nothing = CharTokenizer.train([], "unk")
    assert nothing("ab").input_ids == nothing.encode_ids("ab").tolist() == [3, 3]


def test_batches_padding_truncation_offsets_and_specials() -> None:
    tokenizer = TOKENIZERS["unk"]
    batch = tokenizer(["a", "abé"], padding=True, return_tensors="np", return_offsets_mapping=True)
    a, b = tokenizer.encode("ab")
    assert batch.input_ids.tolist() == [[0, 0, a], [a, b, 3]]
    assert batch.attention_mask.tolist() == [[0, 0, 1], [1, 1, 1]]
    assert batch.offset_mapping[1].tolist() == [[0, 1], [1, 2], [2, 3]]
    assert tokenizer("aaab", truncation=True, max_length=2).input_ids == [a, a]
    assert "<eos>" in TRICKY
    assert not {0, 1, 2} & set(tokenizer(TRICKY).input_ids)
    ids = [tokenizer.bos_token_id, a, tokenizer.eos_token_id]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "a"
    assert tokenizer.decode(ids) == "<bos>a<eos>"
    spaced = "a , b . it 's do n't"  # what cleaning up tokenization spaces would ruin
    assert ByteTokenizer.create().decode(ByteTokenizer.create().encode(spaced)) == spaced


@pytest.mark.parametrize("name", list(TOKENIZERS))
def test_a_saved_tokenizer_loads_as_the_same(name: str, tmp_path: Path) -> None:
    tokenizer = TOKENIZERS[name]
    tokenizer.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert "auto_map" not in config
    assert config["clean_up_tokenization_spaces"] is False  # some versions would take spaces out of texts
    loaded = load_tokenizer(tmp_path)
    assert type(loaded) is type(tokenizer)
    assert (loaded.unknown, loaded.padding_side) == (tokenizer.unknown, "left")
    stock = AutoTokenizer.from_pretrained(tmp_path)
    for other in (loaded, stock, copy.deepcopy(loaded), pickle.loads(pickle.dumps(loaded))):
        ids = other(TRICKY).input_ids
        assert ids == tokenizer.encode_ids(TRICKY).tolist()
        assert other.decode(ids) == TRICKY
        assert other.get_vocab() == tokenizer.get_vocab()
    # Saved again it still loads, and still as a stock class.
    loaded.save_pretrained(tmp_path / "again")
    assert load_tokenizer(tmp_path / "again").encode(TRICKY) == tokenizer.encode(TRICKY)


def test_a_pushed_tokenizer_names_the_stock_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uploaded = {}

    def upload(self: Any, folder: str, *args: Any, **kwargs: Any) -> None:
        uploaded.update(json.loads((Path(folder) / "tokenizer_config.json").read_text(encoding="utf-8")))

    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", lambda self, repo_id, **_: Repo(repo_id))
    monkeypatch.setattr(CharTokenizer, "_upload_modified_files", upload)
    TOKENIZERS["unk"].save_pretrained(tmp_path, push_to_hub=True, repo_id="me/mine")
    assert (uploaded["tokenizer_class"], uploaded["unknown"]) == ("PreTrainedTokenizerFast", "unk")


class Repo:
    def __init__(self, repo_id: str) -> None:
        self.repo_id = repo_id


def test_auto_tokenizer_needs_no_craft_and_no_remote_code(tmp_path: Path) -> None:
    for name, tokenizer in TOKENIZERS.items():
        tokenizer.save_pretrained(tmp_path / name)
    code = f"""
import sys
sys.modules["craft"] = None  # any import of craft now fails
from transformers import AutoTokenizer
for name in {list(TOKENIZERS)!r}:
    tokenizer = AutoTokenizer.from_pretrained(f"{tmp_path}/{{name}}")
    ids = tokenizer({TRICKY!r}).input_ids
    assert tokenizer.decode(ids) == {TRICKY!r}, name
    assert tokenizer.padding_side == "left" and type(tokenizer).__module__.startswith("transformers")
    shown = tokenizer.decode(tokenizer("aé").input_ids)
    assert shown == ("a<unk>" if name in ("strict", "unk") else "aé"), (name, shown)
print("fine")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    assert done.stdout.strip() == "fine", done.stderr


def test_load_tokenizer_refuses_tokenizers_of_other_kinds(tmp_path: Path) -> None:
    with refused("tokenizer-invalid", tmp_path / "nothing"):
        load_tokenizer(tmp_path / "nothing")
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    stock = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel({"a": 0, "<unk>": 1}, unk_token="<unk>"))
    )
    stock.save_pretrained(tmp_path)
    with refused("tokenizer-invalid", tmp_path):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("name", list(TOKENIZERS))
def test_using_a_tokenizer_changes_neither_its_hash_nor_its_pickle(name: str, tmp_path: Path) -> None:
    """`datasets.map` takes the hash for the name of its cache."""
    used = copy.deepcopy(TOKENIZERS[name])
    before, size = Hasher.hash(used), len(pickle.dumps(used))
    ids = used("ab").input_ids
    used.encode_ids("ab")
    used.decode(ids)
    used(["a", "ab"], padding=True, truncation=True, max_length=2)
    assert used.id_chars.sum() + used.id_bytes.sum() > 0
    used.save_pretrained(tmp_path)
    assert Hasher.hash(used) == Hasher.hash(pickle.loads(pickle.dumps(used))) == before
    used("ab")
    assert len(pickle.dumps(used)) == size < 10_000


def test_the_numpy_table_of_a_tokenizer_is_freed_with_it() -> None:
    tokenizer = CharTokenizer.train(["ab"])
    table = weakref.ref(tokenizer.processor)
    del tokenizer
    gc.collect()
    assert table() is None


def test_tiny_shakespeare_has_65_characters(shakespeare: Path) -> None:
    with shakespeare.open(encoding="utf-8", newline="") as file:
        text = file.read()
    tokenizer = CharTokenizer.train([text])
    ids = tokenizer.encode_ids(text)
    assert len(tokenizer) == 65 + 4
    assert ids.dtype == np.uint8
    assert tokenizer.processor.decode(ids) == text
    assert tokenizer(text[:20000]).input_ids == ids[:20000].tolist()


def test_an_empty_prompt_begins_with_a_line_break_or_the_begin_token() -> None:
    newline = CharTokenizer.train(["ab\n"])
    assert first_id(newline) == newline.encode_ids("\n")[0]
    assert first_id(CharTokenizer.train(["ab"])) == newline.bos_token_id
    as_bytes = CharTokenizer.train(["ab"], unknown="bytes")
    assert first_id(as_bytes) == as_bytes.encode_ids("\n")[0]
    assert first_id(ByteTokenizer.create()) == ByteTokenizer.create().encode_ids("\n")[0]


@pytest.mark.parametrize("unknown", ["strict", "unk", "bytes"])
def test_special_tokens_that_a_user_adds_are_found_in_texts(unknown: str, tmp_path: Path) -> None:
    """As chat templates need it; without such tokens a text that looks like one stays a text."""
    tokenizer = CharTokenizer.train(["ab<bos>"], unknown)
    tokenizer.add_tokens(["bb"])  # an ordinary one changes nothing about them
    plain = tokenizer("a<bos>b").input_ids
    assert len(plain) == 7
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|user|>"]})
    ids = tokenizer("a<|user|>b").input_ids
    assert ids[1] == tokenizer.convert_tokens_to_ids("<|user|>") == len(tokenizer) - 1
    assert len(ids) == 3
    tokenizer.save_pretrained(tmp_path)
    for again in (load_tokenizer(tmp_path), AutoTokenizer.from_pretrained(tmp_path)):
        assert again("a<|user|>b").input_ids == ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == "ab"


def test_tokens_know_the_number_of_their_word() -> None:
    encoding = CharTokenizer.train(["one two"])("one two")
    assert encoding.word_ids() == [0, 0, 0, 1, 1, 1, 1]


@pytest.mark.parametrize("unknown", ["strict", "unk", "bytes"])
def test_training_anew_merges_no_characters(unknown: str) -> None:
    new = CharTokenizer.train(["xyz"], unknown).train_new_from_iterator([["ababab", "ab"], ["c"]], 400)
    assert (new.alphabet, new.unknown) == (["a", "b", "c"], unknown)
    assert new("abc").input_ids == new.encode_ids("abc").tolist() == list(range(len(new) - 3, len(new)))
    few = CharTokenizer.train(["xyz"], "unk").train_new_from_iterator(
        ["aab"], 5, new_special_tokens=["<sep>"], special_tokens_map={"<bos>": "<begin>"}
    )
    assert (few.alphabet, few.bos_token, few.bos_token_id, len(few)) == (["a"], "<begin>", 1, 6)
    room = CharTokenizer.train(["xyz"], "bytes").train_new_from_iterator(["aab"], 4 + 256 + 1)
    assert (room.alphabet, len(room)) == (["a"], 4 + 256 + 1)
    assert isinstance(ByteTokenizer.create().train_new_from_iterator(["abc"], 100), ByteTokenizer)
