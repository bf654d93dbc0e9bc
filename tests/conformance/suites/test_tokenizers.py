"""The character tokenizer under its three policies for unseen characters, and the byte tokenizer."""

import unittest
from pathlib import Path

from craft.data.tokenization import ByteTokenizer, CharTokenizer

from ... import test_tokenization_common, test_tokenizers_backend_mixin

MODULES = (test_tokenization_common, test_tokenizers_backend_mixin)
LETTERS = "".join(map(chr, range(32, 127))) + "\n\t"
EVERYTHING = LETTERS + "".join(Path(module.__file__).read_text(encoding="utf-8") for module in MODULES)


class Both(
    test_tokenizers_backend_mixin.TokenizersBackendTesterMixin, test_tokenization_common.TokenizerTesterMixin
):
    tokenizer_class = rust_tokenizer_class = CharTokenizer

    @classmethod
    def make(cls):
        raise NotImplementedError

    @classmethod
    def setUpClass(cls):
        test_tokenization_common.TokenizerTesterMixin.setUpClass.__func__(cls)
        cls.make().save_pretrained(cls.tmpdirname)
        cls.tokenizers_list = [(cls.tokenizer_class, cls.tmpdirname, {})]


class CharStrictTest(Both, unittest.TestCase):
    @classmethod
    def make(cls):
        return CharTokenizer.train([EVERYTHING])

    def test_training_new_tokenizer(self):
        self.skipTest(
            "encodes a character that it was not trained on, which under the policy strict is an error"
        )

    test_training_new_tokenizer_with_special_tokens_change = test_training_new_tokenizer


class CharUnkTest(Both, unittest.TestCase):
    @classmethod
    def make(cls):
        return CharTokenizer.train([LETTERS], unknown="unk")


class CharBytesTest(Both, unittest.TestCase):
    @classmethod
    def make(cls):
        return CharTokenizer.train([LETTERS], unknown="bytes")


class ByteTest(Both, unittest.TestCase):
    tokenizer_class = rust_tokenizer_class = ByteTokenizer

    @classmethod
    def make(cls):
        return ByteTokenizer.create()
