"""The chart on a running cluster: its own test, an upgrade during a run, and an uninstallation."""

from collections.abc import Callable

import pytest
from demo.places import RELEASE
from e2e.conftest import Document, World

pytestmark = [pytest.mark.node, pytest.mark.slow, pytest.mark.timeout(3600)]
Start = Callable[..., Document]


def names_of(world: World, component: str) -> set[str]:
    """Return the pods of one component of the release."""
    return {
        item["metadata"]["name"]
        for item in world.items("pods", f"app.kubernetes.io/component={component}")
        if "deletionTimestamp" not in item["metadata"]
    }


def test_helm_test_passes(world: World) -> None:
    world.helm("test", RELEASE)
    log = world.kubectl("logs", f"{RELEASE}-test")
    assert [line.split()[0] for line in log.splitlines()] == ["skipped"] + ["ok"] * 3, log


def test_an_upgrade_during_a_run_disturbs_nothing(world: World, experiment: Start) -> None:
    experiment("upgraded", 1000)
    world.eventually(
        lambda: world.experiment("upgraded").get("status", {}).get("samples", {}).get("observed", 0) >= 1,
        lambda: world.experiment("upgraded").get("status"),
    )
    operators, stores, keys = names_of(world, "operator"), names_of(world, "s3"), world.keys()
    controllers = names_of(world, "controller")
    world.install("--set-string", "operator.podAnnotations.upgrade=one")
    assert names_of(world, "operator").isdisjoint(operators)
    assert names_of(world, "s3") == stores
    assert world.keys() == keys
    assert world.experiment("upgraded")["status"]["state"] == "Searching"
    world.propose_no_more("upgraded")
    samples = world.wait_complete("upgraded")["samples"]
    assert samples["observed"] == samples["proposed"]
    assert (samples["lost"], samples["retried"]) == (0, 0)
    assert names_of(world, "controller") == controllers


def test_an_uninstallation_keeps_experiments_and_a_new_release_goes_on(world: World, experiment: Start) -> None:
    experiment("outliving", 2)
    world.wait_complete("outliving")
    world.helm("uninstall", RELEASE, "--wait")
    assert world.experiment("outliving")["status"]["state"] == "Complete"
    assert not names_of(world, "operator")
    # Nothing holds the deletion up although no operator runs.
    world.kubectl("delete", "nas", "outliving")
    world.install()
    experiment("after", 2)
    assert world.wait_complete("after")["samples"]["observed"] == 2
