"""What every model of craft shares: saving with its own code, the language-modelling head, its loss.

A model file defines `XConfig`, `XModel(BaseModel)` and `XForCausalLM(LanguageModel)`.
"""
# ruff: noqa: RUF012  (transformers reads its plans and flags from plain class attributes)
# Annotations are evaluated here: transformers' tools read from them what `**kwargs` may hold.

import os
import sys
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.dynamic_module_utils import custom_object_save
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple

from .inputs import either_cache
from .objective import NextTokenObjective

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


class LanguageModel(NextTokenObjective, BaseModel, GenerationMixin):
    """Backbone + linear head + objective; what training, evaluation and generation rely on.

    A model with another objective says so by `lookahead`, `make_batch`, `compute_loss` and
    `count_predictions`. It generates by `prefill` and `step`, which it may replace by a fast path of its own.
    """

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
