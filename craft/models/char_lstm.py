"""A multi-layer LSTM over characters whose state is carried from window to window and through `generate`.

Special here: the state of a layer (h, c) is a transformers cache layer, so beam search, chunked prefill and
continued caches work unchanged; padding never touches the state; LayerNorm sits between the layers.
Hub-safe: copied beside the weights by `save_pretrained`.
"""
# ruff: noqa: RUF012  (transformers reads its plans and flags from plain class attributes)
# Annotations are evaluated here: `@strict` checks the types of a config's fields by them.

from dataclasses import dataclass
from typing import Any, Literal

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import GenerationMixin, PreTrainedConfig
from transformers import initialization as init
from transformers.cache_utils import Cache, DynamicCache
from transformers.masking_utils import find_packed_sequence_indices
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs
from transformers.utils.type_validators import interval

from .base import BaseModel, LanguageModel
from .decoding import has_plain_weights
from .fields import optional_count, optional_id
from .inputs import either_cache, embed
from .lora import tell_peft
from .lstm_cache import LAYER_TYPE
from .recurrence import Recurrence, lay_apart

Norms = Literal["each", "head", "none"]


@strict
class CharLSTMConfig(PreTrainedConfig):
    """Shape of a CharLSTM; every field may be set in a model YAML.

    Fields:
        vocab_size, hidden_size, num_hidden_layers: characters, width of embedding and state, LSTM layers.
        layer_norm: "each" (after every layer), "head" (after the last only) or "none".
        dropout: after the embedding, between the layers and before the head; in [0, 1).
        forget_bias: added to the forget gates' initial bias. 0 learns faster than 1 in short runs.
        tie_word_embeddings: the head shares the embedding matrix.
        max_position_embeddings: window it was trained on; informative only, the state has no length limit.

    Raises:
        StrictDataclassError: a field of another type or out of range, naming the field and its value.
    """

    model_type = "char_lstm"
    keys_to_ignore_at_inference = ["past_key_values", "cache"]
    peft_targets = {"LORA": ("embed_tokens", "lm_head"), "": ("lm_head",)}  # PEFT can't adapt an nn.LSTM
    num_attention_heads = 1  # no field: what plans memory by heads finds the state in one piece

    vocab_size: int = interval(min=1)(default=256)
    hidden_size: int = interval(min=1)(default=256)
    num_hidden_layers: int = interval(min=1)(default=2)
    layer_norm: Norms = "each"
    layer_norm_eps: int | float = interval(min=0, exclude_min=True)(default=1e-5)
    dropout: int | float = interval(min=0, max=1, exclude_max=True)(default=0.0)
    forget_bias: int | float = 0.0
    tie_word_embeddings: bool = False
    max_position_embeddings: int | None = optional_count(default=None)
    use_cache: bool = True
    bos_token_id: int | None = optional_id(default=None)
    eos_token_id: int | None = optional_id(default=None)
    pad_token_id: int | None = optional_id(default=None)

    def validate_layer_type(self) -> None:
        """Its cache layer is craft's own, which transformers' list doesn't have."""

    def to_dict(self) -> dict[str, Any]:
        tell_peft(self)
        return {**super().to_dict(), "num_attention_heads": self.num_attention_heads}

    @property
    def layer_types(self) -> list[str]:
        """The cache layer of every layer, looked up by `DynamicCache(config=...)`."""
        return [LAYER_TYPE] * self.num_hidden_layers


class CharLSTMLayer(nn.Module):
    """LSTM, then LayerNorm where the config wants one, then dropout: [B, T, H] -> [B, T, H]."""

    def __init__(self, config: CharLSTMConfig, index: int) -> None:
        super().__init__()
        self.index = index
        width = config.hidden_size
        self.lstm = Recurrence(width, width)
        last = index + 1 == config.num_hidden_layers
        normed = config.layer_norm == "each" or (config.layer_norm == "head" and last)
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps) if normed else nn.Identity()
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        hidden: torch.Tensor,
        mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        texts: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        batch, steps, width = hidden.shape
        dtype = self.lstm.all_weights[0][0].dtype
        state = None
        layer: Any = past_key_values.layers[self.index] if past_key_values is not None else None
        if layer is not None and layer.is_initialized:
            state = tuple(t.to(dtype).reshape(1, batch, width) for t in (layer.keys, layer.values))
        hidden, (h, c) = self.lstm(hidden, state, mask, texts)
        if past_key_values is not None:
            keys, values = (t.to(dtype).reshape(batch, 1, 1, width) for t in (h, c))
            past_key_values.update(keys, values, self.index, steps=steps)
        return self.dropout(self.norm(hidden))


class CharLSTMPreTrainedModel(BaseModel):
    """Flags and initialisation shared by CharLSTMModel and CharLSTMForCausalLM."""

    config_class = CharLSTMConfig
    config: CharLSTMConfig
    _is_stateful = True  # a recurrent state cannot be rolled back: assisted decoding is refused
    _can_compile_fullgraph = True
    _no_split_modules = ["CharLSTMLayer"]
    _skip_keys_device_placement = ["past_key_values", "cache"]
    _can_record_outputs = {"hidden_states": CharLSTMLayer}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Uniform within ±1/sqrt(hidden_size), an untied embedding normal; 0.02 would starve an LSTM."""
        bound = self.config.hidden_size**-0.5
        if isinstance(module, Recurrence):
            for name, parameter in module.named_parameters():
                fresh = not getattr(parameter, "_is_hf_initialized", False)
                init.uniform_(parameter, -bound, bound)
                if name.startswith("bias_ih") and fresh:
                    parameter[self.config.hidden_size : 2 * self.config.hidden_size] += (
                        self.config.forget_bias
                    )
        elif isinstance(module, nn.Embedding) and not self.config.tie_word_embeddings:
            init.normal_(module.weight)
        elif isinstance(module, (nn.Embedding, nn.Linear)):
            init.uniform_(module.weight, -bound, bound)
        else:
            super()._init_weights(module)

    def activation_checkpointing_enable(self, *args: Any, **kwargs: Any) -> None:
        """Refused: transformers switches the cache off with it, and the state is the cache."""
        raise ValueError(
            "an LSTM carries its state, which gradient_checkpointing=true would drop; set it to false"
        )

    gradient_checkpointing_enable = activation_checkpointing_enable


class CharLSTMModel(CharLSTMPreTrainedModel):
    """Embedding and LSTM layers: input_ids [B, T] -> last_hidden_state [B, T, H]."""

    def __init__(self, config: CharLSTMConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(CharLSTMLayer(config, index) for index in range(config.num_hidden_layers))
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
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Exactly one of `input_ids` [B, T] and `inputs_embeds` [B, T, H]; the cache is the carried state.

        `attention_mask` [B, T], or with what came before it, has zeros where there is padding. `position_ids`
        [B, T] matter only without these two: positions that don't follow one another begin a new text (packed
        training data), whose state is empty. An exported graph doesn't look at them.

        Raises:
            ValueError: a mask that isn't one of padding, or a cache of another kind of model.
        """
        past_key_values = either_cache(past_key_values, cache, kwargs)
        hidden = embed(self.embed_tokens, input_ids, inputs_embeds)
        if attention_mask is not None and attention_mask.ndim != 2:
            raise ValueError(
                "a CharLSTM has no attention: attention_mask can only say what is padding, [batch, length], "
                f"got {list(attention_mask.shape)}"
            )
        texts = None
        alone = attention_mask is None and past_key_values is None
        if position_ids is not None and alone and not torch.compiler.is_exporting():
            numbers = find_packed_sequence_indices(position_ids.expand(hidden.shape[:2]))
            texts = lay_apart(numbers) if numbers is not None else None
        if past_key_values is None and use_cache:
            past_key_values = DynamicCache(config=self.config)
        elif isinstance(past_key_values, DynamicCache) and not past_key_values.layers:  # made without config
            past_key_values.layers.extend(DynamicCache(config=self.config).layers)
        kinds = [getattr(layer, "_layer_type", None) for layer in getattr(past_key_values, "layers", ())]
        if past_key_values is not None and kinds != self.config.layer_types:
            raise ValueError("this cache was not made for a CharLSTM; use DynamicCache(config=model.config)")
        mask = None
        if attention_mask is not None:
            mask = attention_mask[:, -hidden.shape[1] :].bool()
            if not torch.compiler.is_compiling() and mask.all():
                mask = None
        hidden = self.dropout(hidden)
        for layer in self.layers:
            hidden = layer(hidden, mask=mask, past_key_values=past_key_values, texts=texts)
        return BaseModelOutputWithPast(last_hidden_state=hidden, past_key_values=past_key_values)


@dataclass
class LSTMDecodeState:
    """What `step` works on: per layer weights [2H, 4H] and bias [4H], gates as i, f, o, g; h and c [B, H]."""

    weights: list[torch.Tensor]
    biases: list[torch.Tensor]
    hidden: list[torch.Tensor]
    cell: list[torch.Tensor]


class CharLSTMForCausalLM(CharLSTMPreTrainedModel, LanguageModel, GenerationMixin):
    """CharLSTM with a language-modelling head; `past_key_values` is the state carried between windows."""

    carries_state = True
    backbone = CharLSTMModel

    @staticmethod
    def create_masks_for_generate(
        inputs_embeds: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs: Any
    ) -> torch.Tensor | None:
        """The padding among the characters read now: for compiled decoding its shape must not grow."""
        mask = None if attention_mask is None else attention_mask[:, -inputs_embeds.shape[1] :]
        return None if mask is None or mask.all() else mask

    def init_continuous_batching(self, *args: Any, **kwargs: Any) -> Any:
        """Refused: there are no keys and values whose pages requests could share."""
        raise ValueError(
            "continuous batching is not supported with a CharLSTM, whose state has no pages to share out; "
            "call generate() with a left-padded batch of prompts"
        )

    generate_batch = continuous_batching_context_manager = init_continuous_batching

    def prefill(self, input_ids: torch.Tensor) -> tuple[torch.Tensor, Any]:
        """Read prompts [B, T]; lay the weights out so that a step is one matrix product a layer."""
        logits, cache = super().prefill(input_ids)
        if not has_plain_weights(self):
            return logits, cache
        state = LSTMDecodeState([], [], [], [])
        for layer, cached in zip(self.model.layers, cache.layers):
            w_ih, w_hh, b_ih, b_hh = layer.lstm.all_weights[0]
            i, f, g, o = torch.cat([w_ih, w_hh], dim=1).chunk(4)
            state.weights.append(torch.cat([i, f, o, g]).t().contiguous())
            i, f, g, o = (b_ih + b_hh).chunk(4)
            state.biases.append(torch.cat([i, f, o, g]))
            state.hidden.append(cached.keys[:, 0, 0])
            state.cell.append(cached.values[:, 0, 0])
        return logits, state

    def step(self, ids: torch.Tensor, state: Any) -> tuple[torch.Tensor, Any]:
        """Read one character per row; `state` is updated in place and returned."""
        if not isinstance(state, LSTMDecodeState):
            return super().step(ids, state)
        width = self.config.hidden_size
        x = self.model.embed_tokens(ids)
        for n, layer in enumerate(self.model.layers):
            gates = torch.addmm(state.biases[n], torch.cat((x, state.hidden[n]), dim=1), state.weights[n])
            ifo = gates[:, : 3 * width].sigmoid_()
            cell = state.cell[n].mul_(ifo[:, width : 2 * width])
            cell.addcmul_(ifo[:, :width], gates[:, 3 * width :].tanh_())
            x = cell.tanh().mul_(ifo[:, 2 * width :])
            state.hidden[n] = x
            x = layer.norm(x)
        return self.lm_head(x), state

    def muon_blocks(self, name: str) -> int:
        """Four gate matrices are stacked in every LSTM weight."""
        return 4 * super().muon_blocks(name)
