"""Llama by the same mixins: what it skips, our transformer may skip."""

from transformers import (
    LlamaForCausalLM,
    LlamaForQuestionAnswering,
    LlamaForSequenceClassification,
    LlamaForTokenClassification,
    LlamaModel,
)

from .common import Mixins, Tester, unittest


class LlamaTest(Mixins, unittest.TestCase):
    def make_tester(self):
        heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 37}
        others = (LlamaForSequenceClassification, LlamaForTokenClassification, LlamaForQuestionAnswering)
        return Tester(LlamaModel, LlamaForCausalLM, *others, max_position_embeddings=512, **heads)
