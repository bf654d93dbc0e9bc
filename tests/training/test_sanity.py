"""Data that would train to nonsense in silence, from somebody's own code."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import numpy as np
import pytest
import tiny_run
import torch
from refusals import refused

from craft.data.char_dataset import CharDataset
from craft.models.cells import LSTMCell
from craft.training.base import LanguageModelTrainer
from craft.training.sanity import IDS_AT_ONCE, check_data, check_ids
from craft.utils.errors import Code


class Own:
    """Windows of somebody's own making."""

    order = "shuffled"

    def __init__(self, width: int = 9, block_size: int = 8, rows: int = 8, steps: int = 5, high: int = 30):
        self.width, self.block_size, self.global_batch_size, self.steps_per_epoch = (
            width,
            block_size,
            rows,
            steps,
        )
        self.high = high

    def __len__(self) -> int:
        return self.steps_per_epoch * self.global_batch_size

    def batch(self, epoch: int, step: int, rows: np.ndarray) -> torch.Tensor:
        return (
            torch.randint(0, self.high, (len(rows), self.width))
            if self.high <= 33
            else torch.full((len(rows), self.width), self.high)
        )


def make(folder: Path, dataset: Any = None, eval_ids: Any = "own", **changes: Any) -> LanguageModelTrainer:
    args = tiny_run.arguments(folder, **changes)
    ids = tiny_run.split_ids()[1] if isinstance(eval_ids, str) else eval_ids
    network = tiny_run.model("char_transformer")
    return LanguageModelTrainer(
        network, args, Own() if dataset is None else dataset, ids, tiny_run.tokenizer()
    )


def test_somebodys_own_windows_train(tmp_path: Path) -> None:
    assert make(tmp_path, max_steps=3).train().global_step == 3


def test_an_edited_cell_that_kernels_would_replace_is_not_trained(tmp_path: Path) -> None:
    class EditedCell(LSTMCell):
        fused = True

        def forward(self, projected: torch.Tensor, state: Any) -> Any:
            output, after = super().forward(projected, state)
            return 1.1 * output, after

    model = tiny_run.model("char_lstm")
    model.model.layers[0].lstm = EditedCell(model.config)
    with refused("setting-value", "models", "EditedCell", "fused"):
        LanguageModelTrainer(model, tiny_run.arguments(tmp_path), Own(), None, tiny_run.tokenizer())


def test_each_process_looks_at_a_window_of_its_own() -> None:
    """Of a stream it would otherwise read the lane of the first process for nothing."""
    looked: list[int] = []

    class Noted(Own):
        def batch(self, epoch: int, step: int, rows: np.ndarray) -> torch.Tensor:
            looked.extend(rows)
            return super().batch(epoch, step, rows)

    args = SimpleNamespace(global_batch_size=8, eval_strategy="no")
    args.process_index, args.train_batch_size = 1, 4
    model = SimpleNamespace(config=SimpleNamespace(vocab_size=33), carries_state=False)
    check_data(Noted(), None, args, model)
    assert looked == [4]
    for lookahead in (0, 2):  # windows of 9 ids for a block_size of 8
        model.lookahead = lookahead
        with refused("data-invalid", (1, 9), (1, 8 + lookahead)):
            check_data(Noted(), None, args, model)
    check_data(Noted(width=10), None, args, model)


@pytest.mark.parametrize(
    ("dataset", "code", "values"),
    [
        (Own(steps=0), "text-short", ["global batch of 8"]),
        (Own(width=1, block_size=0), "data-invalid", ["block_size=0", (1, 1)]),
        (Own(width=9, block_size=16), "data-invalid", ["block_size=16", (1, 9), (1, 17)]),
        (Own(high=40), "data-invalid", [40, 32]),
        (Own(rows=4), "setting-conflict", ["global batch of 4", 8]),
        (
            datasets.Dataset.from_dict({"input_ids": [[1, 2, 3]] * 9}),
            "data-invalid",
            ["Dataset", "block_size"],
        ),
        ([{"input_ids": [1]}], "data-invalid", ["list", "batch, block_size"]),
    ],
)
def test_windows_that_teach_nothing_are_refused(
    tmp_path: Path, dataset: Any, code: Code, values: list[Any]
) -> None:
    with refused(code, *values):
        make(tmp_path, dataset)


@pytest.mark.parametrize(
    ("ids", "code", "values"),
    [
        (None, "text-missing", ["data.validation_size"]),
        (np.array([1]), "text-missing", ["data.validation_size"]),
        (np.array([1, 2, -3]), "data-invalid", ["validation", -3]),
        (np.array([1, 2, 33]), "data-invalid", ["validation", 33]),
        (np.array([1.0, 2.0]), "data-invalid", ["float64"]),
        (np.array([[1, 2]] * 2), "data-invalid", [(2, 2)]),
    ],
)
def test_validation_ids_that_cannot_be_scored_are_refused(
    tmp_path: Path, ids: Any, code: Code, values: list[Any]
) -> None:
    with refused(code, *values):
        make(tmp_path, eval_ids=ids)


def test_an_id_anywhere_in_the_text_is_found(tmp_path: Path) -> None:
    train = tiny_run.split_ids()[0].astype(np.int64)
    train[-1] = 33
    with refused("data-invalid", "training", 33):
        make(tmp_path, CharDataset(train, 8, 8, 0))
    ids = np.zeros(3 * IDS_AT_ONCE + 5, np.uint8)
    ids[-1] = 200
    with refused("data-invalid", 200):
        check_ids(ids, 100, "the text")
    check_ids(ids, 255 + 1, "the text")


def test_a_run_of_no_step_is_refused(tmp_path: Path) -> None:
    with refused("setting-value", "num_train_epochs=0"):
        make(tmp_path, max_steps=-1, num_train_epochs=0).train()
