"""How tests expect an error: by its code and the values in its message, never by its prose."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from craft.utils.errors import Code, CraftError


@contextmanager
def refused(code: Code, *values: object) -> Iterator[pytest.ExceptionInfo[CraftError]]:
    """Expects a CraftError with this code, whose message names these values (numbers, names, paths).

    with refused("setting-value", "training.seed", -1):
        CraftTrainingArguments(seed=-1)
    """
    with pytest.raises(CraftError) as caught:
        yield caught
    assert caught.value.code == code, caught.value
    message = str(caught.value)
    assert [value for value in values if str(value) not in message] == [], message
