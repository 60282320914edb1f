"""The parts of hack/cluster that need no cluster: choosing what is free, reading /proc, writing images."""

import hashlib
import ipaddress
import json
import os
import socket
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hack.cluster import deps, instance, leftovers, network, oci, processes
from hack.cluster.errors import ClusterError
from patience import eventually

ROUTES = """Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
eth0\t00000000\t0102A8C0\t0003\t0\t0\t0\t00000000\t0\t0\t0
eth0\t0002A8C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0
br0\t0000580A\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0
"""

MOUNTS = r"""22 1 254:0 / / rw,relatime - ext4 /dev/vda rw
30 22 0:26 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu
31 22 0:27 / /sys/fs/cgroup/unified rw shared:7 - cgroup2 cgroup2 rw
40 22 254:0 /s/demo/kubelet /s/demo/kubelet rw shared:1 - ext4 /dev/vda rw
41 40 0:50 / /s/demo/kubelet/pods/a/volumes/one\040two rw - tmpfs tmpfs rw
42 22 0:51 / /s/demo/run/rootfs rw - overlay overlay rw
43 42 0:52 / /s/demo/run/rootfs rw - overlay overlay rw
44 22 0:53 / /s/demo2/run/rootfs rw - overlay overlay rw
45 22 0:54 / /other/s/demo rw - tmpfs tmpfs rw
"""


def test_routes_are_read_in_network_order_without_the_default_route() -> None:
    assert network.parse_routes(ROUTES) == [
        ipaddress.IPv4Network("192.168.2.0/24"),
        ipaddress.IPv4Network("10.88.0.0/16"),
    ]


def test_subnets_avoid_what_is_routed_and_each_other() -> None:
    taken = [ipaddress.IPv4Network("10.88.0.0/16"), ipaddress.IPv4Network("10.90.3.0/24")]
    assert network.choose_subnets(3, taken) == ["10.89.0.0/16", "10.91.0.0/16", "10.92.0.0/16"]


def test_no_subnet_left_is_said() -> None:
    with pytest.raises(ClusterError, match="no free /16"):
        network.choose_subnets(1, [ipaddress.IPv4Network("10.0.0.0/8")])


def test_ports_avoid_other_clusters_and_listeners(monkeypatch: pytest.MonkeyPatch) -> None:
    start = network.choose_ports(["a"], set())["a"]
    monkeypatch.setattr(network, "_PORTS", range(start, start + 3))
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", start))
        listener.listen()
        assert network.choose_ports(["a"], {start + 1}) == {"a": start + 2}
        with pytest.raises(ClusterError, match="no free port"):
            network.choose_ports(["a", "b"], {start + 1})


def test_mounts_below_a_folder_come_deepest_and_latest_first() -> None:
    assert leftovers.parse_mounts(MOUNTS, Path("/s/demo")) == [
        "/s/demo/kubelet/pods/a/volumes/one two",
        "/s/demo/run/rootfs",
        "/s/demo/run/rootfs",
        "/s/demo/kubelet",
    ]


def test_cgroup_hierarchies_of_both_versions_are_found() -> None:
    assert leftovers.parse_cgroup_hierarchies(MOUNTS) == [Path("/sys/fs/cgroup/cpu"), Path("/sys/fs/cgroup/unified")]


def test_a_process_name_with_brackets_and_blanks_does_not_shift_the_fields() -> None:
    numbers = " ".join(str(field) for field in range(4, 53))
    assert processes.parse_stat(f"12 (a) b) R) S {numbers}") == ("S", 22)


@contextmanager
def sleeping(**environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process that sleeps for longer than any test and ends with the block."""
    with subprocess.Popen(["sleep", "7777"], env={**os.environ, **environment}) as process:
        try:
            yield process
        finally:
            process.kill()


def test_a_pid_with_another_start_time_is_not_ended() -> None:
    with sleeping() as sleeper:
        started = processes.start_time(sleeper.pid)
        assert started is not None
        assert processes.end([processes.Process("sleep", sleeper.pid, started - 1)]) == []
        assert sleeper.poll() is None
        assert processes.end([processes.Process("sleep", sleeper.pid, started)]) == []
        assert sleeper.wait() == -9


def test_a_process_is_found_by_its_token() -> None:
    token = instance.new_token()
    with sleeping(**{processes.TOKEN_VARIABLE: token}) as sleeper:
        # Between fork and exec the child still shows this process's environment.
        found = eventually(lambda: processes.find_by_token(token))
        assert [process.pid for process in found] == [sleeper.pid]
    assert processes.find_by_token(token) == []


@pytest.mark.parametrize("name", ["", "-a", "a-", "A", "a/b", "..", "a" * 21])
def test_names_that_do_not_fit_are_refused(name: str) -> None:
    with pytest.raises(ClusterError, match="name"):
        instance.folder_of(name)


def test_a_state_folder_too_deep_for_sockets_is_refused() -> None:
    instance.check_length(Path("/" + "x" * 60))
    with pytest.raises(ClusterError, match="XDG_STATE_HOME"):
        instance.check_length(Path("/" + "x" * 80))


def test_a_record_survives_writing_and_reading(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    written = instance.Instance(
        "demo", "0123456789abcdef", True, 0, False, "", {"etcd": 1}, "10.88.0.0/16", "10.89.0.0/16"
    )
    written.record(processes.Process("etcd", 1, 2))
    written.record(processes.Process("etcd", 3, 4))
    assert instance.load("demo") == written
    assert written.processes == [processes.Process("etcd", 3, 4)]
    assert (written.node_ip, written.dns_ip) == ("10.88.0.1", "10.89.0.10")
    # An interface's name has at most 15 characters.
    assert len(written.bridge) <= 15


def test_an_image_archive_holds_together_and_is_the_same_twice(tmp_path: Path) -> None:
    binary = tmp_path / "tool"
    binary.write_bytes(b"\x7fELF")
    binary.chmod(0o700)
    text = tmp_path / "text"
    text.write_text("hello")
    for out in ("one.tar", "two.tar"):
        oci.write_image("localhost/tool:1", binary, tmp_path / out, user="7", extra=[(text, "/etc/tool/text")])
    assert (tmp_path / "one.tar").read_bytes() == (tmp_path / "two.tar").read_bytes()
    with tarfile.open(tmp_path / "one.tar") as archive:
        content = {name: _read(archive, name) for name in archive.getnames()}
    for name, blob in content.items():
        if name.startswith("blobs/sha256/"):
            assert hashlib.sha256(blob).hexdigest() == name.rsplit("/", 1)[1]
    (descriptor,) = json.loads(content["index.json"])["manifests"]
    manifest = json.loads(_blob(content, descriptor["digest"]))
    config = json.loads(_blob(content, manifest["config"]["digest"]))
    assert config["config"] == {"Entrypoint": ["/tool"], "User": "7", "WorkingDir": "/"}
    layer = tmp_path / "layer.tar"
    layer.write_bytes(_blob(content, manifest["layers"][0]["digest"]))
    with tarfile.open(layer) as files:
        assert files.getnames() == ["tmp", "tool", "etc", "etc/tool", "etc/tool/text"]
        assert files.getmember("tool").mode == 0o755
        assert files.getmember("etc/tool/text").mode == 0o644


def _read(archive: tarfile.TarFile, name: str) -> bytes:
    file = archive.extractfile(name)
    assert file is not None
    return file.read()


def _blob(content: dict[str, bytes], digest: str) -> bytes:
    return content["blobs/" + digest.replace(":", "/")]


def test_the_program_needs_nothing_but_the_standard_library() -> None:
    command = [sys.executable, "-S", "-E", "-m", "hack.cluster", "--help"]
    result = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True)
    assert "load-image" in result.stdout


def test_a_plugin_is_not_there_because_a_program_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """iproute2 has a program ``bridge``, and CNI a plugin; a program itself may lie anywhere on PATH."""
    program = tmp_path / "bridge"
    program.touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    packages = {"plugins": "/nowhere/cni/bridge", "iproute2": "/nowhere/sbin/bridge"}
    assert deps.missing(packages) == ["plugins"]


def test_without_nft_there_are_no_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that has never run a node does not have the program yet."""
    monkeypatch.setenv("PATH", str(tmp_path))
    assert leftovers.nft_tables() == []
