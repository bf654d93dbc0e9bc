"""What training, data sets, evaluation and decoding ask of a language model: its objective, its `stream`."""

from typing import Any, ClassVar

import torch
from torch import nn

from .decoding import stream


class NextTokenObjective:
    """The next character is predicted, the loss is nats per prediction; mixed into a `PreTrainedModel`.

    A model with another objective replaces `lookahead`, `make_batch` and `count_predictions`. Beside it, a
    model has `prefill` and `step`, by which `stream` writes.

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
    config: Any
    stream = stream

    def check_before_training(self) -> None:
        """Raise a ValueError if something else would be trained than the code of the model says."""

    def make_batch(self, windows: torch.Tensor) -> dict[str, torch.Tensor]:
        """Windows of ids [B, T + lookahead] -> what `forward` takes: inputs [B, T] and their targets."""
        following = windows[:, 1:].contiguous()
        return {"input_ids": windows[:, :-1].contiguous(), "labels": following, "shift_labels": following}

    def count_predictions(self, batch: dict[str, torch.Tensor]) -> int:
        """Over how many predictions the loss of a batch is the mean."""
        return batch["shift_labels"].numel()

    @staticmethod
    def mean_over_predictions(values: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
        """One value for each prediction, [B, T] -> their mean, or what they add to the mean over a step."""
        return values.sum() / (values.numel() if num_items_in_batch is None else num_items_in_batch)

    def flops_per_token(self: Any) -> float:
        """Training FLOPs per character: 6 for each weight that multiplies (2 forward, 4 backward)."""
        embeddings = {id(p) for m in self.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
        matrices = sum(p.numel() for p in self.parameters() if p.ndim > 1 and id(p) not in embeddings)
        tied = getattr(self.config, "tie_word_embeddings", False)
        return 6.0 * (matrices + (self.get_output_embeddings().weight.numel() if tied else 0))

    def muon_blocks(self: Any, name: str) -> int:
        """How many matrices are stacked in parameter `name` (rows split evenly); 0: not for Muon."""
        return int(".layers." in name and self.get_parameter(name).ndim == 2)
