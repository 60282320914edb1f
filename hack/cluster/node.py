"""The real node: containerd and runc, kubelet, kube-proxy, a bridge for the pods, CoreDNS. Needs root.

What can be kept in the cluster's folder is kept there: containerd's and runc's state, the pods' network namespaces, the
container logs, the CNI's addresses. What cannot is listed in leftovers.py.
"""

import json
import subprocess
from pathlib import Path
from typing import Any

from hack.cluster import oci
from hack.cluster.api import MERGE_PATCH, Api, is_ready
from hack.cluster.binaries import BINARIES, program
from hack.cluster.controlplane import start, wait_for
from hack.cluster.errors import ClusterError
from hack.cluster.instance import NODE_NAME, Instance
from hack.cluster.leftovers import OUTSIDE_FOLDERS, cgroup_folders, nft_tables, sysctl_path
from hack.cluster.paths import MANIFESTS, images_folder
from hack.cluster.say import say

PORTS = ("kubelet", "kubelet-healthz", "proxy-healthz", "proxy-metrics")
_PAUSE = f"localhost/pause:{BINARIES['pause'].version}"
_COREDNS = f"localhost/coredns:{BINARIES['coredns'].version}"
# Set by us for the pods' network; None where kubelet sets its own value at start. All are restored by `down`.
_SYSCTLS = {
    "net.ipv4.ip_forward": "1",
    "net.bridge.bridge-nf-call-iptables": "1",
    "vm.overcommit_memory": None,
    "vm.panic_on_oom": None,
    "kernel.panic": None,
    "kernel.panic_on_oops": None,
    "kernel.keys.root_maxkeys": None,
    "kernel.keys.root_maxbytes": None,
}


def refuse_second() -> None:
    """Raises: ClusterError if this host already has a real node, of whatever origin."""
    if tables := nft_tables():
        raise ClusterError(
            f"this host has a Kubernetes node already (nft table {tables[0]}), which two cannot share: "
            "bring that cluster down first, or use --control-plane-only"
        )


def _command(*words: str) -> str:
    result = subprocess.run(words, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise ClusterError(f"{' '.join(words)}: {result.stderr.strip()}")
    return result.stdout


def _prepare_host(instance: Instance) -> None:
    """Record what the host was like, then change it."""
    instance.sysctls = {name: sysctl_path(name).read_text().strip() for name in _SYSCTLS if sysctl_path(name).exists()}
    instance.made_folders = [str(folder) for folder in OUTSIDE_FOLDERS if not folder.exists()]
    instance.save()
    for name, value in _SYSCTLS.items():
        if value is not None:
            try:
                sysctl_path(name).write_text(value)
            except FileNotFoundError as error:
                raise ClusterError(f"no sysctl {name}: load the kernel module br_netfilter") from error
    for folder in cgroup_folders(instance):
        folder.mkdir(exist_ok=True)
    _command("ip", "link", "add", instance.bridge, "type", "bridge")
    _command("ip", "addr", "add", f"{instance.node_ip}/16", "dev", instance.bridge)
    _command("ip", "link", "set", instance.bridge, "up")


def _write_cni(instance: Instance) -> None:
    """Bridge and host-local only: portmap would write iptables rules, so a pod's hostPort is not served."""
    folder = instance.folder / "cni"
    folder.mkdir()
    subnet = {"subnet": instance.pod_cidr, "gateway": instance.node_ip}
    bridge = {
        "type": "bridge",
        "bridge": instance.bridge,
        "isDefaultGateway": True,
        "hairpinMode": True,
        "ipMasq": False,
        "ipam": {"type": "host-local", "ranges": [[subnet]], "dataDir": str(instance.folder / "cni-addresses")},
    }
    document = {"cniVersion": "0.4.0", "name": instance.network, "plugins": [bridge]}
    (folder / "10-bridge.conflist").write_text(json.dumps(document))


def _write_containerd(instance: Instance) -> Path:
    folder = instance.folder
    target = folder / "containerd.toml"
    # restrict_oom_score_adj: root without CAP_SYS_RESOURCE may not lower the score, and runc would fail.
    target.write_text(
        f"""version = 2
root = "{folder}/containerd/root"
state = "{folder}/containerd/run"
disabled_plugins = ["io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs"]
[grpc]
  address = "{instance.socket}"
[plugins."io.containerd.internal.v1.opt"]
  path = "{folder}/containerd/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{_PAUSE}"
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{folder}/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
        Root = "{folder}/containerd/runc"
"""
    )
    return target


def _write_kubelet(instance: Instance) -> Path:
    folder = instance.folder
    document: dict[str, Any] = {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": instance.node_ip,
        "port": instance.ports["kubelet"],
        "healthzPort": instance.ports["kubelet-healthz"],
        "containerRuntimeEndpoint": f"unix://{instance.socket}",
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": str(folder / "pki" / "ca.crt")},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": str(folder / "pki" / "kubelet-server.crt"),
        "tlsPrivateKeyFile": str(folder / "pki" / "kubelet-server.key"),
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{instance.cgroup}",
        "cgroupsPerQOS": True,
        "enforceNodeAllocatable": [],
        "failCgroupV1": False,
        "failSwapOn": False,
        "clusterDNS": [instance.dns_ip],
        "clusterDomain": "cluster.local",
        "resolvConf": "",
        "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
        # Images are imported by hand and could not be pulled again.
        "imageGCHighThresholdPercent": 100,
        "makeIPTablesUtilChains": False,
        "maxPods": 250,
        "nodeStatusUpdateFrequency": "4s",
        "podLogsDir": str(folder / "pod-logs"),
        "volumePluginDir": str(folder / "volume-plugins"),
        "serializeImagePulls": False,
    }
    target = folder / "kubelet.json"
    target.write_text(json.dumps(document, indent=1))
    return target


def ctr(instance: Instance, *arguments: str) -> str:
    """Run containerd's client in the namespace that kubelet's images are in."""
    return _command("ctr", "--address", str(instance.socket), "--namespace", "k8s.io", *arguments)


def load_image(instance: Instance, archive: Path) -> None:
    """Import an OCI archive, so that pods with imagePullPolicy Never or IfNotPresent find it."""
    if not instance.node:
        raise ClusterError(f"cluster {instance.name} has no real node to load images into")
    if not archive.is_file():
        raise ClusterError(f"no such archive: {archive}")
    for line in ctr(instance, "images", "import", str(archive.resolve())).splitlines():
        say(line)


def _system_images() -> list[Path]:
    """Archives of pause and CoreDNS, written anew each time: it takes a moment, and they are never stale."""
    archives = []
    for reference, binary in ((_PAUSE, "pause"), (_COREDNS, "coredns")):
        archive = images_folder() / f"{binary}-{BINARIES[binary].version}.tar"
        oci.write_image(reference, BINARIES[binary].path, archive)
        archives.append(archive)
    return archives


def _start_kubelet(instance: Instance) -> None:
    folder = instance.folder
    start(
        instance,
        "kubelet",
        [
            program("kubelet"),
            f"--config={_write_kubelet(instance)}",
            f"--kubeconfig={folder / 'kubelet.kubeconfig'}",
            f"--root-dir={folder / 'kubelet'}",
            f"--cert-dir={folder / 'pki'}",
            f"--hostname-override={NODE_NAME}",
            f"--node-ip={instance.node_ip}",
        ],
    )


def _start_proxy(instance: Instance) -> None:
    start(
        instance,
        "proxy",
        [
            program("kube-proxy"),
            f"--kubeconfig={instance.folder / 'proxy.kubeconfig'}",
            "--proxy-mode=nftables",
            f"--cluster-cidr={instance.pod_cidr}",
            f"--hostname-override={NODE_NAME}",
            f"--healthz-bind-address=127.0.0.1:{instance.ports['proxy-healthz']}",
            f"--metrics-bind-address=127.0.0.1:{instance.ports['proxy-metrics']}",
            # Zero leaves the host's conntrack settings alone.
            "--conntrack-max-per-core=0",
            "--conntrack-min=0",
            "--conntrack-tcp-timeout-established=0s",
            "--conntrack-tcp-timeout-close-wait=0s",
        ],
    )


def node_is_ready(api: Api) -> bool:
    node = api.get(f"/api/v1/nodes/{NODE_NAME}")
    return node is not None and is_ready(node)


def _dns_is_available(api: Api) -> bool:
    deployment = api.get("/apis/apps/v1/namespaces/kube-system/deployments/coredns")
    return deployment is not None and deployment["status"].get("availableReplicas", 0) > 0


def kubectl(instance: Instance, *arguments: str, stdin: str = "") -> str:
    cache = f"--cache-dir={instance.folder / 'kubectl-cache'}"
    command = [program("kubectl"), f"--kubeconfig={instance.kubeconfig}", cache, *arguments]
    result = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise ClusterError(f"kubectl {' '.join(arguments)}: {result.stderr.strip()}")
    return result.stdout


def bring_up(instance: Instance) -> None:
    """Start the node beside a ready control plane, and wait until pods run and names resolve."""
    say(f"start containerd, kubelet, kube-proxy on bridge {instance.bridge}, pods in {instance.pod_cidr}")
    _prepare_host(instance)
    _write_cni(instance)
    start(instance, "containerd", ["containerd", "--config", str(_write_containerd(instance))])
    wait_for(instance, "containerd ready", "containerd", lambda: _containerd_answers(instance))
    for archive in _system_images():
        load_image(instance, archive)
    _start_kubelet(instance)
    _start_proxy(instance)
    manifest = (MANIFESTS / "coredns.yaml").read_text().replace("DNS_IP", instance.dns_ip)
    kubectl(instance, "apply", "--server-side", "-f", "-", stdin=manifest)
    api = Api(instance)
    wait_for(instance, "node ready", "kubelet", lambda: node_is_ready(api))
    say("node ready")
    wait_for(instance, "CoreDNS available", "kubelet", lambda: _dns_is_available(api))
    say("CoreDNS available")


def _containerd_answers(instance: Instance) -> bool:
    command = ["ctr", "--address", str(instance.socket), "--namespace", "k8s.io", "images", "list", "--quiet"]
    return instance.socket.exists() and subprocess.run(command, capture_output=True, check=False).returncode == 0


def advertise_gpus(instance: Instance, count: int) -> None:
    """Give every node so many of nvidia.com/gpu, as an extended resource in its status.

    On a real node only the capacity is set, as Kubernetes documents it: kubelet keeps resources that it does not know,
    and works out allocatable itself at its next status update. A fake node has nobody to do so, and gets both.
    """
    api = Api(instance)
    for node in api.nodes():
        resources = {"nvidia.com/gpu": str(count)}
        status = {"capacity": resources}
        if node["metadata"]["name"] != NODE_NAME:
            status["allocatable"] = resources
        api.must("PATCH", f"/api/v1/nodes/{node['metadata']['name']}/status", {"status": status}, MERGE_PATCH)
    wait_for(instance, "GPUs allocatable", "kubelet", lambda: _all_have_gpus(api, count))


def _all_have_gpus(api: Api, count: int) -> bool:
    nodes = api.nodes()
    return bool(nodes) and all(
        node["status"].get("allocatable", {}).get("nvidia.com/gpu", "0") == str(count) for node in nodes
    )
