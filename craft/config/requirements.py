"""What a setting needs of this machine: an installed package, a GPU, several processes, a folder to make.

Without these rules the answer would come after torch and the text are loaded, as another library's traceback.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from craft.config.sources import integrations, yaml_word
from craft.utils import launch
from craft.utils.common import did_you_mean

if TYPE_CHECKING:
    from craft.config.combinations import Complaint, Parts

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


def installed(package: str) -> bool:
    """Whether a top-level package could be imported."""
    return importlib.util.find_spec(package) is not None


def accelerator_present() -> bool:
    """Whether this machine seems to have a GPU, judged without torch: device files, nvidia-smi, or a Mac."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1") or launch.flag("ACCELERATE_USE_CPU"):
        return False
    devices = any(Path("/dev").glob("nvidia[0-9]*")) or Path("/dev/kfd").exists() or Path("/dev/dxg").exists()
    return devices or shutil.which("nvidia-smi") is not None or sys.platform == "darwin"


def optimizer_package(run: Parts) -> Complaint:
    name = run.training["optim"]
    needed = [package for word, package in OPTIMIZERS.items() if word in name]
    if not needed or installed(needed[-1]):
        return None
    return (
        "training.optim",
        f"training.optim={name} needs the package {needed[-1]}, which isn't installed; use adamw_torch_fused "
        "or muon, or install it",
    )


def reports(run: Parts) -> Complaint:
    """Services that transformers knows, and whose package is there."""
    written, key = run.training["report_to"], "training.report_to"
    for name in [written] if isinstance(written, str) else written or []:
        if name in ("none", "all", "wandb"):  # the usual words, without a look into transformers
            continue
        known = ("none", "all", *integrations())
        if name not in known:
            hint = did_you_mean(str(name), known)
            return key, f"unknown {key}={yaml_word(name)}{hint} (there are {', '.join(known)})"
        packages = SERVICES.get(name, (name,))
        if not any(map(installed, packages)):
            return (
                key,
                f"{key}={name} needs the package {packages[0]}, which isn't installed; install it, or set "
                f"{key}=wandb or none",
            )
    return None


def feature_package(run: Parts) -> Complaint:
    for key, package in (("deepspeed", "deepspeed"), ("use_liger_kernel", "liger_kernel")):
        if run.training[key] and not installed(package):
            written = f"training.{key}={yaml_word(run.training[key])}"
            return (
                f"training.{key}",
                f"{written} needs the package {package}, which isn't installed; leave it out, or install it",
            )
    return None


def attention(run: Parts) -> Complaint:
    """Of transformers' ways to compute attention, those that can be trained with here."""
    name, key = run.models.get("attn_implementation"), "models.attn_implementation"
    if not name or run.recurrent:
        return None
    if name.startswith("flash_attention_"):
        package = {"flash_attention_2": "flash_attn", "flash_attention_3": "flash_attn_interface"}.get(name)
        if package is None or not installed(package):
            what = f"the package {package}" if package else "a version of transformers that knows it"
            return key, f"{key}={name} needs {what}, which isn't installed; use sdpa, or leave it out"
    if name == "flex_attention" and run.on_cpu:
        return key, f"{key}={name} can't be trained with on a CPU; use sdpa or eager, or leave it out"
    return None


def several_processes(run: Parts) -> Complaint:
    if run.training["fsdp"] and launch.world_size() < 2:
        return (
            "training.fsdp",
            f"training.fsdp={yaml_word(run.training['fsdp'])} shares a model between several processes, and "
            "this is one; start them with accelerate launch, or leave it out",
        )
    return None


def output_dir(run: Parts) -> Complaint:
    written, key = run.training["output_dir"], "training.output_dir"
    if not written:
        return None
    folder = Path(written)
    if folder.name in ("", ".."):
        return (
            key,
            f"{key}={written} is no folder of its own; name one, such as runs/first",
        )
    if len(os.fsencode(folder.name)) > 200:
        return key, f"{key} ends with a name of {len(folder.name)} characters; it must be shorter than 200"
    for place in (folder, *folder.parents):
        if place.is_dir():
            break
        if os.path.lexists(place):
            return key, f"{key}={written} can't be made: {place} is no folder"
    if not os.access(place, os.W_OK):
        return key, f"{key}={written} can't be made: {place} can't be written to"
    return None


RULES = (
    optimizer_package,
    reports,
    feature_package,
    attention,
    several_processes,
    output_dir,
)
