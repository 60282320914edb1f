"""Where each resource that we use lives in the API."""

from dataclasses import dataclass
from urllib.parse import quote

from nas_api import names


@dataclass(frozen=True)
class Resource:
    """A resource's place in the API."""

    group_version: str
    """For example ``batch/v1``; ``v1`` for the core group."""
    plural: str
    namespaced: bool = True

    def path(self, namespace: str | None = None, name: str | None = None, subresource: str | None = None) -> str:
        """Return the URL path of the collection, or of one object or its subresource.

        Raises:
            ValueError: a namespaced object is named without its namespace.
        """
        if name is not None and self.namespaced and namespace is None:
            raise ValueError(f"{self.plural}/{name} needs a namespace")
        parts = ["api" if "/" not in self.group_version else "apis", self.group_version]
        if self.namespaced and namespace is not None:
            parts += ["namespaces", quote(namespace, safe="")]
        parts.append(self.plural)
        if name is not None:
            parts.append(quote(name, safe=""))
        if subresource is not None:
            parts.append(subresource)
        return "/" + "/".join(parts)


EXPERIMENTS = Resource(names.API_VERSION, names.PLURAL)
PODS = Resource("v1", "pods")
JOBS = Resource("batch/v1", "jobs")
# Kueue's, one for each Job in a queue.
WORKLOADS = Resource("kueue.x-k8s.io/v1beta2", "workloads")
EVENTS = Resource("events.k8s.io/v1", "events")
# The older view of the same events: it can be asked for those about one object.
CORE_EVENTS = Resource("v1", "events")
SERVICES = Resource("v1", "services")
SERVICE_ACCOUNTS = Resource("v1", "serviceaccounts")
CONFIG_MAPS = Resource("v1", "configmaps")
ROLES = Resource("rbac.authorization.k8s.io/v1", "roles")
ROLE_BINDINGS = Resource("rbac.authorization.k8s.io/v1", "rolebindings")
NETWORK_POLICIES = Resource("networking.k8s.io/v1", "networkpolicies")
NAMESPACES = Resource("v1", "namespaces", namespaced=False)
NODES = Resource("v1", "nodes", namespaced=False)
CUSTOM_RESOURCE_DEFINITIONS = Resource("apiextensions.k8s.io/v1", "customresourcedefinitions", namespaced=False)
