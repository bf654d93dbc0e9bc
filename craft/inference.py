"""Using a finished model: load it, let it write.

The functions behind `craft generate` and the last step of a training run. A model is named by a folder, a
Hub id, or `latest` (the newest finished model under `outputs/models`).
"""

from __future__ import annotations

import codecs
import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from craft.sharing.trust import trusted
from craft.utils.common import SAMPLE_CHARACTERS, TEMPERATURE
from craft.utils.errors import UserError
from craft.utils.logging import get_logger
from craft.utils.outputs import OUTPUTS, resolve

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from craft.data.tokenization import CharTokenizer

logger = get_logger(__name__)

COLDEST, HOTTEST = 0.001, 1000
"""Temperatures beyond which logits leave the range of float32; the text has long stopped changing by then."""


@dataclass(frozen=True)
class Sampling:
    """How the next character is chosen.

    Args:
        max_new_tokens: how many characters (byte tokenizer: bytes) to write at the most.
        temperature: below 1 safer, above 1 wilder; 1 is the model's own distribution.
        top_k: choose among the k likeliest only; 0 for all.
        top_p: choose among the likeliest that together reach this probability; 1 for all.
        min_p: drop what is less likely than this fraction of the likeliest; 0 drops nothing.
        seed: the same seed writes the same text; `None` draws one.
        stop: texts after which a sample ends (the text itself is kept).
        greedy: always the likeliest character; the other knobs then mean nothing.

    Raises:
        UserError: if a value is out of range.
    """

    max_new_tokens: int = SAMPLE_CHARACTERS
    temperature: float = TEMPERATURE
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    greedy: bool = False

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise UserError(f"max_new_tokens is {self.max_new_tokens}; it must be at least 1")
        if not COLDEST <= self.temperature <= HOTTEST:
            raise UserError(
                f"temperature is {self.temperature}; it must lie between {COLDEST} and {HOTTEST} "
                "(use --greedy for the likeliest text)"
            )
        if self.seed is not None and not 0 <= self.seed < 2**32:
            raise UserError(f"seed is {self.seed}; it must lie between 0 and {2**32 - 1}")
        if self.top_k < 0:
            raise UserError(f"top_k is {self.top_k}; it must be 0 (off) or more")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p is {self.top_p}; it must be above 0 and at most 1 (1 = off)")
        if not 0 <= self.min_p < 1:
            raise UserError(f"min_p is {self.min_p}; it must be at least 0 (off) and below 1")
        if any(not text for text in self.stop):
            raise UserError("stop is an empty text; give at least one character")

    def generation_config(self, model: PreTrainedModel) -> Any:
        """The model's own `GenerationConfig` with these choices in it."""
        config = copy.deepcopy(model.generation_config)
        config.update(
            max_new_tokens=self.max_new_tokens,
            max_length=None,
            do_sample=not self.greedy,
            temperature=None if self.greedy else self.temperature,
            top_k=None if self.greedy else self.top_k,
            top_p=None if self.greedy or self.top_p == 1 else self.top_p,
            min_p=None if self.greedy or self.min_p == 0 else self.min_p,
        )
        return config


def load(
    model: str | Path,
    root: Path = OUTPUTS,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    **overrides: Any,
) -> tuple[PreTrainedModel, CharTokenizer]:
    """Loads a craft model and its tokenizer, in evaluation mode, on the accelerator if there is one.

    Rows of the embedding and the head behind the tokenizer's last entry are left out, so the probabilities
    are those of the tokenizer's entries alone.

    Args:
        model: a folder, a Hub id (`user/name`), or `latest`.
        root: where `latest` looks.
        revision: a branch, tag or commit of a model on the Hub.
        trust_remote_code: run the Python files beside the weights, for a model that craft doesn't know.
        **overrides: fields of the model's config to change, such as `dropout`. Without `dtype` the model
            computes in the format of its weights, or in float32 (and says so) where that is only imitated.

    Raises:
        UserError: if there is no such model, it isn't one of craft's, its weights aren't all finite, weights
            and tokenizer don't belong together, this machine can't compute in `dtype`, or it can't be trusted
            (see `craft.sharing.trust`).
        Failed: if the Hub can't be reached.
    """
    where = str(trusted(resolve(model, root), revision, trust_remote_code))
    import torch
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    import craft.models  # noqa: F401  (makes craft's classes known to AutoModel)
    from craft.data.tokenization import load_tokenizer
    from craft.utils.hardware import Hardware

    disable_progress_bar()  # small models load at once, and the bar would stand between prompt and text
    try:
        network = AutoModelForCausalLM.from_pretrained(
            where, trust_remote_code=trust_remote_code, use_safetensors=True, **overrides
        )
    except StrictDataclassError as error:
        raise UserError(f"can't load the model {str(model)!r}: {' '.join(str(error).split())}") from error
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        if "ignore_mismatched_sizes" in reason:
            reason = "its weights don't have the shapes that config.json says"
        elif "custom code" in reason or "trust_remote_code" in str(error):
            reason = (
                "its config.json names no model of craft's, and other code isn't run; read the Python files "
                "beside it, then say --trust-remote-code"
            )
        raise UserError(
            f"can't load the model {str(model)!r}: {reason.rstrip('.')}; give a folder made by 'craft train' "
            "or a Hub id"
        ) from error
    spoilt = [name for name, weight in network.named_parameters() if not weight.isfinite().all()]
    if spoilt:
        raise UserError(
            f"{where}: the weights {spoilt[0]} are not all numbers (NaN or infinite); the model was broken "
            "when it was saved, take an earlier checkpoint"
        )
    tokenizer = load_tokenizer(where)
    rows = network.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        raise UserError(
            f"{where}: the tokenizer has {len(tokenizer)} entries but the model's embedding has {rows} rows; "
            "tokenizer.json and model.safetensors come from different runs"
        )
    if len(tokenizer) < rows:  # as padding for speed makes them: no text has those ids
        logger.info(f"{where}: {rows - len(tokenizer)} rows behind the tokenizer's last entry are left out")
        network.resize_token_embeddings(len(tokenizer))
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
    network = network.eval().to(device)
    if network.dtype not in (torch.bfloat16, torch.float16):
        return network, tokenizer
    if overrides.get("dtype", "auto") != "auto":
        _try_dtype(network)
    elif not Hardware.detect().computes_in(network.dtype):
        logger.warning(
            f"{where} has {str(network.dtype)[6:]} weights, a format that this machine only imitates: it "
            "computes with the same weights in float32, which is faster and rounds less"
        )
        network = network.float()
        network.config.dtype = torch.float32
    return network, tokenizer


def _try_dtype(network: PreTrainedModel) -> None:
    """Reads a few characters in the format of the weights, beside float32."""
    import torch

    from craft.utils.hardware import try_format

    ids = torch.zeros(1, 16, dtype=torch.long, device=network.device)
    exact = copy.deepcopy(network).float()
    with torch.inference_mode():
        warning = try_format(
            f"dtype={str(network.dtype)[6:]}", lambda: network(ids), lambda: exact(ids), "use dtype=float32"
        )
    if warning:
        logger.warning(warning)


def stream_text(
    model: PreTrainedModel, tokenizer: CharTokenizer, prompt: str = "", **sampling: Any
) -> Iterator[str]:
    """Writes on after `prompt`, a character at a time (nothing while one of several bytes is incomplete).

    Args:
        prompt: what to go on from; empty for a new line (or the begin token, if line breaks are unknown).
        **sampling: the fields of `Sampling`.

    Raises:
        UserError: for a character that the model's tokenizer refuses, or a sampling value out of range; at
            once, before iterating.
    """
    return (piece for (piece,) in _write(model, tokenizer, [prompt], Sampling(**sampling)))


def sample(
    model: PreTrainedModel,
    tokenizer: CharTokenizer,
    prompts: Sequence[str] = ("",),
    num_samples: int = 1,
    **sampling: Any,
) -> list[list[str]]:
    """`num_samples` continuations of each prompt; prompts of equal length are written on side by side.

    Returns:
        One list of continuations (without the prompt) for each prompt.
    """
    if num_samples < 1:
        raise UserError(f"num_samples is {num_samples}; it must be at least 1")
    texts = [[""] * num_samples for _ in prompts]
    by_length: dict[int, list[tuple[int, int]]] = {}
    for i, prompt in enumerate(prompts):
        length = len(tokenizer.encode_ids(prompt, "the prompt"))
        by_length.setdefault(length, []).extend((i, n) for n in range(num_samples))
    for rows in by_length.values():
        for pieces in _write(model, tokenizer, [prompts[i] for i, _ in rows], Sampling(**sampling)):
            for (i, n), piece in zip(rows, pieces):
                texts[i][n] += piece
    return texts


def _write(
    model: PreTrainedModel, tokenizer: CharTokenizer, prompts: list[str], sampling: Sampling
) -> Iterator[list[str]]:
    """One step a turn: the text that each row gained, nothing if it has ended. Prompts of equal length."""
    import torch

    from craft.data.tokenization import first_id

    for text in sampling.stop:
        tokenizer.check_writable(text, "stop")
    ids = [tokenizer.encode_ids(prompt, "the prompt").tolist() or [first_id(tokenizer)] for prompt in prompts]
    stream = model.stream(torch.tensor(ids, device=model.device), sampling.generation_config(model))
    return _pieces(stream, tokenizer, len(prompts), sampling)


def _pieces(
    stream: Iterator[Any], tokenizer: CharTokenizer, rows: int, sampling: Sampling
) -> Iterator[list[str]]:
    from transformers import set_seed

    if sampling.seed is not None:
        set_seed(sampling.seed)
    table = tokenizer.token_bytes
    decoders = [codecs.getincrementaldecoder("utf-8")(errors="replace") for _ in range(rows)]
    longest = max(map(len, sampling.stop), default=0)
    tails, open_rows = [""] * rows, [True] * rows
    for new in stream:
        pieces = []
        for row, token in enumerate(new.tolist()):
            piece = decoders[row].decode(table[token]) if open_rows[row] else ""
            if longest:
                tails[row] = (tails[row] + piece)[-longest:]
            open_rows[row] &= token != tokenizer.eos_token_id and not tails[row].endswith(sampling.stop)
            pieces.append(piece)
        yield pieces
        if not any(open_rows):
            return
