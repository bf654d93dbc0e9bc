from __future__ import annotations

from refusals import refused

from craft.utils.common import did_you_mean, human, require_extra


def test_a_missing_extra_is_named_with_the_command_that_installs_it() -> None:
    require_extra("serve", "json", "click")
    with refused("package-missing", "no_such_a, no_such_b", "pip install 'craft-lm[serve]'"):
        require_extra("serve", "json", "no_such_a", "no_such_b")


def test_counts_are_shortened_for_people() -> None:
    shown = ["7", "1.2K", "0.8M", "10.7M", "2.5B"]
    assert [human(n) for n in (7, 1_250, 803_000, 10_650_000, 2.5e9)] == shown


def test_only_a_near_name_is_suggested() -> None:
    assert did_you_mean("lerning_rate", ["learning_rate", "seed"]) == ", did you mean 'learning_rate'?"
    assert did_you_mean("zzz", ["learning_rate"]) == ""
