"""The form of licences and codes of languages; which there are, the Hub knows."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from refusals import refused

from craft.data.arguments import DataArguments
from craft.sharing.card import CARD, card_for_hub
from craft.utils.labels import LANGUAGE, LICENCE, is_language, is_licence


@pytest.mark.parametrize("word", ["apache-2.0", "mit", "cc-by-4.0", "openrail++", "llama3.1", "other"])
def test_an_identifier_of_a_licence_is_taken(word: str) -> None:
    assert is_licence(word)
    LICENCE(word)


@pytest.mark.parametrize("word", ["", "x", "许可证", "MIT", "Apache 2.0", "mit\n---", "Creative Commons"])
def test_what_is_no_identifier_is_named_with_its_setting(word: str, tmp_path: Path) -> None:
    assert not is_licence(word)
    (tmp_path / CARD).touch()
    with refused("setting-value", f"--license {word!r}", "apache-2.0"):
        card_for_hub(tmp_path, "ada/char-lstm", word)


@pytest.mark.parametrize("code", ["de", "la", "zu", "grc", "code", "multilingual"])
def test_a_code_of_a_language_is_taken(code: str) -> None:
    assert is_language(code)
    LANGUAGE(code)


@pytest.mark.parametrize("word", ["German", "en-US", "pt_BR", "e", "engl", "", "de\n"])
def test_what_is_no_code_of_a_language_is_named_with_its_setting(word: str) -> None:
    assert not is_language(word)
    with refused("setting-value", f"data.language={word}"):
        DataArguments(language=word)


@given(st.one_of(st.text(max_size=80), st.none(), st.integers(), st.lists(st.text(max_size=3))))
def test_any_value_is_a_label_or_is_answered_in_one_line(value: object) -> None:
    for fits, rule in ((is_licence, LICENCE), (is_language, LANGUAGE)):
        if fits(value):
            assert isinstance(value, str)
            rule(value)
        else:
            with pytest.raises(ValueError) as answer:
                rule(value)
            assert len(str(answer.value).splitlines()) == 1
