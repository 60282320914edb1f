"""What Jobs and pods say of themselves."""

from datetime import UTC, datetime
from typing import Any

import pytest

from nas_api.reasons import Reason
from nas_controller.executors.diagnosis import diagnose
from nas_kube.reading import (
    admission,
    conditions,
    containers,
    disruption,
    finished,
    obstacle,
    priority_class,
    queue,
    suspended,
    true_condition,
)
from nas_operator.observed import controller_pod


def job(*found: tuple[str, str]) -> dict[str, Any]:
    return {"status": {"conditions": [{"type": kind, "status": status} for kind, status in found]}}


def pod(*, condition: dict[str, Any] | None = None, **waiting: str) -> dict[str, Any]:
    """Return a controller's pod, one container of which waits."""
    container = {"name": "controller", "image": "i:1", "state": {"waiting": waiting}}
    return {
        "metadata": {"name": "digits-controller-1", "uid": "u"},
        "status": {"conditions": [condition] if condition else None, "containerStatuses": [container]},
    }


@pytest.mark.parametrize("raw", [{}, {"status": None}, {"status": {}}, {"status": {"conditions": None}}])
def test_an_object_that_nobody_has_looked_after_says_nothing(raw: dict[str, Any]) -> None:
    assert conditions(raw) == {}
    assert containers(raw) == ()
    assert not finished(raw)
    assert disruption(raw) is None
    assert obstacle(raw) is None
    assert not suspended(raw)
    assert admission(raw) == ""


@pytest.mark.parametrize(
    ("of", "ended"),
    [
        (job(("Complete", "True")), True),
        (job(("Failed", "True")), True),
        (job(("Failed", "False"), ("Complete", "Unknown")), False),
        # Its pods are still ending.
        (job(("FailureTarget", "True"), ("SuccessCriteriaMet", "True")), False),
    ],
)
def test_a_job_has_ended_when_a_condition_of_its_end_is_true(of: dict[str, Any], ended: bool) -> None:
    assert finished(of) is ended


def test_a_job_names_its_queue_and_its_priority_there() -> None:
    labels = {"kueue.x-k8s.io/queue-name": "gpu", "kueue.x-k8s.io/priority-class": "high"}
    of = {"metadata": {"labels": labels}, "spec": {"suspend": True}}
    assert (suspended(of), queue(of), priority_class(of)) == (True, "gpu", "high")
    free: dict[str, Any] = {"metadata": {}, "spec": {"suspend": False}}
    assert (suspended(free), queue(free), priority_class(free)) == (False, "", "")


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ([("QuotaReserved", "False", "insufficient unused quota")], "insufficient unused quota"),
        ([("QuotaReserved", "True", "reserved"), ("Admitted", "False", "waits for a check")], "waits for a check"),
        ([("Admitted", "False", "no reservation"), ("QuotaReserved", "False", "preempted")], "preempted"),
        ([("QuotaReserved", "True", "reserved"), ("Admitted", "True", "admitted")], ""),
        ([("QuotaReserved", "False", "")], "Pending"),
    ],
)
def test_why_a_queue_lets_a_job_wait(found: list[tuple[str, str, str]], said: str) -> None:
    listed = [{"type": kind, "status": is_, "message": text, "reason": "Pending"} for kind, is_, text in found]
    assert admission({"status": {"conditions": listed}}) == said


def test_only_a_true_condition_holds() -> None:
    of = job(("DisruptionTarget", "False"))
    assert conditions(of)["DisruptionTarget"]["status"] == "False"
    assert true_condition(of, "DisruptionTarget") is None
    assert disruption(job(("DisruptionTarget", "True"))) == {"type": "DisruptionTarget", "status": "True"}


def test_containers_in_their_order_and_how_each_ended() -> None:
    ended = {"exitCode": 3, "startedAt": "2026-01-01T00:00:00Z", "finishedAt": "2026-01-01T00:01:00Z"}
    first, second, third = containers(
        {
            "status": {
                "containerStatuses": [
                    {
                        "name": "c",
                        "image": "i",
                        "state": {"running": {"startedAt": "2026-01-01T00:02:00Z"}},
                        "lastState": {"terminated": ended},
                    }
                ],
                "initContainerStatuses": [{"name": "a", "state": {"terminated": ended}}, {"name": "b"}],
            }
        }
    )
    assert [(item.name, item.init, item.running) for item in (first, second, third)] == [
        ("a", True, False),
        ("b", True, False),
        ("c", False, True),
    ]
    assert first.termination is not None and second.termination is None
    assert (first.termination.code, first.termination.reason, first.termination.message) == (3, "", "")
    assert (first.since, first.before) == (None, None)
    assert third.since == datetime(2026, 1, 1, 0, 2, tzinfo=UTC)
    assert third.before is not None and third.before.code == 3
    assert first.termination.finished == datetime(2026, 1, 1, 0, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("ErrImagePull", Reason.IMAGE_PULL_FAILED),
        ("ImagePullBackOff", Reason.IMAGE_PULL_FAILED),
        ("InvalidImageName", Reason.IMAGE_PULL_FAILED),
        ("ErrImageNeverPull", Reason.IMAGE_PULL_FAILED),
        ("ImageInspectError", Reason.IMAGE_PULL_FAILED),
        ("RegistryUnavailable", Reason.IMAGE_PULL_FAILED),
        ("CreateContainerConfigError", Reason.CONFIG_MISSING),
        ("CreateContainerError", Reason.INVALID_TEMPLATE),
        ("RunContainerError", Reason.INVALID_TEMPLATE),
        ("ContainerCreating", None),
        ("CrashLoopBackOff", None),
    ],
)
def test_operator_and_controller_name_the_same_reason_for_a_pod_that_waits(word: str, reason: Reason | None) -> None:
    raw = pod(reason=word, message="so the kubelet says")
    ours, child = controller_pod(raw, 1), diagnose([raw], ())
    assert ours is not None
    assert (ours.finding.reason if ours.finding else None) == (child[0] if child else None) == reason
    if ours.finding is not None and child is not None:
        assert ours.finding.detail.endswith(": so the kubelet says") and child[1].endswith(": so the kubelet says")
        assert child[1].startswith("pod digits-controller-1, container controller, image i:1")


@pytest.mark.parametrize("more", [{"reason": "Unschedulable"}, {"reason": "SchedulingGated"}])
def test_a_pod_without_a_node_is_unschedulable_for_both(more: dict[str, str]) -> None:
    raw = pod(condition={"type": "PodScheduled", "status": "False", "message": "0/3 nodes", **more})
    ours = controller_pod(raw, 1)
    assert ours is not None and ours.finding is not None
    assert (ours.finding.reason, ours.finding.detail) == (Reason.UNSCHEDULABLE, "0/3 nodes")
    assert diagnose([raw], ()) == (Reason.UNSCHEDULABLE, "pod digits-controller-1: 0/3 nodes")
    assert obstacle(pod(condition={"type": "PodScheduled", "status": "True"})) is None
