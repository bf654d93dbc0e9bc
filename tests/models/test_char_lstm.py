"""The LSTM: its arithmetic against a plain loop, initialisation, padding, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from huggingface_hub.errors import StrictDataclassError
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import DynamicCache, PreTrainedModel, StaticCache

from craft.models import CharLSTMConfig, CharLSTMForCausalLM, char_lstm, recurrence
from craft.models.recurrence import Padding, padded_chunks

from .tiny import VOCAB, GRUCell, PlainLSTMCell, make_lstm, make_recurrent, make_transformer


@pytest.mark.parametrize("layer_norm", ["each", "head", "none"])
def test_logits_equal_a_loop_written_out(layer_norm: str, text: torch.Tensor) -> None:
    model = make_lstm(layer_norm=layer_norm)
    state = model.state_dict()
    x = state["model.embed_tokens.weight"][text]
    for n in range(2):
        prefix = f"model.layers.{n}."
        w_ih, w_hh, b_ih, b_hh = (
            state[f"{prefix}lstm.{name}_l0"] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        )
        h = c = torch.zeros(2, 12)
        out = []
        for t in range(text.shape[1]):
            i, f, g, o = (x[:, t] @ w_ih.T + b_ih + h @ w_hh.T + b_hh).split(12, dim=1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            out.append(h)
        x = torch.stack(out, dim=1)
        assert (f"{prefix}norm.weight" in state) == (
            layer_norm == "each" or (layer_norm == "head" and n == 1)
        )
        if f"{prefix}norm.weight" in state:
            x = F.layer_norm(x, (12,), state[f"{prefix}norm.weight"], state[f"{prefix}norm.bias"], eps=0.01)
    torch.testing.assert_close(model(text).logits, x @ state["lm_head.weight"].T, atol=1e-4, rtol=1e-4)


def check_initialisation() -> None:
    torch.manual_seed(0)
    model = CharLSTMForCausalLM(CharLSTMConfig(vocab_size=65, hidden_size=64, forget_bias=1.0))
    bound = 64**-0.5
    for name, parameter in model.named_parameters():
        if "norm" in name:
            assert torch.equal(parameter, torch.full_like(parameter, float("weight" in name)))
            continue
        if "embed" in name:
            assert abs(parameter.std() - 1) < 0.05
            continue
        parameter = parameter.detach().clone()
        if "bias_ih" in name:
            assert abs(parameter[64:128].mean() - 1) < 0.05
            parameter[64:128] -= 1
        assert parameter.abs().max() <= bound + 1e-6
        assert abs(parameter.std() - bound / 3**0.5) < 0.2 * bound
    tied = CharLSTMForCausalLM(CharLSTMConfig(vocab_size=65, hidden_size=64, tie_word_embeddings=True))
    assert tied.lm_head.weight.abs().max() <= bound


def test_initial_weights_are_uniform_in_one_over_root_width() -> None:
    check_initialisation()


def transformers_own(self: Any, module: torch.nn.Module) -> None:
    """Normal with 0.02, biases zero: what an LSTM gets from upstream, and hardly learns from."""
    PreTrainedModel._init_weights(self, module)


def no_forget_bias(self: Any, module: torch.nn.Module) -> None:
    kept, self.config.forget_bias = self.config.forget_bias, 0.0
    OWN(self, module)
    self.config.forget_bias = kept


def too_wide(self: Any, module: torch.nn.Module) -> None:
    OWN(self, module)
    if isinstance(module, torch.nn.RNNBase):
        module.weight_hh_l0.data *= 2


OWN = CharLSTMForCausalLM._init_weights


@pytest.mark.parametrize("mutant", [transformers_own, no_forget_bias, too_wide])
def test_another_initialisation_would_be_noticed(mutant: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(char_lstm.CharLSTMPreTrainedModel, "_init_weights", mutant)
    with pytest.raises(AssertionError):
        check_initialisation()


def test_a_forget_bias_that_was_loaded_stays() -> None:
    """Where a parameter beside it is missing, which alone is made anew."""
    model = make_lstm(forget_bias=1.0)
    state = model.state_dict()
    del state["model.layers.0.lstm.bias_hh_l0"]
    expected = {name: parameter.clone() for name, parameter in state.items()}
    loaded = CharLSTMForCausalLM.from_pretrained(None, config=model.config, state_dict=state)
    for name, parameter in expected.items():
        assert torch.equal(loaded.state_dict()[name], parameter), name


class EditedCell(char_lstm.LSTMCell):
    """The standard cell as somebody edited it, but for the line `fused`."""

    fused = True

    def forward(self, projected: torch.Tensor, state: Any) -> Any:
        output, after = super().forward(projected, state)
        return 1.1 * output, after


def test_an_edited_cell_that_kernels_would_replace_is_refused() -> None:
    before = torch.get_rng_state()
    with pytest.raises(ValueError, match="EditedCell"):
        recurrence.check_kernel(EditedCell, CharLSTMConfig())
    assert torch.equal(torch.get_rng_state(), before)
    with pytest.raises(ValueError, match="fused"):
        make_recurrent(EditedCell).check_before_training()
    for cell_class in (char_lstm.LSTMCell, PlainLSTMCell, GRUCell):
        make_recurrent(cell_class).check_before_training()


def test_a_model_is_made_without_numbers_and_without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """By tools that plan: nothing is computed while a model is made or loaded."""
    monkeypatch.setattr(torch, "lstm", None)
    with torch.device("meta"):
        assert CharLSTMForCausalLM(CharLSTMConfig()).device.type == "meta"
    with FakeTensorMode():
        assert CharLSTMForCausalLM(CharLSTMConfig()).num_parameters() > 0


class LosesItsCell(PlainLSTMCell):
    def forward(self, projected: torch.Tensor, state: Any) -> Any:
        output, (hidden, _) = super().forward(projected, state)
        return output, (hidden,)


class ReturnsATensor(PlainLSTMCell):
    def forward(self, projected: torch.Tensor, state: Any) -> Any:
        output, _ = super().forward(projected, state)
        return output, output


@pytest.mark.parametrize("cell_class", [LosesItsCell, ReturnsATensor])
@pytest.mark.parametrize("mask", [None, torch.tensor([[0, 1, 1], [1, 1, 1]])])
def test_a_cell_that_returns_another_state_is_named(cell_class: Any, mask: Any) -> None:
    with pytest.raises(ValueError, match=rf"{cell_class.__name__}.*hidden, cell"):
        make_recurrent(cell_class)(torch.ones(2, 3, dtype=torch.long), attention_mask=mask)


def test_an_lstm_cell_with_another_number_of_gates_is_refused() -> None:
    with pytest.raises(ValueError, match="gates=3"):
        make_recurrent(type("ThreeGates", (char_lstm.LSTMCell,), {"gates": 3}))


@torch.no_grad()
@pytest.mark.parametrize("cell_class", [char_lstm.LSTMCell, GRUCell])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("carried", [False, True])
def test_loop_scan_and_kernel_read_the_same(cell_class: Any, padded: bool, carried: bool) -> None:
    """In a loop, by a scan, and by PyTorch's kernel for the standard cell: outputs, and the state after."""
    torch.manual_seed(0)
    model, hidden = make_recurrent(cell_class), torch.randn(4, 7, 12)
    cell: Any = model.model.layers[0].lstm
    state = tuple(torch.randn(4, 12) if carried else torch.zeros(4, 12) for _ in cell.state_names)
    mask = torch.rand(4, 7) < 0.5 if padded else None
    if mask is not None:
        mask[0], mask[1] = False, torch.arange(7) > 2
    padding = None if mask is None else Padding(mask, padded_chunks(mask))
    expected, after = recurrence.run_cell(cell, hidden, state, padding)
    for way in (recurrence._loop, recurrence._scan):
        torch.testing.assert_close(way(cell, hidden, state, padding), (expected, after))
    if mask is not None:
        assert not expected[~mask].any()
        assert all(torch.equal(new[0], old[0]) for new, old in zip(after, state))


def test_kernels_compute_what_the_standard_cell_does(
    text: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loss, gradients, state and text; kernels are used for the standard cell, and for no other."""
    standard, plain = make_lstm(), make_recurrent(PlainLSTMCell)
    plain.load_state_dict(standard.state_dict())
    calls: list[Any] = []
    kernel = torch.lstm
    monkeypatch.setattr(torch, "lstm", lambda *args: (calls.append(1), kernel(*args))[1])
    results, used = [], []
    for model in (standard, plain):
        out = model(text, labels=text, use_cache=True)
        out.loss.backward()
        used.append(len(calls))
        streamed = torch.stack(list(model.stream(text, max_new_tokens=20, do_sample=False)))
        grads = {name: parameter.grad for name, parameter in model.named_parameters()}
        results.append((out.loss, grads, model.state_tensors(out.past_key_values), streamed))
        calls.clear()
    assert used == [2, 0]
    torch.testing.assert_close(results[0], results[1])


@pytest.mark.parametrize("side", ["left", "right", "middle"])
@pytest.mark.parametrize("cell_class", [char_lstm.LSTMCell, GRUCell])
def test_padding_anywhere_changes_no_real_character(cell_class: Any, side: str, text: torch.Tensor) -> None:
    """Logits at real characters and the state after them equal those of the text without padding."""
    model = make_recurrent(cell_class)
    real = {"left": slice(4, 12), "right": slice(0, 8), "middle": None}[side]
    keep = torch.zeros(12, dtype=torch.bool)
    keep[real if real else torch.tensor([0, 1, 2, 6, 7, 9, 10, 11])] = True
    mask = torch.ones_like(text)
    mask[0] = keep.long()
    padded = model(text, attention_mask=mask, use_cache=True)
    alone = model(text[:1, keep], use_cache=True)
    torch.testing.assert_close(padded.logits[:1, keep], alone.logits)
    torch.testing.assert_close(padded.logits[1:], model(text[1:]).logits)
    for ours, theirs in zip(*(model.state_tensors(out.past_key_values) for out in (padded, alone))):
        torch.testing.assert_close(ours[:1], theirs)


def test_a_row_of_padding_keeps_its_state(text: torch.Tensor) -> None:
    model = make_lstm()
    cache = model(text[:, :4], use_cache=True).past_key_values
    before = [t.clone() for t in model.state_tensors(cache)]
    mask = torch.ones(2, 9, dtype=torch.long)
    mask[0, 4:] = 0
    after = model.state_tensors(
        model(text[:, 4:9], attention_mask=mask, past_key_values=cache).past_key_values
    )
    for old, new in zip(before, after):
        assert torch.equal(old[0], new[0])
        assert not torch.allclose(old[1], new[1])


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("hidden_size", 0, ["hidden_size", "got 0"]),
        ("vocab_size", "many", ["vocab_size", "'many'"]),
        ("layer_norm", "both", ["layer_norm", "each", "head", "none", "got both"]),
        ("dropout", 1.0, ["dropout", "got 1.0"]),
    ],
)
def test_a_field_out_of_range_is_named(field: str, value: Any, words: list[str]) -> None:
    with pytest.raises(StrictDataclassError) as caught:
        CharLSTMConfig(**{field: value})
    for word in words:
        assert word in str(caught.value)


def test_refuses_activation_checkpointing() -> None:
    model = make_lstm()
    with pytest.raises(ValueError, match="CharLSTMForCausalLM"):
        model.activation_checkpointing_enable()


def test_refuses_a_cache_made_for_something_else(text: torch.Tensor) -> None:
    model, other = make_lstm(), make_transformer()
    for cache in (DynamicCache(config=other.config), other(text, use_cache=True).past_key_values, ((text,),)):
        with pytest.raises(ValueError, match="CharLSTM"):
            model(text, past_key_values=cache)
    with pytest.raises(ValueError, match=r"\[1, 1, 12, 12\]"):
        model(text, attention_mask=torch.ones(1, 1, 12, 12))


def test_a_cache_made_without_the_config_works(text: torch.Tensor) -> None:
    model, cache = make_lstm(), DynamicCache()
    whole = model(text).logits
    parts = [model(part, past_key_values=cache).logits for part in text.split(7, dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole)


def test_a_cache_counts_what_was_read_and_can_be_reset(text: torch.Tensor) -> None:
    model = make_lstm()
    fresh = model(text[:, :7])
    caches = DynamicCache(config=model.config), StaticCache(config=model.config, max_cache_len=20)
    for cache in caches:
        for _ in range(2):
            out = model(text[:, :7], past_key_values=cache)
            assert torch.equal(out.logits, fresh.logits)
            layer = cache.layers[0]
            assert cache.get_seq_length() == 7
            assert [int(size) for size in layer.get_mask_sizes(2)] == [9, 0]
            assert layer.get_max_length() == -1  # no longest text
            cache.reset()
            assert cache.get_seq_length() == 0


@pytest.mark.parametrize("cell_class", [char_lstm.LSTMCell, GRUCell])
def test_texts_packed_into_a_row_do_not_see_each_other(cell_class: Any, text: torch.Tensor) -> None:
    """Positions that start anew start an empty state, as TRL packs training data; the last text's is kept."""
    model = make_recurrent(cell_class)
    positions = torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 5, 6], [*range(12)]])
    packed = model(text, position_ids=positions, use_cache=True)
    texts = ((0, 0, 5), (0, 5, 12), (1, 0, 12))
    for row, start, end in texts:
        alone = model(text[row : row + 1, start:end])
        torch.testing.assert_close(packed.logits[row, start:end], alone.logits[0])
    following = torch.tensor([[3], [4]])
    expected = [
        model(following[r, None], past_key_values=model(text[r : r + 1, s:e]).past_key_values).logits[0]
        for r, s, e in texts[1:]
    ]
    after = model(following, past_key_values=packed.past_key_values)
    torch.testing.assert_close(after.logits, torch.stack(expected))
    model(text, position_ids=positions, labels=text).loss.backward()
    assert all(p.grad.isfinite().all() for p in model.model.layers[0].lstm.parameters())


def test_positions_tell_texts_apart_only_where_nothing_else_is_known(text: torch.Tensor) -> None:
    """With a mask they start behind the padding, with a cache behind what was read, in generate() too."""
    model = make_lstm()
    mask = torch.ones_like(text)
    mask[0, :3] = mask[1, 5:8] = 0
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    masked = model(text, attention_mask=mask, position_ids=positions).logits[mask.bool()]
    assert torch.equal(masked, model(text, attention_mask=mask).logits[mask.bool()])
    one_for_all = torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 5, 6]])
    packed = model(text, position_ids=one_for_all).logits
    torch.testing.assert_close(packed[:, 5:], model(text[:, 5:]).logits)
    cache = model(text[:, :5]).past_key_values
    rest = model(text[:, 5:], position_ids=one_for_all[:, :7], past_key_values=cache).logits
    torch.testing.assert_close(rest, model(text).logits[:, 5:])


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_rows_of_unequal_length_are_read_in_few_calls(
    compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A long row among short ones: the kernel reads no padding."""
    lengths = torch.tensor([64, *[1] * 9, 27])
    mask = (torch.arange(64) >= 64 - lengths[:, None]).long()
    ids, model, shapes = torch.arange(11 * 64).view(11, 64) % VOCAB, make_lstm(), []
    expected = [model(row[-n:][None]).logits[0] for row, n in zip(ids, lengths)]
    kernel = torch.lstm
    monkeypatch.setattr(torch, "lstm", lambda x, *rest: (shapes.append(x.shape[:2]), kernel(x, *rest))[1])
    forward = torch.compile(model.forward, backend="aot_eager") if compiled else model
    logits = forward(ids, attention_mask=mask).logits[mask.bool()]
    torch.testing.assert_close(logits, torch.cat(expected))
    assert compiled or shapes == [(1, 64), (1, 16), (1, 8), (1, 2), (10, 1)] * 2


def test_vocabulary_may_be_resized(text: torch.Tensor) -> None:
    model = make_lstm()
    before = model(text).logits
    model.resize_token_embeddings(VOCAB + 3)
    torch.testing.assert_close(model(text).logits[..., :VOCAB], before)


@pytest.mark.parametrize("cell_class", [char_lstm.LSTMCell, GRUCell])
@pytest.mark.parametrize("steps", [12, 40])
def test_a_recurrent_model_compiles(cell_class: Any, steps: int) -> None:
    """As anyone would compile any model, without a switch of the compiler's: a short text in one graph, and
    a long one around PyTorch's kernel, whose steps a compiler would write out one by one."""
    model, text = make_recurrent(cell_class), torch.arange(2 * steps).view(2, steps) % VOCAB
    called = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Any:
        called.extend(node.target for node in graph.graph.nodes)
        return graph.forward

    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=steps == 12, backend=backend)
    torch.testing.assert_close(compiled(text).logits, model(text).logits)
    mask = (torch.arange(steps) >= torch.tensor([[0], [3]])).long()
    torch.testing.assert_close(
        compiled(text, attention_mask=mask).logits, model(text, attention_mask=mask).logits
    )
    compiled.train()(text, labels=text).loss.backward()
    assert called
    assert torch.lstm not in called
