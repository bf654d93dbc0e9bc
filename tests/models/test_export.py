"""torch.export with a free length: one graph for every text, of both models, padded or not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.export import Dim

from .tiny import VOCAB, make_lstm, make_transformer

MODELS = {"lstm": make_lstm, "transformer": make_transformer}


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
def test_one_graph_reads_texts_of_any_length(kind: str, padded: bool) -> None:
    model: Any = MODELS[kind]()
    inputs: dict[str, Any] = {"input_ids": torch.randint(VOCAB, (2, 5)), "use_cache": False}
    free = {0: Dim("batch", min=1), 1: Dim("length", min=2, max=12)}
    shapes: dict[str, Any] = {"input_ids": free, "use_cache": None}
    if padded:
        inputs["attention_mask"], shapes["attention_mask"] = torch.ones(2, 5, dtype=torch.long), free
    program = torch.export.export(model, (), inputs, dynamic_shapes=shapes).module()
    for rows, length in ((1, 2), (3, 9), (2, 12)):
        asked = {"input_ids": torch.randint(VOCAB, (rows, length)), "use_cache": False}
        real = torch.ones(rows, length, dtype=torch.bool)
        if padded:
            real[-1, : length // 2] = False
            asked["attention_mask"] = real.long()
        with torch.no_grad():
            torch.testing.assert_close(program(**asked).logits[real], model(**asked).logits[real])
