"""A cluster's record: everything needed to use it, and to remove it after its processes were killed.

The record is written before anything else is made, and again after every process started, so that at whatever moment
`up` is interrupted, `down` knows what may be there.
"""

import json
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from hack.cluster.errors import ClusterError
from hack.cluster.paths import clusters_folder, locked
from hack.cluster.processes import Process

_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,18}[a-z0-9])?")
# A unix socket's address has 108 bytes, the last one zero.
_LONGEST_FOLDER = 107 - len("/kubelet/pod-resources/kubelet.sock")
NODE_NAME = "node0"


@dataclass
class Instance:
    """One cluster.

    token: random, in the environment of every process started; bridge and cgroup are named after it.
    sysctls: the values found before, to be restored.
    made_folders: folders outside of our own that were not there before.
    """

    name: str
    token: str
    node: bool
    kwok_nodes: int
    tuned: bool
    audit_log: str
    ports: dict[str, int]
    pod_cidr: str
    service_cidr: str
    complete: bool = False
    sysctls: dict[str, str] = field(default_factory=dict)
    made_folders: list[str] = field(default_factory=list)
    processes: list[Process] = field(default_factory=list)

    @property
    def folder(self) -> Path:
        return folder_of(self.name)

    @property
    def kubeconfig(self) -> Path:
        return self.folder / "admin.kubeconfig"

    @property
    def socket(self) -> Path:
        return self.folder / "containerd.sock"

    @property
    def bridge(self) -> str:
        return f"nas{self.token[:8]}"

    @property
    def cgroup(self) -> str:
        return f"nas-{self.name}-{self.token[:8]}"

    @property
    def network(self) -> str:
        """The CNI network's name."""
        return f"nas-{self.token[:8]}"

    @property
    def node_ip(self) -> str:
        return address(self.pod_cidr, 1)

    @property
    def dns_ip(self) -> str:
        return address(self.service_cidr, 10)

    def save(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        temporary = self.folder / ".cluster.json"
        temporary.write_text(json.dumps(asdict(self), indent=1))
        temporary.rename(self.folder / "cluster.json")

    def record(self, process: Process) -> None:
        self.processes = [known for known in self.processes if known.name != process.name] + [process]
        self.save()


def address(cidr: str, host: int) -> str:
    """The n-th address of a /16, n < 256."""
    first, second, _, _ = cidr.split("/")[0].split(".")
    return f"{first}.{second}.0.{host}"


def new_token() -> str:
    return secrets.token_hex(8)


def folder_of(name: str) -> Path:
    """Raises: ClusterError if the name would not do."""
    if _NAME.fullmatch(name) is None:
        raise ClusterError(f"a cluster's name has at most 20 of a-z, 0-9 and inner dashes: {name!r} does not fit")
    return clusters_folder().resolve() / name


def check_length(folder: Path) -> None:
    """Raises: ClusterError if a real node's sockets would not fit below the folder."""
    if len(str(folder)) > _LONGEST_FOLDER:
        raise ClusterError(f"{folder} is too long for the unix sockets below it: set a shorter XDG_STATE_HOME")


def load(name: str) -> Instance | None:
    """The record of a cluster, None if there is none."""
    try:
        record = json.loads((folder_of(name) / "cluster.json").read_text())
    except FileNotFoundError:
        return None
    record["processes"] = [Process(**process) for process in record["processes"]]
    # A cluster that another version of this program brought up must be removable: what that one knew more is left out.
    known = {known.name for known in fields(Instance)}
    return Instance(**{name: value for name, value in record.items() if name in known})


def load_existing(name: str) -> Instance:
    instance = load(name)
    if instance is None:
        raise ClusterError(f"there is no cluster {name!r}: `up --name {name}` makes one")
    return instance


def names() -> list[str]:
    try:
        return sorted(entry.name for entry in clusters_folder().iterdir() if entry.is_dir())
    except FileNotFoundError:
        return []


@contextmanager
def exclusive() -> Iterator[None]:
    """One `up` or `down` at a time: ports and subnets are chosen by what is free."""
    with locked(clusters_folder()):
        yield
