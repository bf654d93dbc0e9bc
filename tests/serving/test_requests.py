"""What a request may say: every field's limits, what is made of it, and what it is told where it is wrong."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import pytest

from craft.data.tokenization import CharTokenizer
from craft.serving.limits import Limits
from craft.serving.refusals import Refusal
from craft.serving.requests import Served, Wish, check
from craft.serving.settings import CHAT, COMPLETIONS
from craft.utils.common import SAMPLE_CHARACTERS

SERVED = Served("mine", CharTokenizer.train(["abc9\n"]), 32, Limits(max_tokens=4096))
SAID = [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]


def chatty(template: str = "{% for m in messages %}{{ m.content }}{% endfor %}") -> Served:
    tokenizer = CharTokenizer.train(["abc9\n"])
    tokenizer.chat_template = template
    return replace(SERVED, tokenizer=tokenizer)


def asked(path: str = COMPLETIONS, served: Served = SERVED, **body: Any) -> dict[str, Any]:
    own = {"prompt": "a"} if path == COMPLETIONS else {"messages": SAID}
    ((made, _),) = check(path, own | body, served)
    return made


def wish(**body: Any) -> Wish:
    ((_, made),) = check(COMPLETIONS, {"prompt": "a"} | body, SERVED)
    return made


BAD: list[tuple[dict[str, Any], str]] = [
    ({"prompt": ""}, "prompt is empty"),
    ({"prompt": None}, "prompt=null must be a text"),
    ({"prompt": ["a"] * 33}, "33 texts in one request; this server writes 32 at once"),
    ({"prompt": []}, "prompt=[] must be a text, or a list of texts"),
    ({"prompt": [[1, 2]]}, "must be a text"),
    ({"prompt": "9 Ä"}, "character ' ' (U+0020) at position 1 of the prompt"),
    ({"prompt": "\ud800"}, "unpaired surrogate U+D800"),
    ({"prompt": "a" * 33}, "prompt has 33 characters, the model's context is 32"),
    ({"max_tokens": -1}, "max_tokens=-1 must be a whole number, at least 1"),
    ({"max_tokens": 0}, "at least 1"),
    ({"max_tokens": 1.5}, "whole number"),
    ({"max_tokens": True}, "whole number"),
    ({"max_tokens": 4097}, "more than this server's 4096"),
    ({"max_completion_tokens": 1}, "unknown field 'max_completion_tokens'"),
    ({"temperature": -1}, "temperature=-1 must be a number from 0 to 2"),
    ({"temperature": 2.1}, "from 0 to 2"),
    ({"temperature": float("nan")}, "temperature=NaN"),
    ({"temperature": "hot"}, 'temperature="hot"'),
    ({"temperature": True}, "temperature=true"),
    ({"top_p": 0}, "above 0 and at most 1"),
    ({"top_p": 1.1}, "above 0 and at most 1"),
    ({"frequency_penalty": -1}, "from 0 to 2"),
    ({"seed": -1}, "seed=-1"),
    ({"seed": 2**63}, "to 2^63 - 1"),
    ({"seed": True}, "seed=true"),
    ({"seed": 1.0}, "seed=1.0"),
    ({"stop": ["a", ""]}, "none empty"),
    ({"stop": ["a", 1]}, "must be a text or a list of texts"),
    ({"stop": 7}, "stop=7"),
    ({"stop": ["a"] * 17}, "must be at the most 16 texts of 1,024 characters"),
    ({"stop": "a" * 1025}, "must be at the most 16 texts of 1,024 characters"),
    ({"stream": "yes"}, "true or false"),
    ({"stream": 1}, "true or false"),
    ({"stream_options": True}, "stream_options=true must be an object"),
    ({"stream_options": {"include_usage": 1}}, "include_usage true or false"),
    ({"n": 0}, "n=0 must be a whole number, at least 1"),
    ({"n": True}, "n=true must be a whole number"),
    ({"n": 33}, "33 texts in one request; this server writes 32 at once"),
    ({"best_of": 3}, "best_of=3 isn't supported unless it is n"),
    ({"best_of": 3, "n": 2}, "best_of=3 isn't supported unless it is n"),
    ({"min_p": 1.1}, "min_p=1.1 must be a number from 0 to 1"),
    ({"typical_p": 0}, "above 0 and at most 1"),
    ({"repetition_penalty": 0}, "repetition_penalty=0 must be a number from 0.01 to 100"),
    ({"do_sample": 1}, "do_sample=1 must be true or false"),
    ({"top_k": 1.5}, "top_k=1.5 must be a whole number, 0 (all) or more"),
    ({"top_k": True}, "top_k=true must be a number"),
    ({"logprobs": 3}, "logprobs=3 isn't supported"),
    ({"presence_penalty": 0.5}, "presence_penalty=0.5 isn't supported"),
    ({"echo": True}, "echo=true isn't supported"),
    ({"messages": []}, "unknown field 'messages'"),
    ({"temprature": 1}, "unknown field 'temprature', did you mean 'temperature'?"),
    ({"generation_config": '{"num_beams": 2}'}, "generation_config.num_beams=2 isn't supported"),
]


@pytest.mark.parametrize(("wrong", "said"), BAD, ids=[str(wrong)[:40] for wrong, _ in BAD])
def test_a_bad_request_is_told_what_is_wrong(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(Refusal, match=re.escape(said)) as caught:
        asked(**wrong)
    assert (caught.value.status, caught.value.param) == (400, next(iter(wrong)))


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([], "at least one message"),
        ("9", "must be a list"),
        ([{"role": "user", "content": ""}], "messages is empty"),
        ([{"content": "9"}], "a role and a content"),
        ([*SAID, 9], "messages[2] must be an object"),
        ([{"role": "user", "content": ["a", {"type": "image_url"}]}], "messages[0].content must be text"),
        ([{"role": "user", "content": None}], "messages[0].content must be text"),
        ([{"role": "user", "content": "ab" * 17}], "messages has 34 characters"),
    ],
)
def test_a_bad_chat_is_told_what_is_wrong(messages: Any, said: str) -> None:
    with pytest.raises(Refusal, match=re.escape(said)) as caught:
        asked(CHAT, chatty(), messages=messages)
    assert caught.value.status == 400


def test_the_edges_of_every_limit_are_inside() -> None:
    made = asked(prompt="a" * 32, max_tokens=4096, temperature=2, top_p=1, frequency_penalty=0)
    assert made == {
        **{"model": "mine", "stream": False, "prompt": "a" * 32, "max_tokens": 4096},
        **{"temperature": 2.0, "top_p": 1.0, "frequency_penalty": 0.0},
    }
    assert wish(seed=2**63 - 1, stop=["a" * 1024] * 16).seed == 2**63 - 1
    assert wish(seed=0).seed == 0
    harmless = {"top_k": 0, "min_p": 0.0, "typical_p": 1.0}
    assert wish(**harmless, n=1, best_of=1).settings == harmless
    assert len(check(COMPLETIONS, {"prompt": ["a", "b"], "n": 16}, SERVED)) == 32
    assert asked(temperature=1e-4)["temperature"] == 0.0  # below which a division overflows
    assert asked(temperature=1e-3)["temperature"] == 1e-3


def test_what_is_left_out_or_null_or_asks_for_nothing_has_its_default() -> None:
    plain = asked()
    assert plain == {"model": "mine", "stream": False, "prompt": "a", "max_tokens": SAMPLE_CHARACTERS}
    fields = ("model", "stream", "temperature", "top_p", "seed", "stop", "max_tokens", "n", "stream_options")
    assert asked(**dict.fromkeys(fields)) == plain
    neutral: dict[str, Any] = {
        "n": 1,
        "echo": False,
        "logit_bias": {},
        "suffix": "",
        "user": "me",
        "tools": [],
    }
    assert asked(model="mine", prompt=["a"], **neutral) == plain
    assert wish() == Wish((), None, False)
    assert wish(stop="ab", stream_options={"include_usage": True}) == Wish(("ab",), None, True)
    small = replace(SERVED, limits=Limits(max_tokens=7))
    assert asked(served=small)["max_tokens"] == 7


def test_the_prompt_that_is_wrong_is_named() -> None:
    with pytest.raises(Refusal, match=r"'Ä' \(U\+00C4\) at position 0 of prompt\[1\]") as caught:
        asked(prompt=["9", "Ä"])
    assert (caught.value.param, caught.value.code) == ("prompt[1]", "unknown_character")


def test_another_model_is_none_of_this_server() -> None:
    with pytest.raises(Refusal, match="no model \"gpt-5\" here; this server has 'mine'") as caught:
        asked(model="gpt-5")
    assert (caught.value.status, caught.value.code) == (404, "model_not_found")


def test_a_chat_is_one_text_by_its_template() -> None:
    parts = [{"type": "text", "text": "b"}, "c"]
    made = asked(CHAT, chatty(), messages=[SAID[0], {"role": "user", "content": parts, "name": "x"}])
    assert made["messages"] == [SAID[0], {"role": "user", "content": "bc"}]
    assert asked(CHAT, chatty(), max_tokens=3, max_completion_tokens=2)["max_tokens"] == 2
    answering = chatty("{{ messages[0].content }}{% if add_generation_prompt %}é{% endif %}")
    with pytest.raises(Refusal, match="'é'"):  # what the model reads is checked, not what was sent
        asked(CHAT, answering)
    with pytest.raises(Refusal, match="has no chat template") as caught:
        asked(CHAT)
    assert caught.value.code == "no_chat_template"
    with pytest.raises(Refusal, match=r"the chat template can't read these messages: .*str"):
        asked(CHAT, chatty("{{ messages[0].content + 1 }}"))


def test_settings_may_stand_in_a_generation_config() -> None:
    config = {"max_new_tokens": 7, "top_k": 5, "temperature": 0.5, "eos_token_id": 2, "num_beams": None}
    served = replace(chatty(), defaults={"eos_token_id": 2})
    body = {"messages": SAID, "generation_config": json.dumps(config)}
    ((asked, wish),) = check(CHAT, body, served)
    assert (asked["max_tokens"], asked["temperature"], wish.settings) == (7, 0.5, {"top_k": 5})
    ((asked, wish),) = check(CHAT, body | {"max_completion_tokens": 3, "temperature": 0}, served)
    assert (asked["max_tokens"], asked["temperature"]) == (3, 0)
    assert wish.settings == {"top_k": 5, "do_sample": False}


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ("{", "generation_config isn't JSON"),
        ("[1]", "generation_config must be a JSON object, not [1]"),
        ({"top_k": 3}, 'generation_config={"top_k": 3} must be a text that holds a JSON object'),
        ('{"num_beams": 3}', "generation_config.num_beams=3 isn't supported; leave it out"),
        ('{"eos_token_id": 5}', "generation_config.eos_token_id=5 isn't supported"),
        ('{"seed": 5}', "generation_config.seed=5 isn't supported"),
        ('{"max_new_tokens": 0}', "generation_config.max_new_tokens=0 must be a whole number, at least 1"),
        ('{"max_new_tokens": "a"}', 'generation_config.max_new_tokens="a" must be a whole number'),
        ('{"max_new_tokens": 9999}', "generation_config.max_new_tokens=9999 is more than this server's 4096"),
        ('{"stop_strings": 7}', "generation_config.stop_strings=7 must be a text or a list of texts"),
        ('{"top_k": -1}', "generation_config.top_k=-1 must be a whole number, 0 (all) or more"),
    ],
)
def test_a_bad_generation_config_is_refused(config: Any, said: str) -> None:
    with pytest.raises(Refusal, match=f"^{re.escape(said)}") as caught:
        asked(generation_config=config, seed=1)
    assert (caught.value.status, caught.value.param) == (400, "generation_config")


def test_what_stands_outside_of_a_generation_config_wins() -> None:
    config = json.dumps({"max_new_tokens": "a", "top_k": -1, "stop_strings": 7})
    ((made, wished),) = check(
        COMPLETIONS,
        {"prompt": "a", "generation_config": config, "max_tokens": 3, "top_k": 2, "stop": "b"},
        SERVED,
    )
    assert (made["max_tokens"], wished.settings, wished.stop) == (3, {"top_k": 2}, ("b",))
    with pytest.raises(Refusal, match=r"^top_k=-2 must be") as caught:
        asked(generation_config=config, max_tokens=3, top_k=-2)
    assert caught.value.param == "top_k"
