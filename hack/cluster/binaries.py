"""Builds the pinned programs from their Go modules into the cache, each one only if it is not there yet.

Every module folder under tools/ holds a go.mod and go.sum, so that what is built is fixed to the last dependency. The
Kubernetes programs share one module; the others have one each, or their dependencies would clash.
"""

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hack.cluster.errors import ClusterError
from hack.cluster.paths import TOOLS, binaries_folder, locked
from hack.cluster.say import say

KUBERNETES = "1.35.4"
_HEARTBEAT_SECONDS = 30


def _kubernetes_variables() -> dict[str, str]:
    """Without these a program built from the module calls itself v0.0.0 and kubelet and API server disagree on skew."""
    major, minor, _ = KUBERNETES.split(".")
    variables: dict[str, str] = {}
    for package in ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version"):
        variables[f"{package}.gitVersion"] = f"v{KUBERNETES}"
        variables[f"{package}.gitMajor"] = major
        variables[f"{package}.gitMinor"] = minor
    return variables


def _helm_variables(version: str) -> dict[str, str]:
    """Also the Kubernetes version that `helm template` and `helm lint` assume when no cluster is asked."""
    major, minor, _ = KUBERNETES.split(".")
    variables = {"helm.sh/helm/v3/internal/version.version": f"v{version}"}
    for package in ("helm.sh/helm/v3/pkg/chartutil", "helm.sh/helm/v3/pkg/lint/rules"):
        variables[f"{package}.k8sVersionMajor"] = major
        variables[f"{package}.k8sVersionMinor"] = minor
    return variables


@dataclass(frozen=True)
class Binary:
    """One program: the tools module that pins it, its main package, the version strings linked in, and build tags."""

    name: str
    version: str
    module: str
    package: str
    variables: dict[str, str]
    tags: str = ""

    @property
    def path(self) -> Path:
        return binaries_folder() / f"{self.name}-{self.version}" / self.name


def _kubernetes(name: str) -> Binary:
    return Binary(name, KUBERNETES, "kubernetes", f"k8s.io/kubernetes/cmd/{name}", _kubernetes_variables())


def _prometheus(name: str) -> Binary:
    """Of its service discoveries only what finds pods: the others compile the clients of every cloud."""
    variables = {"github.com/prometheus/common/version.Version": "3.16.0"}
    tags = "remove_all_sd,enable_kubernetes_sd"
    return Binary(name, "3.16.0", "prometheus", f"github.com/prometheus/prometheus/cmd/{name}", variables, tags)


_ALL = (
    _kubernetes("kube-apiserver"),
    _kubernetes("kube-controller-manager"),
    _kubernetes("kube-scheduler"),
    Binary("etcd", "3.6.16", "etcd", "go.etcd.io/etcd/server/v3", {}),
    _kubernetes("kubectl"),
    _kubernetes("kubelet"),
    _kubernetes("kube-proxy"),
    Binary("pause", "1", "pause", ".", {}),
    Binary("coredns", "1.14.7", "coredns", "github.com/coredns/coredns", {}),
    Binary("kwok", "0.8.0", "kwok", "sigs.k8s.io/kwok/cmd/kwok", {"sigs.k8s.io/kwok/pkg/consts.Version": "v0.8.0"}),
    Binary("helm", "3.22.0", "helm", "helm.sh/helm/v3/cmd/helm", _helm_variables("3.22.0")),
    Binary("versitygw", "1.8.0", "versitygw", "github.com/versity/versitygw/cmd/versitygw", {"main.Version": "1.8.0"}),
    Binary(
        "kubeconform",
        "0.8.0",
        "kubeconform",
        "github.com/yannh/kubeconform/cmd/kubeconform",
        {"main.version": "v0.8.0"},
    ),
    Binary("kstatus", "0.37.2", "kstatus", ".", {}),
    Binary("glua", "1.1.2", "glua", "github.com/yuin/gopher-lua/cmd/glua", {}),
    Binary("actionlint", "1.7.12", "actionlint", "github.com/rhysd/actionlint/cmd/actionlint", {}),
    _prometheus("prometheus"),
    _prometheus("promtool"),
)
BINARIES = {binary.name: binary for binary in _ALL}
CONTROL_PLANE = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "etcd", "kubectl")
NODE = ("kubelet", "kube-proxy", "pause", "coredns")
# What only hack/addons needs: minutes of compiling that `make test` does without.
PLATFORM = ("prometheus", "promtool")
DEFAULT = tuple(name for name in BINARIES if name not in PLATFORM)
# What a person types, put on PATH by `env` and `run-with`.
FOR_PEOPLE = ("kubectl", "helm", "kubeconform")


def need_compiler() -> None:
    """Raises: ClusterError when there is no Go compiler."""
    if shutil.which("go") is None:
        raise ClusterError("no Go compiler: `go` is not on PATH, and the programs are built from their modules")


def build(binary: Binary, module: Path) -> None:
    """Compile a program in the folder of its module.

    Into a temporary folder beside the target, and then renamed: a killed build leaves no half-written program.

    Raises: ClusterError for no Go compiler, or a failed build.
    """
    need_compiler()
    began = time.monotonic()
    folder = binary.path.parent
    linked = " ".join(f"-X {name}={value}" for name, value in binary.variables.items())
    say(f"build {binary.name} {binary.version}")
    with tempfile.TemporaryDirectory(prefix=f".{binary.name}-", dir=folder.parent) as temporary:
        built = Path(temporary) / binary.name
        command = ["go", "build", "-trimpath", "-tags", binary.tags, "-ldflags", f"-s -w {linked}"]
        command += ["-o", str(built), binary.package]
        environment = {**os.environ, "CGO_ENABLED": "0", "GOWORK": "off"}
        log = Path(temporary) / "log"
        with log.open("wb") as output:
            compiler = subprocess.Popen(command, cwd=module, env=environment, stdout=output, stderr=subprocess.STDOUT)
            try:
                while True:
                    try:
                        compiler.wait(timeout=_HEARTBEAT_SECONDS)
                        break
                    except subprocess.TimeoutExpired:
                        say(f"build {binary.name}: still compiling after {time.monotonic() - began:.0f} s")
            finally:
                if compiler.poll() is None:
                    compiler.terminate()
                    compiler.wait()
        if compiler.returncode != 0:
            lines = [line for line in log.read_text(errors="replace").splitlines() if "downloading" not in line]
            raise ClusterError(f"building {binary.name} failed:\n" + "\n".join(lines[-30:]))
        folder.mkdir(parents=True, exist_ok=True)
        built.rename(binary.path)
    say(f"built {binary.name} in {time.monotonic() - began:.0f} s")


def ensure(names: Sequence[str]) -> None:
    """Build those of the named programs that are not in the cache.

    Raises: ClusterError for an unknown name, no Go compiler, or a failed build.
    """
    unknown = [name for name in names if name not in BINARIES]
    if unknown:
        raise ClusterError(f"unknown: {', '.join(unknown)}; known: {', '.join(BINARIES)}")
    if all(BINARIES[name].path.exists() for name in names):
        return
    # Two builds at once would only compile the same packages twice; the second waits and then finds all there.
    with locked(binaries_folder()):
        for name in names:
            if not BINARIES[name].path.exists():
                build(BINARIES[name], TOOLS / BINARIES[name].module)


def program(name: str) -> str:
    """The path of a built program, as a command's first word."""
    return str(BINARIES[name].path)
