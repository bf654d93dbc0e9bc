"""The transformer as it is by default, with other choices of every kind, and as GPT-2."""

from typing import ClassVar

from craft.models import (
    TransformerForCausalLM,
    TransformerForQuestionAnswering,
    TransformerForSequenceClassification,
    TransformerForTokenClassification,
    TransformerModel,
)

from .common import Mixins, Tester, unittest

CLASSES = (
    TransformerModel,
    TransformerForCausalLM,
    TransformerForSequenceClassification,
    TransformerForTokenClassification,
    TransformerForQuestionAnswering,
)


class Transformer(Mixins):
    fields: ClassVar = {"initializer_range": 0.02, "intermediate_size": 37}

    def make_tester(self):
        shape = {"num_attention_heads": 2, "max_position_embeddings": 512}
        return Tester(*CLASSES, **shape, **self.fields)

    def setUp(self):
        super().setUp()
        if "custom_4d_attention_mask" in self.id():
            # Upstream leaves out models with a window, whose masks differ in longer texts than these. Without
            # the field this one is the same function, and the test runs.
            make = self.model_tester.get_config

            def without_window():
                config = make()
                config.sliding_window = None
                return config

            self.model_tester.get_config = without_window


class TransformerTest(Transformer, unittest.TestCase):
    pass


class TransformerGatedTest(Transformer, unittest.TestCase):
    fields: ClassVar = {
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "mlp": "swiglu",
        "bias": True,
        "norm_weight": True,
        "zero_init": False,
    }

    def make_tester(self):
        return Tester(*CLASSES, max_position_embeddings=512, **self.fields)


class TransformerGPT2Test(Transformer, unittest.TestCase):
    fields: ClassVar = {
        "mlp": "gelu",
        "norm": "layernorm",
        "norm_weight": True,
        "qk_norm": False,
        "position": "learned",
        "tie_word_embeddings": True,
        "initializer_range": 0.02,
    }

    def setUp(self):
        if "_rope_" in self.id():
            self.skipTest("scales rotary positions, which a model with learned ones hasn't, as GPT-2")
        super().setUp()
