"""The hooks of pre-commit and the container for development agree with the Makefile."""

import json
import re
from pathlib import Path

import yaml

REPOSITORY = Path(__file__).resolve().parents[2]
MAKEFILE = (REPOSITORY / "Makefile").read_text(encoding="utf-8")


def checks(command: str) -> str:
    """Return what a command checks: program and subcommand, or the script that it runs."""
    words = re.sub(r"^(\$\(BIN\)|\.venv/bin)/", "", command).split()
    return " ".join(words[: 2 if words[0] in ("ruff", "python") else 1])


def test_hooks_are_local_and_leave_out_nothing_that_lint_checks() -> None:
    config = yaml.safe_load((REPOSITORY / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    assert [repository["repo"] for repository in config["repos"]] == ["local"]
    hooks = config["repos"][0]["hooks"]
    assert {hook["language"] for hook in hooks} == {"system"}
    assert all(hook["entry"].startswith(".venv/bin/") for hook in hooks)
    recipe = re.search(r"^lint:.*\n((?:\t.+\n)+)", MAKEFILE, re.MULTILINE)
    assert recipe is not None
    asked = {checks(line.strip()) for line in recipe[1].splitlines()}
    assert {"ruff check", "mypy"} <= asked <= {checks(hook["entry"]) for hook in hooks}


def test_the_container_for_development_has_the_python_of_the_project() -> None:
    text = (REPOSITORY / ".devcontainer" / "devcontainer.json").read_text(encoding="utf-8")
    container = json.loads("\n".join(line for line in text.splitlines() if not line.startswith("//")))
    python = re.search(r"^PYTHON \?= python(.+)$", MAKEFILE, re.MULTILINE)
    assert python is not None and f"/python:{python[1]}-" in container["image"]
    assert container["postCreateCommand"] == "make venv"
