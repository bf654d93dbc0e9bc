"""Sharded training (FSDP2) as Accelerate's configuration asks for it: every process keeps a part of each
weight, its gradient and its optimizer state.

What is evaluated, saved and exported is a whole ordinary model, gathered from all processes, so a folder of
weights doesn't tell how it was trained. What needs whole weights in between is refused, since it would
silently do something else.
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
from craft.training.distributed import sharding_wanted
from craft.training.optimization import OptimizingTrainer
from craft.utils.common import UserError
from craft.utils.logging import get_logger

logger = get_logger(__name__)


class ShardingTrainer(OptimizingTrainer):
    """The part of `Trainer` that knows of sharded models.

    Attributes:
        is_fsdp_enabled: whether `model` is sharded now.
    """

    is_fsdp_enabled: bool

    def __init__(self, model: Any, args: CraftTrainingArguments, **kwargs: Any) -> None:
        if sharding_wanted():
            check_sharding(model, args)
        self.ordinary_class = type(model)  # sharding changes it
        super().__init__(model=model, args=args, **kwargs)
        if self.is_fsdp_enabled:
            args.save_only_model = True
            logger.info("sharding  FSDP2; checkpoints hold the whole model, not what an exact resume needs")

    def create_accelerator_and_postprocess(self) -> None:
        """As in transformers, but sharded on CPUs too, where Accelerate forgets that it was asked to."""
        super().create_accelerator_and_postprocess()
        if not sharding_wanted() or self.is_fsdp_enabled or self.args.world_size == 1:
            return
        state, plugin = self.accelerator.state, FullyShardedDataParallelPlugin()
        if state.mixed_precision != "no":
            plugin.set_mixed_precision(state.mixed_precision)
        state.distributed_type, state.fsdp_plugin = DistributedType.FSDP, plugin
        self.is_fsdp_enabled = True

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Inside, `model` is whole, gathered from all processes, all of which must come here."""
        if not self.is_fsdp_enabled:
            yield
            return
        sharded, self.model = self.model, self._gathered()
        self.is_fsdp_enabled = False
        try:
            yield
        finally:
            self.model, self.is_fsdp_enabled = sharded, True

    def stay_whole(self) -> None:
        """Training is over: what follows (the best weights, the export) is about an ordinary model."""
        if self.is_fsdp_enabled:
            self.model = self.model_wrapped = self._gathered()
            self.is_fsdp_enabled = False

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        with self.whole():
            super().save_model(output_dir, _internal_call)

    def _gathered(self) -> nn.Module:
        weights = get_model_state_dict(self.model, options=StateDictOptions(full_state_dict=True))
        model: Any = self.ordinary_class(copy.deepcopy(self.model.config))
        model.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
        model.generation_config = copy.deepcopy(self.model.generation_config)
        return model.to(self.args.device)  # type: ignore[no-any-return]


def check_sharding(model: Any, args: CraftTrainingArguments) -> None:
    """Refuses what doesn't work on parts of weights.

    Raises:
        UserError: with the first such setting.
    """
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
