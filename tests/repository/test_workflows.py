"""The forge's workflows, which never run here: actionlint reads them, and each may do no more than it must."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from hack.cluster import binaries

REPOSITORY = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted((REPOSITORY / ".github" / "workflows").glob("*.yaml"))
# A tag can be moved to other code, a commit cannot; the comment is for people and for what renews it.
_PINNED = re.compile(r"[\w-]+/[\w./-]+@[0-9a-f]{40} # v\d+(\.\d+)*")


def actionlint(*files: Path) -> subprocess.CompletedProcess[str]:
    """Run the actionlint that hack/cluster pins, without linters that a machine may have or lack."""
    binaries.ensure(["actionlint"])
    words = [binaries.program("actionlint"), "-no-color", "-shellcheck=", "-pyflakes=", *map(str, files)]
    return subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, check=False)


def loose_actions(text: str) -> list[str]:
    """Return the actions of a workflow that are not pinned by commit, with their version in a comment."""
    used = re.findall(r"^\s*(?:- )?uses: (.+)$", text, re.MULTILINE)
    return [words for words in used if not words.startswith("./") and _PINNED.fullmatch(words) is None]


def permissions(workflow: dict[str, Any]) -> dict[str, Any]:
    """Return what the jobs of a workflow may write, by job; the whole workflow's under its own name."""
    parts = {"": workflow, **workflow["jobs"]}
    granted = {name: part["permissions"] for name, part in parts.items() if "permissions" in part}
    return {name: {what for what, how in each.items() if how == "write"} for name, each in granted.items()}


@pytest.mark.slow
def test_actionlint_finds_nothing() -> None:
    done = actionlint(*WORKFLOWS)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.slow
def test_a_fault_in_a_workflow_is_found(tmp_path: Path) -> None:
    broken = tmp_path / "broken.yaml"
    text = (REPOSITORY / ".github" / "workflows" / "ci.yaml").read_text(encoding="utf-8")
    broken.write_text(text.replace("github.event_name ==", "github.event_nam =="))
    done = actionlint(broken)
    assert done.returncode == 1
    assert '"event_nam" is not defined' in done.stdout


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_actions_are_pinned_by_commit(path: Path) -> None:
    assert loose_actions(path.read_text(encoding="utf-8")) == []


def test_an_action_at_a_tag_is_found() -> None:
    loose = ["actions/checkout@v7", f"actions/checkout@{'a' * 40}"]
    text = "".join(f"      - uses: {words}\n" for words in (*loose, "./.github/workflows/ci.yaml"))
    assert loose_actions(text) == loose


def test_a_workflow_may_write_only_what_it_publishes() -> None:
    granted = {path.name: permissions(yaml.safe_load(path.read_text(encoding="utf-8"))) for path in WORKFLOWS}
    assert granted == {
        "ci.yaml": {"": set()},
        "release.yaml": {
            "": set(),
            "ci": set(),
            "version": set(),
            "images": {"packages", "id-token"},
            "release": {"contents", "packages", "id-token"},
        },
    }


def test_ci_is_the_script_that_anybody_can_run() -> None:
    (job,) = yaml.safe_load((REPOSITORY / ".github" / "workflows" / "ci.yaml").read_text(encoding="utf-8"))[
        "jobs"
    ].values()
    commands = [step["run"] for step in job["steps"] if "run" in step]
    assert len(commands) == 1 and commands[0].split()[-1] == ".ci/run"
