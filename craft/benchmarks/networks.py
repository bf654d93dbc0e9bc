"""The models that are compared: craft's, and transformers' own of the same size, all with random weights.

Weights don't matter to speed, and nothing is downloaded. All are without dropout, in fp32, and on the GPU
if there is one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from craft.benchmarks.texts import ASCII

VOCAB = len(ASCII) + 4  # the tokenizer's special tokens


class Size(NamedTuple):
    """`4x128` is 4 layers of width 128."""

    layers: int
    width: int

    def __str__(self) -> str:
        return f"{self.layers}x{self.width}"

    @property
    def heads(self) -> int:
        return max(self.width // 32, 1)


def craft_model(preset: str, size: Size, context: int, seed: int) -> Any:
    """The model of `configs/models/{preset}.yaml`, stretched to `size`."""
    from craft.building import build_model
    from craft.config.compose import compose

    run = compose(
        [f"models={preset}", f"models.num_hidden_layers={size.layers}", f"models.hidden_size={size.width}"]
    )
    fields = run.models | {"dropout": 0.0}
    return _seeded(lambda: build_model(fields, tokenizer(), context, documents=False), seed)


def tokenizer() -> Any:
    """65 characters, as many as in tiny Shakespeare, and 4 special tokens."""
    from craft.data.tokenization import CharTokenizer

    return CharTokenizer.from_counts(dict.fromkeys(ASCII, 1))


def llama(size: Size, context: int, seed: int) -> Any:
    """transformers' Llama with as many weights a layer as GPT-2 of the same width."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=size.width,
        intermediate_size=round(size.width / 3) * 8,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        max_position_embeddings=context,
        bos_token_id=1,
        eos_token_id=2,
    )
    return _seeded(lambda: LlamaForCausalLM(config), seed)


def gpt2(size: Size, context: int, seed: int) -> Any:
    """transformers' GPT-2."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=VOCAB,
        n_embd=size.width,
        n_layer=size.layers,
        n_head=size.heads,
        n_positions=context,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return _seeded(lambda: GPT2LMHeadModel(config), seed)


def device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _seeded(build: Callable[[], Any], seed: int) -> Any:
    import torch

    torch.manual_seed(seed)
    return build().to(device())
