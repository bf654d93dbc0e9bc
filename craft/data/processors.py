"""A modality <-> ids: text, bytes, and images whose pixels are characters.

These are the numpy fast paths: corpora go through them at hundreds of MB/s, where the Hugging Face
tokenizer built from the same alphabet manages a few (tests hold the two to equal ids).

Every vocabulary starts with four special ids; byte values, where a vocabulary has them, follow.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np

from craft.data.lookalikes import suggest_look_alikes, with_code_points
from craft.utils.errors import UserError

PAD, BOS, EOS, UNK = 0, 1, 2, 3
FIRST_ID = 4  # the first id behind the specials: byte 0, or the first character
CONTINUATION = slice(FIRST_ID + 0x80, FIRST_ID + 0xC0)  # ids of the bytes inside a character
CODE_POINTS = 0x110000


def id_dtype(vocab_size: int) -> np.dtype:
    """The smallest unsigned integer type that holds every id of a vocabulary."""
    return np.min_scalar_type(max(vocab_size - 1, 0))


class BytesProcessor:
    """bytes <-> ids: byte `b` is id `b + 4`."""

    vocab_size = FIRST_ID + 256

    def encode(self, data: bytes) -> np.ndarray:
        """One id per byte, uint16 [len(data)]."""
        return np.frombuffer(data, np.uint8) + np.uint16(FIRST_ID)

    def decode(self, ids: np.ndarray | Sequence[int]) -> bytes:
        """The bytes of `ids`; special ids stand for no byte."""
        ids = np.asarray(ids, np.int64)
        return (ids[ids >= FIRST_ID] - FIRST_ID).astype(np.uint8).tobytes()


class ImageProcessor:
    """uint8 images [H, W] or [H, W, C] <-> flat ids, row by row: one id per channel of a pixel.

    The ids are those of the byte vocabulary, so a byte-level model is an autoregressive image model.
    """

    unit = "pixel"

    def __init__(self, shape: Sequence[int]) -> None:
        if len(shape) not in (2, 3) or min(shape) < 1:
            raise UserError(
                f"an image is [height, width] or [height, width, channels], not {list(shape)}",
                code="data-invalid",
            )
        self.shape = tuple(shape)
        self._bytes = BytesProcessor()

    def encode(self, image: np.ndarray) -> np.ndarray:
        """uint16 [H * W (* C)].

        Raises:
            UserError: if the image has another shape or isn't uint8.
        """
        if image.dtype != np.uint8 or image.shape != self.shape:
            raise UserError(
                f"expected a uint8 image {self.shape}, got {image.dtype} {image.shape}", code="data-invalid"
            )
        return self._bytes.encode(image.tobytes())

    def decode(self, ids: np.ndarray | Sequence[int]) -> np.ndarray:
        """uint8 of the processor's shape; missing pixels (a generation cut short) are black."""
        pixels = np.zeros(int(np.prod(self.shape)), np.uint8)
        data = np.frombuffer(self._bytes.decode(ids), np.uint8)[: pixels.size]
        pixels[: data.size] = data
        return pixels.reshape(self.shape)


class TextProcessor:
    """text <-> ids by table lookup, with a stated policy for characters outside the alphabet.

    Args:
        alphabet: the characters in the order of their ids; empty for a byte vocabulary.
        unknown: `strict` (an error that names the character), `unk` (id 3) or `bytes` (its UTF-8 bytes).

    Attributes:
        token_bytes: the UTF-8 bytes that each id shows as: none for specials, U+FFFD for `<unk>`.
    """

    def __init__(self, alphabet: Sequence[str], unknown: str) -> None:
        self.alphabet, self.unknown = list(alphabet), unknown
        self._bytes = BytesProcessor()
        byte_values = [bytes([b]) for b in range(256)] if unknown == "bytes" else []
        self._first_char = FIRST_ID + len(byte_values)
        self.token_bytes = [b"", b"", b"", "\ufffd".encode(), *byte_values, *(c.encode() for c in alphabet)]
        self.vocab_size = len(self.token_bytes)
        self.dtype = id_dtype(self.vocab_size)
        bytes_only = unknown == "bytes" and not alphabet
        self._table = np.full(0 if bytes_only else CODE_POINTS, UNK, self.dtype)
        self._table[[ord(c) for c in alphabet]] = np.arange(self._first_char, self.vocab_size)
        # One-byte ids of ASCII text come from bytes.translate, several times faster than indexing.
        self._ascii = self._table[:256].tobytes() if self.dtype == np.uint8 else None

    @cached_property
    def id_chars(self) -> np.ndarray:
        """int64 [vocab]: characters an id stands for; one in bytes is counted at its first byte."""
        counts = np.ones(self.vocab_size, np.int64)
        counts[:UNK] = 0
        if self.unknown == "bytes":
            counts[CONTINUATION] = 0
        return counts

    @cached_property
    def id_bytes(self) -> np.ndarray:
        """int64 [vocab]: the UTF-8 bytes an id stands for; unknowable for `<unk>`, which counts 1."""
        counts = np.array([len(b) for b in self.token_bytes], np.int64)
        counts[UNK] = 1
        return counts

    def encode(self, text: str, where: str = "the text", offset: int = 0) -> np.ndarray:
        """The ids of `text`, in the smallest unsigned type that holds the vocabulary.

        Args:
            where: what the text is, and `offset` at which of its characters it starts, for error messages.

        Raises:
            UserError: for an unpaired surrogate, or under `strict` for a character outside the alphabet.
        """
        try:
            if not len(self._table):
                return self._bytes.encode(text.encode())
            if not text.isascii():
                ids = self._table[np.frombuffer(text.encode("utf-32-le"), np.uint32)]
            elif self._ascii is None:
                ids = self._table[np.frombuffer(text.encode("ascii"), np.uint8)]
            else:
                translated = bytearray(text, "ascii").translate(self._ascii)
                ids = np.frombuffer(translated, np.uint8)
                if UNK not in translated:  # a memchr, many times faster than numpy's comparison
                    return ids
        except UnicodeEncodeError as error:
            raise UserError(
                f"unpaired surrogate U+{ord(text[error.start]):04X} at position {error.start + offset} of "
                f"{where} isn't a character; read and write UTF-8 (in a terminal, PYTHONUTF8=1), or drop it "
                "with text.encode('utf-8', 'ignore').decode()",
                code="text-encoding",
            ) from None
        if self.unknown == "unk" or not (unseen := ids == UNK).any():
            return ids
        if self.unknown == "strict":
            position = int(unseen.argmax())
            char = text[position]
            raise UserError(
                f"character {with_code_points(char)} at position {position + offset} of {where} isn't in the "
                f"alphabet{suggest_look_alikes(char, self.alphabet)}; write another, or train with "
                "data.unknown=unk (shown as <unk>) or data.unknown=bytes (lossless)",
                code="character-unknown",
            )
        return self._with_bytes(text, ids, unseen)

    def decode(self, ids: np.ndarray | Sequence[int]) -> str:
        """The text of `ids`: specials are left out, `<unk>` and invalid UTF-8 show as U+FFFD."""
        return b"".join([self.token_bytes[i] for i in np.asarray(ids).tolist()]).decode("utf-8", "replace")

    def boundary(self, ids: np.ndarray, position: int) -> int:
        """`position`, moved forward by at most three ids if it lies between the bytes of one character."""
        if self.unknown == "bytes":
            while 0 < position < len(ids) and CONTINUATION.start <= ids[position] < CONTINUATION.stop:
                position += 1
        return position

    def _with_bytes(self, text: str, ids: np.ndarray, unseen: np.ndarray) -> np.ndarray:
        """`ids` with every unseen character replaced by the ids of its UTF-8 bytes."""
        where = np.flatnonzero(unseen)
        pieces = [text[i].encode() for i in where.tolist()]
        lengths = np.ones(len(ids), np.int64)
        lengths[where] = [len(p) for p in pieces]
        spread = np.repeat(ids, lengths)
        spread[np.repeat(unseen, lengths)] = self._bytes.encode(b"".join(pieces))
        return spread
