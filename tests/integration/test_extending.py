"""`docs/extending.md` is executed: its files go into a copy of the project, and its model is trained."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"<!-- file: (\S+) -->\n```\w+\n(.*?)```", re.DOTALL)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package and its configs with the files of the page in their places."""
    root = tmp_path_factory.mktemp("project")
    for name in ("craft", "configs"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name, text in BLOCK.findall((ROOT / "docs" / "extending.md").read_text(encoding="utf-8")):
        (root / name).write_text(text, encoding="utf-8")
    return root


def craft(project: Path, folder: Path, *arguments: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(project), "WANDB_MODE": "disabled", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "craft", *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_new_model_trains_scores_and_writes(project: Path, tmp_path: Path) -> None:
    craft(
        project,
        tmp_path,
        "train",
        "models=char_conv",
        "models.kernel_size=5",
        "models.hidden_size=16",
        "training.max_steps=20",
        "training.eval_steps=20",
        "training.report_to=none",
    )
    assert "blocks" in craft(project, tmp_path, "evaluate", "latest")
    greedy = craft(project, tmp_path, "generate", "latest", "-p", "The ", "-n", "40", "--greedy")
    assert greedy.startswith("The ")

    model = next((tmp_path / "outputs" / "models").glob("char_conv*_step_20"))
    script = (
        "from transformers import AutoModelForCausalLM as M, AutoTokenizer as T\n"
        f"m = M.from_pretrained({str(model)!r}, trust_remote_code=True)\n"
        f"t = T.from_pretrained({str(model)!r}, trust_remote_code=False)\n"
        "ids = t('The ', return_tensors='pt').input_ids\n"
        "print(t.decode(m.generate(ids, do_sample=False, max_new_tokens=40)[0]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", BLOCKER + script],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.strip() == greedy.strip(), done.stderr


BLOCKER = (
    "import sys\n"
    "class Hidden:\n"
    "    def find_spec(self, name, path=None, target=None):\n"
    "        if name.split('.')[0] == 'craft': raise ModuleNotFoundError(name)\n"
    "sys.meta_path.insert(0, Hidden())\n"
)


def test_the_new_corpus_is_found(project: Path, tmp_path: Path) -> None:
    (tmp_path / "diary").mkdir()
    (tmp_path / "diary" / "monday.md").write_text("It rained.\n" * 200, encoding="utf-8")
    assert "My diary, the last 5% held out" in craft(project, tmp_path, "configs")
    resolved = craft(project, tmp_path, "train", "data=my_diary", "--print-config")
    assert "diary/*.md" in resolved
