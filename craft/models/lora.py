"""Which layers LoRA and its kin adapt where nobody names any, which PEFT looks up by `model_type`.

Hub-safe: copied beside the weights by `save_pretrained`.
"""

from __future__ import annotations

import re
import sys
from typing import Any


def tell_peft(config: Any) -> None:
    """Enters `config.peft_targets` into PEFT's tables: those of a method by its name, of all others by "".

    Called by the config's `to_dict`, which PEFT reads right before it looks there: so that it works whichever
    of the two was imported first, and nothing is imported for those who don't use PEFT.
    """
    constants = sys.modules.get("peft.utils.constants")
    targets = {"LNTUNING": None, "IA3_FEEDFORWARD": (), **config.peft_targets}  # None: no default
    for name, table in vars(constants).items() if constants else ():
        found = re.fullmatch("TRANSFORMERS_MODELS_TO_(.+?)(_TARGET)?_MODULES_MAPPING", name)
        own = targets.get(found[1], targets[""]) if found else None
        if own is not None and isinstance(table, dict):
            table.setdefault(config.model_type, list(own))
