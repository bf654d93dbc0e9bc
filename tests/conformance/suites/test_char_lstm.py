"""The LSTM. Two hooks differ from an attention model's, as in upstream's recurrent models."""

from craft.models import CharLSTMForCausalLM, CharLSTMModel

from .common import Mixins, Tester, unittest


class CharLSTMTest(Mixins, unittest.TestCase):
    has_attentions = False

    def make_tester(self):
        return Tester(CharLSTMModel, CharLSTMForCausalLM)

    def setUp(self):
        super().setUp()
        if "left_padding_compatibility" in self.id():
            self.has_attentions = (
                True  # upstream takes a model without attention for one that can't be padded
            )

    def _get_attention_shape(self, batch_size, seq_length, config):
        return (batch_size, 2, config.hidden_size), (batch_size, 0, config.hidden_size)  # h and c, no values


class CharLSTMTiedTest(CharLSTMTest):
    def make_tester(self):
        return Tester(CharLSTMModel, CharLSTMForCausalLM, tie_word_embeddings=True, layer_norm="head")
