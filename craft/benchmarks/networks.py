"""The models that are compared: craft's, and transformers' own of the same size, all with random weights.

Weights don't matter to speed, and nothing is downloaded. All are without dropout, in fp32, and on the GPU
if there is one.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from craft.benchmarks.texts import ASCII, VOCAB
from craft.building import build_model
from craft.config.compose import compose
from craft.data.tokenization import CharTokenizer

DEVICE = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


class Size(NamedTuple):
    """`4x128` is 4 layers of width 128."""

    layers: int
    width: int

    def __str__(self) -> str:
        return f"{self.layers}x{self.width}"


SMALL = Size(1, 32)


def tokenizer() -> CharTokenizer:
    return CharTokenizer.from_counts(dict.fromkeys(ASCII, 1))


def craft_model(preset: str, size: Size, context: int) -> Any:
    """The model of `configs/models/{preset}.yaml`, stretched to `size`."""
    run = compose(
        [f"models={preset}", f"models.num_hidden_layers={size.layers}", f"models.hidden_size={size.width}"]
    )
    torch.manual_seed(0)
    return build_model(run.models | {"dropout": 0.0}, tokenizer(), context, documents=False).to(DEVICE)


def upstream_model(model_type: str, size: Size, context: int) -> Any:
    """transformers' GPT-2, or its Llama with as many weights a layer as GPT-2 of the same width."""
    only: dict[str, dict[str, Any]] = {
        "gpt2": {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
        "llama": {"intermediate_size": round(size.width / 3) * 8},
    }
    config = AutoConfig.for_model(
        model_type,
        vocab_size=VOCAB,
        hidden_size=size.width,
        num_hidden_layers=size.layers,
        num_attention_heads=size.width // 32,
        max_position_embeddings=context,
        bos_token_id=1,
        eos_token_id=2,
        **only[model_type],
    )
    return AutoModelForCausalLM.from_config(config).to(DEVICE)
