"""A text in as few bytes as a model says it takes: the figure of `craft evaluate`, cashed in, without loss.

    magic, version, CRC-32 of the rest | a line of JSON (`Header`) | what the tokenizer lacks, deflated |
    what the model codes (`coder.py`)

A decoder needs the very probabilities that the encoder had, so the header says by what they were computed.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from craft.data.processors import BytesProcessor
from craft.evaluation.coder import decode, encode
from craft.utils.common import require_extra
from craft.utils.errors import Failed, UserError
from craft.utils.hardware import cpu_name

MAGIC, VERSION = b"\x8aCRAFT", b"\x01"
MOST_STREAMS, STREAM = 64, 4096
"""Streams unless a number is asked for: one for each so many ids, and no more than that."""


@dataclass(frozen=True)
class Header:
    """What a decoder must know, and must have.

    Args:
        model: what the model was called.
        weights: sha256 of its weights and its tokenizer, see `weights_hash`.
        torch, processor, device, threads, dtype: what its probabilities were computed by.
        ids: how many the model coded.
        streams: in how many pieces of the text, read side by side, each from nothing.
        window: how a limited context was read, see `coder.encode`.
        runs: places with something that the tokenizer doesn't know; `aside`: bytes that these take.
        size, sha256: of the text.
    """

    model: str
    weights: str
    torch: str
    processor: str
    device: str
    threads: int
    dtype: str
    ids: int
    streams: int
    window: int
    runs: int
    aside: int
    size: int
    sha256: str


def compress(model: Any, tokenizer: Any, data: bytes, *, streams: int | None = None, name: str = "") -> bytes:
    """Codes a text by a model, and reads it back to compare.

    Args:
        model: a `LanguageModel`, on its device, in evaluation mode.
        data: any bytes.
        streams: pieces of the text that are read side by side; 1 takes the fewest bytes and the longest time.
            By default one for each 4,096 ids, at most 64.
        name: of the model, for who wants to read the text.

    Raises:
        UserError: without the extra `compress`, or for more streams than ids.
        Failed: if the text doesn't come back as it was.
    """
    require_extra("compress", "constriction")
    ids, runs, aside = split(data, tokenizer)
    streams = streams or max(1, min(MOST_STREAMS, len(ids) // STREAM))
    if streams > max(1, len(ids)):
        raise UserError(
            f"--streams {streams}: the text has {len(ids):,} characters that the model knows; use fewer",
            code="setting-value",
        )
    window, words = encode(model, ids, streams)
    header = Header(
        model=name,
        weights=weights_hash(model, tokenizer),
        **_machine(model),
        ids=len(ids),
        streams=streams,
        window=window,
        runs=runs,
        aside=len(aside),
        size=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
    )
    body = json.dumps(asdict(header), separators=(",", ":")).encode() + b"\n" + aside + words
    packed = MAGIC + VERSION + zlib.crc32(body).to_bytes(4, "little") + body
    try:
        decompress(model, tokenizer, packed)
    except UserError as error:
        raise Failed(f"this model can't compress on this machine: {error}", code="machine-unable") from error
    return packed


def decompress(model: Any, tokenizer: Any, packed: bytes) -> bytes:
    """The text, which is compared with the hash of the one that was compressed.

    Args:
        model: the one it was compressed by; it is moved to the device and number format of then, if it can.

    Raises:
        UserError: if it is damaged, or from another model, or this machine computes other probabilities.
    """
    require_extra("compress", "constriction")
    header, body = read_header(packed)
    if weights_hash(model, tokenizer) != header.weights:
        raise UserError(
            f"it was compressed by another model, {header.model or 'one without a name'} "
            f"(sha256 of its weights {header.weights[:12]})",
            code="model-mismatch",
        )
    device = "cpu" if header.device == "cpu" else model.device
    model.to(device=device, dtype=getattr(torch, header.dtype))
    with _threads(header.threads):
        here = _machine(model)
        ids = decode(model, header.ids, header.streams, header.window, body[header.aside :])
    data = None if ids is None else join(ids, header.runs, body[: header.aside], tokenizer)
    if data is None or hashlib.sha256(data).hexdigest() != header.sha256:
        then = asdict(header)
        differences = [f"{key} {then[key]}, here {now}" for key, now in here.items() if now != then[key]]
        raise UserError(
            "it doesn't come back as it was: the probabilities computed here aren't those it was compressed "
            f"by ({'; '.join(differences) or 'although torch, processor and threads are the same'})",
            code="machine-unable",
        )
    return data


def read_header(packed: bytes) -> tuple[Header, bytes]:
    """The header of a compressed text, and what follows it.

    Raises:
        UserError: if it is none, or damaged.
    """
    start = len(MAGIC) + len(VERSION)
    if packed[: len(MAGIC)] != MAGIC:
        raise UserError("it wasn't made by craft compress", code="file-unreadable")
    if packed[len(MAGIC) : start] != VERSION:
        raise UserError("it was made by another version of craft compress", code="file-unreadable")
    body = packed[start + 4 :]
    if zlib.crc32(body).to_bytes(4, "little") != packed[start : start + 4]:
        raise UserError("it is damaged or cut off (its checksum is wrong)", code="file-unreadable")
    line, _, rest = body.partition(b"\n")
    return Header(**json.loads(line)), rest


def sizes(data: bytes, packed: bytes) -> str:
    """What a compressed text takes, and the model's part of it for what the model coded, as lines."""
    header, rest = read_header(packed)
    strange = len(zlib.decompress(rest[: header.aside])) - 8 * header.runs if header.runs else 0
    characters = len(data.decode("utf-8", "surrogateescape"))
    rows = (
        ("in all", len(packed), characters, len(data)),
        # Where there is something strange, the tokenizer has an id for each of the other characters.
        (
            "by the model",
            len(rest) - header.aside,
            header.ids if strange else characters,
            len(data) - strange,
        ),
    )
    aside = f"; {header.runs:,} runs of what the tokenizer lacks in {header.aside:,} bytes" if strange else ""
    lines = [f"{header.size:,} bytes, {header.streams} streams{aside}"] + [
        f"{name:<12}  {size:>12,} bytes  {8 * size / max(1, chars):.4f} bits/char  "
        f"{8 * size / max(1, read):.4f} bits/byte  ratio {read / max(1, size):.3f}"
        for name, size, chars, read in rows
    ]
    return "\n".join(lines)


def split(data: bytes, tokenizer: Any) -> tuple[np.ndarray, int, bytes]:
    """What of a text a model codes, and the rest.

    Returns:
        ids [n]; the number of places with characters that the tokenizer doesn't know, or bytes that aren't
        UTF-8 (none where it knows single bytes); and these, each with the ids since the last, deflated.
    """
    text = data.decode("utf-8", "surrogateescape")
    points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    known = np.isin(points, [ord(char) for char in tokenizer.alphabet])
    bounds = [0, *(np.flatnonzero(known[1:] != known[:-1]) + 1).tolist(), len(points)]
    parts, gaps, rest, since = [np.zeros(0, np.int64)], [], [], 0
    for begin, end in pairwise(bounds):
        piece = text[begin:end]
        if begin < end and known[begin]:
            parts.append(tokenizer.encode_ids(piece))
            since += len(parts[-1])
        elif tokenizer.unknown == "bytes":
            parts.append(BytesProcessor().encode(piece.encode("utf-8", "surrogateescape")))
        elif piece:
            gaps.append(since)
            rest.append(piece.encode("utf-8", "surrogateescape"))
            since = 0
    # All first bytes of the numbers, then all second ones …: most are zero, which costs nothing.
    numbers = np.array([gaps, [len(each) for each in rest]], "<u4").view(np.uint8).reshape(-1, 4).T.tobytes()
    aside = zlib.compress(numbers + b"".join(rest), 9) if rest else b""
    return np.concatenate(parts).astype(np.int64), len(rest), aside


def join(ids: np.ndarray, runs: int, aside: bytes, tokenizer: Any) -> bytes:
    """The text that was `split`."""
    table, plain = tokenizer.token_bytes, zlib.decompress(aside) if aside else b""
    numbers = np.frombuffer(plain[: 8 * runs], np.uint8).reshape(4, -1).T.copy().view("<u4").reshape(2, -1)
    pieces, place, read = [], 0, 8 * runs
    for gap, size in numbers.T.tolist():
        pieces += [table[i] for i in ids[place : place + gap].tolist()] + [plain[read : read + size]]
        place, read = place + gap, read + size
    return b"".join([*pieces, *(table[i] for i in ids[place:].tolist())])


def weights_hash(model: Any, tokenizer: Any) -> str:
    """sha256 of all weights, as float32, and of what each id stands for."""
    digest = hashlib.sha256(b"\0".join(tokenizer.token_bytes))
    for name, weight in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(weight.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _machine(model: Any) -> dict[str, Any]:
    """What probabilities depend on besides the model, as `Header` has it."""
    device = model.device.type
    if device == "cuda":
        processor = torch.cuda.get_device_name(model.device)
    else:
        processor = f"{cpu_name()}, {torch.backends.cpu.get_cpu_capability()}"
    return {
        "torch": torch.__version__,
        "processor": processor,
        "device": device,
        "threads": torch.get_num_threads(),
        "dtype": str(model.dtype).removeprefix("torch."),
    }


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
