"""torch.compile, tried before it is relied on: what can't be compiled trains without it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from craft.utils.logging import get_logger

logger = get_logger(__name__)


def compile_forward(model: nn.Module, attempt: Callable[[], Any], **options: Any) -> bool:
    """Replaces `model.forward` by a compiled one if `attempt` (a training step on real data) succeeds with
    it.

    The module stays what it is, so the names of its weights don't change. All processes decide alike.

    Args:
        options: for `torch.compile`.

    Returns:
        Whether the model is compiled; if not, one warning has said why.
    """
    model.forward = torch.compile(model.forward, **options)
    reason = ""
    try:
        attempt()
    except Exception as error:  # whatever compilers raise, the model can train without them
        cause = getattr(error, "inner_exception", error)
        first = (str(cause).strip() or "no message").splitlines()[0]
        reason = f"{type(cause).__name__}: {first}"[:200]
    finally:
        model.zero_grad(set_to_none=True)
    failed = torch.tensor(int(bool(reason)), device=next(model.parameters()).device)
    if dist.is_initialized():
        dist.all_reduce(failed, op=dist.ReduceOp.MAX)
    if not failed:
        return True
    del model.forward
    logger.warning(f"training without torch.compile: {reason or 'it failed in another process'}")
    return False


@contextmanager
def plain_forward(model: nn.Module) -> Iterator[None]:
    """Inside, the model's own forward: not compiled for the shapes of training, not wrapped in autocast.

    Accelerate and `compile_forward` both put theirs on the instance, before the class's.
    """
    wrapped = model.__dict__.pop("forward", None)
    try:
        yield
    finally:
        if wrapped is not None:
            model.forward = wrapped
