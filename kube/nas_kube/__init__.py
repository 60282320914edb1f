"""A small raw client of the Kubernetes API: dictionaries in, dictionaries out, and a reflector.

Connection, TLS and credentials come from the official client's configuration; its generated models are left
aside, because they cost more time per object than the API server does.
"""

from nas_kube.client import KubeClient, Listing
from nas_kube.errors import ApiError, ApiUnavailable, Cause, KubeConfigError, KubeError
from nas_kube.reflector import EventType, Reflector
from nas_kube.resources import (
    CONFIG_MAPS,
    CORE_EVENTS,
    CUSTOM_RESOURCE_DEFINITIONS,
    EVENTS,
    EXPERIMENTS,
    JOBS,
    NAMESPACES,
    NODES,
    PODS,
    ROLE_BINDINGS,
    SECRETS,
    SERVICE_ACCOUNTS,
    SERVICES,
    Resource,
)

__all__ = [
    "CONFIG_MAPS",
    "CORE_EVENTS",
    "CUSTOM_RESOURCE_DEFINITIONS",
    "EVENTS",
    "EXPERIMENTS",
    "JOBS",
    "NAMESPACES",
    "NODES",
    "PODS",
    "ROLE_BINDINGS",
    "SECRETS",
    "SERVICES",
    "SERVICE_ACCOUNTS",
    "ApiError",
    "ApiUnavailable",
    "Cause",
    "EventType",
    "KubeClient",
    "KubeConfigError",
    "KubeError",
    "Listing",
    "Reflector",
    "Resource",
]
