"""What upstream's mixins want to know of a model, and the mixins that are there."""

from __future__ import annotations

import unittest
from typing import Any

import torch
from transformers.testing_utils import torch_device

from ... import test_fsdp_mixin, test_tensor_parallel_mixin
from ...generation.test_utils import GenerationTesterMixin
from ...test_configuration_common import ConfigTester
from ...test_modeling_common import ModelTesterMixin, ids_tensor
from ...test_pipeline_mixin import PipelineTesterMixin
from ...test_training_mixin import TrainingTesterMixin

# Upstream runs these on a few of its own model types only.
test_fsdp_mixin.FSDP_DISTRIBUTED_TEST_MODEL_TYPES = None
test_tensor_parallel_mixin.TP_DISTRIBUTED_TEST_MODEL_TYPES = None


class Tester:
    """A tiny config and a batch for it, by the names that the mixins use."""

    batch_size, seq_length, is_training = 5, 7, True
    vocab_size, hidden_size, num_hidden_layers, num_attention_heads = 99, 32, 2, 2
    pad_token_id, bos_token_id, eos_token_id = 0, 1, 2

    def __init__(self, base: type, head: type, *others: type, **fields: Any) -> None:
        self.all_model_classes = (base, head, *others)
        self.base_model_class, self.causal_lm_class, self.config_class = base, head, base.config_class
        self.fields = {
            name: getattr(self, name) for name in ("vocab_size", "hidden_size", "num_hidden_layers")
        }
        self.fields |= {
            f"{name}_token_id": getattr(self, f"{name}_token_id") for name in ("pad", "bos", "eos")
        }
        self.fields |= fields
        for name, value in fields.items():
            setattr(self, name, value)

    def get_config(self) -> Any:
        return self.config_class(**self.fields)

    def prepare_config_and_inputs_for_common(self) -> tuple[Any, dict[str, torch.Tensor]]:
        ids = ids_tensor([self.batch_size, self.seq_length], self.vocab_size)
        return self.get_config(), {
            "input_ids": ids,
            "attention_mask": torch.tril(torch.ones_like(ids)).to(torch_device),
        }


class Mixins(
    ModelTesterMixin,
    GenerationTesterMixin,
    PipelineTesterMixin,
    TrainingTesterMixin,
    test_tensor_parallel_mixin.TensorParallelTesterMixin,
    test_fsdp_mixin.FSDPTesterMixin,
):
    """Every mixin, over the base model and the model with a head that `make_tester` names."""

    model_tester: Any = None
    model_split_percents = (0.5, 0.7, 0.8)

    def make_tester(self) -> Tester:
        raise NotImplementedError

    def setUp(self: Any) -> None:
        self.model_tester = self.make_tester()
        self.all_model_classes = self.model_tester.all_model_classes
        base, head, *others = self.all_model_classes
        self.pipeline_model_mapping = {"feature-extraction": base, "text-generation": head}
        if others:
            texts, characters, _ = others
            self.pipeline_model_mapping |= {
                "text-classification": texts,
                "zero-shot": texts,
                "token-classification": characters,
            }
        self._torch_compile_train_cls = head

    def test_config(self: Any) -> None:
        ConfigTester(self, config_class=self.model_tester.config_class).run_common_tests()


__all__ = ["Mixins", "Tester", "unittest"]
