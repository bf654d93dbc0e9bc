"""A model as an ONNX file, checked against torch before it is handed out."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from craft.utils.common import require_extra
from craft.utils.errors import Failed, UserError
from craft.utils.files import explain_disk_errors, staged_folder
from craft.utils.outputs import OUTPUTS, onnx_dir, resolve

if TYPE_CHECKING:
    import numpy as np

    from craft.exporting.step import Step

FILE = "model.onnx"
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

    The folder appears only once all is written and onnxruntime has given torch's logits.

    Args:
        model, revision: as for `craft.inference.load`.
        folder: where to, which mustn't be there yet; None is `outputs/onnx/<model>`.

    Raises:
        UserError: for an unknown model, a folder that is taken or can't be written, or if the extra `export`
            isn't installed.
        Failed: if onnxruntime's logits are not torch's, or the disk is full.
    """
    require_extra("export", "onnx", "onnxscript", "onnxruntime")
    where = resolve(model, root)
    version = f"{where}-{revision}" if revision else where
    folder = folder or onnx_dir(Path(where).resolve().name if Path(where).is_dir() else version, root)
    if os.path.lexists(folder):
        raise UserError(
            f"{folder} exists; name another folder by --output, or delete it", code="setting-conflict"
        )
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{folder} can't be made: {error.strerror}; name another folder by --output",
            code="file-unwritable",
        ) from error
    explained = explain_disk_errors("the model", folder, lambda: "nothing is left there")
    with explained, staged_folder(folder) as staging:
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
