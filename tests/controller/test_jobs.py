"""The executor in virtual time: what becomes of children when the cluster, or we, are in trouble."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from controller.jobs_model import Bench, once

from nas_api.child_job import child_job
from nas_api.reasons import Reason
from nas_controller.executor import Admitted, Blocked, End, Ended, Queued, Running
from nas_controller.executors.avoidance import keep_away
from nas_controller.launches import Launches
from nas_kube.errors import ApiError, ApiUnavailable, KubeError
from nas_kube.resources import JOBS


def test_a_job_that_came_and_went_while_no_watch_was_open_has_vanished() -> None:
    bench = Bench()
    executor = bench.executor()
    api = bench.api
    api.gap()
    executor.launch(bench.child(0))
    bench.clock.run(0.1)
    api.succeed(0)
    api.remove(api.name(0))
    api.gap()
    bench.clock.run(30)
    assert bench.ends == [Ended(0, End.VANISHED, "its Job is gone")]
    executor.close()


def test_a_job_whose_creation_nobody_answered_and_that_is_gone_has_vanished_and_is_not_made_again() -> None:
    bench = Bench()
    executor = bench.executor()
    api = bench.api
    api.gap()
    # The watch is back, by a list, half a second later, and the next POST would be a second later.
    bench.clock.run(1)
    api.fault = once(ApiUnavailable("timed out"), "POST!")
    executor.launch(bench.child(0))
    bench.clock.run(0.1)
    api.succeed(0)
    api.remove(api.name(0))
    api.gap()
    bench.clock.run(60)
    assert bench.ends == [Ended(0, End.VANISHED, "its Job is gone")]
    assert api.created == [0]
    executor.close()


def test_a_job_that_is_being_created_while_jobs_are_listed_has_not_vanished() -> None:
    bench = Bench()
    executor = bench.executor()
    api = bench.api
    api.gap()

    def slow(call: str, name: str) -> None:
        if call == "POST":
            bench.clock.sleep(5)

    api.fault = slow
    executor.launch(bench.child(0))
    bench.clock.run(30)
    assert not bench.ends and api.running == {0}
    api.succeed(0)
    bench.clock.run(1)
    assert bench.ends == [Ended(0, End.SUCCEEDED)]
    executor.close()


def test_what_was_refused_is_not_taken_for_gone_when_jobs_are_listed() -> None:
    bench = Bench()
    executor = bench.executor()
    bench.api.fault = once(ApiError(403, "Forbidden", "exceeded quota: none"), "POST", times=3)
    executor.launch(bench.child(0))
    bench.clock.run(2)
    bench.api.gap()
    bench.clock.run(60)
    assert not bench.ends and bench.api.running == {0}
    executor.close()


def test_a_job_that_turns_up_after_it_was_taken_for_gone_is_deleted() -> None:
    """Its POST had no answer, and took effect long after everybody had given it up."""
    bench = Bench()
    executor = bench.executor()
    api = bench.api
    api.gap()
    bench.clock.run(1)
    api.fault = once(ApiUnavailable("timed out"), "POST", times=1)
    launch = bench.child(0)
    executor.launch(launch)
    bench.clock.run(0.7)
    assert bench.ends == [Ended(0, End.VANISHED, "its Job is gone")]
    api.create(JOBS, "default", child_job(bench.experiment, 0, launch.inputs, "trainer:test"))
    bench.clock.run(30)
    assert api.running == set() and len(bench.ends) == 1
    executor.close()


# ---------------------------------------------------------------- Jobs that have finished


def test_a_finished_job_is_deleted_by_us_a_moment_before_its_time_to_live_is_over() -> None:
    """The controller manager would do it in the foreground, for six requests more (ADR 19)."""
    bench = Bench()
    executor = bench.executor()
    for number in (0, 1):
        executor.launch(bench.child(number))
    bench.clock.run(1)
    bench.api.succeed(0)
    bench.clock.run(594)
    assert set(bench.api.jobs) == {bench.api.name(0), bench.api.name(1)}
    bench.clock.run(2)
    assert set(bench.api.jobs) == {bench.api.name(1)} and bench.ends == [Ended(0, End.SUCCEEDED)]
    executor.close()


def test_a_finished_job_that_we_may_not_delete_is_left_to_its_time_to_live() -> None:
    bench = Bench()
    executor = bench.executor()
    executor.launch(bench.child(0))
    bench.clock.run(1)
    bench.api.succeed(0)
    bench.api.fault = once(ApiError(403, "Forbidden", "no"), "DELETE", times=1)
    bench.clock.run(3600)
    assert [call for _, call, _ in bench.api.calls].count("DELETE") == 1 and bench.ends == [Ended(0, End.SUCCEEDED)]
    executor.close()


# ---------------------------------------------------------------- ends that are not the child's


def test_a_pod_that_cannot_be_looked_at_for_now_is_looked_at_later() -> None:
    """SIGTERM is in no failure policy: only the pod says that it was not the child's fault."""
    bench = Bench()
    executor = bench.executor()
    executor.launch(bench.child(0))
    bench.clock.run(1)
    bench.api.pod(0, code=143)
    bench.api.fault = once(ApiUnavailable("timed out"), "LIST", times=3)
    bench.api.fail(0)
    bench.clock.run(1)
    assert not bench.ends
    bench.clock.run(20)
    assert bench.ends == [Ended(0, End.DISRUPTED, "last words (node worker-1)")]
    executor.close()


def test_a_pod_that_is_gone_before_anybody_has_looked_was_made_to_end() -> None:
    bench = Bench()
    executor = bench.executor()
    for launch in range(2):
        executor.launch(bench.child(launch))
    bench.clock.run(1)
    bench.api.fail(0)
    bench.api.gap()
    bench.api.fail(1)
    bench.api.remove(bench.api.name(1))
    bench.clock.run(20)
    assert {end.launch: end.end for end in bench.ends} == {0: End.VANISHED, 1: End.VANISHED}
    assert "its pod is gone" in bench.ends[0].message
    executor.close()


# ---------------------------------------------------------------- the API server takes no Jobs


@pytest.mark.parametrize(
    "error",
    [
        ApiError(500, "InternalError", 'failed calling webhook "policy.example": connection refused'),
        ApiError(401, "Unauthorized", "Unauthorized"),
        ApiError(404, "NotFound", 'namespaces "team" not found'),
        ApiError(429, "TooManyRequests", "too many requests"),
        ApiError(409, "Unknown", '{"kind": "Status", "reas'),
        ApiUnavailable("POST /apis/batch/v1: Read timed out."),
    ],
    ids=["webhook", "401", "404", "429", "truncated", "no answer"],
)
def test_jobs_that_nobody_takes_are_a_problem_that_is_told(error: KubeError) -> None:
    bench = Bench()
    executor = bench.executor()
    bench.api.fault = once(error, "POST", times=10)
    launches = Launches()
    launches.launch(0, (0,))
    executor.launch(bench.child(0))
    bench.clock.run(2)
    assert bench.events == [], "it may be over by the next try"
    bench.clock.run(60)
    (told,) = bench.events
    assert isinstance(told, Blocked) and told.reason is Reason.API_SERVER_TROUBLE and str(error) in told.message
    launches.blocked(told)
    problem = launches.problem(60.0)
    assert problem is not None and problem.reason == Reason.API_SERVER_TROUBLE
    bench.clock.run(200)
    posts: Sequence[float] = bench.api.posts()
    assert [later - earlier for earlier, later in pairwise(posts)] == pytest.approx(
        [1, 2, 4, 8, 16, 30, 30, 30, 30, 30]
    )
    assert bench.api.running == {0}
    assert bench.events[1:] == [Admitted(0)], "it is not told any more once there is a Job"
    launches.admitted(0, 260.0)
    assert launches.problem(300.0) is None
    executor.close()


def test_the_pause_that_the_api_server_asks_for_is_kept() -> None:
    bench = Bench()
    executor = bench.executor()
    bench.api.fault = once(ApiError(429, "TooManyRequests", "later", retry_after=7.0), "POST")
    executor.launch(bench.child(0))
    bench.clock.run(20)
    assert bench.api.posts() == pytest.approx([0, 7])
    executor.close()


def test_a_changed_manifest_does_not_multiply_the_tries() -> None:
    bench = Bench()
    executor = bench.executor()
    bench.api.fault = once(ApiError(422, "Invalid", "no"), "POST", times=1000)
    executor.launch(bench.child(0))
    for _ in range(5):
        bench.clock.run(10)
        executor.change(bench.experiment)
    bench.clock.run(300)
    assert len([at for at in bench.api.posts() if at > 100]) <= 10
    executor.close()


# ---------------------------------------------------------------- no sample is trained twice at once


def test_another_attempt_waits_until_the_job_before_it_is_deleted() -> None:
    """The API server does not take DELETEs for a while: after a suspension the first Jobs still train."""
    bench = Bench()
    executor = bench.executor()
    executor.launch(bench.child(0))
    bench.clock.run(1)
    bench.api.fault = once(ApiError(500, "InternalError", "etcd is away"), "DELETE", times=5)
    executor.cancel(0)
    executor.launch(bench.child(1, sample=0, attempt=2))
    executor.launch(bench.child(2, sample=5, attempt=1))
    bench.clock.run(10)
    assert bench.api.running == {0, 2}, "others do not wait"
    bench.clock.run(40)
    assert bench.api.running == {1, 2}
    executor.close()


def test_another_attempt_waits_until_the_pod_before_it_has_ended() -> None:
    bench = Bench()
    executor = bench.executor()
    executor.launch(bench.child(0))
    bench.clock.run(1)
    pod = bench.api.pod(0)
    bench.api.remove(bench.api.name(0))
    bench.clock.run(1)
    assert [end.end for end in bench.ends] == [End.VANISHED]
    # Its pod saves a checkpoint.
    executor.launch(bench.child(1, sample=0, attempt=2))
    bench.clock.run(25)
    assert bench.api.created == [0]
    pod["status"]["phase"] = "Failed"
    bench.clock.run(3)
    assert bench.api.created == [0, 1]
    executor.close()


def test_a_launch_that_is_made_again_waits_until_the_pod_of_its_first_job_has_ended() -> None:
    """The Job was deleted while no controller ran, and to the next one it looks as if it had never been."""
    bench = Bench()
    first = bench.executor()
    first.launch(bench.child(0))
    bench.clock.run(1)
    pod = bench.api.pod(0)
    first.close()
    bench.api.remove(bench.api.name(0))
    second = bench.executor()
    assert bench.existing == frozenset()
    second.launch(replace(bench.child(0), again=True))
    second.launch(bench.child(1))
    bench.clock.run(25)
    assert bench.api.created == [0, 1]
    pod["status"]["phase"] = "Failed"
    bench.clock.run(3)
    assert bench.api.created == [0, 1, 0]
    second.close()


def test_a_pod_that_nobody_can_reach_is_not_waited_for_longer_than_its_grace() -> None:
    bench = Bench()
    executor = bench.executor()
    executor.launch(bench.child(0))
    bench.clock.run(1)
    bench.api.pod(0)
    bench.api.remove(bench.api.name(0))
    bench.clock.run(1)
    executor.launch(bench.child(1, sample=0, attempt=2))
    bench.clock.run(57)
    assert bench.api.created == [0]
    bench.clock.run(7)
    assert bench.api.created == [0, 1]
    executor.close()


@pytest.mark.parametrize("status", [401, 403])
def test_a_job_that_we_may_not_delete_is_tried_again_and_told(status: int) -> None:
    bench = Bench()
    executor = bench.executor()
    executor.launch(bench.child(0))
    bench.clock.run(1)
    bench.api.fault = once(ApiError(status, "Forbidden", "cannot delete resource jobs"), "DELETE", times=4)
    executor.cancel(0)
    executor.launch(bench.child(1, sample=0, attempt=2))
    bench.clock.run(10)
    (told,) = bench.events
    assert isinstance(told, Blocked) and told.launch == 1 and told.reason is Reason.NOT_PERMITTED
    assert f"Job {bench.api.name(0)} cannot be deleted: {status} Forbidden: cannot delete" in told.message
    assert bench.api.running == {0}
    bench.clock.run(30)
    assert bench.api.running == {1}
    executor.close()


# ---------------------------------------------------------------- children that never end


def test_a_child_that_runs_far_beyond_its_pods_deadline_is_given_up() -> None:
    """The deadline is the kubelet's to keep, and its node is gone."""
    bench = Bench(trainer={"dataset": {"digits": {}}, "epochs": 1, "deadline": "10m"})
    executor = bench.executor()
    executor.launch(bench.child(0))
    bench.clock.run(1000)
    bench.api.update(0, ready=1)
    bench.clock.run(600 + 30 + 290)
    assert bench.events == [Running(0)] and bench.api.running == {0}
    bench.clock.run(80)
    assert [end.end for end in bench.ends] == [End.DISRUPTED] and "5 minutes after the deadline" in bench.ends[
        0
    ].message
    assert bench.api.running == set()
    bench.clock.run(100)
    assert len(bench.events) == 2
    executor.close()


def test_a_node_that_does_not_answer_is_told_by_name() -> None:
    bench = Bench()
    executor = bench.executor()
    launches = Launches()
    launches.launch(0, (0,))
    executor.launch(bench.child(0))
    bench.clock.run(1)
    bench.api.pod(0, conditions=[{"type": "Ready", "status": "False"}])
    bench.api.update(0, ready=1)
    bench.clock.run(100)
    # What Kubernetes does when a kubelet has been silent for a while.
    bench.api.update(0, ready=0)
    bench.clock.run(100)
    running, told = bench.events
    assert running == Running(0) and isinstance(told, Blocked) and told.reason is Reason.NODE_UNREACHABLE
    assert told.message.startswith(f"pod {bench.api.name(0)}-pod on node worker-1: not ready any more")
    launches.running(0, 1.0)
    launches.blocked(told)
    problem = launches.problem(200.0)
    assert problem is not None and problem.reason == Reason.NODE_UNREACHABLE
    bench.api.update(0, ready=1)
    bench.clock.run(100)
    assert bench.events[2:] == [Running(0)], "it is back"
    launches.running(0, 300.0)
    assert launches.problem(400.0) is None
    executor.close()


def test_a_new_controller_tells_of_a_node_that_did_not_answer_before() -> None:
    bench = Bench(trainer={"dataset": {"digits": {}}, "epochs": 1, "deadline": "10m"})
    first = bench.executor()
    first.launch(bench.child(0))
    bench.clock.run(1)
    lost = [{"type": "ContainersReady", "status": "True"}, {"type": "Ready", "status": "False"}]
    bench.api.pod(0, conditions=lost)
    bench.api.update(0, ready=0)
    first.close()
    second = bench.executor()
    bench.clock.run(100)
    (told,) = bench.events
    assert isinstance(told, Blocked) and told.reason is Reason.NODE_UNREACHABLE
    bench.clock.run(4000)
    assert [end.end for end in bench.ends] == [End.DISRUPTED], "it is given up after its deadline"
    second.close()


def test_a_pod_that_stays_on_a_dead_node_is_told_when_its_child_leaves_the_queue_again() -> None:
    """Its status says that it runs, and the Job gets no other one before it has ended."""
    bench = Bench()
    executor = bench.executor()
    executor.launch(bench.child(0))
    bench.clock.run(1)
    pod = bench.api.pod(0)
    bench.api.update(0, ready=1)
    bench.clock.run(1)
    bench.api.update(0, suspend=True, ready=0)
    pod["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:30Z"
    bench.clock.run(100)
    bench.api.update(0, suspend=False)
    bench.clock.run(200)
    running, queued, admitted, told = bench.events
    assert (running, queued, admitted) == (Running(0), Queued(0, ""), Admitted(0))
    assert isinstance(told, Blocked) and told.reason is Reason.NODE_UNREACHABLE
    assert told.message.startswith(f"pod {bench.api.name(0)}-pod on node worker-1: told to end, and there still")
    executor.close()


@pytest.mark.parametrize("evicted", [False, True])
def test_a_child_that_never_ran_on_a_node_that_is_gone_is_told_and_given_up(evicted: bool) -> None:
    """No deadline has begun for it, and its Job makes no other pod as long as this one has not ended."""
    bench = Bench()
    executor = bench.executor()
    executor.launch(bench.child(0))
    bench.clock.run(1)
    pulled = [{"name": "trainer", "state": {"waiting": {"reason": "ContainerCreating"}}}]
    pod = bench.api.pod(0, phase="Pending", containerStatuses=pulled if evicted else [])
    if evicted:
        bench.clock.run(3000)
        assert not bench.events, "an image may be large"
        pod["metadata"]["deletionTimestamp"] = bench.clock.now().isoformat()
    bench.clock.run(240)
    (told,) = bench.events
    assert isinstance(told, Blocked) and told.reason is Reason.NODE_UNREACHABLE
    assert told.message.startswith(f"pod {bench.api.name(0)}-pod on node worker-1: not begun")
    bench.clock.run(240)
    assert [end.end for end in bench.ends] == [End.DISRUPTED] and "has neither begun nor ended" in bench.ends[0].message
    assert bench.api.running == set()
    executor.close()


def test_a_child_that_waits_for_room_for_its_queue_or_for_an_image_is_waited_for() -> None:
    bench = Bench()
    executor = bench.executor()
    for launch in range(4):
        executor.launch(bench.child(launch))
    bench.clock.run(1)
    no_room = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "no room"}
    del bench.api.pod(0, phase="Pending", containerStatuses=[], conditions=[no_room])["spec"]["nodeName"]
    bench.api.update(1, suspend=True)
    bench.api.pod(2, phase="Pending", containerStatuses=[], startTime=bench.clock.now().isoformat())
    bench.clock.run(1)
    # It was bound to a dead node before its queue took it back.
    lost = bench.api.pod(3, phase="Pending", containerStatuses=[])
    bench.clock.run(200)
    bench.api.update(3, suspend=True)
    bench.api.pods.remove(lost)
    bench.clock.run(7200)
    assert not bench.ends
    executor.close()


def test_time_in_a_queue_does_not_count_against_a_childs_deadline() -> None:
    bench = Bench(trainer={"dataset": {"digits": {}}, "epochs": 1, "deadline": "10m"})
    executor = bench.executor()
    executor.launch(bench.child(0))
    bench.clock.run(1)
    bench.api.update(0, ready=1)
    bench.clock.run(500)
    bench.api.update(0, suspend=True, ready=0)
    bench.clock.run(5000)
    bench.api.update(0, suspend=False)
    bench.api.update(0, ready=1)
    bench.clock.run(800)
    assert not bench.ends
    bench.clock.run(200)
    assert len(bench.ends) == 1
    executor.close()


def test_a_child_of_an_earlier_controller_is_given_up_as_well() -> None:
    bench = Bench(trainer={"dataset": {"digits": {}}, "epochs": 1, "deadline": "10m"})
    first = bench.executor()
    first.launch(bench.child(0))
    bench.clock.run(1)
    bench.api.update(0, ready=1)
    bench.clock.run(1)
    first.close()
    second = bench.executor()
    assert bench.existing == {0}
    bench.clock.run(1100)
    assert [end.end for end in bench.ends] == [End.DISRUPTED] and bench.api.running == set()
    second.close()


def test_a_node_that_refuses_pods_at_once_is_avoided_for_a_while() -> None:
    bench = Bench()
    executor = bench.executor()

    def affinity(launch: int) -> Any:
        job = bench.api.job(launch)
        assert job is not None
        return job["spec"]["template"]["spec"].get("affinity")

    for launch in range(4):
        executor.launch(bench.child(launch))
        bench.clock.run(1)
        assert affinity(launch) is None or launch == 3
        bench.api.pod(launch, phase="Failed", reason="OutOfcpu", message="no room", containerStatuses=[])
        bench.api.fail(launch)
        bench.clock.run(1)
        assert bench.ends[-1] == Ended(launch, End.DISRUPTED, "OutOfcpu: no room (node worker-1)")
    away = {"matchFields": [{"key": "metadata.name", "operator": "NotIn", "values": ["worker-1"]}]}
    mine = {"weight": 100, "preference": away}
    assert affinity(3) == {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [mine]}}
    bench.clock.run(1801)
    executor.launch(bench.child(4))
    bench.clock.run(1)
    assert affinity(4) is None
    executor.close()


def test_what_a_template_prefers_stays_beside_the_nodes_to_avoid() -> None:
    key = "preferredDuringSchedulingIgnoredDuringExecution"
    theirs: dict[str, Any] = {"podAffinity": {}, "nodeAffinity": {key: ["theirs"], "required": "theirs"}}
    job: dict[str, Any] = {"spec": {"template": {"spec": {"affinity": theirs}}}}
    keep_away(job, ["a", "b"])
    of_nodes = job["spec"]["template"]["spec"]["affinity"]["nodeAffinity"]
    assert of_nodes["required"] == "theirs" and of_nodes[key][0] == "theirs" and len(of_nodes[key]) == 2
    assert theirs["nodeAffinity"] == {key: ["theirs"], "required": "theirs"}


# ---------------------------------------------------------------- the watch


def test_a_watch_that_is_half_open_is_noticed_within_a_minute() -> None:
    bench = Bench()
    executor = bench.executor()
    executor.launch(bench.child(0))
    bench.clock.run(100)
    bench.api.half_open()
    bench.api.succeed(0)
    bench.clock.run(62)
    assert bench.ends == [Ended(0, End.SUCCEEDED)]
    executor.close()


# ---------------------------------------------------------------- whose children they are


class Held:
    """A tenure that ends when the test says so."""

    def __init__(self) -> None:
        self.answer: bool | None = True

    def holds(self, *, surely: bool = False) -> bool | None:
        return self.answer


def test_a_controller_that_has_been_replaced_creates_and_deletes_nothing() -> None:
    bench = Bench()
    held = Held()
    executor = bench.executor(tenure=held)
    executor.launch(bench.child(0))
    bench.clock.run(1)
    held.answer = False
    executor.launch(bench.child(1))
    executor.cancel(0)
    bench.clock.run(100)
    assert bench.api.created == [0] and bench.api.running == {0}
    executor.close()
    assert bench.clock.time < 102, "it has nothing to wait for"


def test_as_long_as_it_is_not_known_who_writes_the_log_children_end_but_none_begins() -> None:
    """A suspension frees the nodes although the store is away."""
    bench = Bench()
    held = Held()
    executor = bench.executor(tenure=held)
    executor.launch(bench.child(0))
    bench.clock.run(1)
    held.answer = None
    executor.launch(bench.child(1))
    executor.cancel(0)
    bench.clock.run(50)
    assert bench.api.created == [0] and bench.api.running == set()
    held.answer = True
    bench.clock.run(5)
    assert bench.api.running == {1}
    executor.close()


def test_a_job_of_an_older_controller_that_trains_for_nobody_is_deleted() -> None:
    bench = Bench()
    executor = bench.executor()
    executor.launch(bench.child(0))
    bench.clock.run(1)
    bench.api.succeed(0)
    bench.clock.run(1)
    bench.api.create(JOBS, "default", child_job(bench.experiment, 7, bench.child(7).inputs, "trainer:test"))
    bench.clock.run(1)
    assert list(bench.api.jobs) == [bench.api.name(0)], "what has ended is left as it is"
    executor.close()


def test_the_end_waits_for_a_job_that_is_being_created_although_it_was_cancelled() -> None:
    bench = Bench()
    executor = bench.executor()

    def slow(call: str, name: str) -> None:
        if call == "POST":
            bench.clock.sleep(5)

    bench.api.fault = slow
    executor.launch(bench.child(0))
    bench.clock.run(1)
    executor.cancel(0)
    executor.close()
    assert bench.api.created == [0] and bench.api.running == set()
