"""The light client: what starts without loading anything, and commands that only read where no library of runs is.

Each command is a process of its own in which none of ``nas-operator[run]`` can be found, on the folder that a real run
has left.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner
from experiments import manifest

from nas_api import names
from nas_cli.main import main

NAS = "from nas_cli.main import main; main()"
RUN_ONLY = {"torch", "onnx", "onnxruntime", "onnxscript", "optuna", "PIL", "pyarrow", "safetensors", "sklearn"}
# As Python finds modules, but for some: what asks for those is told that there are none.
WITHOUT = f"""
import sys
from importlib.machinery import PathFinder


class Without(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in {RUN_ONLY} else super().find_spec(name, path, target)


sys.meta_path[:] = [Without if finder is PathFinder else finder for finder in sys.meta_path]
"""
SCORE = """#!/bin/sh
echo trained
echo "{\\"metrics\\": {\\"accuracy\\": 0.1$NAS_SAMPLE}}" > "$NAS_DIR/result.json"
"""

Nas = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the manifest of a search whose trainer is a script; its run is in the folder ``run`` beside it."""
    folder = tmp_path_factory.mktemp("light")
    (folder / "train.sh").write_text(SCORE)
    (folder / "train.sh").chmod(0o755)
    space = {"convolutional": {"layers": {"initial": 2}, "filterHeights": [1, 3], "filterWidths": [1, 3]}}
    document = manifest(
        name="light",
        searchSpace=space,
        searcher={"duplicates": "Train"},
        budget={"samples": 6},
        trainer={"dataset": {"custom": {}}, "command": ["./train.sh"]},
        parallelism=1,
    )
    path = folder / "light.yaml"
    path.write_text(json.dumps(document))
    outcome = CliRunner().invoke(main, ["run", str(path), "--folder", str(folder / "run")], catch_exceptions=False)
    assert outcome.exit_code == 0, outcome.output
    return path


@pytest.fixture
def run(written: Path, tmp_path: Path) -> Path:
    """Return a copy of the run's folder."""
    return Path(shutil.copytree(written.parent / "run", tmp_path / "run"))


@pytest.fixture
def nas(tmp_path: Path) -> Nas:
    """Return a function that runs a command where the libraries of ``nas-operator[run]`` cannot be found."""
    (tmp_path / "without").mkdir()
    (tmp_path / "without" / "sitecustomize.py").write_text(WITHOUT)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "without")}

    def run(*words: object, program: str = NAS) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-c", program, *map(str, words)]
        return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, check=False)

    return run


def test_what_runs_need_cannot_be_found_here(nas: Nas) -> None:
    for module in RUN_ONLY:
        done = nas(program=f"import {module}")
        assert done.stderr.rstrip().endswith(f"ModuleNotFoundError: No module named '{module}'")


def test_help_and_version_load_the_table_of_commands_alone() -> None:
    program = (
        "import json, sys; before = set(sys.modules); from nas_cli.main import main;"
        "main(sys.argv[1:], standalone_mode=False); print(json.dumps(sorted(set(sys.modules) - before)))"
    )
    for words in (["--help"], ["--version"], ["best", "--help"]):
        done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, check=True)
        loaded = [module.split(".") for module in json.loads(done.stdout.splitlines()[-1])]
        assert {first for first, *_ in loaded} - sys.stdlib_module_names == {"click", "nas_api", "nas_cli"}
        ours = {".".join(module) for module in loaded if module[0].startswith("nas_")}
        assert ours == {"nas_api", "nas_api.names", "nas_cli", "nas_cli.main", "nas_cli.folders", "nas_cli.errors"}


def test_every_command_that_reads_does_without_them(nas: Nas, written: Path, run: Path, tmp_path: Path) -> None:
    def said(*words: object) -> str:
        done = nas(*words)
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
        return done.stdout

    assert "Commands:" in said("--help")
    assert said("validate", written) == f"{written}: NASExperiment/light is valid\n"
    status = said("status", run)
    assert status.startswith("Complete: 6 samples observed, 0 lost\n") and "accuracy 0.1500 (sample 5)" in status
    assert "accuracy 0.1500 (sample 5)" in said("best", run)
    best = json.loads(said("best", run, "-o", "json"))
    assert (best["sample"], best["metric"], best["reward"]) == (5, 0.15, pytest.approx(0.15**3))
    assert best["architecture"] == json.loads((run / names.BEST_ARCHITECTURE).read_text())
    assert said("best", run, "--code") == (run / names.BEST_MODULE).read_text()
    assert [json.loads(line)["sample"] for line in said("samples", run, "-o", "json").splitlines()] == [*range(6)]
    assert len(said("samples", run).splitlines()) == 8
    assert said("logs", run, "--sample", 3) == "trained\n"
    assert said("report", run, "-o", tmp_path / "report.html") == f"{tmp_path / 'report.html'}\n"
    assert "</html>" in (tmp_path / "report.html").read_text()
    done = nas("export", run, "-o", tmp_path / "out")
    assert (done.returncode, done.stderr) == (0, "There are no weights: your own trainer keeps those.\n")
    assert (tmp_path / "out" / "network.py").read_text() == (run / names.BEST_MODULE).read_text()
