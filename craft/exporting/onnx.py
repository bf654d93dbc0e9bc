"""A model as an ONNX file, checked against torch before it is handed out."""

from __future__ import annotations

import contextlib
import errno
import io
import logging
import os
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from craft.utils.claims import LOCK, claimed
from craft.utils.common import require_extra
from craft.utils.errors import Failed, UserError
from craft.utils.outputs import OUTPUTS, onnx_dir, resolve

if TYPE_CHECKING:
    import numpy as np

    from craft.exporting.step import Step

FILE = "model.onnx"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
TOLERANCE = 1e-4
"""How far a logit may be from torch's."""
CHECKED = (7, 1, 1, 5, 1)
"""Lengths of the pieces in which a text is read for the check, state and cache going from one to the next."""
ONE_FILE = 1 << 30
"""Bytes of weights up to which they lie inside the file; a protobuf holds no more than 2 GiB."""


@dataclass(frozen=True)
class Exported:
    """An exported model.

    Attributes:
        folder: holds `model.onnx`, the tokenizer and the configuration.
        difference: the largest distance of a logit from torch's in the check.
    """

    folder: Path
    inputs: list[str]
    outputs: list[str]
    difference: float


def export_onnx(
    model: str | Path, folder: Path | None = None, root: Path = OUTPUTS, *, revision: str | None = None
) -> Exported:
    """Writes a model as ONNX, with the tokenizer beside it.

    `model.onnx` has its name only once all is written and onnxruntime has given torch's logits.

    Args:
        model, revision: as for `craft.inference.load`.
        folder: where to; None is `outputs/onnx/<model>`.

    Raises:
        UserError: for an unknown model, a folder that is taken or can't be written, or if the extra `export`
            isn't installed.
        Failed: if onnxruntime's logits are not torch's, or the disk is full.
    """
    require_extra("export", "onnx", "onnxscript", "onnxruntime")
    where = resolve(model, root)
    version = f"{where}-{revision}" if revision else where
    folder = folder or onnx_dir(Path(where).resolve().name if Path(where).is_dir() else version, root)
    with _made_whole(folder) as staging:
        from craft.exporting.step import AttentionStep, RecurrentStep
        from craft.inference import load

        network, tokenizer = load(where, revision=revision, dtype="float32")
        network = network.cpu()
        step = RecurrentStep(network) if network.carries_state else AttentionStep(network)
        _write(step, staging / FILE)
        vars(network.config).pop("auto_map", None)  # it leads to code that isn't here and that nobody needs
        network.config.save_pretrained(staging)
        network.generation_config.save_pretrained(staging)
        tokenizer.save_pretrained(staging)
        difference = compare(step, staging / FILE)
        if not difference <= TOLERANCE:
            raise Failed(
                f"nothing was exported to {folder}: by onnxruntime a logit is {difference:.2g} away from "
                f"torch's, more than {TOLERANCE:g}"
            )
    return Exported(folder, step.inputs, step.outputs, difference)


@contextlib.contextmanager
def _made_whole(folder: Path) -> Iterator[Path]:
    """A folder inside `folder` whose files move up into it at the end, `model.onnx` as the last; if something
    fails, `folder` is as it was before.

    Raises:
        UserError: if the place is taken or can't be written.
        Failed: if the disk fills up.
    """
    existed, staging = os.path.lexists(folder), folder / ".unfinished"
    taken = UserError(f"{folder} exists and isn't an empty folder; name another by --output, or delete it")
    if existed and not folder.is_dir():
        raise taken
    with claimed(folder, "written", "--output"):
        if folder.is_dir() and any(inside.name not in (staging.name, LOCK) for inside in folder.iterdir()):
            raise taken
        try:
            if staging.is_dir():  # of an export that was killed
                shutil.rmtree(staging)
            staging.mkdir(parents=True)
        except OSError as error:
            reason = f"{folder} can't be written: {error.strerror}"
            raise UserError(f"{reason}; name another folder by --output") from error
        try:
            yield staging
            for file in sorted(staging.iterdir(), key=lambda file: file.name == FILE):
                file.replace(folder / file.name)
            staging.rmdir()
        except BaseException as error:
            shutil.rmtree(staging)
            for file in folder.iterdir():
                file.unlink()
            if not existed:
                folder.rmdir()
            if why := _refusal(error):
                left = "nothing is left there: make room, or name another folder by --output"
                raise Failed(f"{folder} can't be written: {why}; {left}") from error
            raise


def _refusal(error: BaseException | None) -> str:
    """What the disk said, where an error of some library comes from it; else nothing."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in FULL:
            return str(error.strerror)
        if "(os error 28)" in str(error):  # as Rust says it
            return os.strerror(errno.ENOSPC)
        error = error.__cause__ or error.__context__
    return ""


def _write(step: Step, file: Path) -> None:
    import torch

    arguments, shapes = step.example()
    weights = sum(p.numel() * p.element_size() for p in step.parameters())
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
        warnings.simplefilter("ignore")  # of the exporter, about its own deprecations
        torch.onnx.export(
            step.eval(),
            arguments,
            str(file),
            dynamo=True,
            input_names=step.inputs,
            output_names=step.outputs,
            dynamic_shapes=shapes,
            external_data=weights > ONE_FILE,
            verbose=False,
        )


def compare(step: Step, file: Path) -> float:
    """The largest distance between torch's logits and onnxruntime's, over a text read in pieces."""
    import numpy as np
    import torch

    session = open_session(file)
    ids = torch.randint(
        step.model.config.vocab_size, (3, sum(CHECKED)), generator=torch.Generator().manual_seed(1)
    )
    remembered = step.start(3)
    memory = {name: tensor.numpy() for name, tensor in remembered.items()}
    difference, at = 0.0, 0
    for length in CHECKED:
        piece = ids[:, at : at + length]
        inputs = {"input_ids": piece}
        if "position_ids" in step.inputs:
            inputs["position_ids"] = torch.arange(at, at + length).expand(3, -1)
        with torch.inference_mode():
            expected, *after = step(*inputs.values(), *remembered.values())
        logits, memory = run(session, {name: tensor.numpy() for name, tensor in inputs.items()}, memory)
        difference = max(difference, float(np.abs(expected.numpy() - logits).max()))
        remembered = dict(zip(remembered, after))
        at += length
    return difference


def open_session(file: Path) -> Any:
    """An onnxruntime session on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def run(
    session: Any, inputs: dict[str, np.ndarray], memory: dict[str, np.ndarray]
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """One call: logits [B, T, V], and what to remember under the names by which it goes in again."""
    logits, *after = session.run(None, {**inputs, **memory})
    return logits, dict(zip(memory, after))
