"""A manifest that is valid, for tests to change what matters to them."""

import copy
from typing import Any

MANIFEST: dict[str, Any] = {
    "apiVersion": "nas-operator.io/v1alpha1",
    "kind": "NASExperiment",
    "metadata": {"name": "digits"},
    "spec": {
        "searchSpace": {"convolutional": {"layers": {"initial": 6}, "filters": [6, 12, 24, 36], "strides": [1, 2]}},
        "budget": {"samples": 100},
        "trainer": {"dataset": {"digits": {}}, "epochs": 4},
        "storage": {"s3": {"bucket": "nas", "endpoint": "http://s3.example:9000", "credentialsSecret": {"name": "s3"}}},
    },
}


def manifest(namespace: str = "default", name: str = "digits", **spec: Any) -> dict[str, Any]:
    """Return a valid manifest with some fields of its spec replaced."""
    out = copy.deepcopy(MANIFEST)
    out["metadata"] |= {"name": name, "namespace": namespace}
    out["spec"] |= spec
    return out
