"""A model's folder with a record, for tests here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from craft.sharing.card import write_card
from craft.sharing.record import write_record


def folder_of(path: Path, name: str = "a text", sample: str = "words", **run: Any) -> Path:
    """A model's folder with a record, and weights of 4 bytes."""
    path.mkdir(exist_ok=True)
    header = b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    (path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\0\0\x80?")
    (path / "config.json").write_text('{"model_type": "char_lstm"}', encoding="utf-8")
    whole = {
        "models": {"model_type": "char_lstm", "hidden_size": 16},
        "data": {
            "source": "files",
            "path": f"/data/{name}",
            "name": name,
            "block_size": 16,
            "language": "en",
        },
        "training": {"learning_rate": 0.01, "global_batch_size": 4, "optim": "muon"},
        **run,
    }
    (path / "craft_run.yaml").write_text(yaml.safe_dump(whole), encoding="utf-8")
    score = {"protocol": "blocks", "split": "validation", "block_size": 16, "characters": 589}
    score |= {"bits_per_char": 2.5, "bits_per_byte": 2.25, "nats_per_char": 1.7, "accuracy": 0.5}
    facts = {
        "characters": 1000,
        "vocabulary": 30,
        "splits": {"train": {"characters": 900, "sha256": "ab" * 32}},
    }
    write_record(path, step=90, data=facts, evaluations=[score], sample=sample, copies={})
    write_card(path)
    return path
