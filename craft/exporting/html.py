"""A model as one HTML file that reads and writes by itself, in any browser, without a network.

The files of `page/` are put into one: page.html around page.css, decoder.js (the two models), text.js
(tokenizer and sampling), view.js and app.js. The weights lie in it as base64, by default with 8 bits each: a
row of a matrix as integers from -127 to 127 and the float32 by which they are multiplied.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

from craft.exporting.target import target
from craft.utils.common import SAMPLE_CHARACTERS, TEMPERATURE, human
from craft.utils.errors import CraftError, UserError
from craft.utils.files import explain_disk_errors, replace_text
from craft.utils.outputs import html_file
from craft.utils.units import unit_named

if TYPE_CHECKING:
    from torch import Tensor

    from craft.evaluation.scores import Evaluation

PAGE = Path(__file__).with_name("page")
SCRIPTS = ("decoder.js", "text.js", "view.js", "app.js")
PIECE = 1 << 15
"""Predictions over which the cost of 8 bits is measured."""
NUMBERS = (bool, int, float)
CHECKED_IDS, CHECKED_LOGITS = 32, 64
"""How much is read, and how many logits are compared, when a browser opens the page."""


@dataclass(frozen=True)
class ExportedPage:
    """An exported page.

    Attributes:
        file: the page.
        weights: how the weights are kept, and what that costs in bits, in a sentence or two.
    """

    file: Path
    weights: str


def export_html(
    model: str | Path,
    file: Path | None = None,
    *,
    revision: str | None = None,
    dtype: str = "int8",
    text: str | None = None,
) -> ExportedPage:
    """Writes a model as one HTML file, which is there as a whole or not at all.

    Args:
        model, revision: as for `craft.inference.load`.
        file: where to, which mustn't be there yet; None is `outputs/html/<model>.html`.
        dtype: "int8", or "float32" for the weights as they are.
        text: what the cost of 8 bits is measured on: a file, folder, glob, URL or data set of the Hub; None
            is the validation text of the model's own run, if it lies here.

    Raises:
        UserError: for an unknown model, one that the page has no decoder for, a file that is there or can't
            be made, or a `text` that can't be scored.
        Failed: if the disk is full.
    """
    where, file = target(model, revision, file, html_file)
    from craft.inference import load

    network, tokenizer = load(where, revision=revision, dtype="float32")
    network = network.cpu()
    check_architecture(network)
    weights, reason, measure = "The weights are exact, in float32.", "", None
    if dtype == "int8":
        weights = "The weights have 8 bits each."
        try:
            measure = _scoring(network, tokenizer, Path(where), text)
            (before,) = measure()
        except CraftError as error:
            if text is not None:
                raise
            reason = f" (What that costs wasn't measured: {error}; or name a text by --text.)"
    tensors, packed = pack(network, dtype)
    if measure is not None:
        (after,) = measure()
        weights += f" {_cost(before, after)}"
    facts = describe(network, tokenizer, file.stem) | {"tensors": tensors}
    facts["notes"] = [
        weights,
        "Random numbers are those of mulberry32: in this page a seed writes the same text again, "
        "but another one than craft generate.",
    ]
    with explain_disk_errors("the page", file.parent, lambda: "nothing is left there"):
        replace_text(file, fill(facts, packed))
    return ExportedPage(file, f"{weights}{reason}")


def check_architecture(network: Any) -> None:
    """Refuses a model that decoder.js can't compute.

    Raises:
        UserError: with the reason.
    """
    from craft.models import CharLSTMForCausalLM, TransformerForCausalLM
    from craft.models.cells import is_fused
    from craft.models.decoding import has_plain_weights

    config, why = network.config, ""
    if type(network) not in (CharLSTMForCausalLM, TransformerForCausalLM):
        why = f"the architecture {config.model_type}"
    elif network.carries_state and not all(is_fused(layer.lstm) for layer in network.model.layers):
        why = f"the cell {type(network.model.layers[0].lstm).__name__}"
    elif not has_plain_weights(network):
        why = "layers that are adapted or quantized"
    elif not network.carries_state and config.position == "rope" and network.reach is None:
        why = f"rotary positions of the type {config.rope_parameters['rope_type']}"
    if why:
        raise UserError(
            f"a page has no decoder for {why}, only for char_lstm with its own cell and char_transformer",
            code="model-mismatch",
        )


def quantize(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A matrix [R, C] as int8 [R, C] and a float32 scale [R, 1] for each row.

    Their product is at most half a scale, the largest of the row / 254, away from the matrix.
    """
    import torch

    scales = weight.abs().amax(dim=1, keepdim=True) / 127
    scales = torch.where(scales > 0, scales, 1.0)
    return (weight / scales).round().to(torch.int8), scales


def pack(network: Any, dtype: str) -> tuple[list[dict[str, Any]], bytes]:
    """The weights as bytes, little-endian, and where in them each tensor lies.

    For "int8" the weights of the network become those that the page will have.

    Returns:
        For each tensor `name`, `shape`, and the offsets `at` of its values and `scales` of its rows (None
        where the values are float32); and the bytes, all float32 first.
    """
    import torch

    floats, integers, tensors = bytearray(), bytearray(), []
    for name, weight in network.named_parameters():
        values, scales = weight.detach(), None
        if dtype == "int8" and weight.ndim == 2:
            values, scales = quantize(weight.detach())
            with torch.no_grad():
                weight.copy_(values * scales)
        tensors.append({"name": name, "shape": list(weight.shape), "at": len(floats), "scales": None})
        if scales is not None:
            tensors[-1] |= {"at": len(integers), "scales": len(floats)}
            integers += values.numpy().tobytes()
            values = scales
        floats += values.numpy().astype("<f4").tobytes()
    for tensor in tensors:
        tensor["at"] += len(floats) if tensor["scales"] is not None else 0
    return tensors, bytes(floats + integers)


def describe(network: Any, tokenizer: Any, name: str) -> dict[str, Any]:
    """What the page must know beside the weights, as plain data."""
    import torch

    from craft.data.tokenization import first_id
    from craft.evaluation.protocols import context_of

    config, recurrent = network.config, network.carries_state
    fields = config.to_dict()
    shape = {key: fields[key] for key in fields if key in ("mlp", "norm") or type(fields[key]) in NUMBERS}
    kind = f"LSTM of {config.num_hidden_layers} layers of {config.hidden_size} cells"
    if not recurrent:
        kind = (
            f"transformer of {config.num_hidden_layers} layers with {config.num_attention_heads} heads each"
        )
        rotary = network.model.rotary_emb
        shape["frequencies"] = None if rotary is None else rotary.inv_freq.tolist()
        shape["rope_scale"] = 1.0 if rotary is None else rotary.attention_scaling
    suppressed = sorted(network.generation_config.suppress_tokens or [])
    length = min(CHECKED_IDS, context_of(network) or CHECKED_IDS)
    ids = torch.randint(config.vocab_size, (1, length), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        logits = network(ids).logits[0, -1, :CHECKED_LOGITS]
    symbols = f"{len(tokenizer.alphabet):,} characters" if tokenizer.alphabet else "bytes"
    return {
        "name": name,
        "about": f"A character model: {kind}, {human(network.num_parameters())} weights, over {symbols}. "
        "It runs in this page alone and sends nothing anywhere.",
        "kind": config.model_type,
        "config": shape,
        "alphabet": "".join(tokenizer.alphabet),
        "unknown": tokenizer.unknown,
        "added": [token.decode() for token in tokenizer.token_bytes[tokenizer.processor.vocab_size :]],
        "first": first_id(tokenizer),
        "suppressed": suppressed,
        "end": None if tokenizer.eos_token_id in suppressed else tokenizer.eos_token_id,
        "temperature": TEMPERATURE,
        "length": SAMPLE_CHARACTERS,
        "check": {"ids": ids[0].tolist(), "logits": logits.tolist()},
    }


def fill(facts: dict[str, Any], weights: bytes) -> str:
    """The page: its parts in one file, which allows these styles and scripts by their hash and no others."""
    style, *scripts = (f"\n{(PAGE / name).read_text(encoding='utf-8')}" for name in ("page.css", *SCRIPTS))
    allowed = " ".join(map(_hash, scripts))
    policy = (
        f"default-src 'none'; script-src {allowed}; style-src {_hash(style)}; connect-src 'none'; "
        "base-uri 'none'; form-action 'none'"
    )
    return Template((PAGE / "page.html").read_text(encoding="utf-8")).substitute(
        policy=policy,
        title=html.escape(facts["name"]),
        style=style,
        scripts="\n".join(f"<script>{script}</script>" for script in scripts),
        facts=json.dumps(facts).replace("<", "\\u003c"),  # nothing in it ends the element
        weights=base64.b64encode(weights).decode(),
    )


def _hash(script: str) -> str:
    """As a Content-Security-Policy names an inline script or style."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _scoring(network: Any, tokenizer: Any, folder: Path, text: str | None) -> Callable[[], list[Evaluation]]:
    """What scores the network, as it is when it is called, on the beginning of a text."""
    from craft.evaluation.finished import text_to_score
    from craft.evaluation.protocols import default_protocol
    from craft.evaluation.scores import score

    if text is None and not folder.is_dir():
        raise UserError("the text of a model on the Hub isn't here", code="text-missing")
    split = "validation" if text is None else "all"
    found = text_to_score(network, tokenizer, folder, text, split)
    about: dict[str, Any] = {"block_size": found.block_size, "split": split, "dataset": found.corpus.name}
    return partial(score, network, tokenizer, found.ids[: PIECE + 1], [default_protocol(network)], **about)


def _cost(before: Evaluation, after: Evaluation) -> str:
    """What rounding the weights costs, in a sentence."""
    unit, bits = unit_named(before.unit), [each.bits_per_unit for each in (before, after)]
    return (
        f"That takes {unit.label} from {bits[0]:.4f} to {bits[1]:.4f} ({bits[1] - bits[0]:+.4f}; protocol "
        f"{before.protocol} over the first {before.units:,} predicted {unit.plural} of the {before.split} "
        f"split of {before.dataset}, sha256 {before.sha256[:12]})."
    )
