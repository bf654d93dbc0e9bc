"""A model as an ONNX file, compared with torch before it is handed out."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from craft.exporting.target import target
from craft.utils.common import require_extra
from craft.utils.errors import Failed, UserError
from craft.utils.files import explain_disk_errors, staged_folder
from craft.utils.outputs import onnx_dir

if TYPE_CHECKING:
    from craft.exporting.step import Step

FILE = "model.onnx"
TOLERANCE = 1e-4
"""How far an output may be from torch's."""
CHECKED = (7, 1, 1, 5, 1)
"""Lengths of the pieces in which a text is read for the comparison, state or cache going on from each."""
ONE_FILE = 1 << 30
"""Bytes of weights up to which they lie inside the file; a protobuf holds no more than 2 GiB."""


@dataclass(frozen=True)
class Exported:
    """An exported model.

    Attributes:
        folder: holds `model.onnx`, the tokenizer and the configuration.
        difference: the largest distance of an output from torch's in the comparison.
    """

    folder: Path
    inputs: list[str]
    outputs: list[str]
    difference: float


def export_onnx(model: str | Path, folder: Path | None = None, *, revision: str | None = None) -> Exported:
    """Writes a model as ONNX, with the tokenizer beside it.

    The folder is there only once all is written and onnxruntime has computed what torch does.

    Args:
        model, revision: as for `craft.inference.load`.
        folder: where to, which mustn't be there yet; None is `outputs/onnx/<model>`.

    Raises:
        UserError: for an unknown model, a folder that is there or can't be made, or if the extra `export`
            isn't installed.
        Failed: if onnxruntime computes something else than torch, or the disk is full.
    """
    require_extra("export", "onnx", "onnxscript", "onnxruntime")
    where, folder = target(model, revision, folder, onnx_dir)
    explained = explain_disk_errors("the model", folder, lambda: "nothing is left there")
    with explained, staged_folder(folder) as staging:
        return _export(where, revision, staging, folder)


def _export(where: str, revision: str | None, staging: Path, folder: Path) -> Exported:
    from craft.exporting.step import AttentionStep, RecurrentStep
    from craft.inference import load
    from craft.models import REGISTERED

    network, tokenizer = load(where, revision=revision, dtype="float32")
    network = network.cpu()
    if (kind := network.config.model_type) not in REGISTERED:
        raise UserError(
            f"craft exports its own models only, and {where} is a {kind}; the package optimum exports others",
            code="model-mismatch",
        )
    step = RecurrentStep(network) if network.carries_state else AttentionStep(network)
    write(step, staging / FILE)
    vars(network.config).pop("auto_map", None)  # code that isn't there, which readers would ask to run
    network.config.save_pretrained(staging)
    network.generation_config.save_pretrained(staging)
    tokenizer.save_pretrained(staging)
    difference = compare(step, staging / FILE)
    if not difference <= TOLERANCE:
        raise Failed(
            f"nothing was exported to {folder}: an output of onnxruntime is {difference:.2g} away from "
            f"torch's, more than {TOLERANCE:g}",
            code="model-invalid",
        )
    return Exported(folder, step.inputs, step.outputs, difference)


def write(step: Step, file: Path) -> None:
    """Writes the graph of a step and its weights."""
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
    """The largest distance between torch's outputs and onnxruntime's, over a text read in pieces."""
    import onnxruntime
    import torch

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    random = torch.Generator().manual_seed(1)
    ids = torch.randint(step.model.config.vocab_size, (3, sum(CHECKED)), generator=random)
    positions = torch.arange(sum(CHECKED)).expand(3, -1)
    memory, distances = step.start(3), []
    for piece, places in zip(ids.split(CHECKED, dim=1), positions.split(CHECKED, dim=1)):
        given = {"input_ids": piece, "position_ids": places, **memory}
        inputs = {name: given[name] for name in step.inputs}
        with torch.inference_mode():
            outputs = step(*inputs.values())
        theirs = session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})
        distances += [(own - torch.from_numpy(their)).abs().max() for own, their in zip(outputs, theirs)]
        memory = dict(zip(memory, outputs[1:]))
    return float(torch.stack(distances).max())  # NaN if there is one
