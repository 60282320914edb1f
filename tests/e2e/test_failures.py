"""What can be wrong shows as a condition with cause and cure, and goes on by itself once cured."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import pytest
from demo.places import NAMESPACE
from e2e.conftest import Document, World, small

from nas_api import names
from nas_api.reasons import EXPLANATIONS, Reason

pytestmark = [pytest.mark.node, pytest.mark.slow, pytest.mark.timeout(3600)]
LIMIT_BELOW_REQUEST = {
    "spec": {
        "containers": [
            {"name": "trainer", "resources": {"requests": {"memory": "512Mi"}, "limits": {"memory": "256Mi"}}}
        ]
    }
}


@dataclass(frozen=True)
class Trouble:
    """One thing that is wrong: how it comes about, how it must show, and how it is cured."""

    name: str
    reason: Reason
    says: tuple[str, ...]
    """What the message must hold: the cause, by name."""
    make: Callable[[World, Document], None]
    """Change the manifest or the namespace, before the manifest is applied."""
    cure: Callable[[World, Document], None]

    def __str__(self) -> str:
        return self.name


def _namespace(document: Document) -> str:
    return str(document["metadata"]["namespace"])


def _s3(document: Document) -> dict[str, Any]:
    found: dict[str, Any] = document["spec"]["storage"]["s3"]
    return found


def _secret(name: str, namespace: str, keys: dict[str, str]) -> Document:
    metadata = {"name": name, "namespace": namespace}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": keys}


def _patch(world: World, document: Document, spec: dict[str, Any]) -> None:
    world.patch(document["metadata"]["name"], spec, _namespace(document))


def _wrong_bucket(world: World, document: Document) -> None:
    _s3(document)["bucket"] = f"missing-{document['metadata']['namespace']}"


def _make_bucket(world: World, document: Document) -> None:
    world.s3().create_bucket(Bucket=_s3(document)["bucket"])


def _wrong_key(world: World, document: Document) -> None:
    keys = world.keys() | {"AWS_SECRET_ACCESS_KEY": "wrong"}
    world.apply(_secret("mine", _namespace(document), keys))
    _s3(document)["credentialsSecret"] = {"name": "mine"}


def _missing_secret(world: World, document: Document) -> None:
    _s3(document)["credentialsSecret"] = {"name": "mine"}


def _right_key(world: World, document: Document) -> None:
    world.apply(_secret("mine", _namespace(document), world.keys()))


def _unpullable(world: World, document: Document) -> None:
    document["spec"]["trainer"]["image"] = "localhost/nas-missing:1"


def _invalid_template(world: World, document: Document) -> None:
    document["spec"]["trainer"]["template"] = LIMIT_BELOW_REQUEST


def _no_dataset(world: World, document: Document) -> None:
    document["spec"]["trainer"]["dataset"] = {"cifar10": {"uri": "s3://nas/nothing-here"}}


def _no_cuda(world: World, document: Document) -> None:
    # As the controller tells it where a GPU is asked for, of which this node has none.
    asked = {"name": names.ENV_GPU, "value": "nvidia.com/gpu"}
    document["spec"]["trainer"]["template"] = {"spec": {"containers": [{"name": "trainer", "env": [asked]}]}}


def _quota(world: World, document: Document) -> None:
    metadata = {"name": "small", "namespace": _namespace(document)}
    world.apply({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": metadata, "spec": {"hard": {"pods": "1"}}})


def _no_quota(world: World, document: Document) -> None:
    world.kubectl("delete", "quota", "small", namespace=_namespace(document))


TROUBLES = [
    Trouble("wrong-bucket", Reason.BUCKET_NOT_FOUND, ("missing-", "bucket"), _wrong_bucket, _make_bucket),
    Trouble("wrong-key", Reason.CREDENTIALS_REFUSED, ("SignatureDoesNotMatch",), _wrong_key, _right_key),
    Trouble("missing-secret", Reason.CONFIG_MISSING, ("mine",), _missing_secret, _right_key),
    Trouble(
        "unpullable-image",
        Reason.IMAGE_PULL_FAILED,
        ("localhost/nas-missing:1",),
        _unpullable,
        lambda world, document: _patch(world, document, {"trainer": {"image": None}}),
    ),
    Trouble(
        "invalid-template",
        Reason.INVALID_TEMPLATE,
        ("memory", "limit"),
        _invalid_template,
        lambda world, document: _patch(world, document, {"trainer": {"template": None}}),
    ),
    Trouble(
        "missing-dataset",
        Reason.DATASET_UNAVAILABLE,
        ("s3://nas/nothing-here",),
        _no_dataset,
        lambda world, document: _patch(world, document, {"trainer": {"dataset": {"cifar10": None, "digits": {}}}}),
    ),
    Trouble(
        "no-cuda",
        Reason.NO_CUDA,
        # In an image with CUDA on a node without a GPU the reason is another one.
        ("nvidia.com/gpu was asked for",),
        _no_cuda,
        lambda world, document: _patch(world, document, {"trainer": {"template": None}}),
    ),
    Trouble(
        "quota-exceeded",
        Reason.QUOTA_EXCEEDED,
        ("quota", "small"),
        _quota,
        _no_quota,
    ),
]


@pytest.fixture
def namespace(world: World) -> Iterator[str]:
    """A namespace of its own, which enforces the restricted standard, with the embedded S3's keys."""
    name = f"nas-trouble-{uuid4().hex[:6]}"
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}
    world.kubectl("create", "-f", "-", stdin=json.dumps(body))
    world.apply(_secret("nas-s3", name, world.keys()))
    yield name
    world.try_kubectl("delete", "namespace", name, "--wait=false")


@pytest.mark.parametrize("trouble", TROUBLES, ids=str)
def test_a_trouble_is_told_and_cured(world: World, namespace: str, trouble: Trouble) -> None:
    document = small("troubled", 2, namespace=namespace)
    _s3(document)["endpoint"] = f"http://nas-s3.{NAMESPACE}:7070"
    trouble.make(world, document)
    world.apply(document)

    def told() -> dict[str, Document] | None:
        conditions = world.conditions("troubled", namespace)
        found = conditions.get("Progressing", {})
        return conditions if (found.get("status"), found.get("reason")) == ("False", trouble.reason) else None

    conditions = world.eventually(told, lambda: world.experiment("troubled", namespace).get("status"))
    print(f"{trouble}: {conditions['Progressing']['message']}")
    for word in trouble.says:
        assert word in conditions["Progressing"]["message"]
    cure = EXPLANATIONS[trouble.reason].cure.split()[0]
    assert cure.lower() in conditions["Progressing"]["message"].lower()
    assert conditions["Failed"]["status"] == "False"

    trouble.cure(world, document)
    status = world.wait_complete("troubled", namespace)
    assert status["samples"]["observed"] == 2
    assert "problem" not in status
    assert not [
        item
        for item in world.items("pods", f"{names.LABEL_ROLE}={names.ROLE_TRAINER}", namespace)
        if item["status"]["phase"] == "Pending"
    ]
