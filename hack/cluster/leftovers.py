"""Removes what a cluster leaves on the host, whether it was stopped in order or all its processes were killed.

Order matters: processes first (they hold the mounts), then mounts (a folder may only be removed once nothing is mounted
below it), then network, cgroups, files. Everything is found by what is the cluster's own: its folder, its bridge, its
cgroup, its token. Each step looks at what is there, so that it can be run again.
"""

import json
import os
import shutil
import subprocess
import time
from pathlib import Path

from hack.cluster.errors import ClusterError
from hack.cluster.instance import Instance
from hack.cluster.processes import Process, end, find_by_arguments, find_by_token, start_time

# kube-proxy's, fixed in its source: the reason why a host can have one real node only.
NFT_TABLES = ("ip kube-proxy", "ip6 kube-proxy")
CNI_RESULTS = Path("/var/lib/cni/results")
SHIM_SOCKETS = Path("/run/containerd/s")
CONTAINER_LOGS = Path("/var/log/containers")
DEVICE_PLUGINS = Path("/var/lib/kubelet/device-plugins")
# Folders outside of the cluster's own that containerd and kubelet make, with no option to move them; those that were
# not there before are removed when empty. Deepest first.
OUTSIDE_FOLDERS = (
    CNI_RESULTS,
    CNI_RESULTS.parent,
    SHIM_SOCKETS,
    SHIM_SOCKETS.parent,
    CONTAINER_LOGS,
    DEVICE_PLUGINS,
    DEVICE_PLUGINS.parent,
)
_MOUNTINFO = Path("/proc/self/mountinfo")


def _unescape(field: str) -> str:
    """mountinfo writes blank, tab, newline and backslash as octal."""
    for escaped, plain in ((r"\040", " "), (r"\011", "\t"), (r"\012", "\n"), (r"\134", "\\")):
        field = field.replace(escaped, plain)
    return field


def parse_mounts(text: str, below: Path) -> list[str]:
    """Mount points at or below a folder in /proc/PID/mountinfo's text, in the order in which they can be unmounted."""
    points = [_unescape(line.split()[4]) for line in text.splitlines()]
    prefix = str(below)
    ours = [point for point in points if point == prefix or point.startswith(prefix + "/")]
    # A later mount may hide an earlier one at the same point: last mounted, first unmounted.
    return [point for _, point in sorted(enumerate(ours), key=lambda pair: (pair[1].count("/"), pair[0]), reverse=True)]


def parse_cgroup_hierarchies(text: str) -> list[Path]:
    """Mount points of every cgroup hierarchy, version 1 and 2, in /proc/PID/mountinfo's text, each once."""
    points = []
    for line in text.splitlines():
        before, after = line.split(" - ", 1)
        if after.split()[0] in ("cgroup", "cgroup2"):
            points.append(Path(_unescape(before.split()[4])))
    return list(dict.fromkeys(points))


def cgroup_folders(instance: Instance) -> list[Path]:
    """The cluster's cgroup in each hierarchy, existing or not."""
    return [hierarchy / instance.cgroup for hierarchy in parse_cgroup_hierarchies(_MOUNTINFO.read_text())]


def _cgroup_processes(instance: Instance) -> list[Process]:
    found = set()
    for folder in cgroup_folders(instance):
        for inner, _, _ in os.walk(folder):
            try:
                pids = (Path(inner) / "cgroup.procs").read_text().split()
            except (FileNotFoundError, OSError):
                # Removed meanwhile, or a threaded cgroup, whose processes its parent lists.
                continue
            for pid in pids:
                started = start_time(int(pid))
                if started is not None:
                    found.add(Process("container", int(pid), started))
    return list(found)


def shims(instance: Instance) -> list[Process]:
    """Container shims that serve this cluster's containerd: they are told its socket."""
    return find_by_arguments("containerd-shim", str(instance.socket))


def end_processes(instance: Instance) -> None:
    """kubelet first, or it would start again what is being stopped; last, what a dying process started meanwhile."""
    recorded = {process.name: process for process in instance.processes}
    first = [recorded.pop(name) for name in ("kubelet", "kwok") if name in recorded]
    end(first)
    end(_cgroup_processes(instance))
    end(recorded.values())
    survivors: list[Process] = []
    for _ in range(5):
        survivors = [*shims(instance), *_cgroup_processes(instance), *find_by_token(instance.token)]
        if not survivors:
            return
        end(survivors)
    if survivors:
        pids = ", ".join(f"{process.pid} ({process.name})" for process in survivors)
        raise ClusterError(f"these processes of cluster {instance.name} do not end: {pids}")


def _run(*command: str) -> str:
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise ClusterError(f"{' '.join(command)}: {result.stderr.strip()}")
    return result.stdout


def unmount(folder: Path) -> None:
    """Unmount everything at or below a folder; lazily, for a process that is just ending may still hold a mount."""
    for _ in range(5):
        points = parse_mounts(_MOUNTINFO.read_text(), folder)
        if not points:
            return
        for point in points:
            # A parent may have taken its children along, so a failure means nothing: the list is read again.
            subprocess.run(["umount", "-l", point], capture_output=True, check=False)
    raise ClusterError(f"cannot unmount {', '.join(parse_mounts(_MOUNTINFO.read_text(), folder))}")


def _remove_bridge(instance: Instance) -> None:
    if not Path("/sys/class/net", instance.bridge).exists():
        return
    for link in json.loads(_run("ip", "-json", "link", "show", "master", instance.bridge) or "[]"):
        # The kernel deletes a veth by itself when its network namespace goes, so it may be gone by now.
        subprocess.run(["ip", "link", "del", link["ifname"]], capture_output=True, check=False)
    _run("ip", "link", "del", instance.bridge)


def nft_tables() -> list[str]:
    """kube-proxy's tables that exist on this host; kube-proxy itself makes them with nft."""
    if shutil.which("nft") is None:
        return []
    listed = {line.removeprefix("table ") for line in _run("nft", "list", "tables").splitlines()}
    return [table for table in NFT_TABLES if table in listed]


def _remove_cgroups(instance: Instance) -> None:
    for folder in cgroup_folders(instance):
        for inner, _, _ in os.walk(folder, topdown=False):
            for _ in range(50):
                try:
                    Path(inner).rmdir()
                except FileNotFoundError:
                    break
                except OSError:
                    # Busy for a moment after its last process was killed.
                    time.sleep(0.05)
                else:
                    break
        if folder.exists():
            raise ClusterError(f"cannot remove the cgroup {folder}")


def _remove_outside_files(instance: Instance) -> None:
    """Files that containerd and kubelet put at fixed places: each names our folder, or lies where only we were."""
    if CNI_RESULTS.is_dir():
        for result in CNI_RESULTS.iterdir():
            # The loopback's results do not bear our network's name, but say where the pod's network namespace was.
            if str(instance.folder) in result.read_text(errors="replace"):
                result.unlink()
    if str(DEVICE_PLUGINS) in instance.made_folders:
        (DEVICE_PLUGINS / "kubelet.sock").unlink(missing_ok=True)
    for address in instance.folder.glob("containerd/run/io.containerd.runtime.v2.task/*/*/address"):
        socket = Path(address.read_text().strip().removeprefix("unix://"))
        if socket.parent == SHIM_SOCKETS:
            socket.unlink(missing_ok=True)
    if CONTAINER_LOGS.is_dir():
        for link in CONTAINER_LOGS.iterdir():
            if link.is_symlink() and link.readlink().is_relative_to(instance.folder):
                link.unlink()


def _remove_made_folders(instance: Instance) -> None:
    for folder in map(Path, instance.made_folders):
        try:
            folder.rmdir()
        except FileNotFoundError:
            continue
        except OSError:
            # Someone else's files are in it by now: then it is no longer ours to remove.
            continue


def restore_sysctls(instance: Instance) -> None:
    for name, value in instance.sysctls.items():
        path = sysctl_path(name)
        if path.exists() and path.read_text().strip() != value:
            path.write_text(value)


def sysctl_path(name: str) -> Path:
    return Path("/proc/sys") / name.replace(".", "/")


def remove(instance: Instance) -> None:
    """Remove the cluster without a trace.

    Raises: ClusterError if something cannot be removed; the record then stays, so that it can be tried again.
    """
    if instance.node and os.geteuid() != 0:
        raise ClusterError(f"cluster {instance.name} has a real node: removing it needs root")
    end_processes(instance)
    if instance.node:
        _remove_outside_files(instance)
        unmount(instance.folder)
        _remove_bridge(instance)
        for table in nft_tables():
            _run("nft", "delete", "table", *table.split())
        _remove_cgroups(instance)
        _remove_made_folders(instance)
        restore_sysctls(instance)
    remove_folder(instance.folder)


def remove_folder(folder: Path) -> None:
    """Remove a cluster's folder; the record goes last, so that an interrupted removal can be finished."""
    if mounted := parse_mounts(_MOUNTINFO.read_text(), folder):
        raise ClusterError(f"something is still mounted below {folder}: {', '.join(mounted)}")
    if not folder.exists():
        return
    for entry in folder.iterdir():
        if entry.name == "cluster.json":
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
    shutil.rmtree(folder)
