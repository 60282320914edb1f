"""What pyproject.toml promises of imports and of purity is checked: each promise is broken once here, in a copy.

An offence may break several contracts; the one that it stands beside must be among them.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
CONTRACTS = PROJECT["tool"]["importlinter"]["contracts"]
LINT = PROJECT["tool"]["ruff"]["lint"]
PACKAGES = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]

PURE = "pure modules know no cluster, no store and no web"
LIGHT = "what reads and checks needs no library of runs"
IMPORTS = [
    (PURE, "nas_operator.plan", "import kubernetes"),
    (PURE, "nas_operator.conditions", "import nas_kube.client"),
    (PURE, "nas_controller.decisions", "import nas_store.s3"),
    (PURE, "nas_controller.state", "import nas_controller.snapshots"),
    (PURE, "nas_controller.launches", "import nas_controller.journal"),
    (PURE, "nas_log.reader", "import nas_log.follower"),
    (LIGHT, "nas_log.records", "import torch"),
    (LIGHT, "nas_report.analysis", "import safetensors"),
    (LIGHT, "nas_cli.status", "import nas_controller.policies.factory"),
    ("packages stand on those below them only", "nas_api.names", "import nas_kube.reading"),
    ("packages stand on those below them only", "nas_trainer.task", "import nas_controller.errors"),
    ("followers are imported by nobody", "nas_cli.main", "import nas_followers.following"),
    ("no circles", "nas_store.keys", "import nas_store.folder"),
    ("kopf and the web server are the operator's", "nas_operator.reconciler", "import kopf"),
    ("one module speaks to Kubernetes", "nas_kube.reflector", "import urllib3"),
    ("one module speaks to S3", "nas_store.folder", "import botocore"),
    ("three modules declare metrics", "nas_controller.metered", "import prometheus_client"),
    ("one module knows Optuna", "nas_controller.policies.evolution", "import optuna"),
    ("one module knows MLflow", "nas_followers.following", "import mlflow"),
    ("three modules know the formats of data and of exchange", "nas_trainer.images.digits", "import PIL"),
    ("floors of the operator", "nas_operator.observed", "import nas_operator.plan"),
    ("floors of the controller", "nas_controller.decisions", "import nas_controller.search"),
    ("floors of the controller", "nas_controller.kubernetes_status", "import nas_controller.search"),
    ("policies know nothing of each other", "nas_controller.policies.ppo", "import nas_controller.policies.guided"),
    ("floors of the trainer", "nas_trainer.images.network", "import nas_trainer.text.cell"),
    ("floors of the followers", "nas_followers.bookmarks", "import nas_followers.following"),
    ("floors of the report", "nas_report.drawing", "import nas_report.page"),
    ("floors of the command line", "nas_cli.folders", "import nas_cli.local_run"),
]


def test_every_contract_is_broken_here() -> None:
    assert {name for name, _, _ in IMPORTS} == {contract["name"] for contract in CONTRACTS}


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of all packages, beside the promises."""
    folder = tmp_path_factory.mktemp("copy")
    shutil.copy(REPOSITORY / "pyproject.toml", folder)
    for package in PACKAGES:
        shutil.copytree(REPOSITORY / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.fixture
def module(request: pytest.FixtureRequest, copy: Path) -> Iterator[Path]:
    """Return the file of the module that a test names, in the copy; afterwards it is as before."""
    file = source(copy, request.param)
    before = file.read_text(encoding="utf-8")
    yield file
    file.write_text(before, encoding="utf-8")


def source(root: Path, name: str) -> Path:
    """Return a module's file."""
    package, *inner = name.split(".")
    folder: Path = next(root / each for each in PACKAGES if each.endswith(f"/{package}"))
    path = folder.joinpath(*inner)
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def broken(copy: Path) -> set[str]:
    """Return the contracts that the packages of a copy break."""
    process = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-logo", "--cache-dir", ".imports"],
        cwd=copy,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(str(Path(copy, each).parent) for each in PACKAGES)},
        capture_output=True,
        text=True,
    )
    verdicts = dict(re.findall(r"^(.+?) (KEPT|BROKEN)\b", process.stdout, re.MULTILINE))
    assert set(verdicts) == {contract["name"] for contract in CONTRACTS}, process.stdout + process.stderr
    return {name for name, verdict in verdicts.items() if verdict == "BROKEN"}


@pytest.mark.slow
def test_no_contract_is_broken_without_an_offence(copy: Path) -> None:
    assert broken(copy) == set()


@pytest.mark.slow
@pytest.mark.parametrize(("contract", "module", "offence"), IMPORTS, indirect=["module"], ids=lambda value: str(value))
def test_an_import_that_breaks_a_contract_is_caught(copy: Path, contract: str, module: Path, offence: str) -> None:
    with module.open("a", encoding="utf-8") as file:
        file.write(f"\n\ndef offend() -> None:\n    {offence}\n")
    assert contract in broken(copy)


def ruff(*arguments: str | Path, text: str | None = None) -> list[Any]:
    """Return what Ruff finds."""
    process = subprocess.run(
        [Path(sys.executable).with_name("ruff"), "check", "--output-format=json", *arguments],
        cwd=REPOSITORY,
        input=text,
        capture_output=True,
        text=True,
    )
    assert process.returncode in (0, 1), process.stderr
    found: list[Any] = json.loads(process.stdout)
    return found


def rules_by_line(path: str, text: str) -> list[tuple[int, str]]:
    """Return line and rule of what is wrong with a text, were it in that file."""
    found = ruff("--stdin-filename", path, "-", text=text)
    return [(each["location"]["row"], each["code"]) for each in found]


def pure_modules() -> list[str]:
    """Return the modules that a contract calls pure; of a package all."""
    names = next(contract["source_modules"] for contract in CONTRACTS if contract["name"] == PURE)
    files = [source(REPOSITORY, name) for name in names]
    every = {each for file in files for each in (file.parent.rglob("*.py") if file.name == "__init__.py" else [file])}
    return sorted(str(file.relative_to(REPOSITORY)) for file in every)


EDGES_AMONG_THEM = {
    # They know no cluster either, but are the source of numbers, what threads wait for, and read a style sheet.
    "controller_image/nas_controller/policies/draws.py",
    "controller_image/nas_controller/executors/agenda.py",
    "report/nas_report/page.py",
}


@pytest.mark.parametrize("path", pure_modules())
def test_a_pure_module_has_neither_clock_nor_chance_nor_files(path: str) -> None:
    text = "import random\nfrom datetime import datetime\nnow = datetime.now()\ntext = open('log')\n"
    found = rules_by_line(path, text)
    assert (4, "PTH123") in found
    caught = {line for line, code in found if code == "TID251"}
    assert caught == (set() if path in EDGES_AMONG_THEM else {1, 3})


def test_every_ban_is_one() -> None:
    """A name that Ruff cannot resolve, as a built-in's, would be a ban of nothing."""
    banned = list(LINT["flake8-tidy-imports"]["banned-api"])
    lines = [f"import {name.partition('.')[0]}; {name}()" for name in banned]
    found = rules_by_line("controller_image/nas_controller/decisions.py", "\n".join(lines) + "\n")
    caught = {line for line, code in found if code == "TID251"}
    assert [name for line, name in enumerate(banned, start=1) if line not in caught] == []


def test_no_edge_is_named_that_is_none() -> None:
    """A module that has become pure stays pure only if it leaves the list."""
    found = ruff("--select=TID251", "--config", "lint.per-file-ignores = {}")
    impure = {Path(each["filename"]).relative_to(REPOSITORY).as_posix() for each in found}
    patterns = [pattern for pattern, rules in LINT["per-file-ignores"].items() if "TID251" in rules]
    edges = [each.replace("**", ".*") for pattern in patterns for each in expand(pattern)]
    assert [edge for edge in edges if not any(re.fullmatch(edge, path) for path in impure)] == []


def expand(pattern: str) -> list[str]:
    """Return the patterns that one with alternatives in braces stands for."""
    match = re.fullmatch(r"(.*)\{(.*)\}(.*)", pattern)
    return [pattern] if match is None else [f"{match[1]}{each}{match[3]}" for each in match[2].split(",")]
