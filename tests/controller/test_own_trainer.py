"""A user's own trainer is an init container: how its pod's state and its end are read."""

from typing import Any

import pytest

from nas_controller.executor import End
from nas_controller.executors.diagnosis import trains
from nas_controller.executors.job_end import job_end

JOB = {"status": {"conditions": [{"type": "Failed", "status": "True", "reason": "BackoffLimitExceeded"}]}}
NOT_YET = {"waiting": {"reason": "PodInitializing"}}


def done(code: int, message: str = "") -> dict[str, Any]:
    return {"terminated": {"exitCode": code, "message": message, "reason": "Completed" if code == 0 else "Error"}}


def pod(prepare: dict[str, Any], trainer: dict[str, Any], upload: dict[str, Any] = NOT_YET) -> dict[str, Any]:
    return {
        "status": {
            "phase": "Failed",
            "initContainerStatuses": [{"name": "prepare", "state": prepare}, {"name": "trainer", "state": trainer}],
            "containerStatuses": [{"name": "upload", "state": upload}],
        }
    }


@pytest.mark.parametrize(
    ("found", "end", "words"),
    [
        (pod(done(0), done(3, "no licence")), End.FAILED, "no licence"),
        (pod(done(0), done(10, "too deep")), End.INVALID_INPUT, "too deep"),
        (pod(done(0), done(0, "fine"), done(13, "keys refused")), End.STORAGE_REFUSED, "keys refused"),
        (pod(done(10, "another version"), NOT_YET), End.INVALID_INPUT, "another version"),
    ],
)
def test_the_container_that_failed_tells_how_the_child_ended(found: dict[str, Any], end: End, words: str) -> None:
    assert job_end(JOB, [found]) == (end, words)


def test_a_pod_trains_while_its_trainer_runs() -> None:
    running = {"running": {"startedAt": "2026-01-01T00:00:00Z"}}
    assert trains(pod(done(0), running))
    assert not trains(pod(running, NOT_YET))
    assert not trains(pod(done(0), done(0), running))
    assert not trains({"status": {}})
