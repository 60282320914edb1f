"""The control plane: etcd, API server, controller manager, scheduler and, for fake nodes, kwok. Needs no root.

Everything listens on loopback, except that the API server of a cluster with a real node listens on all addresses, since
pods reach it at the node's. etcd does not sync to disk: a power cut may lose the cluster, and nobody minds.
"""

import json
import time
from collections.abc import Callable
from typing import Any

from hack.cluster.api import Api, is_ready
from hack.cluster.binaries import program
from hack.cluster.errors import ClusterError
from hack.cluster.instance import Instance
from hack.cluster.paths import MANIFESTS
from hack.cluster.processes import is_alive, spawn
from hack.cluster.say import say, tail

PORTS = ("etcd", "etcd-peer", "apiserver", "controller-manager", "scheduler", "kwok")
# A busy machine may take a minute for what takes a quiet one some seconds.
_HANG_SECONDS = 300.0
FAKE_NODE_ANNOTATION = {"kwok.x-k8s.io/node": "fake"}
_FAKE_NODE_RESOURCES = {"cpu": "64", "memory": "512Gi", "pods": "1000", "ephemeral-storage": "1Ti"}


def start(instance: Instance, name: str, command: list[str]) -> None:
    """Start one component and record it; its log is log/NAME.log in the cluster's folder."""
    instance.record(spawn(name, command, instance.token, instance.folder / "log" / f"{name}.log"))


def wait_for(instance: Instance, what: str, component: str, condition: Callable[[], bool]) -> None:
    """Poll until the condition holds.

    Raises: ClusterError, with the end of the component's log, when a component has ended or seems to hang.
    """
    deadline = time.monotonic() + _HANG_SECONDS
    while not condition():
        dead = [process.name for process in instance.processes if not is_alive(process)]
        blamed = dead[0] if dead else component
        if dead or time.monotonic() > deadline:
            reason = f"{blamed} has ended" if dead else f"not within {_HANG_SECONDS:.0f} s"
            log = instance.folder / "log" / f"{blamed}.log"
            raise ClusterError(f"{what}: {reason}; the end of {log}:\n{tail(log)}")
        time.sleep(0.1)


def _start_etcd(instance: Instance) -> None:
    client, peer = (f"http://127.0.0.1:{instance.ports[port]}" for port in ("etcd", "etcd-peer"))
    start(
        instance,
        "etcd",
        [
            program("etcd"),
            f"--data-dir={instance.folder / 'etcd'}",
            "--unsafe-no-fsync",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}",
            "--quota-backend-bytes=8589934592",
            "--log-level=warn",
        ],
    )


def _audit_flags(instance: Instance) -> list[str]:
    """One line per request at Metadata level, written before the answer is sent: a count of them is exact."""
    if not instance.audit_log:
        return []
    policy = instance.folder / "audit-policy.json"
    rules = [{"level": "Metadata"}]
    document = {
        "apiVersion": "audit.k8s.io/v1",
        "kind": "Policy",
        "omitStages": ["RequestReceived"],
        "rules": rules,
    }
    policy.write_text(json.dumps(document))
    return [f"--audit-policy-file={policy}", f"--audit-log-path={instance.audit_log}", "--audit-log-maxsize=100000"]


def _start_apiserver(instance: Instance) -> None:
    pki = instance.folder / "pki"
    if instance.node:
        reach = ["--bind-address=0.0.0.0", f"--advertise-address={instance.node_ip}"]
    else:
        # No pod runs here, so nobody follows the `kubernetes` Service; its endpoint may not be a loopback address.
        reach = ["--bind-address=127.0.0.1", "--advertise-address=192.0.2.1", "--endpoint-reconciler-type=none"]
    load = ["--max-requests-inflight=3000", "--max-mutating-requests-inflight=1500"] if instance.tuned else []
    start(
        instance,
        "apiserver",
        [
            program("kube-apiserver"),
            f"--etcd-servers=http://127.0.0.1:{instance.ports['etcd']}",
            *reach,
            f"--secure-port={instance.ports['apiserver']}",
            f"--client-ca-file={pki / 'ca.crt'}",
            f"--tls-cert-file={pki / 'apiserver.crt'}",
            f"--tls-private-key-file={pki / 'apiserver.key'}",
            f"--service-account-key-file={pki / 'sa.pub'}",
            f"--service-account-signing-key-file={pki / 'sa.key'}",
            "--service-account-issuer=https://kubernetes.default.svc",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            f"--service-cluster-ip-range={instance.service_cidr}",
            f"--kubelet-client-certificate={pki / 'kubelet-client.crt'}",
            f"--kubelet-client-key={pki / 'kubelet-client.key'}",
            f"--kubelet-certificate-authority={pki / 'ca.crt'}",
            # The default asks DNS for the node's name first, and no DNS knows it.
            "--kubelet-preferred-address-types=InternalIP",
            "--allow-privileged=true",
            *_audit_flags(instance),
            *load,
        ],
    )


def _start_controller_manager(instance: Instance) -> None:
    pki = instance.folder / "pki"
    load = [
        "--kube-api-qps=1000",
        "--kube-api-burst=2000",
        "--concurrent-job-syncs=50",
        "--concurrent-gc-syncs=50",
        "--concurrent-ttl-after-finished-syncs=20",
    ]
    start(
        instance,
        "controller-manager",
        [
            program("kube-controller-manager"),
            f"--kubeconfig={instance.folder / 'controller-manager.kubeconfig'}",
            "--bind-address=127.0.0.1",
            f"--secure-port={instance.ports['controller-manager']}",
            f"--service-account-private-key-file={pki / 'sa.key'}",
            f"--root-ca-file={pki / 'ca.crt'}",
            f"--cluster-signing-cert-file={pki / 'ca.crt'}",
            f"--cluster-signing-key-file={pki / 'ca.key'}",
            "--use-service-account-credentials=true",
            f"--flex-volume-plugin-dir={instance.folder / 'volume-plugins'}",
            "--leader-elect=false",
            f"--cluster-cidr={instance.pod_cidr}",
            *(load if instance.tuned else []),
        ],
    )


def _start_scheduler(instance: Instance) -> None:
    connection: dict[str, Any] = {"kubeconfig": str(instance.folder / "scheduler.kubeconfig")}
    if instance.tuned:
        connection |= {"qps": 1000, "burst": 2000}
    configuration = instance.folder / "scheduler.json"
    document = {
        "apiVersion": "kubescheduler.config.k8s.io/v1",
        "kind": "KubeSchedulerConfiguration",
        "leaderElection": {"leaderElect": False},
        "clientConnection": connection,
    }
    configuration.write_text(json.dumps(document))
    port = instance.ports["scheduler"]
    command = [
        program("kube-scheduler"),
        f"--config={configuration}",
        "--bind-address=127.0.0.1",
        f"--secure-port={port}",
    ]
    start(instance, "scheduler", command)


def bring_up(instance: Instance) -> None:
    """Start the control plane and wait until pods can be created in it."""
    say("start etcd, API server, controller manager, scheduler")
    api = Api(instance)
    _start_etcd(instance)
    _start_apiserver(instance)
    wait_for(instance, "API server ready", "apiserver", api.ready)
    _start_controller_manager(instance)
    _start_scheduler(instance)
    # The service account is made by the controller manager: with it there, all four are known to work together.
    account = "/api/v1/namespaces/default/serviceaccounts/default"
    wait_for(instance, "default service account", "controller-manager", lambda: api.get(account) is not None)
    say("control plane ready")


def _fake_node(number: int, taints: list[dict[str, str]]) -> dict[str, Any]:
    name = f"fake-{number:03d}"
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": name,
            "annotations": FAKE_NODE_ANNOTATION,
            "labels": {"kubernetes.io/hostname": name, "kubernetes.io/os": "linux", "type": "kwok"},
        },
        "spec": {"taints": taints},
        "status": {"capacity": _FAKE_NODE_RESOURCES, "allocatable": _FAKE_NODE_RESOURCES},
    }


def bring_up_fake_nodes(instance: Instance) -> None:
    """kwok plays kubelet for nodes that do not exist; beside a real one they are tainted, lest its pods land there."""
    say(f"start kwok with {instance.kwok_nodes} fake nodes")
    api = Api(instance)
    taint = {"key": "kwok.x-k8s.io/node", "value": "fake", "effect": "NoSchedule"}
    for number in range(instance.kwok_nodes):
        node = _fake_node(number, [taint] if instance.node else [])
        api.must("POST", "/api/v1/nodes", node)
    selector = ",".join(f"{key}={value}" for key, value in FAKE_NODE_ANNOTATION.items())
    start(
        instance,
        "kwok",
        [
            program("kwok"),
            f"--kubeconfig={instance.folder / 'kwok.kubeconfig'}",
            "--manage-all-nodes=false",
            f"--manage-nodes-with-annotation-selector={selector}",
            "--node-lease-duration-seconds=40",
            f"--server-address=127.0.0.1:{instance.ports['kwok']}",
            f"--config={MANIFESTS / 'kwok-stages.yaml'}",
            # At its default level it writes a line for each pod's every step.
            "-v=WARN",
        ],
    )

    def ready() -> bool:
        fake = [
            node
            for node in api.nodes()
            if node["metadata"].get("annotations", {}).items() >= FAKE_NODE_ANNOTATION.items()
        ]
        return len(fake) >= instance.kwok_nodes and all(is_ready(node) for node in fake)

    wait_for(instance, "fake nodes ready", "kwok", ready)
    say("fake nodes ready")
