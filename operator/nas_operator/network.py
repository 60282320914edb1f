"""The NetworkPolicies of one experiment's pods, and which endpoints they may be told of. Pure.

Whoever enforces policies adds those for a pod up, so there is one for each role, and nothing else opens these pods.
"""

from typing import Any

from nas_api import endpoints, names
from nas_api.child_job import owner_reference
from nas_api.experiment import NASExperiment
from nas_operator.settings import Settings

Object = dict[str, Any]

# Where clouds hand out a node's credentials: of IPv4, of IPv6, and EC2's of IPv6.
_METADATA = {"0.0.0.0/0": ["169.254.0.0/16"], "::/0": ["fe80::/10", "fd00:ec2::/32"]}
# A node's own DNS server may have a link-local address.
_DNS = {"ports": [{"protocol": protocol, "port": 53} for protocol in ("UDP", "TCP")]}


def endpoint_refusal(experiment: NASExperiment, settings: Settings) -> str | None:
    """Return why the store's endpoint is not allowed; None if it is."""
    return endpoints.refusal(
        "spec.storage.s3.endpoint",
        experiment.spec.storage.s3.endpoint,
        require_tls=settings.require_tls,
        allow_link_local=settings.allow_link_local,
    )


def tracker_refusal(experiment: NASExperiment, settings: Settings) -> str | None:
    """Return why the tracker's address, or the store's, is not allowed; None if both are, or there is no tracker."""
    if experiment.spec.tracking is None:
        return None
    tracker = endpoints.refusal(
        "spec.tracking.mlflow.uri",
        experiment.spec.tracking.mlflow.uri,
        require_tls=False,
        allow_link_local=settings.allow_link_local,
    )
    return tracker or endpoint_refusal(experiment, settings)


def network_policies(experiment: NASExperiment, settings: Settings) -> tuple[Object, ...]:
    """Return the policies of an experiment's pods; none where the operator is not told to make them.

    Pods of a child reach each other, a controller's metrics are there for all, and everything else comes from inside.
    From inside everything is reached but link-local addresses, where the pod has keys and needs no role of its node.
    """
    if not settings.network_policies:
        return ()
    s3 = experiment.spec.storage.s3
    trainers_have_keys = s3.trainer_credentials_secret is not None or s3.credentials_secret is not None
    port = settings.controller_metrics_port
    metrics = [] if port is None else [{"ports": [{"protocol": "TCP", "port": port}]}]
    ranks = [{"from": [{"podSelector": _pods(experiment, names.ROLE_TRAINER)}]}]
    return (
        _policy(experiment, names.ROLE_TRAINER, ranks, has_keys=trainers_have_keys),
        _policy(experiment, names.ROLE_CONTROLLER, metrics, has_keys=s3.credentials_secret is not None),
        _policy(experiment, names.ROLE_FOLLOWER, [], has_keys=s3.credentials_secret is not None),
    )


def _pods(experiment: NASExperiment, role: str) -> Object:
    return {"matchLabels": {names.LABEL_EXPERIMENT_UID: experiment.metadata.uid, names.LABEL_ROLE: role}}


def _policy(experiment: NASExperiment, role: str, ingress: list[Object], *, has_keys: bool) -> Object:
    meta = experiment.metadata
    blocks = [
        {"ipBlock": {"cidr": network, **({"except": excepted} if has_keys else {})}}
        for network, excepted in _METADATA.items()
    ]
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {
            "name": names.network_policy(meta.name, meta.uid, role),
            "namespace": meta.namespace,
            "labels": names.labels(meta.name, meta.uid, role),
            "ownerReferences": [owner_reference(experiment)],
        },
        "spec": {
            "podSelector": _pods(experiment, role),
            "policyTypes": ["Ingress", "Egress"],
            # Without it nothing comes in.
            **({"ingress": ingress} if ingress else {}),
            # Some of those who enforce policies take pods for no part of any block of addresses.
            "egress": [_DNS, {"to": [{"namespaceSelector": {}}, *blocks]}],
        },
    }
