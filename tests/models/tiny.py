"""Tiny models with lively weights: their texts change at once when a mask, a state or a position is wrong."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from craft.models import (
    REGISTERED,
    CharLSTMConfig,
    CharLSTMForCausalLM,
    TransformerConfig,
    TransformerForCausalLM,
    register,
)
from craft.models.cells import Cell, LSTMCell, State
from craft.models.char_lstm import CharLSTMModel

VOCAB = 13
MODERN = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 12}
GPT2 = {
    **MODERN,
    "mlp": "gelu",
    "norm": "layernorm",
    "norm_weight": True,
    "norm_eps": 0.01,  # so that it shows, here as below
    "qk_norm": False,
    "position": "learned",
    "tie_word_embeddings": True,
    "initializer_range": 0.02,
}
TRANSFORMERS = {
    "modern": MODERN,
    "grouped": {**MODERN, "num_key_value_heads": 2, "mlp": "swiglu", "bias": True, "norm_weight": True},
    "windowed": {
        **MODERN,
        **{
            "sliding_window": 5,
            "head_dim": 6,
            "tie_word_embeddings": True,
            "rope_theta": 50.0,
            "norm_eps": 0.1,
        },
    },
    "gpt2": GPT2,
}


@torch.no_grad()
def enliven(model: Any, scale: float) -> Any:
    """Every parameter random and large enough that the next character depends on all that came before."""
    generator = torch.Generator().manual_seed(5)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator) * scale
        parameter.copy_(1 + noise if "norm" in name and name.endswith("weight") else noise)
    return model.eval()


class PlainLSTMCell(LSTMCell):
    """The standard cell without PyTorch's kernels, as everything that derives from it."""


class GRUCell(Cell):
    """One state tensor, three gates, a module of its own."""

    gates = 3

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.recurrent = torch.nn.Linear(config.hidden_size, 3 * config.hidden_size)

    def forward(self, projected: torch.Tensor, state: State) -> tuple[torch.Tensor, State]:
        (before,) = state
        (r, z, n), (read_r, read_z, read_n) = (
            x.chunk(3, dim=-1) for x in (self.recurrent(before), projected)
        )
        forget = (z + read_z).sigmoid()
        hidden = forget * before + (1 - forget) * ((r + read_r).sigmoid() * n + read_n).tanh()
        return hidden, (hidden,)


class CharGRUConfig(CharLSTMConfig):
    model_type = "tiny_gru"


class CharGRUModel(CharLSTMModel):
    config_class, cell_class = CharGRUConfig, GRUCell


class CharGRUForCausalLM(CharLSTMForCausalLM):
    config_class, backbone = CharGRUConfig, CharGRUModel


register(__name__)


def make_recurrent(cell_class: type[Any], **fields: Any) -> CharLSTMForCausalLM:
    """A CharLSTM with another cell."""
    backbone = type("OtherModel", (CharLSTMModel,), {"cell_class": cell_class})
    return make_lstm(type("OtherForCausalLM", (CharLSTMForCausalLM,), {"backbone": backbone}), **fields)


def make_lstm(made: type[Any] = CharLSTMForCausalLM, **fields: Any) -> CharLSTMForCausalLM:
    config = {
        "vocab_size": VOCAB,
        "hidden_size": 12,
        "num_hidden_layers": 2,
        "layer_norm_eps": 0.01,
        **fields,
    }
    return enliven(made(made.config_class(**config)), 0.7)


def make_transformer(kind: str = "modern", **fields: Any) -> TransformerForCausalLM:
    config = TransformerConfig(**{"vocab_size": VOCAB, **TRANSFORMERS[kind], **fields})
    return enliven(TransformerForCausalLM(config), 0.4)


OTHERS = [
    made
    for made in REGISTERED.values()
    if issubclass(made, CharLSTMForCausalLM) and made not in (CharLSTMForCausalLM, CharGRUForCausalLM)
]
"""Whatever else is in craft/models by now."""

MAKERS: dict[str, Callable[[], Any]] = {
    "lstm": make_lstm,
    "gru": lambda: make_lstm(CharGRUForCausalLM),
    "lstm-tied": lambda: make_lstm(tie_word_embeddings=True, layer_norm="head"),
    **{kind: (lambda kind=kind: make_transformer(kind)) for kind in TRANSFORMERS},
    **{made.config_class.model_type: partial(make_lstm, made) for made in OTHERS},
}
