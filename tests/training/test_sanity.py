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

from craft.data.char_dataset import CharDataset
from craft.training.base import LanguageModelTrainer
from craft.training.sanity import IDS_AT_ONCE, check_data, check_ids
from craft.utils.errors import UserError


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


def test_each_process_looks_at_a_window_of_its_own() -> None:
    """Of a stream it would otherwise read the lane of the first process for nothing."""
    looked: list[int] = []

    class Noted(Own):
        def batch(self, epoch: int, step: int, rows: np.ndarray) -> torch.Tensor:
            looked.extend(rows)
            return super().batch(epoch, step, rows)

    args = SimpleNamespace(logging_nan_inf_filter=False, global_batch_size=8, eval_strategy="no")
    args.process_index, args.train_batch_size = 1, 4
    model = SimpleNamespace(config=SimpleNamespace(vocab_size=33), carries_state=False)
    check_data(Noted(), None, args, model)
    assert looked == [4]
    for lookahead in (0, 2):  # windows of 9 ids for a block_size of 8
        model.lookahead = lookahead
        with pytest.raises(UserError, match=f"block_size is 8: that must be {lookahead} less"):
            check_data(Noted(), None, args, model)
    check_data(Noted(width=10), None, args, model)


@pytest.mark.parametrize(
    ("dataset", "phrase"),
    [
        (Own(steps=0), "fewer windows than a global batch of 8: no step would be trained"),
        (Own(width=1, block_size=0), "one id has nothing to predict"),
        (Own(width=9, block_size=16), "hold 9 ids, but its block_size is 16"),
        (Own(high=40), "holds the id 40, but the model's vocabulary ends at 32"),
        (Own(rows=4), "global batch of 4, training.global_batch_size is 8"),
        (datasets.Dataset.from_dict({"input_ids": [[1, 2, 3]] * 9}), "Dataset without block_size, global"),
        ([{"input_ids": [1]}], "is a list without batch, block_size"),
    ],
)
def test_windows_that_teach_nothing_are_refused(tmp_path: Path, dataset: Any, phrase: str) -> None:
    with pytest.raises(UserError, match=phrase):
        make(tmp_path, dataset)


@pytest.mark.parametrize(
    ("ids", "phrase"),
    [
        (None, "no validation text"),
        (np.array([1]), "no validation text"),
        (np.array([1, 2, -3]), "validation text holds the id -3"),
        (np.array([1, 2, 33]), "validation text holds the id 33"),
        (np.array([1.0, 2.0]), "1-D array of whole numbers, not float64"),
        (np.array([[1, 2]] * 2), r"of shape \(2, 2\)"),
    ],
)
def test_validation_ids(tmp_path: Path, ids: Any, phrase: str) -> None:
    with pytest.raises(UserError, match=phrase):
        make(tmp_path, eval_ids=ids)


def test_an_id_anywhere_in_the_text_is_found(tmp_path: Path) -> None:
    train = tiny_run.split_ids()[0].astype(np.int64)
    train[-1] = 33
    with pytest.raises(UserError, match="the training text holds the id 33"):
        make(tmp_path, CharDataset(train, 8, 8, 0))
    ids = np.zeros(3 * IDS_AT_ONCE + 5, np.uint8)
    ids[-1] = 200
    with pytest.raises(UserError, match="the id 200"):
        check_ids(ids, 100, "the text")
    check_ids(ids, 255 + 1, "the text")


def test_arguments_that_hide_faults(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="would log a loss of 0 for NaN"):
        make(tmp_path, logging_nan_inf_filter=True)
    with pytest.raises(UserError, match="fp16 needs a GPU"):
        make(tmp_path, precision="fp16")
    with pytest.raises(UserError, match="num_train_epochs=0"):
        make(tmp_path, max_steps=-1, num_train_epochs=0).train()
