"""Causal language models of transformers, trained and used as craft's own are.

Their classes stay what they are: `with_objective` mixes into one what training, evaluation and decoding ask
for, under the name that it has. So what is saved is a stock model that needs no code beside it.
"""

import functools
import re
from typing import Any

import torch
from torch import nn

from .objective import NextTokenObjective

TOLERANCE = 1e-3
"""Of logits and losses of fresh models, whose logits are about as large as 1."""


class TransformersObjective(NextTokenObjective):
    """The objective of a model of transformers, and decoding by the methods that its `generate` calls."""

    @property
    def _context(self: Any) -> int | None:
        return getattr(self.config, "max_position_embeddings", None)

    @torch.no_grad()
    def check_before_training(self: Any) -> None:
        """Compares what `forward` returns with next-token prediction, on made-up ids as many as the context.

        Raises:
            ValueError: it reads no windows of ids alone, a prediction depends on ids behind it, as in an
                encoder, or the loss isn't the mean of nats over `shift_labels`.
        """
        name, size = self.config.model_type, self.config.vocab_size
        windows = torch.arange((self._context or 16) + 1, device=self.device)[None] ** 2 % size
        was_training = self.training
        self.eval()
        try:
            batch = self.make_batch(windows)
            first, half = self(**batch, use_cache=False), windows.shape[1] // 2
            changed = batch["input_ids"].clone()
            changed[:, half:] = (changed[:, half:] + 1) % size
            second = self(input_ids=changed, use_cache=False)
        except Exception as error:  # for want of an image, a position, a package …
            raise ValueError(f"{name} can't read windows of ids: {type(error).__name__}: {error}") from error
        finally:
            self.train(was_training)
        if not torch.allclose(first.logits[:, :half], second.logits[:, :half], atol=TOLERANCE):
            raise ValueError(f"{name} sees what it should predict; set models.is_decoder=true if it has that")
        nats = nn.functional.cross_entropy(first.logits[0].float(), batch["shift_labels"][0])
        if not torch.allclose(first.loss.float(), nats, atol=TOLERANCE):
            raise ValueError(f"the loss of {name} isn't the mean of nats per prediction; it can't be trained")

    def flops_per_token(self: Any) -> float:
        """As of any model, plus the products of attention over a whole context where there are heads."""
        config, found = self.config, super().flops_per_token()
        if self._context and getattr(config, "num_attention_heads", None):
            found += 12.0 * config.num_hidden_layers * config.hidden_size * self._context
        return found

    def muon_blocks(self: Any, name: str) -> int:
        """The weights of `nn.Linear` in layers are a matrix each. All others are left to AdamW, also GPT-2's
        `Conv1D`, whose rows are inputs."""
        owner, _, leaf = name.rpartition(".")
        in_layer = re.search(r"\.\d+\.", name) is not None
        return int(in_layer and leaf == "weight" and isinstance(self.get_submodule(owner), nn.Linear))

    @torch.no_grad()
    def prefill(self: Any, input_ids: torch.Tensor) -> tuple[torch.Tensor, Any]:
        """Read prompts [B, T] of equal length, as much as the context holds: logits [B, V] and a state."""
        ids = input_ids[:, -self._context :] if self._context else input_ids
        return self._read(ids, {"attention_mask": torch.ones_like(ids), "use_cache": True}, first=True)

    @torch.no_grad()
    def step(self: Any, ids: torch.Tensor, state: Any) -> tuple[torch.Tensor, Any]:
        """Read one id per row, ids [B]. A text that fills the context goes on from its last half."""
        before, given = state
        text = torch.cat([before, ids[:, None]], dim=1)
        if self._context and text.shape[1] > self._context:
            return self.prefill(text[:, -max(1, self._context // 2) :])  # type: ignore[no-any-return]
        return self._read(text, given, first=False)  # type: ignore[no-any-return]

    def _read(self: Any, text: torch.Tensor, given: dict[str, Any], first: bool) -> tuple[torch.Tensor, Any]:
        new = {"is_first_iteration": True} if first else {"next_sequence_length": 1}
        outputs = self(**self.prepare_inputs_for_generation(text, **new, **given), return_dict=True)
        return outputs.logits[:, -1], (text, self._update_model_kwargs_for_generation(outputs, given))


def with_objective(model: Any) -> Any:
    """The model itself, which from now on is also a `TransformersObjective`, unless it has an objective, as
    craft's own do, also those whose code came with their weights.

    Its class is a new one of the same name, so that config.json names that of transformers.
    """
    if not hasattr(model, "prefill"):
        cls: Any = type(model)
        model.__class__ = _mixed(cls)
    return model


@functools.cache
def _mixed(cls: Any) -> type:
    return type(cls.__name__, (TransformersObjective, cls), {"__module__": cls.__module__})
