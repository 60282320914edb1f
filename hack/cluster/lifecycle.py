"""`up`, `down` and `status`: what a cluster goes through from nothing to nothing."""

import ipaddress
import os
from dataclasses import dataclass
from pathlib import Path

from hack.cluster import binaries, controlplane, deps, leftovers, network, node, pki
from hack.cluster import instance as instances
from hack.cluster.api import Api, is_ready
from hack.cluster.errors import ClusterError
from hack.cluster.instance import Instance
from hack.cluster.processes import is_alive
from hack.cluster.say import say


@dataclass(frozen=True)
class Wanted:
    """What `up` was asked for."""

    name: str
    node: bool
    kwok_nodes: int
    tuned: bool
    audit_log: str


def problems(instance: Instance) -> list[str]:
    """What keeps a recorded cluster from being of use; empty when it is healthy."""
    found = [] if instance.complete else ["`up` was interrupted"]
    found += [f"{process.name} has ended" for process in instance.processes if not is_alive(process)]
    if found:
        return found
    api = Api(instance)
    if not api.ready():
        return ["the API server is not ready"]
    return [f"node {item['metadata']['name']} is not ready" for item in api.nodes() if not is_ready(item)]


def _ensure_programs(wanted: Wanted) -> None:
    names = [*binaries.CONTROL_PLANE]
    if wanted.node:
        names += binaries.NODE
    if wanted.kwok_nodes:
        names.append("kwok")
    deps.ensure(deps.NODE if wanted.node else deps.CONTROL_PLANE)
    binaries.ensure(names)


def _allocate(wanted: Wanted) -> Instance:
    """Choose ports and networks that neither the host nor another cluster uses, and write them down."""
    others = [other for other in map(instances.load, instances.names()) if other is not None]
    taken = {port for other in others for port in other.ports.values()}
    busy = network.routed_networks()
    busy += [ipaddress.IPv4Network(cidr) for other in others for cidr in (other.pod_cidr, other.service_cidr)]
    pod_cidr, service_cidr = network.choose_subnets(2, busy)
    wanted_ports = [*controlplane.PORTS, *(node.PORTS if wanted.node else ())]
    instance = Instance(
        name=wanted.name,
        token=instances.new_token(),
        node=wanted.node,
        kwok_nodes=wanted.kwok_nodes,
        tuned=wanted.tuned,
        audit_log=wanted.audit_log,
        ports=network.choose_ports(wanted_ports, taken),
        pod_cidr=pod_cidr,
        service_cidr=service_cidr,
    )
    instance.save()
    return instance


def _check_same(instance: Instance, wanted: Wanted) -> None:
    """A running cluster is not changed in place."""
    for option, has, asked in (
        ("a real node", instance.node, wanted.node),
        ("fake nodes", instance.kwok_nodes, wanted.kwok_nodes),
        ("tuning for load", instance.tuned, wanted.tuned),
        ("an audit log", instance.audit_log, wanted.audit_log),
    ):
        if has != asked:
            raise ClusterError(
                f"cluster {instance.name} is up with other options ({option}: {has!r}, asked for {asked!r}): "
                f"`down --name {instance.name}` first"
            )


def up(wanted: Wanted) -> None:
    """Bring a cluster up, or see that it is.

    Raises: ClusterError when it does not come up; what was begun is recorded and removed by `down` or the next `up`.
    """
    folder = instances.folder_of(wanted.name)
    if wanted.node and os.geteuid() != 0:
        raise ClusterError("a real node needs root; --control-plane-only does not")
    if wanted.node:
        instances.check_length(folder)
    _ensure_programs(wanted)
    with instances.exclusive():
        instance = instances.load(wanted.name)
        if instance is not None:
            found = problems(instance)
            if not found:
                _check_same(instance, wanted)
                say(f"cluster {wanted.name} is up and healthy")
                return
            say(f"cluster {wanted.name} is not healthy ({'; '.join(found)}): removing what is left of it")
            leftovers.remove(instance)
        leftovers.remove_folder(folder)
        if wanted.node:
            node.refuse_second()
        _bring_up(_allocate(wanted))


def _bring_up(instance: Instance) -> None:
    (instance.folder / "log").mkdir()
    pki.make(instance)
    controlplane.bring_up(instance)
    if instance.node:
        node.bring_up(instance)
    if instance.kwok_nodes:
        controlplane.bring_up_fake_nodes(instance)
    instance.complete = True
    instance.save()
    say(f"cluster {instance.name} is up; KUBECONFIG={instance.kubeconfig}")


def down(name: str) -> None:
    """Remove a cluster without a trace; nothing to do is fine too."""
    folder = instances.folder_of(name)
    with instances.exclusive():
        instance = instances.load(name)
        if instance is None and not folder.exists():
            say(f"no cluster {name}")
            return
        if instance is not None:
            leftovers.remove(instance)
        else:
            # Interrupted before the record was written, and so before anything else was made.
            leftovers.remove_folder(folder)
        say(f"cluster {name} is removed")


def status() -> bool:
    """Print every cluster and its state; True when all are healthy."""
    healthy = True
    for name in instances.names():
        instance = instances.load(name)
        if instance is None:
            print(f"{name}: no record; `down --name {name}` removes it")
            healthy = False
            continue
        found = problems(instance)
        healthy = healthy and not found
        kind = "real node" if instance.node else "control plane only"
        if instance.kwok_nodes:
            kind += f", {instance.kwok_nodes} fake nodes"
        print(f"{name}: {'; '.join(found) or 'healthy'} ({kind})")
        print(f"  KUBECONFIG={instance.kubeconfig}")
        for process in instance.processes:
            print(f"  {process.name:<20} {'pid ' + str(process.pid) if is_alive(process) else 'ended'}")
    return healthy


def environment(instance: Instance) -> dict[str, str]:
    """What a shell needs to use the cluster: its kubeconfig, and the programs of the matching version first on PATH."""
    folders = [Path(binaries.program(name)).parent for name in binaries.FOR_PEOPLE]
    return {
        "KUBECONFIG": str(instance.kubeconfig),
        # kubectl caches what kinds a server has by its address, and another cluster may get the same port.
        "KUBECACHEDIR": str(instance.folder / "kubectl-cache"),
        "PATH": ":".join([*map(str, folders), os.environ.get("PATH", os.defpath)]),
    }
