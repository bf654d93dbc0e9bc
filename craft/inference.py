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

MIN_TEMPERATURE, MAX_TEMPERATURE = 0.001, 1000
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
        temperatures = f"between {MIN_TEMPERATURE} and {MAX_TEMPERATURE} (--greedy writes the likeliest text)"
        for name, right, words in (
            ("max_new_tokens", self.max_new_tokens >= 1, "at least 1"),
            ("temperature", MIN_TEMPERATURE <= self.temperature <= MAX_TEMPERATURE, temperatures),
            ("top_k", self.top_k >= 0, "0 (off) or more"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1 (off)"),
            ("min_p", 0 <= self.min_p < 1, "at least 0 (off) and below 1"),
            ("seed", self.seed is None or 0 <= self.seed < 2**32, f"between 0 and {2**32 - 1}"),
            ("stop", all(self.stop), "texts of at least one character"),
        ):
            if not right:
                raise UserError(f"{name}={getattr(self, name)!r}: it must be {words}", code="setting-value")

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
            and tokenizer don't belong together, or it can't be trusted (see `craft.sharing.trust`).
        Failed: if the Hub can't be reached.
    """
    where = str(trusted(resolve(model, root), revision, trust_remote_code))
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    import craft.models  # noqa: F401  (makes craft's classes known to AutoModel)
    from craft.data.tokenization import load_tokenizer
    from craft.models.hf_auto import with_objective
    from craft.utils.hardware import Hardware, try_format

    disable_progress_bar()  # small models load at once, and the bar would stand between prompt and text
    try:
        network = AutoModelForCausalLM.from_pretrained(
            where, trust_remote_code=trust_remote_code, use_safetensors=True, **overrides
        )
    except Exception as error:  # files of somebody else may be wrong in any way
        reason = " ".join(str(error).split())[:500] or type(error).__name__
        if "ignore_mismatched_sizes" in reason:
            reason = "its weights don't have the shapes that config.json says"
        if "trust_remote_code" in reason:
            raise UserError(
                f"{where}: its config.json names no model of craft's, and other code isn't run; read the "
                "Python files beside it, then say --trust-remote-code",
                code="code-untrusted",
            ) from error
        raise UserError(f"can't load the model {str(model)!r}: {reason}", code="model-invalid") from error
    network = with_objective(network)
    broken = [name for name, weight in network.named_parameters() if not weight.isfinite().all()]
    if broken:
        raise UserError(
            f"{where}: the weights {broken[0]} are NaN or infinite; take an earlier checkpoint",
            code="model-invalid",
        )
    tokenizer = load_tokenizer(where)
    rows = network.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        raise UserError(
            f"{where}: the tokenizer has {len(tokenizer)} entries but the model's embedding has {rows} rows; "
            "tokenizer.json and model.safetensors come from different runs",
            code="model-mismatch",
        )
    if len(tokenizer) < rows:  # as padding for speed makes them: no text has those ids
        logger.info(f"{where}: {rows - len(tokenizer)} rows behind the tokenizer's last entry are left out")
        network.resize_token_embeddings(len(tokenizer))
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
    network = network.eval().to(device)
    if network.dtype not in (torch.bfloat16, torch.float16):
        return network, tokenizer
    if overrides.get("dtype", "auto") != "auto":
        try_format(f"dtype={str(network.dtype)[6:]}", network)
    elif not Hardware.detect().computes_in(network.dtype):
        logger.warning(
            f"{where} has {str(network.dtype)[6:]} weights, a format that this machine only imitates: it "
            "computes with the same weights in float32, which is faster and rounds less"
        )
        network = network.float()
        network.config.dtype = torch.float32
    return network, tokenizer


def stream_text(
    model: PreTrainedModel, tokenizer: CharTokenizer, prompt: str = "", **sampling: Any
) -> Iterator[str]:
    """Continues `prompt`, a character at a time (nothing while one of several bytes is incomplete).

    Args:
        prompt: what to go on from; empty for a new line (or the begin token, if line breaks are unknown).
        **sampling: the fields of `Sampling`.

    Raises:
        UserError: for a character that the model's tokenizer refuses, or a sampling value out of range; at
            once, before iterating.
    """
    return (piece for (piece,) in _write(model, tokenizer, prompt, 1, Sampling(**sampling)))


def sample(
    model: PreTrainedModel,
    tokenizer: CharTokenizer,
    prompts: Sequence[str] = ("",),
    num_samples: int = 1,
    **sampling: Any,
) -> list[list[str]]:
    """`num_samples` continuations of each prompt, which are written side by side.

    Returns:
        One list of continuations (without the prompt) for each prompt.
    """
    if num_samples < 1:
        raise UserError(f"num_samples={num_samples}: it must be at least 1", code="setting-value")
    settings, texts = Sampling(**sampling), []
    for prompt in prompts:
        steps = _write(model, tokenizer, prompt, num_samples, settings)
        texts.append(["".join(pieces) for pieces in zip(*steps)])
    return texts


def _write(
    model: PreTrainedModel, tokenizer: CharTokenizer, prompt: str, rows: int, sampling: Sampling
) -> Iterator[list[str]]:
    """What each of the rows that go on from a prompt gains in a step, nothing once it has ended."""
    import torch

    from craft.data.tokenization import first_id

    for text in sampling.stop:
        tokenizer.check_writable(text, "stop")
    ids = tokenizer.encode_ids(prompt, "the prompt").tolist() or [first_id(tokenizer)]
    stream = model.stream(torch.tensor([ids] * rows, device=model.device), sampling.generation_config(model))
    return _decode(stream, tokenizer, rows, sampling)


def _decode(
    stream: Iterator[Any], tokenizer: CharTokenizer, rows: int, sampling: Sampling
) -> Iterator[list[str]]:
    from transformers import set_seed

    if sampling.seed is not None:
        set_seed(sampling.seed)
    table = tokenizer.token_bytes
    decoders = [codecs.getincrementaldecoder("utf-8")(errors="replace") for _ in range(rows)]
    longest = max(map(len, sampling.stop), default=0)
    tails, unfinished = [""] * rows, [True] * rows
    for new in stream:
        pieces = [""] * rows
        for row, token in enumerate(new.tolist()):
            if unfinished[row]:
                pieces[row] = decoders[row].decode(table[token])
                if longest:
                    tails[row] = (tails[row] + pieces[row])[-longest:]
                stopped = token == tokenizer.eos_token_id or tails[row].endswith(sampling.stop)
                unfinished[row] = not stopped
        yield pieces
        if not any(unfinished):
            return
