"""A multi-layer LSTM over characters whose state is carried from window to window and through `generate`.

Design: what happens at one character is the cell (cells.py), which a model may replace; the state of a
layer is a transformers cache layer, so beam search, chunked prefill and continued caches work unchanged.
"""
# ruff: noqa: RUF012  (transformers reads its plans and flags from plain class attributes)
# Annotations are evaluated here: `@strict` checks the types of a config's fields by them.

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import PreTrainedConfig
from transformers import initialization as init
from transformers.cache_utils import Cache, DynamicCache
from transformers.masking_utils import find_packed_sequence_indices
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs
from transformers.utils.type_validators import interval

from .base import BaseModel, LanguageModel
from .cells import Cell, LSTMCell, State, is_fused
from .decoding import has_plain_weights
from .fields import optional
from .inputs import either_cache, embed
from .recurrence import Padding, check_kernel, one_step, padded_chunks, prefers_loop, run_cell
from .state_cache import LAYER_TYPE

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
    num_attention_heads = 1  # no field; tools of transformers read it from every config

    vocab_size: int = interval(min=1)(default=256)
    hidden_size: int = interval(min=1)(default=256)
    num_hidden_layers: int = interval(min=1)(default=2)
    layer_norm: Norms = "each"
    layer_norm_eps: int | float = interval(min=0, exclude_min=True)(default=1e-5)
    dropout: int | float = interval(min=0, max=1, exclude_max=True)(default=0.0)
    forget_bias: int | float = 0.0
    tie_word_embeddings: bool = False
    max_position_embeddings: int | None = optional(min=1)(default=None)
    use_cache: bool = True
    bos_token_id: int | None = optional(min=0)(default=None)
    eos_token_id: int | None = optional(min=0)(default=None)
    pad_token_id: int | None = optional(min=0)(default=None)

    def validate_layer_type(self) -> None:
        """Its cache layer is craft's own, which transformers' list doesn't have."""

    @property
    def layer_types(self) -> list[str]:
        """The cache layer of every layer, looked up by `DynamicCache(config=...)`."""
        return [LAYER_TYPE] * self.num_hidden_layers


class CharLSTMLayer(nn.Module):
    """The recurrence, then LayerNorm where the config wants one, then dropout: [B, T, H] -> [B, T, H]."""

    def __init__(self, config: CharLSTMConfig, index: int, cell: nn.Module) -> None:
        super().__init__()
        self.index = index
        self.lstm: Any = cell  # whatever cell it is: saved weights have this name
        last = index + 1 == config.num_hidden_layers
        normed = config.layer_norm == "each" or (config.layer_norm == "head" and last)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps) if normed else nn.Identity()
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, hidden: torch.Tensor, padding: Padding | None, past_key_values: Cache | None = None
    ) -> torch.Tensor:
        steps, dtype = hidden.shape[1], self.lstm.weight_ih_l0.dtype
        kept: Any = past_key_values.layers[self.index] if past_key_values is not None else None
        hidden, state = run_cell(self.lstm, hidden, None if kept is None else kept.state, padding)
        if past_key_values is not None:
            after = torch.stack([part.to(dtype) for part in state], dim=1)
            past_key_values.update(after, after[:, :0], self.index, steps=steps)
        return self.dropout(self.norm(hidden))


class CharLSTMPreTrainedModel(BaseModel):
    """Flags and initialisation shared by CharLSTMModel and CharLSTMForCausalLM."""

    config_class = CharLSTMConfig
    config: CharLSTMConfig
    _is_stateful = True  # a recurrent state cannot be rolled back: assisted decoding is refused
    _no_split_modules = ["CharLSTMLayer"]
    _skip_keys_device_placement = ["past_key_values", "cache"]
    _can_record_outputs = {"hidden_states": CharLSTMLayer}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Uniform within ±1/sqrt(hidden_size), an untied embedding normal. (The usual 0.02 is too small.)"""
        width, bound = self.config.hidden_size, self.config.hidden_size**-0.5
        if isinstance(module, (Cell, LSTMCell)):
            for name, parameter in module.named_parameters(recurse=False):
                fresh = not getattr(parameter, "_is_hf_initialized", False)
                init.uniform_(parameter, -bound, bound)
                if name == "bias_ih_l0" and module.forget_gate is not None and fresh:
                    parameter.unflatten(0, (-1, width))[module.forget_gate] += self.config.forget_bias
        elif isinstance(module, nn.Embedding) and not self.config.tie_word_embeddings:
            init.normal_(module.weight)
        elif isinstance(module, (nn.Embedding, nn.Linear)):
            for parameter in module.parameters(recurse=False):
                init.uniform_(parameter, -bound, bound)
        else:
            super()._init_weights(module)


class CharLSTMModel(CharLSTMPreTrainedModel):
    """Embedding and recurrent layers: input_ids [B, T] -> last_hidden_state [B, T, H].

    Attributes:
        cell_class: makes the cell of each layer out of the config (cells.py).
    """

    cell_class: type[Any] = LSTMCell

    def __init__(self, config: CharLSTMConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.dropout = nn.Dropout(config.dropout)
        layers = range(config.num_hidden_layers)
        self.layers = nn.ModuleList(CharLSTMLayer(config, n, self.cell_class(config)) for n in layers)
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
        if position_ids is not None and attention_mask is None and past_key_values is None:
            texts = _packed_texts(position_ids, hidden.shape[:2])
        if past_key_values is None and use_cache:
            past_key_values = DynamicCache(config=self.config)
        elif isinstance(past_key_values, DynamicCache) and not past_key_values.layers:  # made without config
            past_key_values.layers.extend(DynamicCache(config=self.config).layers)
        kinds = [getattr(layer, "_layer_type", None) for layer in getattr(past_key_values, "layers", ())]
        if past_key_values is not None and kinds != self.config.layer_types:
            raise ValueError("this cache was not made for a CharLSTM; use DynamicCache(config=model.config)")
        hidden = self.dropout(hidden)
        if texts is not None:  # each becomes a row of its own
            rows, places = texts
            size = (int(rows.max()) + 1, int(places.max()) + 1)
            hidden = hidden.new_zeros(*size, hidden.shape[-1]).index_put((rows, places), hidden)
            attention_mask = rows.new_zeros(size).index_put((rows, places), torch.ones_like(rows))
        padding = self._padding(attention_mask, hidden.shape[1])
        for layer in self.layers:
            hidden = layer(hidden, padding, past_key_values=past_key_values)
        if texts is not None:
            hidden = hidden[rows, places]
            if past_key_values is not None:
                past_key_values.reorder_cache(rows[:, -1])  # of the last text of each row
        return BaseModelOutputWithPast(last_hidden_state=hidden, past_key_values=past_key_values)

    def _padding(self, mask: torch.Tensor | None, length: int) -> Padding | None:
        """Where there is padding among the characters read now."""
        if mask is None:
            return None
        real = mask[:, -length:].bool()
        if not torch.compiler.is_compiling() and real.all():
            return None
        loops = torch.compiler.is_exporting() or prefers_loop(length)
        by_kernel = not loops and any(is_fused(layer.lstm) for layer in self.layers)
        return Padding(real, padded_chunks(real) if by_kernel else None)


@torch.compiler.disable(reason="where texts begin decides how they are read")
def _packed_texts(positions: torch.Tensor, shape: Any) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Of rows [B, T] that hold several texts: which one each character is of, and its place there."""
    if torch.compiler.is_exporting():
        return None
    numbers = find_packed_sequence_indices(positions.expand(shape))
    if numbers is None:
        return None
    begins = torch.cat([torch.ones_like(numbers[:, :1]), numbers.diff(dim=1)], dim=1).flatten() != 0
    texts, places = begins.cumsum(0) - 1, torch.arange(len(begins), device=begins.device)
    return texts.view(shape), (places - begins.nonzero()[texts, 0]).view(shape)


@dataclass
class DecodeState:
    """What `step` works on: the state of each layer, and from the first step on how each layer reads one."""

    states: list[State]
    steps: list[Callable[[torch.Tensor, State], tuple[torch.Tensor, State]]] = field(default_factory=list)

    def take(self, rows: list[int]) -> "DecodeState":
        """The state of these rows."""
        return replace(self, states=[tuple(part[rows] for part in state) for state in self.states])

    def join(self, others: list["DecodeState"]) -> "DecodeState":
        """One state for the rows of this one and then those of the others."""
        layers = zip(*(other.states for other in (self, *others)))
        return replace(self, states=[tuple(map(torch.cat, zip(*states))) for states in layers])


class CharLSTMForCausalLM(CharLSTMPreTrainedModel, LanguageModel):
    """CharLSTM with a language-modelling head; `past_key_values` is the state carried between windows."""

    carries_state = True
    backbone = CharLSTMModel

    def prefill(self, input_ids: torch.Tensor) -> tuple[torch.Tensor, Any]:
        """Read prompts [B, T]."""
        logits, cache = super().prefill(input_ids)
        plain = has_plain_weights(self)
        return logits, DecodeState([layer.state for layer in cache.layers]) if plain else cache

    @torch.no_grad()
    def step(self, ids: torch.Tensor, state: Any) -> tuple[torch.Tensor, Any]:
        """Read one character per row; `state` is updated in place and returned."""
        if not isinstance(state, DecodeState):
            return super().step(ids, state)
        layers: Any = self.model.layers
        if not state.steps:
            state.steps = [one_step(layer.lstm) for layer in layers]
        x = self.model.embed_tokens(ids)
        for n, layer in enumerate(layers):
            x, state.states[n] = state.steps[n](x, state.states[n])
            x = layer.norm(x)
        return self.lm_head(x), state

    def check_before_training(self) -> None:
        cell: Any = self.model.layers[0].lstm
        if is_fused(cell):
            check_kernel(type(cell), self.config)

    @property
    def state_names(self) -> list[str]:
        """What `state_tensors` are called, in their order: `0.hidden`, `0.cell`, `1.hidden`, …"""
        return [f"{n}.{name}" for n, layer in enumerate(self.model.layers) for name in layer.lstm.state_names]

    def state_tensors(self, state: Cache) -> list[torch.Tensor]:
        layers: list[Any] = state.layers
        return [part.detach() for layer in layers for part in layer.state]

    def state_from_tensors(self, tensors: list[torch.Tensor]) -> Cache:
        cache, each = DynamicCache(config=self.config), len(tensors) // self.config.num_hidden_layers
        for index in range(self.config.num_hidden_layers):
            state = torch.stack([part.flatten(1) for part in tensors[index * each :][:each]], dim=1)
            cache.update(state, state[:, :0], index)
        return cache

    def muon_blocks(self, name: str) -> int:
        """The weights of several gates are stacked in one matrix."""
        return super().muon_blocks(name) and self.get_parameter(name).shape[0] // self.config.hidden_size
