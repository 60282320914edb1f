"""How a child's Job ended, where no cluster would show it at will."""

from typing import Any

import pytest

from nas_controller.executor import End
from nas_controller.executors.job_end import job_end


def failed(message: str, reason: str = "PodFailurePolicy", *, suspend: bool) -> dict[str, Any]:
    """Return a Job that has failed."""
    condition = {"type": "Failed", "status": "True", "reason": reason, "message": message}
    return {"spec": {"suspend": suspend}, "status": {"conditions": [condition]}}


def pod(code: int) -> dict[str, Any]:
    """Return a pod whose trainer has ended."""
    terminated = {"exitCode": code, "reason": "Error", "message": "last words"}
    return {
        "status": {"phase": "Failed", "containerStatuses": [{"name": "trainer", "state": {"terminated": terminated}}]}
    }


@pytest.mark.parametrize("code", [10, 11, 137, 143])
@pytest.mark.parametrize("seen", [True, False], ids=["pod", "no pod"])
def test_a_job_that_fails_while_it_is_suspended_is_disrupted(code: int, seen: bool) -> None:
    words = f"Container trainer for pod team/demo-0 failed with exit code {code} matching FailJob rule at index 1"
    end, said = job_end(failed(words, suspend=True), pod(code) if seen else None)
    assert end is End.DISRUPTED and words in said


def test_a_job_that_was_resumed_fails_for_reasons_of_its_own() -> None:
    words = "Container trainer for pod team/demo-0 failed with exit code 10 matching FailJob rule at index 1"
    assert job_end(failed(words, suspend=False), None) == (End.INVALID_INPUT, f"PodFailurePolicy: {words}")
    assert job_end(failed("", "BackoffLimitExceeded", suspend=False), pod(1)) == (End.FAILED, "last words")
