"""What the operator does when the API server is in trouble, and for children that outlived their search: in virtual
time, against an API server in memory."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from experiments import manifest

from nas_api import names
from nas_kube.client import KubeClient, Listing
from nas_kube.errors import ApiError
from nas_kube.resources import JOBS, PODS, Resource
from nas_operator.cache import Cache
from nas_operator.kept import kept
from nas_operator.reconciler import Reconciler
from nas_operator.settings import Settings

NOW = datetime(2026, 5, 1, 12, 0, 0, tzinfo=UTC)
SETTINGS = Settings(controller_image="controller:1", trainer_image="trainer:1", follower_image="follower:1")
UID = "12345678-aaaa-bbbb-cccc-1234567890ab"
KEY = ("lab", "digits")
ENDED = {
    "epoch": 1,
    "observedGeneration": 1,
    "outcome": {"type": "Failed", "reason": "ConsecutiveFailures", "message": "8 samples in a row were lost"},
}


class Server(KubeClient):
    """An API server in memory: what it needs to have for one experiment."""

    def __init__(self, status: dict[str, Any]) -> None:
        self.raw = manifest("lab")
        self.raw["metadata"] |= {"uid": UID, "generation": 1, "resourceVersion": "1"}
        self.raw["status"] = status
        self.trouble: ApiError | None = None
        """What every dry run is answered with."""
        self.jobs: list[dict[str, Any]] = []
        self.pods: list[dict[str, Any]] = []
        self.calls: list[str] = []

    def get(self, resource: Resource, namespace: str | None, name: str) -> dict[str, Any]:
        raise ApiError(404, "NotFound", f"{name} not found")

    def list(self, resource: Resource, namespace: str | None = None, **_: Any) -> Listing:
        self.calls.append(f"list {resource.plural}")
        return Listing(self.jobs if resource is JOBS else [], "1")

    def create(
        self, resource: Resource, namespace: str | None, body: dict[str, Any], *, dry_run: bool = False, **_: Any
    ) -> dict[str, Any]:
        if dry_run and self.trouble is not None:
            raise self.trouble
        made = {**body, "metadata": {**body["metadata"], "uid": f"{resource.plural}-1", "resourceVersion": "1"}}
        if resource is PODS and not dry_run:
            made["metadata"]["creationTimestamp"] = "2026-05-01T12:00:00Z"
            self.pods.append(made)
        return made

    def apply(
        self, resource: Resource, namespace: str | None, name: str, body: dict[str, Any], **_: Any
    ) -> dict[str, Any]:
        version = str(int(self.raw["metadata"]["resourceVersion"]) + 1)
        metadata = {**self.raw["metadata"], "resourceVersion": version}
        self.raw = {**self.raw, "metadata": metadata, "status": {**self.raw["status"], **body["status"]}}
        return self.raw

    @property
    def state(self) -> str | None:
        state: str | None = self.raw["status"].get("state")
        return state

    @property
    def progressing(self) -> dict[str, Any]:
        found: list[dict[str, Any]] = self.raw["status"]["conditions"]
        return next(item for item in found if item["type"] == "Progressing")


class Bench:
    """A reconciler whose clock the test sets."""

    def __init__(self, status: dict[str, Any] | None = None) -> None:
        self.server, self.now = Server(status or {}), NOW
        cache = Cache()
        cache.take_experiment(kept(self.server.raw))
        self._reconciler = Reconciler(self.server, cache, SETTINGS, reporter="test", clock=self._clock)

    def look(self) -> timedelta | None:
        return self._reconciler.reconcile(KEY)

    def _clock(self) -> datetime:
        return self.now


def test_a_dry_run_that_gets_500_again_and_again_is_told() -> None:
    bench = Bench()
    words = 'Internal error occurred: failed calling webhook "policy.example": connection refused'
    bench.server.trouble = ApiError(500, "InternalError", words)
    for _ in range(2):
        with pytest.raises(ApiError):
            bench.look()
    assert bench.server.state is None, "once or twice is nobody's business"
    assert bench.look() == timedelta(seconds=15)
    assert bench.server.state == "Waiting"
    assert bench.server.progressing["reason"] == "ApiServerTrouble"
    assert words in bench.server.progressing["message"]
    bench.now += timedelta(seconds=20)
    assert bench.look() == timedelta(seconds=15), "it is asked again, and told as before"
    bench.server.trouble = None
    bench.now += timedelta(seconds=20)
    bench.look()
    assert bench.server.progressing["reason"] == "ControllerStarting"
    assert len(bench.server.pods) == 1


def test_what_fails_at_once_and_then_works_is_told_to_nobody() -> None:
    bench = Bench()
    for _ in range(5):
        bench.server.trouble = ApiError(503, "ServiceUnavailable", "etcd leader changed")
        with pytest.raises(ApiError):
            bench.look()
        bench.server.trouble = None
        bench.look()
        bench = Bench()


def job(number: int, **more: Any) -> dict[str, Any]:
    owner = {"kind": names.KIND, "name": "digits", "uid": UID, "controller": True}
    return {"metadata": {"name": names.child_job("digits", UID, number), "ownerReferences": [owner]}, **more}


def test_a_finished_experiment_with_unfinished_children_gets_a_controller_that_ends_them() -> None:
    bench = Bench(ENDED)
    bench.server.jobs = [job(7)]
    bench.look()
    (pod,) = bench.server.pods
    assert pod["metadata"]["name"] == names.controller_pod("digits", UID, 1)
    assert bench.server.state == "Failed", "how the search ended is what there is to say"
    assert bench.server.progressing["reason"] == "ConsecutiveFailures"
    bench.look()
    assert len(bench.server.pods) == 1, "it is at work"


def test_without_any_there_is_none_and_an_hour_later_none_is_looked_for() -> None:
    bench = Bench(ENDED)
    done = {"status": {"conditions": [{"type": "Complete", "status": "True"}]}}
    bench.server.jobs = [job(7, **done), {"metadata": {"name": "another's"}}]
    bench.look()
    bench.look()
    assert not bench.server.pods and bench.server.calls == ["list jobs"] * 2
    bench.now += timedelta(hours=2)
    bench.look()
    bench.server.calls.clear()
    bench.look()
    assert not bench.server.pods and not bench.server.calls
