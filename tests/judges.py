"""What others make of an experiment: kstatus by its own code, and Argo CD's health script in the Lua that it runs in.

Objects are judged as the API server returns them. The programs are built by hack/cluster.
"""

import json
import subprocess
from typing import Any, NamedTuple

import pytest
from cluster_fixtures import REPOSITORY
from hack.cluster import binaries

_SCRIPT = REPOSITORY / "examples" / "gitops" / "argocd-health.lua"
# Argo CD opens these of Lua's libraries for a script of the user's (package, base, table), and an os of its own.
_CLOSED = ("channel", "coroutine", "debug", "io", "math", "os", "string")


class Verdict(NamedTuple):
    """One word for programs, and a sentence for people."""

    status: str
    message: str


@pytest.fixture
def judging_programs() -> None:
    """Skip where the programs have not been built."""
    missing = [name for name in ("kstatus", "glua") if not binaries.BINARIES[name].path.exists()]
    if missing:
        pytest.skip(f"not built: {', '.join(missing)}; `python3 -m hack.cluster build` makes them")


def kstatus(experiment: dict[str, Any]) -> Verdict:
    """Return what Flux, kpt and Helm 4 make of an experiment."""
    said = json.loads(_run("kstatus", stdin=json.dumps(experiment)))
    return Verdict(said["status"], said["message"])


def argo_cd(experiment: dict[str, Any]) -> Verdict:
    """Return what our health script makes of an experiment."""
    closed = " ".join(f"{name} = nil" for name in _CLOSED)
    health = f"obj = {_lua(experiment)} {closed} local health = (function() {_SCRIPT.read_text()} end)()"
    status, message = _run("glua", "-e", f"{health} print(health.status) print(health.message)").split("\n", 1)
    return Verdict(status, message.rstrip("\n"))


def _run(name: str, *words: str, stdin: str | None = None) -> str:
    done = subprocess.run([binaries.program(name), *words], input=stdin, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _lua(value: Any) -> str:
    """Return the Lua expression of a JSON value."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"[{_lua(key)}] = {_lua(child)}" for key, child in value.items()) + "}"
    if isinstance(value, list):
        return "{" + ", ".join(map(_lua, value)) + "}"
    if isinstance(value, str):
        return '"' + "".join(f"\\{byte:03d}" for byte in value.encode()) + '"'
    return "nil" if value is None else json.dumps(value)
