"""A modality to ids and back, without loss."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from refusals import refused

from craft.data.processors import BytesProcessor, ImageProcessor, TextProcessor, id_dtype

TEXT = st.text(st.characters(exclude_categories=["Cs"]))


@settings(deadline=None)
@given(st.binary())
def test_bytes_round_trip(data: bytes) -> None:
    processor = BytesProcessor()
    ids = processor.encode(data)
    assert ids.tolist() == [4 + b for b in data]
    assert processor.decode(ids) == data
    assert processor.decode([1, *ids.tolist(), 2]) == data


@settings(deadline=None)
@given(TEXT, TEXT)
def test_text_round_trip_with_characters_outside_the_alphabet_as_bytes(seen: str, text: str) -> None:
    processor = TextProcessor(sorted(set(seen)), "bytes")
    ids = processor.encode(text)
    assert processor.decode(ids) == text
    assert processor.id_chars[ids].sum() == len(text)
    assert processor.id_bytes[ids].sum() == len(text.encode())
    assert len(ids) == sum(1 if c in seen else len(c.encode()) for c in text)


@settings(deadline=None)
@given(TEXT)
def test_text_round_trip_over_its_own_alphabet(text: str) -> None:
    processor = TextProcessor(sorted(set(text)), "strict")
    ids = processor.encode(text)
    assert len(ids) == len(text)
    assert processor.decode(ids) == text


def test_unknown_characters_are_shown_and_counted() -> None:
    processor = TextProcessor(["a", "é"], "unk")
    ids = processor.encode("aéx😀")
    assert ids.tolist() == [4, 5, 3, 3]
    assert processor.decode(ids) == "aé\ufffd\ufffd"
    assert processor.id_chars.tolist() == [0, 0, 0, 1, 1, 1]
    assert processor.id_bytes.tolist() == [0, 0, 0, 1, 1, 2]


@pytest.mark.parametrize(
    ("size", "dtype"), [(1, "uint8"), (256, "uint8"), (257, "uint16"), (65536, "uint16"), (65537, "uint32")]
)
def test_ids_take_the_smallest_type(size: int, dtype: str) -> None:
    assert id_dtype(size) == dtype


@pytest.mark.parametrize("size", [251, 252, 253, 60000])
def test_ascii_and_other_text_meet_at_the_edge_of_a_type(size: int) -> None:
    """252 characters and 4 specials are the last vocabulary of one-byte ids."""
    alphabet = [chr(c) for c in range(size) if not 0xD800 <= c < 0xE000]
    processor = TextProcessor(alphabet, "strict")
    text = "".join(alphabet)
    assert processor.encode(text).tolist() == list(range(4, 4 + len(alphabet)))
    assert processor.encode(text[:128]).tolist() == list(range(4, 132))
    assert processor.encode(text).dtype == (np.uint8 if size <= 252 else np.uint16)


@pytest.mark.parametrize("text", ["xyz?", "xyé?"])
def test_strict_names_character_code_point_and_position(text: str) -> None:
    with refused(
        "character-unknown", "'?'", "U+003F", "position 1003 ", "poem.txt", "data.unknown=unk"
    ) as error:
        TextProcessor(list("xyzé"), "strict").encode(text, where="poem.txt", offset=1000)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("processor", [TextProcessor(["a"], "unk"), TextProcessor([], "bytes")])
def test_unpaired_surrogates_are_refused(processor: TextProcessor) -> None:
    for surrogate in (0xD83D, 0xDC80):
        with refused("text-encoding", f"U+{surrogate:04X}", "position 2 "):
            processor.encode(f"aa{chr(surrogate)}")


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 3), (1, 1)])
def test_image_round_trip(shape: tuple[int, ...]) -> None:
    image = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    processor = ImageProcessor(shape)
    ids = processor.encode(image)
    assert ids.shape == (image.size,)
    assert ids.min() >= 4
    assert ids.max() < BytesProcessor.vocab_size
    assert (processor.decode(ids) == image).all()


def test_an_image_cut_short_is_black_at_its_end() -> None:
    processor = ImageProcessor((2, 2))
    assert processor.decode([4 + 9, 4 + 8, 4 + 7]).tolist() == [[9, 8], [7, 0]]


def test_images_of_another_kind_are_refused() -> None:
    with refused("data-invalid", "(2, 2)", "float64"):
        ImageProcessor((2, 2)).encode(np.zeros((2, 2)))
    with refused("data-invalid", "[2]"):
        ImageProcessor((2,))
