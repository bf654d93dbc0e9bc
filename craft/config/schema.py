"""What a run is: which keys exist, what each may hold, and the `Run` that passed every check.

The keys of each section are the fields of the class that receives it (`DataArguments`,
`CraftTrainingArguments`, the model's own config), and so are their rules; those about several sections are in
`rules.py`. Names and types come first: they are answered without importing the classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from craft.config.automatic import chosen_settings
from craft.config.fields import defaults, section_fields, section_of, suggest
from craft.config.rules import check_sections, model_config, refuse_secret
from craft.utils.common import did_you_mean
from craft.utils.errors import UserError
from craft.utils.paths import typed_settings
from craft.utils.settings import SECTIONS, check_type, yaml_word


@dataclass(frozen=True)
class Run:
    """One run, validated: everything that `craft.train.train` needs to know, and to repeat it.

    Attributes:
        models: `model_type` and the fields of that model's config.
        data: the fields of `DataArguments`.
        training: the fields of `CraftTrainingArguments`.
        experiment: the name of the experiment it was composed from, for names and records.
        automatic: settings that `craft.sizing` chooses once the text is read, see `config/automatic.py`; none
            in a run that was trained.
    """

    models: dict[str, Any]
    data: dict[str, Any]
    training: dict[str, Any]
    experiment: str = "none"
    automatic: Sequence[str] = ()

    @classmethod
    def of(cls, mapping: Mapping[str, Any]) -> Run:
        """A run from plain data.

        Raises:
            UserError: for an unknown key, a wrong type, a value out of range or an impossible combination.
        """
        for key in mapping:
            if key == "experiments":
                raise UserError(
                    "experiments is no section of a run; the file of an experiment must begin with the line "
                    "'# @package _global_'",
                    code="setting-unknown",
                )
            if key not in (*SECTIONS, "experiment", "automatic"):
                hint = did_you_mean(str(key), SECTIONS)
                raise UserError(
                    f"unknown section {str(key)!r}{hint} (a run has {', '.join(SECTIONS)})",
                    code="setting-unknown",
                )
        written = {name: _check_section(name, mapping.get(name)) for name in SECTIONS}
        complete = {name: {**defaults(name, section), **section} for name, section in written.items()}
        complete["data"] = _check_rules(**complete)
        own = {name: _own(name, complete[name], section) for name, section in written.items()}
        automatic = _check_automatic(mapping.get("automatic") or [])
        return cls(experiment=str(mapping.get("experiment", "none")), automatic=automatic, **own)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, valid for `Run.of`."""
        open_settings = {"automatic": list(self.automatic)} if self.automatic else {}
        sections = {name: dict(getattr(self, name)) for name in SECTIONS}
        return {"experiment": self.experiment, **open_settings, **sections}

    def filled(self, settings: Mapping[str, Any]) -> Run:
        """The run with its open settings as `settings` has them, by their command-line names; "models" is
        that whole section."""
        plain = self.to_dict()
        for key in self.automatic:
            section, _, name = key.partition(".")
            plain[section] = {**plain[section], name: settings[key]} if name else settings[key]
        return Run.of({**plain, "automatic": []})

    def to_yaml(self) -> str:
        """YAML that `craft train --config FILE` repeats."""
        import yaml

        return yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True, width=110)


def _check_automatic(names: Any) -> list[str]:
    known = chosen_settings()
    if isinstance(names, list) and (wrong := [name for name in names if name not in known]) == []:
        return names
    wrong = wrong[0] if isinstance(names, list) else names
    raise UserError(
        f"automatic holds {yaml_word(wrong)}; it may be a list of {', '.join(known)}", code="setting-value"
    )


def _check_section(section: str, values: Any) -> dict[str, Any]:
    """One section: every key known, every value of its type; "1e-3" becomes a number."""
    if not isinstance(values, Mapping):
        raise UserError(
            f"{section} is {yaml_word(values)}; it must be a mapping of settings", code="setting-type"
        )
    known = section_fields(section, values)
    checked = {}
    for key, value in values.items():
        name = f"{section}.{key}"
        if key not in known:
            hint = suggest(name, values.get("model_type"))
            raise UserError(f"unknown key {name!r}{hint}", code="setting-unknown")
        checked[key] = check_type(section, known[key], value)
        refuse_secret(name, checked[key])
    return typed_settings(section, checked)


def _check_rules(models: dict[str, Any], data: dict[str, Any], training: dict[str, Any]) -> dict[str, Any]:
    """Every rule of values and of several fields, those that need torch last; returns the data as checked."""
    from craft.data.arguments import check_corpus, check_data

    data = check_data(data)
    check_corpus(data)
    check_sections(models, data, training, section_of("models", models).carries_state)
    from craft.training.arguments import check_training

    check_training(training)
    model_config(models)
    return data


def _own(section: str, complete: Mapping[str, Any], written: Mapping[str, Any]) -> dict[str, Any]:
    """What a run holds: first what was written, then every other default of craft's own classes, so that a
    later version repeats it. The context of a model is left to the window of the data."""
    own = section_of(section, written).own
    others = [name for name in own if name in complete and name != "max_position_embeddings"]
    return {name: complete[name] for name in dict.fromkeys([*written, *others])}
