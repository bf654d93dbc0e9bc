"""An application over a small model, and a client of it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
import torch

from craft.data.chat import plain_template
from craft.data.tokenization import CharTokenizer
from craft.models.char_lstm import CharLSTMConfig, CharLSTMForCausalLM
from craft.models.transformer import TransformerConfig, TransformerForCausalLM
from craft.serving.server import CAPS

CONTEXT = 32
TOKENIZER = CharTokenizer.train(["abc9\n"])
TOKENIZER.chat_template = plain_template(TOKENIZER)
SHAPE: dict[str, Any] = {"vocab_size": len(TOKENIZER), "hidden_size": 16, "max_position_embeddings": CONTEXT}


def make_model(kind: str = "transformer") -> Any:
    """One that writes no special ids, hence as much as it is asked for."""
    torch.manual_seed(0)
    if kind == "lstm":
        model: Any = CharLSTMForCausalLM(CharLSTMConfig(**SHAPE))
    else:
        model = TransformerForCausalLM(TransformerConfig(**SHAPE, zero_init=False))
    model.generation_config.update(do_sample=True, top_k=0, suppress_tokens=[0, 1, 2, 3])
    return model.eval()


@pytest.fixture(params=["lstm", "transformer"])
def model(request: pytest.FixtureRequest) -> Any:
    return make_model(request.param)


@pytest.fixture
def serve() -> Iterator[Callable[..., Any]]:
    with serving() as begin:
        yield begin


@contextmanager
def serving() -> Iterator[Callable[..., Any]]:
    """Serves a model (by default a transformer) within caps, and gives a client."""
    pytest.importorskip("httpx")
    testclient = pytest.importorskip("fastapi.testclient")
    from craft.serving.app import Service, build_app

    with ExitStack() as running:

        def begin(model: Any = None, tokenizer: Any = TOKENIZER, **caps: int) -> Any:
            service = Service(
                model or make_model(), copy.deepcopy(tokenizer), "mine", ["latest"], {**CAPS, **caps}
            )
            app = build_app(service)
            client: Any = testclient.TestClient(app, "http://localhost", raise_server_exceptions=False)
            client.scheduler = service.scheduler
            return running.enter_context(client)

        yield begin
