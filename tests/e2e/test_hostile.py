"""Hostile objects of another tenant, admitted for want of policies, beside a search: it completes, nothing restarts."""

from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

import pytest
from demo.places import NAMESPACE
from e2e.conftest import Document, World
from hostile_objects import TEMPLATES, admit, poison_pods, progressing

from nas_api import names
from nas_kube.client import KubeClient

pytestmark = [pytest.mark.node, pytest.mark.slow, pytest.mark.timeout(3600)]
_OPERATOR = "app.kubernetes.io/component=operator"


@pytest.fixture
def unguarded(world: World) -> Iterator[World]:
    """The release as where `admission.enabled=false`."""
    world.install("--set", "admission.enabled=false")
    yield world
    world.install()


@pytest.fixture
def elsewhere(world: World) -> Iterator[str]:
    """Another tenant's namespace."""
    name = f"test-{uuid4().hex[:10]}"
    world.kubectl("create", "namespace", name)
    yield name
    world.try_kubectl("delete", "namespace", name, "--wait=false")


def operators(world: World) -> dict[str, int]:
    """Return how often each operator's pod was restarted, by its uid."""
    return {
        pod["metadata"]["uid"]: sum(each["restartCount"] for each in pod["status"].get("containerStatuses", ()))
        for pod in world.items("pods", _OPERATOR)
        if "deletionTimestamp" not in pod["metadata"]
    }


def test_a_search_completes_among_hostile_objects(
    unguarded: World, elsewhere: str, experiment: Callable[..., Document], monkeypatch: pytest.MonkeyPatch
) -> None:
    world, samples = unguarded, 6

    def kubectl(*words: str, stdin: str) -> Any:
        return world.try_kubectl(*words, stdin=stdin, namespace=elsewhere)

    world.eventually(lambda: len(operators(world)) == 1, lambda: world.items("pods", _OPERATOR))
    before = operators(world)
    for name, (part, template) in TEMPLATES.items():
        admit(kubectl, elsewhere, name, part, template)
    experiment("honest", samples)
    monkeypatch.setenv("KUBECONFIG", world.environment["KUBECONFIG"])
    client = KubeClient.from_environment()
    pods = poison_pods(client, world.experiment("honest"), elsewhere)

    status = world.wait_complete("honest")
    assert (status["samples"]["observed"], status["samples"]["lost"]) == (samples, 0)
    assert status["controller"]["pod"] == names.controller_pod(
        "honest", world.experiment("honest")["metadata"]["uid"], 1
    )
    there = {
        (where, item["metadata"]["name"]) for where in (NAMESPACE, elsewhere) for item in world.items("pods", "", where)
    }
    assert set(pods) <= there, "they are not ours to delete"

    def untold() -> list[str]:
        return [name for name in TEMPLATES if not progressing(client, elsewhere, name)[0]]

    world.eventually(lambda: not untold(), untold)
    assert operators(world) == before
