"""Picks what no one else uses: loopback ports and private subnets."""

import ipaddress
import random
import socket
from collections.abc import Collection, Iterable
from pathlib import Path

from hack.cluster.errors import ClusterError

# Below Kubernetes' node ports (30000) and Linux's ephemeral ports (32768): nobody is given one of these by chance.
_PORTS = range(20000, 30000)
_SECOND_OCTETS = range(88, 250)


def _is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("0.0.0.0", port))
        except OSError:
            return False
    return True


def choose_ports(names: Iterable[str], taken: Collection[int]) -> dict[str, int]:
    """A free port for each name, none of them in `taken` (the ports of other clusters, running or not).

    In random order: between the choice and the listening another user's cluster may choose too.
    """
    candidates = iter(random.sample(_PORTS, len(_PORTS)))
    chosen: dict[str, int] = {}
    for name in names:
        for port in candidates:
            if port not in taken and _is_free(port):
                chosen[name] = port
                break
        else:
            raise ClusterError(f"no free port between {_PORTS.start} and {_PORTS.stop - 1}")
    return chosen


def parse_routes(text: str) -> list[ipaddress.IPv4Network]:
    """The destinations in /proc/net/route, which writes addresses as little-endian hexadecimal."""
    networks = []
    for line in text.splitlines()[1:]:
        fields = line.split()
        destination, mask = (int.from_bytes(bytes.fromhex(fields[at]), "little") for at in (1, 7))
        if mask:
            networks.append(ipaddress.IPv4Network((destination, mask.bit_count())))
    return networks


def routed_networks() -> list[ipaddress.IPv4Network]:
    return parse_routes(Path("/proc/net/route").read_text())


def choose_subnets(count: int, taken: Iterable[ipaddress.IPv4Network]) -> list[str]:
    """So many /16 networks out of 10.0.0.0/8 that overlap nothing taken."""
    busy = list(taken)
    chosen = []
    for octet in _SECOND_OCTETS:
        network = ipaddress.IPv4Network(f"10.{octet}.0.0/16")
        if not any(network.overlaps(other) for other in busy):
            chosen.append(str(network))
            if len(chosen) == count:
                return chosen
    raise ClusterError("no free /16 in 10.88.0.0 to 10.249.0.0")
