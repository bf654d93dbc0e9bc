"""The one place where the name of anything that craft writes is made.

Everything lies under `outputs/` of the folder in which the command runs:

    outputs/models/{model}_{size}_{precision}_{date}_{timestamp}/            a run: checkpoint-{step}/ inside
    outputs/models/{model}_{size}_{precision}_{date}_{timestamp}_step_{n}/   its finished model
    outputs/logs/train_{model}_{date}_{timestamp}.log
    outputs/samples/sample_{date}_{timestamp}.txt
    outputs/evaluation/eval_{model}_{dataset}_{date}_{timestamp}.json
    outputs/evaluation/novelty_{model}_{dataset}_{date}_{timestamp}.json
    outputs/visualizations/{type}_{model}_{date}_{timestamp}.png
    outputs/benchmarks/benchmark_{test}_{hardware}_{date}_{timestamp}.json
    outputs/onnx/{name of the model's folder}/
    outputs/html/{name of the model's folder}.html
    outputs/comparisons/compare_{date}_{timestamp}.json, .md and .png
    outputs/models/compare_{files it names}_{hash of its settings}/         a run of `craft compare --run`

A `{date}_{timestamp}` is given out once: whatever else starts in that second is named by the next free one.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from pathlib import Path

from craft.utils.common import did_you_mean
from craft.utils.errors import UserError
from craft.utils.files import replace_text
from craft.utils.hub import meant_as_repo_id
from craft.utils.paths import typed_path

OUTPUTS = Path("outputs")
STAMPS = ".stamps"
RUN_NAMES = "run.json"
RUN_CONFIG = "craft_run.yaml"
"""The resolved run, saved beside the weights; `craft train --config` repeats it."""
DATA = "data.json"
"""Facts about the text of a run, beside a finished model."""

WRITTEN_TOGETHER = ((RUN_CONFIG, RUN_NAMES), (RUN_CONFIG, "config.json"), ("model.onnx", "config.json"))
"""Files that lie together only in a run, a model, an export."""


def unique_timestamp(root: Path = OUTPUTS) -> str:
    """A `{date}_{timestamp}` in local time: the first second from now on that no other process has.

    Whoever makes the file `root/.stamps/{stamp}` has it.
    """
    now, taken = datetime.now(), root / STAMPS
    taken.mkdir(parents=True, exist_ok=True)
    while True:
        stamp = now.strftime("%Y%m%d_%H%M%S")
        with suppress(FileExistsError):
            (taken / stamp).touch(exist_ok=False)
            return stamp
        now += timedelta(seconds=1)


def checkpoint_step(name: str) -> int | None:
    """The step of a folder of this name if it is a checkpoint, `checkpoint-{step}`; None for any other."""
    found = re.fullmatch(r"checkpoint-(\d+)", name)
    return int(found[1]) if found else None


def slug(text: str) -> str:
    """A part of a file name: letters of any script with their marks, digits, `.`, `_`, `-`, with everything
    else turned into `-`. At most 100 bytes of UTF-8, which leaves room for the other parts."""
    composed = unicodedata.normalize("NFC", text)  # as a file system may, which would then not find it
    kept = "".join(c if c in "._-" or unicodedata.category(c)[0] in "LMN" else " " for c in composed)
    return "-".join(kept.split()).encode()[:100].decode(errors="ignore").strip("-.") or "unnamed"


def finished_model(run_dir: Path, step: int) -> Path:
    """The folder of the model that a run ended with."""
    return run_dir.with_name(f"{run_dir.name}_step_{step}")


@dataclass(frozen=True)
class RunPaths:
    """Every path of one training run; all share one stamp, so that they are found together.

    Args:
        model_name: for example `char_lstm`.
        size: the parameter count as people write it, for example `0.8M`.
        precision: `fp32`, `bf16` or `fp16`.
        stamp: `{date}_{timestamp}` of the start of the run, from `unique_timestamp`.
        root: the `outputs` folder.
        folder: where the user wants the run instead of `root/models/…`; the other outputs stay below `root`.
        text: fingerprint of what the run is trained on, so that it doesn't go on with something else.
    """

    model_name: str
    size: str
    precision: str
    stamp: str
    root: Path = OUTPUTS
    folder: Path | None = None
    text: str | None = None

    @property
    def run_dir(self) -> Path:
        name = f"{self.model_name}_{self.size}_{self.precision}_{self.stamp}"
        return self.folder or self.root / "models" / name

    def export_dir(self, step: int) -> Path:
        return finished_model(self.run_dir, step)

    @property
    def log_file(self) -> Path:
        return self.root / "logs" / f"train_{self.model_name}_{self.stamp}.log"

    @property
    def sample_file(self) -> Path:
        return sample_file(self.root, self.stamp)

    def evaluation_file(self, dataset: str) -> Path:
        return evaluation_file(self.model_name, dataset, self.root, self.stamp)

    def figure(self, kind: str) -> Path:
        return self.root / "visualizations" / f"{kind}_{self.model_name}_{self.stamp}.png"

    def create(self) -> None:
        """Makes the folder of the run, with a note of its names for `of_run_dir`."""
        self.run_dir.mkdir(parents=True, exist_ok=True)
        self.note(self.run_dir)

    def note(self, folder: Path) -> None:
        """Writes the note of the names into a folder, which may become the run's later."""
        replace_text(folder / RUN_NAMES, json.dumps(asdict(self), indent=2, default=str) + "\n")

    @classmethod
    def of_run_dir(cls, run_dir: Path) -> RunPaths:
        """The paths of a run that exists already (used by resume), wherever its folder was moved to.

        Raises:
            UserError: if the folder isn't a run.
        """
        try:
            names = json.loads((run_dir / RUN_NAMES).read_text(encoding="utf-8"))
            return cls(**{**names, "root": Path(names["root"]), "folder": run_dir})
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{run_dir} isn't a run of craft: it has no readable {RUN_NAMES}", code="run-missing"
            ) from error


def written_by_craft(folder: Path) -> bool:
    """Whether a folder is a run, a model that craft saved, an export, or the `outputs/` of them all."""
    if (folder / STAMPS).is_dir():
        return True
    return any(all((folder / name).is_file() for name in names) for names in WRITTEN_TOGETHER)


def sample_file(root: Path = OUTPUTS, stamp: str | None = None) -> Path:
    return root / "samples" / f"sample_{stamp or unique_timestamp(root)}.txt"


def evaluation_file(
    model_name: str, dataset: str, root: Path = OUTPUTS, stamp: str | None = None, kind: str = "eval"
) -> Path:
    """Of scores, or of another `kind` of judgement."""
    stamp = stamp or unique_timestamp(root)
    return root / "evaluation" / f"{kind}_{slug(model_name)}_{slug(dataset)}_{stamp}.json"


def visualization_file(kind: str, root: Path = OUTPUTS) -> Path:
    return root / "visualizations" / f"{kind}_{unique_timestamp(root)}.png"


def benchmark_file(test: str, hardware: str) -> Path:
    return OUTPUTS / "benchmarks" / f"benchmark_{slug(test)}_{slug(hardware)}_{unique_timestamp()}.json"


def comparison_file() -> Path:
    """Of a comparison as JSON; its table and picture have other endings."""
    return OUTPUTS / "comparisons" / f"compare_{unique_timestamp()}.json"


def compared_run(name: str, settings: Iterable[str]) -> Path:
    """The folder of a run that is trained to be compared: the same for the same settings."""
    digest = hashlib.sha256("\n".join(sorted(settings)).encode()).hexdigest()[:8]
    return OUTPUTS / "models" / f"compare_{slug(name)}_{digest}"


def onnx_dir(model: str) -> Path:
    return OUTPUTS / "onnx" / slug(model)


def html_file(model: str) -> Path:
    return OUTPUTS / "html" / f"{slug(model)}.html"


def resolve(model: str | Path, root: Path = OUTPUTS) -> str:
    """The folder or Hub id behind what the user typed: `latest` (the newest finished model), a run's folder
    (its newest finished model or checkpoint), a model's folder, or a Hub id as it stands.

    Raises:
        UserError: if it is none of these.
    """
    typed, path = str(model), Path(typed_path(model))
    folders, missing = [path], f"no model at {typed!r}{did_you_mean(typed, ['latest'])}"
    if typed == "latest":
        folders = [*(root / "models").glob("[!.]*_step_*")]
        missing = f"no finished model in {root / 'models'}; run 'craft train my.txt' first"
    elif path.is_dir() and not (path / "config.json").is_file():
        folders = [*path.parent.glob(f"{path.name}_step_*"), *path.glob("checkpoint-*")]
        missing = f"{path} holds no model (no config.json)"
    elif not path.exists() and meant_as_repo_id(typed):
        return typed
    saved = [folder / "config.json" for folder in folders if (folder / "config.json").is_file()]
    if not saved:
        raise UserError(
            f"{missing}; give a folder made by 'craft train', a Hub id such as user/name, or 'latest'",
            code="model-missing",
        )
    return str(max(saved, key=lambda config: config.stat().st_mtime_ns).parent)
