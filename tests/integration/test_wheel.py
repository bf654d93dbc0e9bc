"""The wheel works by itself: away from the checkout, in an empty folder, beside its dependencies."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory, checkout: Path) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(build, cwd=checkout, check=True, capture_output=True)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    target = ["--no-deps", "--no-index", "--disable-pip-version-check", "--target", str(folder)]
    subprocess.run(
        [sys.executable, "-m", "pip", "install", *target, str(wheel)], check=True, capture_output=True
    )
    return folder


def run(site: Path, cwd: Path, *words: str) -> str:
    """The output of the installed `craft` script; the checkout can't be imported."""
    script = site / "bin" / "craft"
    env = {**os.environ, "PYTHONPATH": str(site), "CRAFT_CACHE": str(cwd / "cache"), "WANDB_MODE": "disabled"}
    done = subprocess.run(
        [sys.executable, str(script), *words],
        cwd=cwd,
        env=env,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_holds_every_module_and_configuration_and_nothing_else(wheel: Path, checkout: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    modules = {path.relative_to(checkout).as_posix() for path in (checkout / "craft").rglob("*.py")}
    configs = {
        "craft/_configs/" + path.relative_to(checkout / "configs").as_posix()
        for path in (checkout / "configs").rglob("*.yaml")
    }
    page = {path.relative_to(checkout).as_posix() for path in (checkout / "craft/exporting/page").iterdir()}
    assert len(page) >= 6
    expected = modules | configs | page
    assert expected <= names
    others = {name for name in names - expected if ".dist-info/" not in name}
    assert {Path(name).name for name in others} <= {"py.typed", "card.md.jinja"}
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_it_reads_its_own_configuration(site: Path, tmp_path: Path) -> None:
    code = "import craft, craft.config.files as f; print(craft.__file__); print(f.builtin_folder())"
    env = {**os.environ, "PYTHONPATH": str(site)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert all(Path(line).is_relative_to(site) for line in done.stdout.splitlines()), done.stdout
    assert "quickstart" in run(site, tmp_path, "configs")
    assert yaml.safe_load(run(site, tmp_path, "train", "--print-config"))["experiment"] == "quickstart"
    assert {path.name for path in tmp_path.iterdir()} <= {"cache"}  # of fields, by craft


def test_it_trains_and_writes_in_an_empty_folder(site: Path, tmp_path: Path) -> None:
    small = ["models.hidden_size=16", "models.num_hidden_layers=1", "models.num_attention_heads=2"]
    short = [
        "training.max_steps=4",
        "training.eval_steps=4",
        "training.save_steps=4",
        "training.use_cpu=true",
    ]
    quiet = [
        "training.report_to=none",
        "training.sample_chars=0",
        "training.precision=fp32",
        "data.block_size=16",
    ]
    (tmp_path / "my.txt").write_text("hello craft\n" * 200, encoding="utf-8")
    run(site, tmp_path, "train", "my.txt", *small, *short, *quiet)
    (model,) = (tmp_path / "outputs/models").glob("*_step_4")
    assert {"config.json", "model.safetensors", "tokenizer.json", "craft_run.yaml"} <= {
        p.name for p in model.iterdir()
    }
    written = run(
        site, tmp_path, "generate", "latest", "--prompt", "hello", "--max-new-tokens", "7", "--greedy"
    )
    assert written.startswith("hello")
    assert len(written.rstrip("\n")) <= 12
    assert "blocks" in run(site, tmp_path, "evaluate", "latest")
