"""Control planes beside each other, without root; interrupted, they leave something that `down` removes."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hack.cluster import instance, processes
from patience import HANG_SECONDS, eventually

pytestmark = [pytest.mark.cluster, pytest.mark.slow]
REPOSITORY = Path(__file__).resolve().parents[2]
NAMES = ("test-one", "test-two")


def cluster(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "hack.cluster", *arguments]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert result.returncode == 0 or not check, result.stderr
    return result


@pytest.fixture
def state(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    yield tmp_path
    for name in NAMES:
        cluster("down", "--name", name)


def test_two_beside_each_other_with_fake_nodes_and_an_audit_log(state: Path) -> None:
    audit = state / "audit.log"
    cluster("up", "--name", NAMES[0], "--control-plane-only", "--nodes", "kwok:2", "--audit-log", str(audit))
    cluster("up", "--name", NAMES[1], "--control-plane-only")
    cluster("gpus", "--name", NAMES[0], "8")
    job = ["kubectl", "create", "job", "one", "--image=none"]
    cluster("run-with", "--name", NAMES[0], "--", *job)
    wait = ["kubectl", "wait", "--for=condition=Complete", "job/one", f"--timeout={HANG_SECONDS:.0f}s"]
    cluster("run-with", "--name", NAMES[0], "--", *wait)
    assert "job-controller" in audit.read_text()
    other = cluster("run-with", "--name", NAMES[1], "--", "kubectl", "get", "jobs,nodes", "-A", "-o", "name")
    assert other.stdout == ""
    refused = cluster("up", "--name", NAMES[0], "--control-plane-only", check=False)
    assert "other options" in refused.stderr

    records = [instance.load(name) for name in NAMES]
    for name in NAMES:
        cluster("down", "--name", name)
    for record in records:
        assert record is not None
        assert processes.find_by_token(record.token) == []
        assert not record.folder.exists()


@pytest.mark.parametrize("moment", ["cluster.json", "log/etcd.log", "log/apiserver.log"])
def test_an_interrupted_up_is_removed_by_down(state: Path, moment: str) -> None:
    """It is interrupted as soon as there is one of its files."""
    command = [sys.executable, "-m", "hack.cluster", "up", "--name", NAMES[0], "--control-plane-only"]
    with subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.PIPE) as beginning:
        eventually((instance.folder_of(NAMES[0]) / moment).exists, message=moment)
        beginning.send_signal(signal.SIGTERM)
        beginning.communicate()
    record = instance.load(NAMES[0])
    assert record is not None
    cluster("down", "--name", NAMES[0])
    assert not instance.folder_of(NAMES[0]).exists()
    assert processes.find_by_token(record.token) == []


def test_a_killed_one_is_not_healthy_and_comes_up_anew(state: Path) -> None:
    cluster("up", "--name", NAMES[0], "--control-plane-only")
    record = instance.load(NAMES[0])
    assert record is not None
    os.kill(next(process.pid for process in record.processes if process.name == "etcd"), signal.SIGKILL)
    assert "etcd has ended" in cluster("status", check=False).stdout
    cluster("up", "--name", NAMES[0], "--control-plane-only")
    assert "healthy" in cluster("status").stdout
