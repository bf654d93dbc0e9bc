"""Sharded training (FSDP2) as Accelerate's configuration asks for it: every process keeps a part of each
weight, its gradient and its optimizer state.

What is evaluated, saved and exported is an ordinary model, gathered from all processes, so a folder of
weights doesn't tell how it was trained. What would need whole weights in between is refused.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from craft.training.arguments import CraftTrainingArguments
from craft.utils import launch
from craft.utils.errors import UserError

REQUESTED = "ACCELERATE_USE_FSDP"
"""Is set where Accelerate's configuration or command line asks for sharding."""


def shard_on_cpu(trainer: Any) -> None:
    """Makes Accelerate shard on CPUs too, where it forgets that it was asked to."""
    if not launch.flag(REQUESTED) or trainer.is_fsdp_enabled or trainer.args.world_size == 1:
        return
    state, plugin = trainer.accelerator.state, FullyShardedDataParallelPlugin()
    if state.mixed_precision != "no":
        plugin.set_mixed_precision(state.mixed_precision)
    state.distributed_type, state.fsdp_plugin = DistributedType.FSDP, plugin
    trainer.is_fsdp_enabled = True


@contextmanager
def gathered_model(trainer: Any) -> Iterator[None]:
    """Inside, `trainer.model` is whole, gathered from all processes, all of which must come here."""
    if not trainer.is_fsdp_enabled:
        yield
        return
    sharded, trainer.model = trainer.model, _gather(trainer)
    trainer.is_fsdp_enabled = False
    try:
        yield
    finally:
        trainer.model, trainer.is_fsdp_enabled = sharded, True


def unshard(trainer: Any) -> None:
    """Training is over: what follows (the best weights, the export) is about an ordinary model."""
    if trainer.is_fsdp_enabled:
        trainer.model = trainer.model_wrapped = _gather(trainer)
        trainer.is_fsdp_enabled = False


def _gather(trainer: Any) -> nn.Module:
    sharded = trainer.model
    weights = get_model_state_dict(sharded, options=StateDictOptions(full_state_dict=True))
    model: Any = trainer.model_class(copy.deepcopy(sharded.config))
    model.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
    model.generation_config = copy.deepcopy(sharded.generation_config)
    return model.to(trainer.args.device)  # type: ignore[no-any-return]


def check_sharding(model: Any, args: CraftTrainingArguments) -> None:
    """Refuses what needs whole weights in between, or wasn't seen to work on parts of them.

    Raises:
        UserError: with all such settings.
    """
    if not launch.flag(REQUESTED):
        return
    refused = {
        "training.ema_decay": args.ema_decay is not None,
        "training.optim=muon": args.optim == "muon",
        "training.auto_find_batch_size": args.auto_find_batch_size,
        "training.skip_nonfinite_batches": args.skip_nonfinite_batches,
        "training.torch_compile": args.torch_compile,
        f"models.model_type={model.config.model_type}": getattr(model, "carries_state", False),
    }
    if named := [setting for setting, on in refused.items() if on]:
        raise UserError(
            f"sharding (FSDP) doesn't work with {', '.join(named)}; leave that out, or launch without "
            "--use_fsdp",
            code="setting-conflict",
        )
    if os.environ.get("FSDP_VERSION", "1") != "2":
        raise UserError(
            "craft shards with FSDP2 only; add --fsdp_version 2 to accelerate launch", code="launch-invalid"
        )
