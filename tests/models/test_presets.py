"""The model YAMLs: every one builds, says what it is, and has the size it says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from craft.config.compose import compose
from craft.models import CharLSTMConfig, TransformerConfig

FOLDER = Path(__file__).parents[2] / "configs" / "models"
PRESETS = sorted(FOLDER.glob("*.yaml"))


def composed(name: str) -> dict[str, Any]:
    return {key: value for key, value in compose([f"models={name}"]).models.items() if value is not None}


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_a_preset_builds_and_has_the_size_it_says(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    first = text.splitlines()[0]
    config = AutoConfig.for_model(**composed(path.stem), vocab_size=69)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    said = re.fullmatch(r"# .*\(([\d.]+)M\).*", first)
    assert said, first
    assert model.num_parameters() / 1e6 == pytest.approx(float(said[1]), abs=0.051)


def test_the_default_presets_are_the_class_defaults() -> None:
    for names, config_class in (
        (("char_lstm", "char_lstm_small"), CharLSTMConfig),
        (("transformer", "transformer_small"), TransformerConfig),
    ):
        for name in names:
            fields = composed(name)
            assert fields.pop("model_type") == config_class.model_type
            assert config_class(**fields).to_dict() == config_class().to_dict()
