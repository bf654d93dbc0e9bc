"""Licences: those of the Hub, those of one's own, and slips of the pen; and codes of languages."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from craft.utils.labels import LICENCES, is_language, is_licence, wrong_language, wrong_licence


@pytest.mark.parametrize("word", LICENCES)
def test_what_the_hub_lists_is_taken_as_it_is(word: str) -> None:
    assert is_licence(word)
    assert wrong_licence(word, "--license ") == ""


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("apche-2.0", "apache-2.0"),
        ("apache2", "apache-2.0"),
        ("Apache License, Version 2.0", "apache-2.0"),
        ("mti", "mit"),
        ("MIT License", "mit"),
        ("cc-by-4", "cc-by-4.0"),
        ("cc-by-sa", "cc-by-sa-4.0"),
        ("cc0", "cc0-1.0"),
        ("gpl3", "gpl-3.0"),
        ("GPL v3", "gpl-3.0"),
        ("lgplv2.1", "lgpl-2.1"),
        ("bsd-3", "bsd-3-clause"),
        ("llama-3", "llama3"),
        ("lama3", "llama3"),
        ("unlicence", "unlicense"),
        ("open-mdw", "openmdw-1.1"),
        ("opnrail", "openrail"),
    ],
)
def test_a_slip_is_refused_with_what_was_meant(typed: str, meant: str) -> None:
    assert not is_licence(typed)
    said = f"--license {typed!r} isn't an identifier of the Hub, did you mean {meant!r}?"
    assert wrong_licence(typed, "--license ") == said


@pytest.mark.parametrize(
    "word",
    [
        *("my-licence-1.0", "my-license", "acme-1.0", "proprietary", "qwen-research", "llama5", "gemma3"),
        # of SPDX, and near to one of the Hub
        *("mit-0", "0bsd", "bsd-4-clause", "cpl-1.0", "upl-1.0", "elastic-2.0", "eupl-1.0", "cc-by-nd-3.0"),
    ],
)
def test_a_licence_of_ones_own_goes_by_its_name(word: str) -> None:
    assert is_licence(word)
    assert wrong_licence(word, "") == ""


@pytest.mark.parametrize("word", ["", "x", "许可证", "Do what you want\n---", "Creative Commons"])
def test_what_is_near_to_none_is_answered_with_examples(word: str) -> None:
    assert not is_licence(word)
    assert "write for example apache-2.0, mit" in wrong_licence(word, "")


@given(st.one_of(st.text(max_size=80), st.none(), st.integers()))
def test_any_word_is_a_licence_or_is_answered_in_one_line(word: object) -> None:
    if not isinstance(word, str):
        assert not is_licence(word)
        return
    said = wrong_licence(word, "--license ")
    assert is_licence(word) == (said == "")
    assert len(said.splitlines()) <= 1


@pytest.mark.parametrize("code", ["de", "la", "zu", "grc", "code", "multilingual"])
def test_a_code_of_a_language_is_taken_as_it_is(code: str) -> None:
    assert is_language(code)
    assert wrong_language(code, "data.language=") == ""


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("German", "de"), ("spanish", "es"), ("dutch", "nl"), ("en-US", "en"), ("pt_BR", "pt"), ("jp", None)],
)
def test_what_is_no_code_is_refused_with_what_was_meant(typed: str, meant: str | None) -> None:
    said = wrong_language(typed, "data.language=")
    assert f"data.language={typed!r}" in said
    assert (f"did you mean {meant!r}" in said) == (meant is not None)
    assert not is_language(typed)
    assert not is_language(None)
