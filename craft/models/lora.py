"""Which layers LoRA adapts where nobody names any: PEFT looks that up by `model_type` in a table of its own.

Hub-safe: copied beside the weights by `save_pretrained`.
"""

from __future__ import annotations

import sys
from typing import Any


def tell_peft(config: Any) -> None:
    """Enters `config.lora_targets` into PEFT's table.

    Called by the config's `to_dict`, which PEFT reads right before it looks there: so that it works whichever
    of the two was imported first, and nothing is imported for those who don't use PEFT.
    """
    constants = sys.modules.get("peft.utils.constants")
    table = getattr(constants, "TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING", None)
    if isinstance(table, dict):
        table.setdefault(config.model_type, list(config.lora_targets))
