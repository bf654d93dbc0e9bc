"""Continuous batching: texts are written in one batch, which each may join and leave at any character.

Each row has the settings and the random numbers that it would have alone in `stream`. Decoding states with
`join` and `take` are stepped together, those of other kinds one after the other.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from transformers import GenerationConfig

from .decoding import need_history, plan


class Row:
    """One text: its prompt, which grows by what is written, and how the next character is chosen.

    Attributes:
        ends: ids after which the text is complete.
        same_rules: equal for rows whose scores may be processed together.
    """

    def __init__(
        self, model: Any, ids: list[int], generation_config: GenerationConfig, seed: int | None = None
    ) -> None:
        self.ids = list(ids)
        prompt = torch.tensor([ids], device=model.device)
        planned = plan(model, prompt, generation_config, max_new_tokens=1)  # the caller counts the characters
        self.rules, self.samples = planned.processors, planned.do_sample
        ends = [rule.eos_token_id.tolist() for rule in planned.criteria if hasattr(rule, "eos_token_id")]
        self.ends = {token for tokens in ends for token in tokens}
        self.same_rules = self if need_history(self.rules) else generation_config.to_json_string()
        self.random = torch.Generator(model.device)
        if seed is None:
            self.random.seed()
        else:
            self.random.manual_seed(seed)


class Batch:
    """Rows of a model, in groups that are stepped together, each with its state and next logits [B, V]."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.groups: list[tuple[list[Row], Any, torch.Tensor]] = []

    @torch.inference_mode()
    def join(self, row: Row) -> None:
        """Reads the prompt of a row, which is written on from the next step."""
        logits, state = self.model.prefill(torch.tensor([row.ids], device=self.model.device))
        self.groups.append(([row], state, logits))

    @torch.inference_mode()
    def leave(self, over: set[Row]) -> None:
        """Goes on without these rows."""
        groups, self.groups = self.groups, []
        for rows, state, logits in groups:
            kept = [n for n, row in enumerate(rows) if row not in over]
            if kept and len(kept) < len(rows):
                rows, state, logits = [rows[n] for n in kept], state.take(kept), logits[kept]
            if kept:
                self.groups.append((rows, state, logits))

    @torch.inference_mode()
    def step(self) -> list[Row]:
        """Adds an id to each row, and computes the logits of the next; returns the rows."""
        joinable = [group for group in self.groups if hasattr(group[1], "join")]
        if len(joinable) > 1:
            row_lists, (first, *others), logits = zip(*joinable)
            joined = [row for rows in row_lists for row in rows], first.join(others), torch.cat(logits)
            self.groups = [*(group for group in self.groups if not hasattr(group[1], "join")), joined]
        for n, (rows, state, logits) in enumerate(self.groups):
            ids = choose(rows, logits)
            for row, token in zip(rows, ids.tolist()):
                row.ids.append(token)
            logits, state = self.model.step(ids, state)
            self.groups[n] = (rows, state, logits)
        return [row for rows, _, _ in self.groups for row in rows]


def choose(rows: list[Row], logits: torch.Tensor) -> torch.Tensor:
    """The next ids [B]: the likeliest, or by chance as `torch.multinomial` chooses one, which divides the
    probabilities by exponential random numbers; here those of each row's own generator."""
    scores, groups = logits.float(), defaultdict(list)
    noise = torch.ones_like(scores)
    for n, row in enumerate(rows):
        groups[row.same_rules].append(n)
        if row.samples:
            noise[n].exponential_(generator=row.random)
    for key, numbers in groups.items():
        row, chosen = rows[numbers[0]], slice(None) if len(numbers) == len(rows) else numbers
        seen = torch.tensor([row.ids], device=scores.device) if key is row else None
        part = scores[chosen]
        for rule in row.rules:
            part = rule(seen, part)
        scores[chosen] = part.softmax(dim=-1).div_(noise[chosen]) if row.samples else part
    return scores.argmax(dim=-1)
