"""How a child's Job ended, where no cluster would show it at will."""

from typing import Any

import pytest

from nas_controller.executor import End
from nas_controller.executors.job_end import job_end


def failed(message: str, reason: str = "PodFailurePolicy", *, suspend: bool) -> dict[str, Any]:
    """Return a Job that has failed."""
    condition = {"type": "Failed", "status": "True", "reason": reason, "message": message}
    return {"spec": {"suspend": suspend}, "status": {"conditions": [condition]}}


def pod(code: int, message: str = "last words", finished: str | None = None, **status: Any) -> dict[str, Any]:
    """Return a pod whose trainer has ended."""
    terminated = {"exitCode": code, "reason": "Error", "message": message, "finishedAt": finished}
    ended = {"phase": "Failed", "containerStatuses": [{"name": "trainer", "state": {"terminated": terminated}}]}
    return {"status": {**ended, **status}}


@pytest.mark.parametrize("code", [10, 11, 137, 143])
@pytest.mark.parametrize("seen", [True, False], ids=["pod", "no pod"])
def test_a_job_that_fails_while_it_is_suspended_is_disrupted(code: int, seen: bool) -> None:
    words = f"Container trainer for pod team/demo-0 failed with exit code {code} matching FailJob rule at index 1"
    end, said = job_end(failed(words, suspend=True), [pod(code)] if seen else [])
    assert end is End.DISRUPTED and words in said


def test_a_job_that_was_resumed_fails_for_reasons_of_its_own() -> None:
    words = "Container trainer for pod team/demo-0 failed with exit code 10 matching FailJob rule at index 1"
    assert job_end(failed(words, suspend=False)) == (End.INVALID_INPUT, f"PodFailurePolicy: {words}")
    assert job_end(failed("", "BackoffLimitExceeded", suspend=False), [pod(1)]) == (End.FAILED, "last words")


def test_a_pod_that_has_ended_well_does_not_tell_of_one_that_is_gone() -> None:
    end, said = job_end(failed("", "BackoffLimitExceeded", suspend=False), [pod(0, "", EARLY, phase="Succeeded")])
    assert end is End.VANISHED and "its pod is gone" in said


EARLY, LATE = "2026-01-01T00:00:00Z", "2026-01-01T00:00:05Z"
DISRUPTION = {"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI", "message": "drained"}
BYSTANDER = pod(143, "terminated by SIGTERM", EARLY)


@pytest.mark.parametrize(
    ("pods", "end", "words"),
    [
        ([pod(1, "rank 1 is lost", LATE), pod(11, "no memory", EARLY)], End.OUT_OF_MEMORY, "no memory"),
        ([pod(11, "no memory", LATE), BYSTANDER], End.OUT_OF_MEMORY, "no memory"),
        ([pod(1, "rank 1 is lost", EARLY), pod(143, "", LATE, conditions=[DISRUPTION])], End.DISRUPTED, "drained"),
        ([BYSTANDER, BYSTANDER], End.DISRUPTED, "SIGTERM"),
        ([pod(0, "", EARLY, phase="Succeeded"), pod(3, "licence", LATE)], End.FAILED, "licence"),
        ([BYSTANDER, {"status": {"phase": "Failed", "reason": "OutOfcpu"}}], End.DISRUPTED, "OutOfcpu"),
    ],
    ids=["first", "bystander", "disruption", "nobody", "one has ended well", "refused by its node"],
)
def test_of_several_pods_the_one_that_fell_first_tells(pods: list[dict[str, Any]], end: End, words: str) -> None:
    for order in (pods, pods[::-1]):
        found, said = job_end(failed("", "BackoffLimitExceeded", suspend=False), order)
        assert found is end and words in said
