"""The hooks of pre-commit: all of them local, and each runs what `make venv` has installed."""

import json
import re
import shlex
from pathlib import Path

import yaml

REPOSITORY = Path(__file__).resolve().parents[2]
HOOKS = [
    hook
    for repository in yaml.safe_load((REPOSITORY / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    for hook in repository["hooks"]
    if repository["repo"] == "local"
]


def test_hooks_are_local_and_what_they_run_exists() -> None:
    config = yaml.safe_load((REPOSITORY / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    assert [repository["repo"] for repository in config["repos"]] == ["local"]
    assert {hook["language"] for hook in HOOKS} == {"system"}
    pinned = (REPOSITORY / "requirements" / "dev.txt").read_text(encoding="utf-8")
    packages = {"ruff": "ruff", "lint-imports": "import-linter"}
    for hook in HOOKS:
        program, *words = shlex.split(hook["entry"])
        name = program.removeprefix(".venv/bin/")
        if name == "make":
            assert re.search(rf"^{words[0]}:", (REPOSITORY / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        else:
            assert name == "python" or f"\n{packages[name]}==" in pinned


def test_a_container_for_development_has_the_python_of_the_project() -> None:
    text = (REPOSITORY / ".devcontainer" / "devcontainer.json").read_text(encoding="utf-8")
    container = json.loads("\n".join(line for line in text.splitlines() if not line.startswith("//")))
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    python = re.search(r"^PYTHON \?= python(.+)$", makefile, re.MULTILINE)
    assert python is not None and f"/python:{python[1]}-" in container["image"]
    assert container["postCreateCommand"] == "make venv"
