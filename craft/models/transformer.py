"""A decoder-only transformer over characters: the modern block by default, GPT-2's by configuration.

Design: a rotary model sees a sliding window of its training context, so `generate` and `stream` go on
past it; a model with learned positions says so in `generate` and rolls its window in `stream`. The blocks are
in blocks.py, fast decoding in ring.py.
"""
# ruff: noqa: RUF012  (transformers reads its plans and flags from plain class attributes)
# Annotations are evaluated here: transformers' tools read from them what `**kwargs` may hold.

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import AutoModel, PreTrainedConfig
from transformers import initialization as init
from transformers.cache_utils import Cache, DynamicCache
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask
from transformers.modeling_layers import (
    GenericForQuestionAnswering,
    GenericForSequenceClassification,
    GenericForTokenClassification,
)
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS, RopeParameters
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs
from transformers.utils.type_validators import interval

from .base import BaseModel, LanguageModel
from .blocks import Attention, RotaryEmbedding, TransformerLayer, make_norm
from .decoding import has_plain_weights
from .fields import optional
from .inputs import either_cache, embed
from .ring import Ring

Mlp = Literal["relu2", "gelu", "swiglu"]
Norm = Literal["rmsnorm", "layernorm"]
Position = Literal["rope", "learned"]


@strict
class TransformerConfig(PreTrainedConfig):
    """Shape of a Transformer; every field may be set in a model YAML.

    Fields:
        vocab_size, hidden_size, num_hidden_layers, num_attention_heads: characters, width, blocks, heads.
        num_key_value_heads, head_dim: heads of keys and values, which query heads share evenly, null: one
            each; width of a head, null: hidden_size / num_attention_heads.
        mlp, intermediate_size: "relu2", "gelu" (exact) or "swiglu", and its inner width;
            null: 4 x hidden_size, for "swiglu" 8/3 x hidden_size rounded up to a multiple of 8.
        norm, norm_weight, norm_eps: "rmsnorm" or "layernorm" before each half block, learned scale or not.
        qk_norm, attention_scale: RMS-normalise queries and keys; factor of their products,
            null: 1/sqrt(head_dim), times 1.2 with qk_norm.
        position: "rope" or "learned".
        rope_theta, rope_parameters: base of the rotary frequencies; transformers' dict, which wins over it.
        max_position_embeddings: training context; null: 256.
        sliding_window: characters a layer sees back, its own included; null: the context.
        bias: of linear layers and LayerNorm. dropout: on embeddings, attention and half blocks; in [0, 1).
        tie_word_embeddings: the head shares the embedding matrix.
        initializer_range: GPT-2's scheme with this deviation; null: embedding 1, weights 0.5/sqrt(fan_in).
        zero_init: start with half blocks and (untied) head at zero; only with initializer_range null.

    Raises:
        StrictDataclassError: a field of another type or out of range, naming the field and its value.
        ValueError: a field at odds with another, naming both and their values.
    """

    model_type = "char_transformer"
    keys_to_ignore_at_inference = ["past_key_values", "cache"]
    base_model_tp_plan = {
        "layers.*.self_attn.q_proj": "colwise",
        "layers.*.self_attn.k_proj": "colwise",
        "layers.*.self_attn.v_proj": "colwise",
        "layers.*.self_attn.o_proj": "rowwise",
        "layers.*.mlp.up_proj": "colwise",
        "layers.*.mlp.down_proj": "rowwise",
    }
    base_model_pp_plan = {
        "embed_tokens": (["input_ids"], ["inputs_embeds"]),
        "layers": (["hidden_states", "attention_mask"], ["hidden_states"]),
        "norm": (["hidden_states"], ["hidden_states"]),
    }

    vocab_size: int = interval(min=1)(default=256)
    hidden_size: int = interval(min=1)(default=128)
    num_hidden_layers: int = interval(min=1)(default=4)
    num_attention_heads: int = interval(min=1)(default=4)
    num_key_value_heads: int | None = optional(min=1)(default=None)
    head_dim: int | None = optional(min=1)(default=None)
    mlp: Mlp = "relu2"
    intermediate_size: int | None = optional(min=1)(default=None)
    norm: Norm = "rmsnorm"
    norm_weight: bool = False
    norm_eps: int | float = interval(min=0, exclude_min=True)(default=1e-6)
    qk_norm: bool = True
    attention_scale: int | float | None = optional(min=0, exclude_min=True)(default=None)
    position: Position = "rope"
    rope_theta: int | float = interval(min=0, exclude_min=True)(default=10000.0)
    rope_parameters: dict | None = None
    max_position_embeddings: int | None = optional(min=1)(default=None)
    sliding_window: int | None = optional(min=1)(default=None)
    bias: bool = False
    dropout: int | float = interval(min=0, max=1, exclude_max=True)(default=0.0)
    tie_word_embeddings: bool = False
    initializer_range: int | float | None = optional(min=0, exclude_min=True)(default=None)
    zero_init: bool = True
    use_cache: bool = True
    bos_token_id: int | None = optional(min=0)(default=None)
    eos_token_id: int | None = optional(min=0)(default=None)
    pad_token_id: int | None = optional(min=0)(default=None)

    def __post_init__(self, **kwargs: Any) -> None:
        self.validate_architecture()  # of what was given; `@strict` does it again with what follows from it
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        if self.head_dim is None:
            self.head_dim = self.hidden_size // self.num_attention_heads
        if self.intermediate_size is None:
            gated = 8 * math.ceil(self.hidden_size / 3)
            self.intermediate_size = gated if self.mlp == "swiglu" else 4 * self.hidden_size
        if self.attention_scale is None:
            self.attention_scale = (1.2 if self.qk_norm else 1.0) * self.head_dim**-0.5
        if self.max_position_embeddings is None:
            self.max_position_embeddings = 256
        if self.sliding_window is None and self.position == "rope":
            self.sliding_window = self.max_position_embeddings
        super().__post_init__(**kwargs)
        if self.position == "learned":
            self.rope_parameters = None
        if self.mlp == "swiglu":
            self.base_model_tp_plan = {**self.base_model_tp_plan, "layers.*.mlp.gate_proj": "colwise"}

    def validate_architecture(self) -> None:
        """Raise a ValueError for sizes that don't go together."""
        size, heads, shared = self.hidden_size, self.num_attention_heads, self.num_key_value_heads or 1
        if self.head_dim is None and size % heads:
            raise ValueError(f"hidden_size={size} must be a multiple of num_attention_heads={heads}")
        if heads % shared:
            raise ValueError(
                f"num_attention_heads={heads} must be a multiple of num_key_value_heads={shared}"
            )
        width = self.head_dim or size // heads
        if self.position == "rope" and width % 2:
            raise ValueError(
                f"head_dim={width} must be even for position=rope, which turns pairs (left open, it is "
                f"hidden_size={size} / num_attention_heads={heads})"
            )

    def validate_rope(self) -> None:
        """Raise a ValueError for a type or key that transformers would only warn of."""
        given = self.rope_parameters or {}
        kind, kinds = given.get("rope_type", "default"), ["default", *ROPE_INIT_FUNCTIONS]
        if kind not in kinds:
            raise ValueError(f"rope_parameters.rope_type={kind} must be one of {', '.join(kinds)}")
        known = [*RopeParameters.__annotations__, "type"]
        if unknown := [key for key in given if key not in known]:
            raise ValueError(f"rope_parameters.{unknown[0]} must be one of {', '.join(known)}")
        super().validate_rope()

    def check_length(self, length: int) -> None:
        """Raise a ValueError if learned positions do not reach `length` characters."""
        if self.position == "learned" and length > (self.max_position_embeddings or 0):
            raise ValueError(
                f"{length} characters exceed the learned positions, max_position_embeddings="
                f"{self.max_position_embeddings}; stream() rolls its window over them and goes on without end"
            )


class TransformerPreTrainedModel(BaseModel):
    """Flags and initialisation of TransformerModel and all of its heads."""

    config_class = TransformerConfig
    config: TransformerConfig
    supports_gradient_checkpointing = True
    _no_split_modules = ["TransformerLayer"]
    _skip_keys_device_placement = ["past_key_values", "cache"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {"hidden_states": TransformerLayer, "attentions": Attention}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """The scheme of `initializer_range`; a tied embedding is also the head, hence its smaller scale."""
        config = self.config
        if isinstance(module, nn.Linear):
            head = 0.0 if config.zero_init else 0.5 * config.hidden_size**-0.5
            std = config.initializer_range if config.initializer_range is not None else head
            std = getattr(module, "init_std", std)  # which every linear layer of a block has
            init.normal_(module.weight, std=std)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            tied = 0.5 * config.hidden_size**-0.5 if config.tie_word_embeddings else 1.0
            init.normal_(module.weight, std=config.initializer_range or tied)
        else:
            super()._init_weights(module)


class TransformerModel(TransformerPreTrainedModel):
    """Embedding, blocks and the last norm: input_ids [B, T] -> last_hidden_state [B, T, hidden_size]."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config)
        width, context = config.hidden_size, config.max_position_embeddings or 0
        learned = config.position == "learned"
        self.embed_tokens = nn.Embedding(config.vocab_size, width)
        self.embed_positions: Any = nn.Embedding(context, width) if learned else None
        self.rotary_emb: Any = None if learned else RotaryEmbedding(config)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(TransformerLayer(config, n) for n in range(config.num_hidden_layers))
        self.norm = make_norm(config)
        self.gradient_checkpointing = False
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        cache: Cache | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPast:
        """Exactly one of `input_ids` [B, T] and `inputs_embeds` [B, T, C]; the rest as in transformers.

        Raises:
            ValueError: more characters than a model with learned positions has positions for.
        """
        past_key_values = either_cache(past_key_values, cache, kwargs)
        hidden = embed(self.embed_tokens, input_ids, inputs_embeds)
        if past_key_values is None and use_cache:
            past_key_values = DynamicCache(config=self.config)
        length = hidden.shape[1]
        # A paged cache can't be asked; it comes with positions and a mask.
        past = past_key_values.get_seq_length() if isinstance(past_key_values, Cache) else 0
        if position_ids is None and attention_mask is not None and attention_mask.ndim == 2:
            counted = attention_mask.long().cumsum(dim=1) - 1  # padding takes no position
            position_ids = counted.clamp(min=0)[:, -length:]
        elif position_ids is None:
            position_ids = (torch.arange(length, device=hidden.device) + past)[None]

        # A window matters only once there is more to see: without it SDPA needs no mask in training.
        # A mask of four dimensions is ready-made: what each position adds to its products with the others.
        window = self.config.sliding_window
        windowed = window is not None and length > 1 and past + length > window
        # Positional: transformers 5.24 renamed `past_key_values` to `cache`.
        mask = (create_sliding_window_causal_mask if windowed else create_causal_mask)(
            self.config, hidden, attention_mask, past_key_values, position_ids
        )
        rotations = None
        if self.embed_positions is not None:
            if not torch.compiler.is_compiling():
                self.config.check_length(int(position_ids.max()) + 1)
            hidden = hidden + self.embed_positions(position_ids)
        else:
            rotations = self.rotary_emb.rotations(hidden, position_ids)
        hidden = self.dropout(hidden)
        for layer in list(self.layers)[: self.config.num_hidden_layers]:  # fewer in an early exit
            hidden = layer(
                hidden,
                attention_mask=mask,
                position_embeddings=rotations,
                position_ids=position_ids,
                past_key_values=past_key_values,
                **kwargs,
            )
        return BaseModelOutputWithPast(last_hidden_state=self.norm(hidden), past_key_values=past_key_values)


@dataclass
class RollingText:
    """Decoding state of a model with learned positions: the text in its context, and what reads it."""

    text: torch.Tensor
    inner: Any


class TransformerForCausalLM(TransformerPreTrainedModel, LanguageModel):
    """Transformer with a language-modelling head."""

    backbone = TransformerModel
    model: TransformerModel

    def _validate_generated_length(self, generation_config: Any, length: int, *args: Any) -> None:
        """Refuse what learned positions cannot do; the model's own default length is cut to fit."""
        config, default = generation_config, self.generation_config.max_new_tokens
        room: Any = self.config.max_position_embeddings
        is_default = default is not None and config.max_new_tokens == default
        if self.config.position == "learned" and is_default and length < room:
            config.max_length = min(config.max_length, room)
        super()._validate_generated_length(config, length, *args)  # type: ignore[misc]
        self.config.check_length(config.max_length)

    @property
    def reach(self) -> int | None:  # type: ignore[override]
        """See `NextTokenObjective`. Each layer sees a window back; learned positions end with theirs."""
        config: Any = self.config
        # Of these types the angles of what was read change with the length of the text.
        lengthwise = (config.rope_parameters or {}).get("rope_type") in ("dynamic", "longrope")
        if config.position == "learned" or lengthwise:
            return None
        return int(config.num_hidden_layers * (config.sliding_window - 1) + 1)

    def prefill(self, input_ids: torch.Tensor) -> tuple[torch.Tensor, Any]:
        """Read prompts [B, T] of equal length, or as much of their end as reaches the next character."""
        config: Any = self.config
        learned = config.position == "learned"
        reach = config.max_position_embeddings if learned else self.reach
        input_ids = input_ids[:, -(reach or 0) :]
        logits, state = super().prefill(input_ids)
        if has_plain_weights(self) and reach:
            state = Ring(self.model, state, input_ids.shape[1])
        return logits, RollingText(input_ids, state) if learned else state

    @torch.no_grad()
    def step(self, ids: torch.Tensor, state: Any) -> tuple[torch.Tensor, Any]:
        """Read one character per row; learned positions that run out are restarted with the last half."""
        if isinstance(state, RollingText):
            text = torch.cat([state.text, ids[:, None]], dim=1)
            room: Any = self.config.max_position_embeddings
            if text.shape[1] > room:
                return self.prefill(text[:, -1 - (room - 1) // 2 :])
            logits, state.inner = self.step(ids, state.inner)
            state.text = text
            return logits, state
        if isinstance(state, Ring):
            return self.lm_head(state.advance(self.model, ids)), state
        return super().step(ids, state)

    def flops_per_token(self) -> float:
        """6 per multiplying weight, plus 12 x layers x heads x head_dim x context (the whole square)."""
        config: Any = self.config
        attention = config.num_hidden_layers * config.num_attention_heads * config.head_dim
        return super().flops_per_token() + 12.0 * attention * config.max_position_embeddings


class TransformerForSequenceClassification(GenericForSequenceClassification, TransformerPreTrainedModel):
    """Transformer that scores `num_labels` classes of a whole text, from its last character."""


class TransformerForTokenClassification(GenericForTokenClassification, TransformerPreTrainedModel):
    """Transformer that scores `num_labels` classes of each character."""


class TransformerForQuestionAnswering(GenericForQuestionAnswering, TransformerPreTrainedModel):
    """Transformer that scores each character as the first and as the last of an answer."""


AutoModel.register(TransformerConfig, TransformerModel, exist_ok=True)  # where these three look for it
