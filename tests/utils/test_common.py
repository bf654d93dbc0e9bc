"""What every room needs."""

from __future__ import annotations

import pytest

from craft.utils.common import require_extra
from craft.utils.errors import UserError


def test_a_missing_extra_is_named_with_the_command_that_installs_it() -> None:
    require_extra("serve", "json", "click")
    with pytest.raises(UserError) as caught:
        require_extra("serve", "json", "no_such_a", "no_such_b")
    assert str(caught.value) == (
        "craft serve needs what isn't installed (no_such_a, no_such_b): pip install 'craft-lm[serve]'"
    )
