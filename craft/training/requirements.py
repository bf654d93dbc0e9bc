"""What a setting needs of this machine: an installed package, a GPU, several processes, a folder to make.

Without these rules the answer would come after the text and the model are loaded, as another library's
traceback. Each takes the settings of a training by name and raises a UserError.
"""

from __future__ import annotations

import importlib.util
import io
import os
from collections.abc import Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from craft.training.precision import Hardware, choose_precision
from craft.utils import launch
from craft.utils.common import did_you_mean
from craft.utils.errors import UserError
from craft.utils.settings import yaml_word

OPTIMIZERS = {
    **dict.fromkeys(("bnb", "8bit", "paged", "lion", "ademamix"), "bitsandbytes"),
    "lomo": "lomo_optim",
    "galore": "galore_torch",
    "apollo": "apollo_torch",
    "grokadamw": "grokadamw",
    "schedule_free": "schedulefree",
    "stable_adamw": "optimi",
    "anyprecision": "torchdistx",
    "torch_4bit": "torchao",
    "torch_8bit": "torchao",
    "torch_xla": "torch_xla",
    "npu": "torch_npu",
}
"""Which package holds the optimizers whose name contains a word; the last word that fits counts."""

SERVICES = {
    "azure_ml": ("azureml",),
    "tensorboard": ("tensorboard", "tensorboardX"),
    "clearml": ("clearml",),
    "dagshub": ("dagshub",),
    "flyte": ("flytekit",),
}
"""Packages of services, any one of which will do, where they aren't called like the service."""

Values = Mapping[str, Any]


def installed(package: str) -> bool:
    """Whether a top-level package could be imported."""
    return importlib.util.find_spec(package) is not None


def on_cpu(values: Values) -> bool:
    """Whether a run is on a CPU, by choice or because this machine has nothing else."""
    import torch

    chosen = values["use_cpu"] or launch.flag("ACCELERATE_USE_CPU")
    return chosen or not torch.accelerator.is_available()


def precision(values: Values) -> None:
    """The format is named once, and this machine computes in it; `bf16` and `fp16` are other words for it."""
    asked = {name: f"training.{name}=true" for name in ("fp16", "bf16") if values[name]}
    if len(asked) == 2:
        raise UserError(f"{' and '.join(asked.values())} exclude each other; set training.precision instead")
    if values["precision"] != "auto":
        for name, written in asked.items():
            if name != values["precision"]:
                raise UserError(
                    f"{written} contradicts training.precision={values['precision']}; keep the latter"
                )
        asked = {values["precision"]: f"training.precision={values['precision']}"}
    for name, written in asked.items():
        try:
            choose_precision(name, hardware=Hardware.detect(on_cpu(values)))
        except UserError as error:
            raise UserError(str(error).replace(f"training.precision={name}", written, 1)) from None


def optimizer_package(values: Values) -> None:
    name = values["optim"]
    needed = [package for part, package in OPTIMIZERS.items() if part in name]
    if needed and not installed(needed[-1]):
        raise UserError(
            f"training.optim={name} needs the package {needed[-1]}, which isn't installed; use "
            "adamw_torch_fused or muon, or install it"
        )


def services() -> tuple[str, ...]:
    """The words of `report_to`."""
    with redirect_stdout(io.StringIO()):  # it says there, where our own lines go, that W&B is offline
        from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    return ("none", "all", *INTEGRATION_TO_CALLBACK)


def reports(values: Values) -> None:
    """Services that transformers knows, and whose package is there."""
    written = values["report_to"]
    for name in [written] if isinstance(written, str) else written or []:
        if name in ("none", "all", "wandb"):  # the usual words, without a look into transformers
            continue
        if name not in (known := services()):
            raise UserError(
                f"unknown training.report_to={yaml_word(name)}{did_you_mean(str(name), known)} "
                f"(there are {', '.join(known)})"
            )
        packages = SERVICES.get(name, (name,))
        if not any(map(installed, packages)):
            raise UserError(
                f"training.report_to={name} needs the package {packages[0]}, which isn't installed; install "
                "it, or set training.report_to=wandb or none"
            )


def feature_packages(values: Values) -> None:
    for name, package in (("deepspeed", "deepspeed"), ("use_liger_kernel", "liger_kernel")):
        if values[name] and not installed(package):
            raise UserError(
                f"training.{name}={yaml_word(values[name])} needs the package {package}, which isn't "
                "installed; leave it out, or install it"
            )


def several_processes(values: Values) -> None:
    if values["fsdp"] and launch.world_size() < 2:
        raise UserError(
            f"training.fsdp={yaml_word(values['fsdp'])} shares a model between several processes, and this "
            "is one; start them with accelerate launch, or leave it out"
        )


def output_dir(values: Values) -> None:
    """A folder of the run's own that is there or can be made."""
    written = values["output_dir"]
    if not written:
        return
    folder = Path(written)
    if folder.name in ("", ".."):
        raise UserError(
            f"training.output_dir={written} is no folder of its own; name one, such as runs/first"
        )
    if len(os.fsencode(folder.name)) > 200:
        raise UserError(
            f"training.output_dir ends with a name of {len(folder.name)} characters; it must be shorter than "
            "200"
        )
    for place in (folder, *folder.parents):
        if place.is_dir():
            break
        if os.path.lexists(place):
            raise UserError(f"training.output_dir={written} can't be made: {place} is no folder")
    if not os.access(place, os.W_OK):
        raise UserError(f"training.output_dir={written} can't be made: {place} can't be written to")


RULES = (
    precision,
    optimizer_package,
    reports,
    feature_packages,
    several_processes,
    output_dir,
)
