"""What a server's caps may be."""

from __future__ import annotations

import pytest

from craft.serving.limits import LONGEST_PATIENCE, UNBOUNDED_PROMPT, Limits
from craft.utils.common import UserError


@pytest.mark.parametrize("name", ["max_tokens", "max_prompt", "max_requests"])
def test_a_limit_is_at_least_one(name: str) -> None:
    assert getattr(Limits(**{name: 1}), name) == 1
    with pytest.raises(UserError, match=f"--{name.replace('_', '-')} is 0; it must be at least 1"):
        Limits(**{name: 0})


def test_the_longest_prompt_is_what_was_said_or_the_context_or_a_bound() -> None:
    assert Limits(max_prompt=9).prompt(32) == Limits(max_prompt=9).prompt(None) == 9
    assert (Limits().prompt(32), Limits().prompt(None)) == (32, UNBOUNDED_PROMPT)
    assert Limits(patience=LONGEST_PATIENCE).patience == LONGEST_PATIENCE
    with pytest.raises(UserError, match="at most 3600 seconds"):
        Limits(patience=LONGEST_PATIENCE + 1)


@pytest.mark.parametrize("patience", [0, -1, float("nan"), float("inf")])
def test_patience_is_a_time(patience: float) -> None:
    with pytest.raises(UserError, match="--patience is"):
        Limits(patience=patience)
