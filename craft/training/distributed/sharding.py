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
from craft.training.distributed.rendezvous import sharding_requested
from craft.utils.errors import UserError


def shard_on_cpu(trainer: Any) -> None:
    """Makes Accelerate shard on CPUs too, where it forgets that it was asked to."""
    if not sharding_requested() or trainer.is_fsdp_enabled or trainer.args.world_size == 1:
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
    """Refuses what doesn't work on parts of weights.

    Raises:
        UserError: with the first such setting.
    """
    if not sharding_requested():
        return
    wanted = {
        "training.ema_decay": (args.ema_decay is not None, "averages whole weights; leave it null"),
        "training.optim=muon": (
            args.optim == "muon",
            "orthogonalises whole matrices; use training.optim=adamw_torch_fused",
        ),
        "training.auto_find_batch_size": (
            args.auto_find_batch_size,
            "may cut the batches of each process into other parts, which must gather weights together; set "
            "it to false",
        ),
        "training.skip_nonfinite_batches": (
            bool(args.skip_nonfinite_batches),
            "is not verified with it; set it to 0",
        ),
        "training.torch_compile": (args.torch_compile, "is not verified with it; set it to false"),
        f"models.model_type={model.config.model_type}": (
            bool(getattr(model, "carries_state", False)),
            "is called piece by piece, not as the module that is sharded; use a transformer",
        ),
    }
    for setting, (on, why) in wanted.items():
        if on:
            raise UserError(
                f"{setting} doesn't work with sharding (FSDP): it {why}, or launch without --use_fsdp"
            )
    if os.environ.get("FSDP_VERSION", "1") != "2":
        raise UserError("craft shards with FSDP2 only; add --fsdp_version 2 to accelerate launch")
