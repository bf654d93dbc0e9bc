"""Character and byte tokenizers that are real Hugging Face tokenizers.

Design: a BPE model without merges and without pre-tokenizer maps each character to its own id and
back without loss, so a saved tokenizer loads with `AutoTokenizer` as a stock class, no remote code, in a
process that has never heard of craft. The policy for unseen characters is saved in `tokenizer_config.json`
and restored by `load_tokenizer`; a stock class shows an unseen character of a strict alphabet as `<unk>`.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import BatchEncoding, PreTrainedTokenizerFast

from craft.data.lookalikes import suggest_look_alikes, with_code_points
from craft.data.processors import TextProcessor
from craft.utils.errors import UserError, first_line
from craft.utils.units import unit_named

POLICIES = ("strict", "unk", "bytes")
SPECIAL_TOKENS = ("<pad>", "<bos>", "<eos>", "<unk>")  # ids 0 to 3 of every vocabulary


class CharTokenizer(PreTrainedTokenizerFast):
    """One id per character; `decode(encode(s)) == s` for every string over the alphabet.

    Ids 0..3 are `<pad> <bos> <eos> <unk>`; under the policy `bytes` ids 4..259 are the byte values; the
    characters follow, sorted by code point, then those that were added later (`extended`). Nothing is added
    on encoding, special strings in a text stay text, and padding is on the left, where generation needs it.

    Build one with `CharTokenizer.train(texts)` or `from_counts`; load one with `load_tokenizer`.
    """

    # No __init__: transformers then loads tokenizer.json as it is instead of taking it apart.

    @classmethod
    def train(
        cls,
        texts: Iterable[str],
        unknown: str = "strict",
        min_frequency: int = 1,
        max_vocab_size: int | None = None,
        unit: str | None = None,
    ) -> CharTokenizer:
        """A tokenizer over the characters of `texts`; see `from_counts`."""
        counts: Counter[str] = Counter()
        for text in texts:
            counts.update(text)
        return cls.from_counts(counts, unknown, min_frequency, max_vocab_size, unit)

    @classmethod
    def from_counts(
        cls,
        counts: Mapping[str, int],
        unknown: str = "strict",
        min_frequency: int = 1,
        max_vocab_size: int | None = None,
        unit: str | None = None,
    ) -> CharTokenizer:
        """A tokenizer over the characters of `counts` (character -> occurrences).

        Args:
            unknown: what an unseen character becomes: `strict` (an error), `unk` (`<unk>`) or `bytes`.
            min_frequency: rarer characters are left out.
            max_vocab_size: at most this many characters, the most frequent.
            unit: what figures count, in the singular: `note` where each character is one; by default
                `character`.

        Raises:
            UserError: if characters are left out although every unseen character is an error.
        """
        if unknown not in POLICIES:
            raise UserError(f"unknown={unknown!r} is none of {', '.join(POLICIES)}", code="setting-value")
        frequent = [c for c, n in counts.items() if n >= min_frequency]
        kept = sorted(frequent, key=lambda c: (-counts[c], c))[:max_vocab_size]
        if unknown == "strict" and len(kept) < len(counts):
            left_out = sorted(set(counts) - set(kept))
            raise UserError(
                f"data.min_frequency={min_frequency} and data.max_vocab_size={max_vocab_size} leave out "
                f"{len(left_out)} characters of the corpus, such as {left_out[0]!r}: "
                "say what they become with data.unknown=unk or data.unknown=bytes",
                code="setting-conflict",
            )
        return cls._of_alphabet(sorted(kept), unknown, unit=unit)

    def train_new_from_iterator(
        self,
        text_iterator: Iterable[Any],
        vocab_size: int,
        length: int | None = None,
        new_special_tokens: Sequence[str | AddedToken] | None = None,
        special_tokens_map: Mapping[str, str] | None = None,
        **kwargs: Any,
    ) -> CharTokenizer:
        """As in transformers, for texts or batches of texts, but no characters are ever merged: a tokenizer
        of the same policy over the characters of `text_iterator`, of `vocab_size` ids at the most."""
        specials = [self.convert_ids_to_tokens(i) for i in range(len(SPECIAL_TOKENS))]
        renamed = tuple((special_tokens_map or {}).get(token, token) for token in specials)
        room = max(0, vocab_size - len(specials) - 256 * (self.unknown == "bytes"))
        alphabet = self.train(_strings(text_iterator), self.unknown, max_vocab_size=room).alphabet
        tokenizer = self._of_alphabet(alphabet if self.alphabet else [], self.unknown, renamed, self.unit)
        if new_special_tokens:
            tokenizer.add_special_tokens({"extra_special_tokens": list(new_special_tokens)})
        return tokenizer

    @classmethod
    def _of_alphabet(
        cls,
        alphabet: list[str],
        unknown: str,
        specials: tuple[str, ...] = SPECIAL_TOKENS,
        unit: str | None = None,
    ) -> CharTokenizer:
        byte_tokens = [f"<0x{b:02X}>" for b in range(256)] if unknown == "bytes" else []
        vocab = {token: i for i, token in enumerate([*specials, *byte_tokens, *alphabet])}
        model = BPE(vocab, [], unk_token=specials[-1], fuse_unk=False, byte_fallback=unknown == "bytes")
        backend = Tokenizer(model)
        # Ids don't depend on it; words have numbers in `word_ids`, where without it a text is one word.
        backend.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_next")
        backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
        backend.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in specials])
        return cls(
            tokenizer_object=backend,
            **dict(zip(("pad_token", "bos_token", "eos_token", "unk_token"), specials)),
            padding_side="left",
            split_special_tokens=True,
            clean_up_tokenization_spaces=False,
            model_input_names=["input_ids", "attention_mask"],
            unknown=unknown,
            unit=unit_named(("character" if alphabet else "byte") if unit is None else unit).name,
        )

    def unseen(self, characters: Iterable[str]) -> list[str]:
        """Those of `characters` that have no id of their own, sorted by code point."""
        return sorted(set(characters) - set(self.alphabet)) if self.alphabet else []

    def extended(self, characters: Iterable[str]) -> CharTokenizer:
        """A tokenizer that knows these characters too: every old id stays, the new ones follow.

        A byte tokenizer knows them already and is returned as it is.
        """
        new = self.unseen(characters)
        return self._of_alphabet([*self.alphabet, *new], self.unknown, unit=self.unit) if new else self

    @property
    def unknown(self) -> str:
        """The policy for unseen characters: `strict`, `unk` or `bytes`."""
        return self.init_kwargs["unknown"]

    @property
    def unit(self) -> str:
        """What figures count, saved with the tokenizer; one that was saved without it counts characters."""
        return self.init_kwargs.get("unit", "character")

    @property
    def alphabet(self) -> list[str]:
        """The characters with an id of their own, in the order of their ids."""
        return self.processor.alphabet

    @property
    def processor(self) -> TextProcessor:
        """The numpy fast path over the same vocabulary."""
        processor = _PROCESSORS.get(self)
        if processor is None:
            vocab = self.backend_tokenizer.get_vocab(with_added_tokens=False)
            by_id = [token for token, _ in sorted(vocab.items(), key=lambda item: item[1])]
            processor = TextProcessor([token for token in by_id if len(token) == 1], self.unknown)
            _PROCESSORS[self] = processor
        return processor

    @property
    def id_chars(self) -> np.ndarray:
        """int64 [vocab]: how many characters each id stands for (specials 0, `<unk>` 1)."""
        return self.processor.id_chars

    @property
    def id_bytes(self) -> np.ndarray:
        """int64 [vocab]: how many UTF-8 bytes each id stands for (specials 0, `<unk>` 1)."""
        return self.processor.id_bytes

    @property
    def id_units(self) -> np.ndarray:
        """int64 [vocab]: how many units each id stands for."""
        if self.unit == "byte" or (self.unit != "character" and not self.alphabet):
            return self.id_bytes
        return self.id_chars

    @property
    def token_bytes(self) -> list[bytes]:
        """What each id shows in a text, tokens that a user added among them: nothing for special ones."""
        added = sorted((i, t) for i, t in self.added_tokens_decoder.items() if i >= self.processor.vocab_size)
        return [*self.processor.token_bytes, *(b"" if t.special else t.content.encode() for _, t in added)]

    def check_writable(self, text: str, where: str) -> None:
        """Refuses a text that no model with this tokenizer can write.

        Raises:
            UserError: naming the first character, and what the alphabet has instead.
        """
        if self.unknown == "bytes":
            return
        known = set(b"".join(self.token_bytes).decode())
        if missing := [char for char in text if char not in known]:
            raise UserError(
                f"{where} {text!r} can't be written by this model: {with_code_points(missing[0])} isn't in "
                f"its alphabet{suggest_look_alikes(missing[0], self.alphabet)}",
                code="character-unknown",
            )

    def encode_ids(self, text: str, where: str = "the text", offset: int = 0) -> np.ndarray:
        """The ids of `tok(text).input_ids`, by numpy: unsigned [len], hundreds of MB/s.

        Raises:
            UserError: for an unseen character under the policy `strict`, or an unpaired surrogate.
        """
        return self.processor.encode(text, where, offset)

    def _encode_plus(  # type: ignore[override]
        self, text: Any, text_pair: Any = None, **kwargs: Any
    ) -> BatchEncoding:
        # Every public way to encode passes here. The table lookup raises for surrogates and, under
        # `strict`, for unseen characters, which the backend would turn into <unk> without a word.
        added = [t for t, i in self.added_tokens_encoder.items() if i >= self.processor.vocab_size]
        for piece in (*_strings(text), *_strings(text_pair)):
            for part in re.split("|".join(map(re.escape, added)), piece) if added else (piece,):
                self.processor.encode(part)
        return super()._encode_plus(text, text_pair, **kwargs)

    def _add_tokens(self, new_tokens: Sequence[str | AddedToken], special_tokens: bool = False) -> int:
        # The four of every vocabulary are text wherever a text happens to contain them. Whoever adds more,
        # for a chat template, wants them found in texts, as in any other tokenizer.
        if special_tokens and any(self._tokenizer.token_to_id(str(token)) is None for token in new_tokens):
            self.split_special_tokens = False
        return super()._add_tokens(new_tokens, special_tokens)

    def _save_pretrained(
        self, save_directory: Any, file_names: tuple[str, ...], *args: Any, **kwargs: Any
    ) -> tuple[str, ...]:
        # The configuration is written and nothing uploaded yet: name the stock class, so that AutoTokenizer
        # finds it everywhere. load_tokenizer knows our own by its `unknown`.
        for file in file_names:
            if file.endswith("tokenizer_config.json"):
                config = json.loads(Path(file).read_text(encoding="utf-8"))
                config["tokenizer_class"] = "PreTrainedTokenizerFast"
                Path(file).write_text(
                    json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
                )
        return super()._save_pretrained(save_directory, file_names, *args, **kwargs)


# Not attributes: `datasets` hashes all that a tokenizer holds for the name of its cache, so a tokenizer that
# has been called would be another one, and its pickle a megabyte larger.
_PROCESSORS: WeakKeyDictionary[CharTokenizer, TextProcessor] = WeakKeyDictionary()


class ByteTokenizer(CharTokenizer):
    """One id per UTF-8 byte: an empty alphabet under the policy `bytes`; 260 ids, every string, no loss."""

    @classmethod
    def create(cls, unit: str = "byte") -> ByteTokenizer:
        """A byte tokenizer; for images its `unit` is that of `ImageProcessor`, pixel."""
        return cls._of_alphabet([], "bytes", unit=unit)  # type: ignore[return-value]


def load_tokenizer(path: str | Path, **kwargs: Any) -> CharTokenizer:
    """A saved tokenizer of craft as its own class, with its policy for unseen characters.

    Args:
        path: a folder or Hub id.
        kwargs: passed to `from_pretrained` (`revision`, `token`, …).

    Raises:
        UserError: if there is no tokenizer, or it isn't one of craft's.
    """
    try:
        tokenizer = CharTokenizer.from_pretrained(str(path), **kwargs)
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"no tokenizer in {path}: {first_line(error).rstrip(':')}; is there a tokenizer.json?",
            code="tokenizer-invalid",
        ) from error
    if "unknown" not in tokenizer.init_kwargs:
        raise UserError(
            f"the tokenizer in {path} isn't a character tokenizer of craft; load it with AutoTokenizer",
            code="tokenizer-invalid",
        )
    if tokenizer.unknown == "bytes" and not tokenizer.alphabet:
        tokenizer.__class__ = ByteTokenizer
    return tokenizer


def first_id(tokenizer: CharTokenizer) -> int:
    """What an empty prompt begins with: a line break, the likeliest thing before a text that starts; in
    alphabets without one the begin token."""
    newline = tokenizer.convert_tokens_to_ids("\n")
    if tokenizer.unknown == "bytes" and newline == tokenizer.unk_token_id:
        newline = tokenizer.convert_tokens_to_ids("<0x0A>")
    return tokenizer.bos_token_id if newline in (None, tokenizer.unk_token_id) else newline


def _strings(text: Any) -> Iterable[str]:
    """Every string of what a tokenizer accepts: a text, a batch, a batch of pairs or of words."""
    if isinstance(text, str):
        yield text
    elif isinstance(text, Iterable):
        for item in text:
            yield from _strings(item)
