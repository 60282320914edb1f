"""A real node comes up, survives the death of all its processes as a new one, and goes without a trace."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hack.cluster import deps, instance, leftovers, processes

pytestmark = [pytest.mark.node, pytest.mark.slow]
REPOSITORY = Path(__file__).resolve().parents[2]
NAME = "test-node"
# The folders in which containerd, kubelet and the CNI leave things, and those above them.
WATCHED = [*leftovers.OUTSIDE_FOLDERS, *map(Path, ("/run", "/run/netns", "/var/lib", "/var/log", "/opt", "/etc"))]
WATCHED += [Path("/usr/libexec"), Path("/etc/cni"), Path("/usr/libexec/kubernetes")]
SYSCTLS = ("net.ipv4.ip_forward", "net.bridge.bridge-nf-call-iptables", "vm.overcommit_memory", "kernel.panic_on_oops")


def cluster(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "hack.cluster", *arguments]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result


def kubectl(*arguments: str) -> str:
    return cluster("run-with", "--name", NAME, "--", "kubectl", *arguments).stdout


def command_lines() -> set[str]:
    """Processes that this cluster is made of, and containers of any, by identity."""
    ours = ("containerd-shim", "/coredns ", "/pause ", str(instance.folder_of(NAME)))
    found = set()
    for pid in processes.all_pids():
        try:
            line = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if any(word in line for word in ours):
            found.add(f"{pid} {processes.start_time(pid)} {line}")
    return found


def snapshot() -> dict[str, object]:
    """What a cluster changes on its host, as it is now."""
    mounts = Path("/proc/self/mountinfo").read_text()
    relevant = ("containerd", "kubelet", "netns", "/clusters/")
    cgroups = leftovers.parse_cgroup_hierarchies(mounts)
    return {
        "mounts": sorted(
            line.split(" ", 2)[2] for line in mounts.splitlines() if any(word in line for word in relevant)
        ),
        "interfaces": sorted(entry.name for entry in Path("/sys/class/net").iterdir()),
        "nft": subprocess.run(["nft", "list", "ruleset"], capture_output=True, text=True, check=True).stdout,
        "cgroups": sorted(str(inner) for folder in cgroups for inner in folder.rglob("*/") if "nas-" in inner.name),
        "processes": sorted(command_lines()),
        "files": {
            str(folder): sorted(entry.name for entry in folder.iterdir()) if folder.exists() else None
            for folder in WATCHED
        },
        "sysctls": {name: leftovers.sysctl_path(name).read_text() for name in SYSCTLS},
        # Not those of other tests, which come and go meanwhile.
        "clusters": {NAME} & set(instance.names()),
    }


@pytest.fixture
def no_cluster() -> Iterator[None]:
    if os.geteuid() != 0:
        pytest.skip("a real node needs root")
    # Before anything is compared: what `up` installs is no trace of a cluster. With what other tests need, which may
    # run beside this one.
    deps.ensure({**deps.ALL, **deps.BROWSER})
    cluster("down", "--name", NAME)
    if leftovers.nft_tables():
        pytest.skip("this host has a Kubernetes node already")
    yield
    cluster("down", "--name", NAME)


def kill_everything(running: instance.Instance) -> None:
    """What the end of a machine's session does: SIGKILL for all, in no order, and nobody cleans up."""
    doomed = {process.pid: process for process in [*running.processes, *processes.find_by_token(running.token)]}
    assert leftovers.shims(running)
    assert processes.end(doomed.values()) == []


def test_killed_brought_up_again_and_removed_without_a_trace(no_cluster: None) -> None:
    before = snapshot()
    cluster("up", "--name", NAME)
    first = instance.load(NAME)
    assert first is not None
    assert first.kubeconfig.stat().st_mode & 0o777 == 0o600
    cluster("gpus", "--name", NAME, "2")
    allocatable = kubectl("get", "node", instance.NODE_NAME, "-o", r"jsonpath={.status.allocatable.nvidia\.com/gpu}")
    assert allocatable == "2"
    # CoreDNS is a pod with volumes, a Service and an address: at the kill there is something to leave behind.
    assert "true" in kubectl("get", "pods", "-n", "kube-system", "-o", "jsonpath={..ready}")

    kill_everything(first)
    assert snapshot() != before, "the killed cluster has left nothing: then this test shows nothing"

    cluster("up", "--name", NAME)
    second = instance.load(NAME)
    assert second is not None
    assert second.token != first.token
    assert instance.NODE_NAME in kubectl("get", "nodes", "-o", "name")
    assert "up and healthy" in cluster("up", "--name", NAME).stderr

    cluster("down", "--name", NAME)
    assert snapshot() == before


def test_killed_and_removed_without_a_trace(no_cluster: None) -> None:
    before = snapshot()
    cluster("up", "--name", NAME)
    running = instance.load(NAME)
    assert running is not None
    kill_everything(running)
    cluster("down", "--name", NAME)
    assert snapshot() == before
