"""What a checkpoint of a run holds, and how a run continues from it.

model.safetensors, config.json, tokenizer …   a model that any Hugging Face tool opens (with
`ema_decay`: the
                                              average, which is what was evaluated)
training_weights.safetensors                  with `ema_decay`: the weights that training goes on with
optimizer.pt, scheduler.pt, scaler.pt         as transformers writes them, read with weights_only=True
rng_state*.pth, rank_{r}.safetensors          per process: generators; the running loss, carried states
trainer_state.json, progress.json             step, history; time, loss and averages so far, the W&B run
craft_run.yaml, training_args.json            the run; its arguments as plain text
manifest.json                                 sizes and hashes of all these, written last
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import transformers
import yaml
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import HubStrategy

from craft.training import checkpoints
from craft.training.arguments import CraftTrainingArguments
from craft.training.distributed import among_peers
from craft.training.ema import WeightAverage
from craft.training.logging import Stopwatch
from craft.utils.common import TrainingFailed, UserError
from craft.utils.logging import get_logger
from craft.utils.outputs import RUN_CONFIG

logger = get_logger(__name__)

RAW_WEIGHTS = "training_weights.safetensors"
PROGRESS = "progress.json"
STATE = "trainer_state.json"
NOT_FOR_THE_HUB = ["*.pt", "*.pth", "rank_*", RAW_WEIGHTS, PROGRESS, STATE, checkpoints.MANIFEST]


class SavingTrainer(transformers.Trainer):
    """The part of `Trainer` that writes checkpoints and reads them back.

    Attributes:
        resumed: the checkpoint that this process continues.
        saved_step: the step of the last checkpoint it wrote.
        average: the moving average of the weights, in training with `ema_decay`.
        watch: time spent in training.
        wandb_id: the W&B run.
    """

    args: CraftTrainingArguments
    run_config: dict[str, Any]
    optimizer: Any
    control: Any

    def __init__(self, **kwargs: Any) -> None:
        self.resumed: Path | None = None
        self.saved_step: int | None = None
        self.average: WeightAverage | None = None
        self.wandb_id: str | None = None
        self.watch = Stopwatch()
        super().__init__(**kwargs)

    @property
    def run_dir(self) -> Path:
        return Path(self.args.output_dir)

    # ---- Writing

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Writes `checkpoint-{step}` so that it appears whole or not at all, and removes old ones.

        Raises:
            TrainingFailed: if it can't be written.
        """
        self.watch.pause()
        step, run_dir = self.state.global_step, Path(self._get_output_dir(trial))
        staging, main = checkpoints.staging_dir(run_dir, step), self.is_world_process_zero()
        try:
            if main:
                checkpoints.discard(staging)
                staging.mkdir(parents=True)
            self._wait()
            self._write(staging, run_dir)
            self._wait()
            if main:
                checkpoints.publish(staging, step)
                checkpoints.rotate(run_dir, self.args.save_total_limit, self.state.best_global_step)
        except (OSError, RuntimeError, SafetensorError) as error:
            if main:
                checkpoints.discard(staging)
            good = next((c for c in checkpoints.checkpoints(run_dir) if not checkpoints.damage(c)), None)
            reason = str(error).splitlines()[0]
            raise TrainingFailed(
                f"checkpoint-{step} can't be written ({reason}); last good checkpoint: {good or 'none yet'}; "
                f"make room in {run_dir} and resume"
            ) from error
        self._wait()
        self.saved_step = step
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(checkpoints.checkpoint_dir(run_dir, step)))
        self.watch.run()

    def _write(self, folder: Path, run_dir: Path) -> None:
        main = self.is_world_process_zero()
        self.store_flos()
        if self.average is None:
            self.save_model(str(folder), _internal_call=True)
        else:
            if main:
                raw = {name: p.detach().contiguous() for name, p in self.average.parameters.items()}
                save_file(raw, folder / RAW_WEIGHTS)
            with self.average.applied():
                self.save_model(str(folder), _internal_call=True)
        if not self.args.save_only_model:
            self._save_optimizer_and_scheduler(str(folder))
            self._save_scaler(str(folder))
            self._save_rng_state(str(folder))
            save_file(self.rank_tensors(), folder / f"rank_{self.args.process_index}.safetensors")
        if not main:
            return
        progress = {
            "elapsed": self.watch.total(),
            "total_loss": self._total_loss_scalar,
            "last_logged_step": self._globalstep_last_logged,
            "average_updates": self.average.updates if self.average is not None else 0,
            "wandb_id": self.wandb_id,
            "processes": self.args.world_size,
        }
        (folder / PROGRESS).write_text(json.dumps(progress, indent=1), encoding="utf-8")
        if self.state.best_global_step:
            best = checkpoints.checkpoint_dir(run_dir, self.state.best_global_step)
            self.state.best_model_checkpoint = str(best)
        for callback in [*self.callback_handler.callbacks, self.control]:
            if isinstance(callback, ExportableState):
                self.state.stateful_callbacks[type(callback).__name__] = callback.state()
        self.state.save_to_json(str(folder / STATE))

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Model, tokenizer, run and arguments: as JSON (without secrets), where transformers would pickle."""
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        self.accelerator.unwrap_model(self.model).save_pretrained(str(folder), state_dict=state_dict)
        if self.processing_class is not None:
            self.processing_class.save_pretrained(str(folder))
        if self.run_config:
            text = yaml.safe_dump(self.run_config, sort_keys=False, allow_unicode=True)
            (folder / RUN_CONFIG).write_text(text, encoding="utf-8")
        (folder / "training_args.json").write_text(self.args.to_json_string() + "\n", encoding="utf-8")

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Uploads the model of a checkpoint, without the pickle of the arguments that transformers adds."""
        if not self.is_world_process_zero() or self.args.hub_strategy == HubStrategy.END:
            return
        try:
            HfApi(token=self.args.hub_token).upload_folder(
                repo_id=self.hub_model_id,
                folder_path=checkpoint_folder,
                ignore_patterns=NOT_FOR_THE_HUB,
                commit_message=f"Step {self.state.global_step}",
                revision=self.args.hub_revision,
            )
        except (HfHubHTTPError, OSError) as error:
            reason = str(error).splitlines()[0]
            logger.warning(f"step {self.state.global_step} isn't on the Hub ({reason}); training goes on")

    def rank_tensors(self) -> dict[str, Tensor]:
        """What this process alone knows and a resumed run needs."""
        return {"running_loss": self._tr_loss.reshape(1)}

    # ---- Reading

    def find(self, resume: str | Path | bool | None) -> Path | None:
        """The whole checkpoint that `resume` asks for: a folder, True for the run directory, None for none.

        Raises:
            UserError: if there is none, or it holds no more than a model.
        """
        if resume is None or resume is False:
            return None
        checkpoint = checkpoints.find_checkpoint(self.run_dir if resume is True else Path(resume))
        if not (checkpoint / "optimizer.pt").is_file():
            raise UserError(
                f"can't resume from {checkpoint}: it was saved with training.save_only_model=true"
            )
        return checkpoint

    def progress_at(self, checkpoint: Path) -> dict[str, Any]:
        return json.loads((checkpoint / PROGRESS).read_text(encoding="utf-8"))

    def raw_weights(self) -> dict[str, Tensor] | None:
        """The weights to train on with, where the resumed checkpoint's model holds their average."""
        path = self.resumed / RAW_WEIGHTS if self.resumed is not None else None
        return load_file(path, device=str(self.args.device)) if path and path.is_file() else None

    def restore_progress(self) -> None:
        """Takes over the running sums and carried states, once the loop has reset them."""
        if self.resumed is None:
            return
        progress = self.progress_at(self.resumed)
        self.watch.resume(progress["elapsed"])
        self._total_loss_scalar = progress["total_loss"]
        self._globalstep_last_logged = progress["last_logged_step"]
        self._initial_global_step = 0  # the mean loss at the end is that of the whole run
        if self.state.best_global_step:  # the run may have been moved to another folder
            best = checkpoints.checkpoint_dir(self.run_dir, self.state.best_global_step)
            self.state.best_model_checkpoint = str(best) if best.is_dir() else None
        ranks = range(progress["processes"])
        saved = [load_file(self.resumed / f"rank_{rank}.safetensors") for rank in ranks]
        if progress["processes"] != self.args.world_size:
            logger.info(
                f"{progress['processes']} processes go on as {self.args.world_size}: exact but for dropout"
            )
        self.load_rank_tensors(saved)

    def load_rank_tensors(self, per_rank: list[dict[str, Tensor]]) -> None:
        """The inverse of `rank_tensors`, from the tensors of all processes that wrote the checkpoint."""
        if len(per_rank) == self.args.world_size:
            running = per_rank[self.args.process_index]["running_loss"]
        else:  # what is logged is the mean over processes
            running = torch.stack([saved["running_loss"] for saved in per_rank]).mean(dim=0)
        self._tr_loss = running.reshape(()).to(self.args.device)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """As in transformers, but tied weights aren't missing for being saved once."""
        saved_once = {name for name, _ in self.model.named_parameters()}
        every_name = {name for name, _ in self.model.named_parameters(remove_duplicate=False)}
        tied = every_name - saved_once
        load_result.missing_keys[:] = [name for name in load_result.missing_keys if name not in tied]
        super()._issue_warnings_after_load(load_result)

    def way_out(self) -> str:
        """How to go on after a failure."""
        if any(checkpoints.checkpoints(self.run_dir)):
            return f"go on from the last checkpoint with --resume {self.run_dir}"
        return "nothing was saved yet"

    def _wait(self) -> None:
        if self.args.world_size > 1:
            with among_peers(self.way_out):  # what fails is no write of a file
                dist.barrier()
