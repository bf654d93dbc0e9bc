"""What every model shares: saving with its own code, streaming, the language-modelling head, the objective.

A model file defines `XConfig`, `XModel(BaseModel)` and `XForCausalLM(LanguageModel)`.
"""
# ruff: noqa: RUF012  (transformers reads its plans and flags from plain class attributes)
# Annotations are evaluated here: transformers' tools read from them what `**kwargs` may hold.

import os
import sys
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.dynamic_module_utils import custom_object_save
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple

from .decoding import stream
from .inputs import either_cache

REQUIRED_CLASSES = {"AutoConfig": "Config", "AutoModel": "Model", "AutoModelForCausalLM": "ForCausalLM"}
CLASSES = {
    **REQUIRED_CLASSES,
    "AutoModelForSequenceClassification": "ForSequenceClassification",
    "AutoModelForTokenClassification": "ForTokenClassification",
    "AutoModelForQuestionAnswering": "ForQuestionAnswering",
}
"""Auto class -> how the name of the class that it loads ends, in the module of an `XConfig`."""


def classes_of(config_class: type) -> dict[str, type[Any]]:
    """Auto class -> the class beside `XConfig` that it loads, of those that there are."""
    module, stem = sys.modules[config_class.__module__], config_class.__name__.removesuffix("Config")
    found = {auto: getattr(module, stem + ending, None) for auto, ending in CLASSES.items()}
    return {auto: own for auto, own in found.items() if own is not None}


class BaseModel(PreTrainedModel):
    """A PreTrainedModel that travels with its own code, so that what it saves loads without craft."""

    base_model_prefix = "model"

    def save_pretrained(  # type: ignore[override]
        self, save_directory: str | os.PathLike[str], is_main_process: bool = True, **kwargs: Any
    ) -> None:
        """As in transformers, plus the model's Python files and an `auto_map` that leads to them."""
        module = type(self.config).__module__.rsplit(".", 1)[-1]
        found = classes_of(type(self.config))
        self.config.auto_map = {auto: f"{module}.{own.__name__}" for auto, own in found.items()}
        if is_main_process:
            os.makedirs(save_directory, exist_ok=True)
            custom_object_save(self.config, save_directory)
        super().save_pretrained(save_directory, is_main_process=is_main_process, **kwargs)


@dataclass
class LanguageModelOutput(CausalLMOutputWithPast):
    """As in transformers; `auxiliary_losses`: by name, what `loss` holds beside the nats per prediction."""

    auxiliary_losses: dict[str, torch.Tensor] | None = None


class LanguageModel(BaseModel, GenerationMixin):
    """Backbone + linear head + objective; what training, evaluation and generation rely on.

    The objective is next-character prediction. A model with another one says so by `lookahead`, `make_batch`,
    `compute_loss` and `count_predictions`, which trainer, data sets and evaluation ask. It generates by
    `prefill` and `step`, which a model may replace by a fast path of its own.

    Attributes:
        lookahead: how many ids a window holds beyond the inputs; 0: it predicts no next character.
        carries_state: `past_key_values` of one window is the start of the next in training. `state_tensors`
            are how the trainer detaches, saves and restores it, batch first; `state_from_tensors` goes back.
        reach: of a model without such a state, how many of the last ids a prediction depends on when a text
            is read on and on by `past_key_values`; None if it can't be.
    """

    lookahead: ClassVar[int] = 1
    carries_state = False
    reach: int | None = None
    backbone: type[PreTrainedModel]
    _tied_weights_keys: Any = {"lm_head.weight": "model.embed_tokens.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}
    _pp_plan: Any = {"lm_head": (["hidden_states"], ["logits"])}
    _fsdp_plan = {"lm_head": "keep_full_weight"}

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.model = self.backbone(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    stream = stream

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        cache: Cache | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> LanguageModelOutput:
        """input_ids [B, T] -> logits [B, T, V], and with labels the loss: nats per prediction, plus what
        `compute_loss` adds to them by name.

        `labels` alone are shifted here, as always in transformers (T-1 predictions); `shift_labels` [B, T]
        are the next characters themselves (T predictions). Training builds no cache unless `use_cache=True`.
        `cache` is another name of `past_key_values`, see inputs.py.
        """
        if use_cache is None and self.training:
            use_cache = False
        if kwargs.get("shift_labels") is not None:
            kwargs["shift_labels"] = kwargs["shift_labels"].contiguous()  # the loss flattens it with view()
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=either_cache(past_key_values, cache, kwargs),
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, kept])
        loss: Any = None
        auxiliary: dict[str, torch.Tensor] = {}
        if labels is not None or kwargs.get("shift_labels") is not None:
            loss, auxiliary = self.compute_loss(outputs.last_hidden_state, logits, labels, **kwargs)
        return LanguageModelOutput(
            loss=sum(auxiliary.values(), start=loss),
            auxiliary_losses=auxiliary or None,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def prefill(self, input_ids: torch.Tensor) -> tuple[torch.Tensor, Any]:
        """Read prompts [B, T] of equal length: logits [B, V] of the next character, and a decoding state."""
        outputs = self(input_ids, use_cache=True, logits_to_keep=1)
        return outputs.logits[:, -1], outputs.past_key_values

    @torch.no_grad()
    def step(self, ids: torch.Tensor, state: Any) -> tuple[torch.Tensor, Any]:
        """Read one id per row, ids [B]: the next logits [B, V] and the state, changed in place or new."""
        outputs = self(ids[:, None], past_key_values=state, use_cache=True)
        return outputs.logits[:, -1], outputs.past_key_values

    def _maybe_initialize_input_ids_for_generation(self, inputs: Any, bos: Any, model_kwargs: Any) -> Any:
        """As in transformers, but a row of nothing but padding, an empty prompt, gets the begin token."""
        mask = model_kwargs.get("attention_mask")
        padded = inputs is not None and mask is not None and mask.shape == inputs.shape and inputs.numel() > 0
        if padded and bos is not None:
            empty = mask.sum(dim=1) == 0
            inputs, model_kwargs["attention_mask"] = inputs.clone(), mask.clone()
            inputs[empty, -1], model_kwargs["attention_mask"][empty, -1] = int(bos), 1
        begin: Any = super()._maybe_initialize_input_ids_for_generation
        return begin(inputs, bos, model_kwargs)

    def _prepare_generation_config(self, generation_config: Any, **kwargs: Any) -> Any:
        """As in transformers, but a `max_length` that is asked for wins over the model's own default."""
        if kwargs.get("max_length") is not None:
            kwargs.setdefault("max_new_tokens", None)
        return super()._prepare_generation_config(generation_config, **kwargs)  # type: ignore[misc]

    def check_before_training(self) -> None:
        """Raise a ValueError if something else would be trained than the code of the model says."""

    def make_batch(self, windows: torch.Tensor) -> dict[str, torch.Tensor]:
        """Windows of ids [B, T + lookahead] -> what `forward` takes: inputs [B, T] and their targets."""
        following = windows[:, 1:].contiguous()
        return {"input_ids": windows[:, :-1].contiguous(), "labels": following, "shift_labels": following}

    def count_predictions(self, batch: dict[str, torch.Tensor]) -> int:
        """Over how many predictions the loss of a batch is the mean."""
        return batch["shift_labels"].numel()

    def compute_loss(
        self, hidden: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor | None, **targets: Any
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Nats per prediction, and by name auxiliary losses, which are added to them as they are.

        The losses of all batches of a step are added up. So a loss is a sum over predictions divided by
        `targets["num_items_in_batch"]`, and a mean where that is absent: `mean_over_predictions`.

        Args:
            hidden: the last hidden states [B, T, H]. logits: of the positions that were asked for.
            labels: as in `forward`; `shift_labels`, among the targets, wins.
            targets: what else `forward` was given, such as `shift_labels`, further keys of `make_batch`, and
                `num_items_in_batch`, how many predictions there are in all batches of a step.
        """
        return self.loss_function(logits, labels, vocab_size=self.config.vocab_size, **targets), {}

    @staticmethod
    def mean_over_predictions(values: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
        """One value for each prediction, [B, T] -> their mean, or what they add to the mean over a step."""
        return values.sum() / (values.numel() if num_items_in_batch is None else num_items_in_batch)

    def flops_per_token(self) -> float:
        """Training FLOPs per character: 6 for each weight that multiplies (2 forward, 4 backward)."""
        embeddings = {id(p) for m in self.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
        matrices = sum(p.numel() for p in self.parameters() if p.ndim > 1 and id(p) not in embeddings)
        return 6.0 * (matrices + (self.lm_head.weight.numel() if self.config.tie_word_embeddings else 0))

    def muon_blocks(self, name: str) -> int:
        """How many matrices are stacked in parameter `name` (rows split evenly); 0: not for Muon."""
        return int(".layers." in name and self.get_parameter(name).ndim == 2)
