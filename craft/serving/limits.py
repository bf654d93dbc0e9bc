"""What one client, and all of them together, may ask of a server."""

from __future__ import annotations

from dataclasses import dataclass

from craft.utils.common import UserError


@dataclass(frozen=True)
class Limits:
    """Caps of a server; what goes beyond one is refused, not cut.

    Args:
        max_tokens: the most characters (byte tokenizer: bytes) that one request may have written.
        max_prompt: the longest prompt; None is the model's context, or `UNBOUNDED_PROMPT` where it has none.
        max_requests: how many requests may be read and answered at once, one for each text that they ask for;
            the next ones are told to try again.
        patience: seconds that a client may take to send a request, or leave what it is sent untouched.

    Raises:
        UserError: if one is below its least.
    """

    max_tokens: int = 4096
    max_prompt: int | None = None
    max_requests: int = 32
    patience: float = 10

    def __post_init__(self) -> None:
        for name in ("max_tokens", "max_prompt", "max_requests"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"--{name.replace('_', '-')} is {value}; it must be at least 1")
        if not 0 < self.patience <= LONGEST_PATIENCE:
            raise UserError(
                f"--patience is {self.patience}; it must be above 0 and at most {LONGEST_PATIENCE} seconds"
            )

    def prompt(self, context: int | None) -> int:
        """The longest prompt in ids, for a model with that context (None: without a limit)."""
        return self.max_prompt or context or UNBOUNDED_PROMPT


UNBOUNDED_PROMPT = 16_384
LONGEST_PATIENCE = 3600
