"""Debian packages for a real node and for image builds: only what is missing is installed, and no service started."""

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from hack.cluster.errors import ClusterError
from hack.cluster.paths import cache_folder, locked
from hack.cluster.say import say

# Package: a file that is there when it is installed.
CONTROL_PLANE = {"openssl": "/usr/bin/openssl"}
NODE = {
    **CONTROL_PLANE,
    "containerd": "/usr/bin/containerd",
    "runc": "/usr/sbin/runc",
    "containernetworking-plugins": "/usr/lib/cni/bridge",
    "nftables": "/usr/sbin/nft",
    "iproute2": "/usr/bin/ip",
    "mount": "/usr/bin/umount",
}
IMAGES = {
    "buildah": "/usr/bin/buildah",
    "mmdebstrap": "/usr/bin/mmdebstrap",
    "ca-certificates": "/etc/ssl/certs/ca-certificates.crt",
}
ALL = {**NODE, **IMAGES}
# What the tests of the report look at it with.
BROWSER = {"chromium": "/usr/bin/chromium"}
_POLICY = Path("/usr/sbin/policy-rc.d")


def _is_there(file: str) -> bool:
    """A program may lie anywhere on PATH; another file may not: CNI's plugin ``bridge`` is not iproute2's program."""
    path = Path(file)
    return path.exists() or (path.parent.name in ("bin", "sbin") and shutil.which(path.name) is not None)


def missing(packages: dict[str, str]) -> list[str]:
    return [package for package, file in packages.items() if not _is_there(file)]


def _apt_get(*arguments: str) -> None:
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    result = subprocess.run(
        ["apt-get", "-qq", *arguments], env=environment, capture_output=True, text=True, check=False
    )
    if result.returncode != 0:
        raise ClusterError(f"apt-get {' '.join(arguments)} failed:\n{result.stdout[-2000:]}{result.stderr[-2000:]}")


def _install(packages: Sequence[str]) -> None:
    """Debian starts a daemon on installing it, unless policy-rc.d forbids it: one containerd of our own is enough."""
    forbidden_by_us = not _POLICY.exists()
    if forbidden_by_us:
        _POLICY.write_text("#!/bin/sh\nexit 101\n")
        _POLICY.chmod(0o755)
    try:
        _apt_get("update")
        _apt_get("install", "-y", "--no-install-recommends", *packages)
    finally:
        if forbidden_by_us:
            _POLICY.unlink()


def ensure(packages: dict[str, str]) -> None:
    """Raises: ClusterError when something is missing and this is not root on Debian, or the installation fails."""
    absent = missing(packages)
    if not absent:
        return
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise ClusterError(f"missing: {' '.join(absent)}; `deps` installs them as root on Debian")
    # Two commands at once, as tests run them, would find apt's own lock taken and fail.
    with locked(cache_folder()):
        if absent := missing(packages):
            say(f"apt-get install {' '.join(absent)}")
            _install(absent)
    if still := missing(packages):
        raise ClusterError(f"installed, and yet not there: {', '.join(packages[name] for name in still)}")
