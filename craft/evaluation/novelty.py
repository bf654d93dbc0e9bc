"""How much of a text is copied from the training text, and how much of it is said again.

Both are sorted as one suffix array of their UTF-8 (libdivsufsort, the extra `novelty`): what begins alike
stands side by side there, so the longest passage that a place of the text shares with the training text
begins at a neighbour. Passages are found in bytes and counted in characters. Memory: about 9 bytes for each
byte of the training text.
"""

from __future__ import annotations

import codecs
import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from craft.evaluation.figures import block_variance, by_stretch, distinct_n, repetition
from craft.utils.common import require_extra
from craft.utils.errors import UserError

Text = TypeVar("Text", bound=Sequence[str])

END, BREAK = b"\xff", b"\xfe"
"""Behind the training text, and behind each other text: UTF-8 has no such bytes, so passages end there."""
LEAST = (20, 50, 100)
"""Characters of passages that are counted; those of `LEAST[1]` decide what is said in words."""
JUDGED = f"inside_{LEAST[1]}"
SHOWN, COLUMNS = 200, 80
CHUNK = 1 << 20
ROWS = {
    "characters": "characters",
    "longest_overlap": "longest passage of the training text",
    **{f"inside_{least}": f"inside passages of {least} or more of it" for least in LEAST},
    "known_words": "words that it has",
    "repetition": "said within the 1,000 characters before",
    **{f"distinct_{n}": f"different {n}-grams of characters" for n in (2, 4, 8)},
    **{f"distinct_words_{n}": f"different {n}-grams of words" for n in (1, 2)},
}
"""Figures by name, and what a table calls them."""


def novelty(train: bytes, groups: Sequence[Sequence[str]]) -> list[dict[str, Any]]:
    """What groups of texts have in common with a training text, each group beside the others.

    Args:
        train: the training text in UTF-8.
        groups: texts; for example samples of a model in the one, the validation text in the other.

    Returns:
        Of each group, plain data for JSON by the names of `ROWS`, and the `sha256` of its texts; `passage`,
        the first characters of the longest one; `place`, the character of the training text at which it
        begins; `inside_20_error` and so on, standard errors from stretches of the text; `distinct_of`, the
        characters and words at its beginning whose n-grams are counted: as many in each group, since longer
        texts have fewer different ones.

    Raises:
        UserError: for a group without a character, a training text that isn't UTF-8, or without the extra
            `novelty`.
    """
    if not all(map(any, groups)):
        raise UserError("there is no text to compare with the training text", code="text-short")
    joined = [b"".join(text.encode() + BREAK for text in group) for group in groups]
    known = _words_of(train)
    lengths, places = longest_matches(train, b"".join(joined))
    cuts = np.cumsum([len(text) for text in joined])[:-1]
    found = [_copied(train, *part) for part in zip(joined, np.split(lengths, cuts), np.split(places, cuts))]
    words = [[re.findall(r"\w+", text) for text in group] for group in groups]
    sizes = [min(sum(map(len, group)) for group in every) for every in (groups, words)]
    for figures, group, spoken in zip(found, groups, words):
        count = sum(map(len, spoken))
        hits = sum(word in known for text in spoken for word in text)
        figures["known_words"] = hits / max(1, count)
        figures["repetition"] = repetition(group)
        characters = _first(group, sizes[0])
        figures |= {f"distinct_{n}": distinct_n(characters, n) for n in (2, 4, 8)}
        figures |= {f"distinct_words_{n}": distinct_n(_first(spoken, sizes[1]), n) for n in (1, 2)}
        figures["distinct_of"] = {"characters": sizes[0], "words": sizes[1]}
    return found


def longest_matches(train: bytes, text: bytes) -> tuple[np.ndarray, np.ndarray]:
    """(how many bytes the training text has in common with each place of a text, where it has them).

    Args:
        text: ends with `BREAK`.

    Raises:
        UserError: without the extra `novelty`.
    """
    require_extra("novelty", "pydivsufsort")
    from pydivsufsort import divsufsort

    both, offset = b"".join([train, END, text]), len(train) + 1
    suffixes = divsufsort(both)
    ranks = np.flatnonzero(suffixes >= offset)
    places = suffixes[ranks] - offset
    # Where several suffixes of the text follow each other, those of the training text before and behind them.
    begins = np.diff(ranks, prepend=-2) > 1
    run, first = np.cumsum(begins) - 1, np.flatnonzero(begins)
    last = np.append(first[1:], len(ranks)) - 1
    neighbours = [suffixes[ranks[first] - 1], suffixes[ranks[last] + 1]]  # END sorts behind everything
    lengths, at = np.empty((2, 2, len(text)), np.int64)
    for side, neighbour in enumerate(neighbours):
        at[side, places] = neighbour[run]
        lengths[side] = _match_lengths(both, offset, at[side].tolist())
    best = lengths.argmax(axis=0)[None]
    return np.take_along_axis(lengths, best, 0)[0], np.take_along_axis(at, best, 0)[0]


def _match_lengths(both: bytes, offset: int, at: Sequence[int]) -> list[int]:
    """How far a text, from `offset` on, goes on as `both` does at its neighbour; for each place of the text.

    Behind a place that shares n bytes lies one that shares n - 1 at least, so nothing is compared twice
    (Kasai and others, Linear-Time Longest-Common-Prefix Computation in Suffix Arrays, CPM 2001).
    """
    lengths, length = [], 0
    for place, neighbour in enumerate(at, start=offset):
        length = max(0, length - 1)
        while both[place + length] == both[neighbour + length]:
            length += 1
        lengths.append(length)
    return lengths


def _copied(train: bytes, text: bytes, lengths: np.ndarray, places: np.ndarray) -> dict[str, Any]:
    """Figures of the passages that a text shares with the training text, in characters."""
    spelled = np.frombuffer(text, np.uint8)
    starts = np.flatnonzero(spelled & 0xC0 != 0x80)  # of characters, and the breaks behind texts
    is_character = spelled[starts] != BREAK[0]
    here = np.arange(len(starts))
    ends = np.searchsorted(starts, starts + lengths[starts], side="right") - 1  # of whole characters
    at = int((ends - here).argmax())
    passage = text[starts[at] : starts[ends[at]]].decode()
    before = np.frombuffer(train, np.uint8, int(places[starts[at]]))
    figures: dict[str, Any] = {
        "characters": int(is_character.sum()),
        "sha256": hashlib.sha256(text.replace(BREAK, b"")).hexdigest(),
        "longest_overlap": len(passage),
        "passage": passage[:SHOWN],
        "place": int((before & 0xC0 != 0x80).sum()) if passage else None,
    }
    for least in LEAST:
        reach = np.maximum.accumulate(np.where(ends - here >= least, ends, 0))
        inside = (reach > here)[is_character]
        figures[f"inside_{least}"] = float(inside.mean())
        figures[f"inside_{least}_error"] = math.sqrt(block_variance(*by_stretch(inside))) / len(inside)
    return figures


def _words_of(text: bytes) -> set[str]:
    """The different words of a text in UTF-8: letters, digits and underscores in a row."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    found, rest = set(), ""
    for begin in range(0, len(text), CHUNK):
        try:
            piece = decoder.decode(text[begin : begin + CHUNK])
        except UnicodeDecodeError as error:
            raise UserError(f"the training text isn't UTF-8: {error.reason}", code="text-encoding") from error
        *whole, rest = re.split(r"\W+", rest + piece)
        found.update(whole)
    return found | {rest}


def _first(texts: Sequence[Text], count: int) -> list[Text]:
    """The beginning of some texts, of `count` characters (or words) together."""
    kept: list[Any] = []
    for text in texts:
        kept.append(text[:count])
        count -= len(kept[-1])
    return kept


def table(groups: Mapping[str, Mapping[str, Any]]) -> str:
    """Figures of `novelty` by the names of the groups, and their longest passages, as text for 80 columns."""
    width = max(map(len, ROWS.values()))
    lines = ["  ".join(["".ljust(width), *(name.rjust(12) for name in groups)])]
    for key, words in ROWS.items():
        values = [group[key] for group in groups.values()]
        cells = (format(value, ".2%" if isinstance(value, float) else ",").rjust(12) for value in values)
        lines.append("  ".join([words.ljust(width), *cells]))
    for name, group in groups.items():
        if group["passage"]:
            line = f"{name}, from character {group['place']:,} of it: {group['passage']!r}"
            lines.append(line if len(line) <= COLUMNS else f"{line[: COLUMNS - 1]}…")
    return "\n".join(lines)


def in_words(samples: Mapping[str, Any], validation: Mapping[str, Any] | None) -> str:
    """What the figures mean: whether more is copied than texts of this kind have in common anyway.

    More is what lies two standard errors above the validation text's share.
    """
    own = samples[JUDGED]
    lies = f"{own:.2%} of the characters lie in passages of {LEAST[1]} or more that the training text has"
    if validation is None:
        return f"{lies}; there is no validation text to compare with"
    errors = math.hypot(samples[f"{JUDGED}_error"], validation[f"{JUDGED}_error"])
    more = "copies more than" if own - validation[JUDGED] > 2 * errors else "copies no more than"
    longest, normal = samples["longest_overlap"], validation["longest_overlap"]
    return (
        f"{more} the validation text does: {lies}, {validation[JUDGED]:.2%} of the validation text's; the "
        f"longest passage has {longest:,} characters, {normal:,} in the validation text"
    )
