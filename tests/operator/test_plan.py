"""The planner's decisions, one table for each promise."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import judges
import pytest
from cluster_fixtures import REPOSITORY
from experiments import manifest

from nas_api import names
from nas_api.child import read_trainer_document
from nas_api.experiment import NASExperiment
from nas_api.reasons import Reason
from nas_operator import builders
from nas_operator.conditions import differs
from nas_operator.observed import ControllerPod, Finding, Observed, Refusal
from nas_operator.plan import CreatePod, DeletePod, EnsureAccess, EnsureService, Plan, Try, pause, plan
from nas_operator.settings import Settings

NOW = datetime(2026, 5, 1, 12, 0, 0, tzinfo=UTC)
SETTINGS = Settings(controller_image="controller:1", trainer_image="trainer:1", follower_image="follower:1")
UID = "12345678-aaaa-bbbb-cccc-1234567890ab"


def experiment(*, status: dict[str, Any] | None = None, generation: int = 1, **spec: Any) -> dict[str, Any]:
    raw = manifest("lab", **spec)
    raw["metadata"] |= {"uid": UID, "generation": generation, "resourceVersion": "1"}
    if status is not None:
        raw["status"] = status
    return raw


def parsed(raw: dict[str, Any]) -> NASExperiment:
    return NASExperiment.model_validate(raw)


def pod(index: int, raw: dict[str, Any] | None = None, **fields: Any) -> ControllerPod:
    """A controller pod that has run for ten minutes."""
    basis = ControllerPod(
        name=names.controller_pod("digits", UID, index),
        uid=f"pod-{index}",
        index=index,
        created=NOW - timedelta(minutes=10),
        terminating=False,
        running=True,
        inputs=builders.inputs(parsed(raw or experiment())),
        quick_failures=0,
    )
    return replace(basis, **fields)


def ended(index: int, *, seconds_ago: float = 0.0, quick_failures: int = 0, quick: bool = False) -> ControllerPod:
    return pod(
        index,
        running=False,
        ended=NOW - timedelta(seconds=seconds_ago),
        quick=quick,
        quick_failures=quick_failures,
        last_words="exit code 1: Traceback",
    )


def look(raw: dict[str, Any], *pods: ControllerPod, now: datetime = NOW, **fields: Any) -> Plan:
    """Plan with everything checked already, so that a test sees only its own matter."""
    key = builders.digest([trial.body for trial in builders.trials(parsed(raw), SETTINGS)])
    observed = Observed(raw=raw, pods=pods, access=True, accepted=frozenset({key}))
    return plan(replace(observed, **fields), now, SETTINGS)


def condition(done: Plan, kind: str) -> dict[str, Any]:
    found: dict[str, Any] = next(item for item in done.status["conditions"] if item["type"] == kind)
    return found


def kinds(done: Plan) -> list[type]:
    return [type(action) for action in done.actions]


def created(done: Plan) -> dict[str, Any]:
    (body,) = [action.body for action in done.actions if isinstance(action, CreatePod)]
    return body


def written(done: Plan, raw: dict[str, Any], **more: Any) -> dict[str, Any]:
    """The experiment after a plan's status was written."""
    return {**raw, "status": {**(raw.get("status") or {}), **done.status, **more}}


SEARCHING = {"epoch": 1, "observedGeneration": 1, "state": "Searching", "samples": {"running": 2}}


def test_a_new_experiment_gets_access_a_trial_and_a_pod_in_this_order() -> None:
    done = look(experiment(), access=False, accepted=frozenset())
    assert kinds(done) == [EnsureAccess, Try, CreatePod]
    assert created(done)["metadata"]["name"] == "digits-12345678-controller-1"
    assert done.status["state"] == "Pending"
    assert condition(done, "Progressing")["reason"] == "ControllerStarting"
    assert {item["type"]: item["status"] for item in done.status["conditions"]} == {
        "Progressing": "True",
        "Suspended": "False",
        "Complete": "False",
        "Failed": "False",
        "Ready": "False",
        "Reconciling": "True",
    }


OWN = {"dataset": {"custom": {}}, "image": "mine:1"}


@pytest.mark.parametrize(
    "spec", [{"trainer": {**OWN, "pods": 2}}, {"finalTraining": {"pods": 2}}], ids=["search", "final training"]
)
def test_children_of_several_pods_have_a_service_before_there_is_a_controller(spec: dict[str, Any]) -> None:
    done = look(experiment(**spec), access=False, accepted=frozenset())
    assert kinds(done) == [EnsureAccess, EnsureService, Try, CreatePod]
    (body,) = [action.body for action in done.actions if isinstance(action, EnsureService)]
    assert body["metadata"]["name"] == "nas-digits-12345678"
    assert body["metadata"]["ownerReferences"][0]["uid"] == UID, "it goes with its experiment"
    assert (body["spec"]["clusterIP"], body["spec"]["publishNotReadyAddresses"]) == ("None", True)
    (trial, *_) = builders.trials(parsed(experiment(trainer={**OWN, "pods": 2})), SETTINGS)
    template = trial.body["spec"]["template"]
    assert body["spec"]["selector"].items() <= template["metadata"]["labels"].items()
    assert template["spec"]["subdomain"] == body["metadata"]["name"]


def test_a_service_is_made_when_a_running_search_first_asks_for_it_and_then_left_alone() -> None:
    raw = experiment(status=SEARCHING, finalTraining={"pods": 2})
    assert kinds(look(raw, pod(1))) == [EnsureService]
    assert look(raw, pod(1), service=True).actions == ()
    assert look(experiment(status=SEARCHING, finalTraining={"pods": 1}), pod(1)).actions == ()


def test_a_final_training_has_its_own_reason() -> None:
    done = look(experiment(status={**SEARCHING, "final": {"trained": 1, "total": 5}}), pod(1))
    assert (done.status["state"], condition(done, "Progressing")["reason"]) == ("Searching", "FinalTraining")


def test_a_running_search_needs_nothing() -> None:
    raw = experiment(status=SEARCHING)
    first = look(raw, pod(1))
    assert first.actions == ()
    assert (first.status["state"], condition(first, "Progressing")["reason"]) == ("Searching", "Searching")
    assert first.status["controller"] == {"pod": "digits-12345678-controller-1"}
    again = look(written(first, raw), pod(1))
    assert again.status == first.status
    assert again.events == ()
    assert again.requeue_after is None


def test_the_operator_writes_what_has_changed_for_it_and_nothing_for_each_child() -> None:
    """A whole search at any pace: the operator is woken by every status, and its own part stays as it is."""
    raw = written(look(experiment(status=SEARCHING), pod(1)), experiment(status=SEARCHING))
    problem = {"reason": "StoreUnreachable", "message": "m"}
    writes = []
    for second in range(600):
        now = NOW + timedelta(seconds=second)
        samples = {"running": 2 - second % 2, "observed": second // 3}
        raw["status"] |= {"samples": samples, "progress": f"{second // 3}/200"}
        raw["status"].pop("problem", None)
        if 300 <= second < 400:
            raw["status"]["problem"] = problem
        done = look(raw, pod(1), now=now)
        assert done.actions == ()
        if differs(raw, done.status):
            writes.append(second)
            raw = written(done, raw)
    assert writes == [300, 400]


@pytest.mark.parametrize(
    ("queue", "final", "message"),
    [
        ({"queue": "gpu"}, {}, "Children are being trained; 2 of 3 wait in queue gpu."),
        ({}, {}, "Children are being trained; 2 of 3 wait: Jobs are suspended."),
        (
            {"queue": "gpu"},
            {"final": {"trained": 1, "total": 5}},
            "The search has ended; its best architectures are in final training; 2 of 3 wait in queue gpu.",
        ),
    ],
)
def test_how_many_wait_in_a_queue_is_told_while_the_search_goes_on(
    queue: dict[str, str], final: dict[str, Any], message: str
) -> None:
    trainer = {"dataset": {"digits": {}}, **queue}
    status = {**SEARCHING, **final, "samples": {"running": 3, "queued": 2}}
    done = look(experiment(status=status, trainer=trainer), pod(1))
    told = condition(done, "Progressing")
    assert (told["status"], told["message"]) == ("True", message)
    assert done.status["state"] == "Searching" and not [event for event in done.events if event.type == "Warning"]
    none = look(experiment(status={**status, "samples": {"running": 3, "queued": 0}}, trainer=trainer), pod(1))
    assert "wait" not in condition(none, "Progressing")["message"]


@pytest.mark.parametrize(
    ("pods", "recorded", "index"),
    [
        ([], None, 1),
        ([], 4, 5),
        ([ended(2)], None, 3),
        ([ended(2)], 1, 3),
        ([pod(3, terminating=True, running=False)], None, 4),
        ([ended(1), ended(12)], 3, 13),
    ],
)
def test_numbers_of_pods_never_fall(pods: list[ControllerPod], recorded: int | None, index: int) -> None:
    status = {"controller": {"pod": names.controller_pod("digits", UID, recorded)}} if recorded else None
    body = created(look(experiment(status=status), *pods))
    assert body["metadata"]["name"] == names.controller_pod("digits", UID, index)


@pytest.mark.parametrize(
    ("last", "wait"),
    [
        (pod(1, terminating=True, running=False), None),
        (ended(1, quick=False), None),
        (ended(1, quick=False, quick_failures=5), None),
        (ended(1, quick=True, seconds_ago=0), 5.0),
        (ended(1, quick=True, seconds_ago=5), None),
        (ended(1, quick=True, quick_failures=1, seconds_ago=0), 10.0),
        (ended(1, quick=True, quick_failures=1, seconds_ago=4), 6.0),
        (ended(1, quick=True, quick_failures=30, seconds_ago=0), 60.0),
        (ended(1, quick=True, quick_failures=30, seconds_ago=61), None),
    ],
    ids=["deleted", "ended", "after", "first", "first-over", "second", "second-later", "many", "many-over"],
)
def test_a_pod_that_went_is_replaced_at_once_unless_it_keeps_failing(last: ControllerPod, wait: float | None) -> None:
    done = look(experiment(status=SEARCHING), last)
    if wait is None:
        assert created(done)["metadata"]["name"].endswith("-controller-2")
    else:
        assert done.actions == ()
        assert done.requeue_after == timedelta(seconds=wait)


def test_pauses_grow_to_a_minute() -> None:
    assert [pause(count).total_seconds() for count in range(8)] == [0, 5, 10, 20, 40, 60, 60, 60]
    assert pause(10_000).total_seconds() == 60


def test_quick_failures_are_counted_along_the_pods() -> None:
    done = look(experiment(status=SEARCHING), ended(1, quick=True, quick_failures=2, seconds_ago=99))
    assert created(done)["metadata"]["annotations"][names.ANNOTATION_QUICK_FAILURES] == "3"
    done = look(experiment(status=SEARCHING), ended(1, quick=False, quick_failures=2, seconds_ago=99))
    assert created(done)["metadata"]["annotations"][names.ANNOTATION_QUICK_FAILURES] == "0"


def test_repeated_quick_failures_are_told_with_the_last_words() -> None:
    raw = experiment(status=SEARCHING)
    one = look(raw, ended(1, quick=True))
    assert condition(one, "Progressing")["status"] == "True"
    two = look(raw, ended(2, quick=True, quick_failures=1))
    assert condition(two, "Progressing")["reason"] == "ControllerFailed"
    assert "2 times in a row. exit code 1: Traceback. Look at the pod's log" in condition(two, "Progressing")["message"]
    young = pod(3, quick_failures=2, created=NOW - timedelta(seconds=20))
    still = look(raw, ended(2, quick=True, quick_failures=1), young)
    assert condition(still, "Progressing")["reason"] == "ControllerFailed"
    assert still.requeue_after == timedelta(seconds=40)
    settled = look(raw, ended(2, quick=True, quick_failures=1), replace(young, created=NOW - timedelta(seconds=60)))
    assert condition(settled, "Progressing")["reason"] == "Searching"


def test_only_the_newest_ended_pod_is_kept() -> None:
    done = look(experiment(status=SEARCHING), ended(1), ended(2), pod(3))
    assert done.actions == (DeletePod(names.controller_pod("digits", UID, 1), "pod-1"),)


def test_of_two_live_pods_the_newer_stays() -> None:
    done = look(experiment(status=SEARCHING), pod(1), pod(2))
    assert done.actions == (DeletePod(names.controller_pod("digits", UID, 1), "pod-1"),)


def test_a_pod_whose_number_was_passed_gives_way() -> None:
    """An operator that had not seen controller-3 come and go has made controller-2 once more."""
    recorded = {"controller": {"pod": names.controller_pod("digits", UID, 3)}}
    done = look(experiment(status=SEARCHING | recorded), pod(2))
    assert done.actions[0] == DeletePod(names.controller_pod("digits", UID, 2), "pod-2")
    assert created(done)["metadata"]["name"] == names.controller_pod("digits", UID, 4)


def test_a_change_of_the_controllers_settings_replaces_it_without_a_pause() -> None:
    template = {"metadata": {"labels": {"team": "a"}}}
    raw = experiment(status=SEARCHING, generation=2, controller={"template": template})
    done = look(raw, pod(1, quick_failures=3), accepted=frozenset())
    assert kinds(done) == [Try, DeletePod, CreatePod]
    assert created(done)["metadata"]["labels"]["team"] == "a"
    assert created(done)["metadata"]["annotations"][names.ANNOTATION_QUICK_FAILURES] == "0"
    assert done.told_with_actions[0].note.endswith("its settings changed.")


@pytest.mark.parametrize(
    "spec",
    [{"parallelism": 9}, {"budget": {"samples": 7}}, {"trainer": {"dataset": {"digits": {}}, "image": "other"}}],
)
def test_other_changes_leave_the_controller_alone(spec: dict[str, Any]) -> None:
    raw = experiment(status=SEARCHING, generation=2, **spec)
    assert look(raw, pod(1)).actions == ()


def test_an_upgrade_of_the_operator_leaves_the_controller_alone() -> None:
    newer = SETTINGS.model_copy(update={"controller_image": "controller:2", "trainer_image": "trainer:2"})
    observed = Observed(raw=experiment(status=SEARCHING), pods=(pod(1),), access=True)
    assert plan(observed, NOW, newer).actions == ()


def test_a_changed_template_is_tried_while_the_controller_runs() -> None:
    trainer = {"dataset": {"digits": {}}, "template": {"spec": {"nodeSelector": {"gpu": "yes"}}}}
    done = look(experiment(status=SEARCHING, generation=2, trainer=trainer), pod(1), accepted=frozenset())
    (trial,) = done.actions
    assert isinstance(trial, Try)
    assert not trial.quota_counts
    assert trial.trials[0].body["spec"]["template"]["spec"]["nodeSelector"] == {"gpu": "yes"}


def test_what_is_tried_is_what_children_will_be_told() -> None:
    """All that the manifest says of a training, and as many children as will share a pod."""
    trainer = {
        "dataset": {"cifar10": {"uri": "s3://data/cifar"}},
        "childrenPerPod": 2,
        "gpu": {"autocast": False},
        "language": {"layers": 7},
        "datasetCache": "/cache",
    }
    job, pod, _ = builders.trials(parsed(experiment(trainer=trainer)), SETTINGS)
    (document,) = [
        item["value"]
        for item in job.body["spec"]["template"]["spec"]["containers"][0]["env"]
        if item["name"] == names.ENV_TRAINER_INPUT
    ]
    assert document in str(pod.body)
    children = read_trainer_document(document)
    assert [(child.gpu.autocast, child.language.layers, child.dataset_cache) for child in children] == [
        (False, 7, "/cache"),
        (False, 7, "/cache"),
    ]


def test_a_final_training_s_pod_is_tried_before_the_search_that_it_follows() -> None:
    final = {"epochs": 300, "pods": 2, "deadline": "48h", "template": {"spec": {"nodeSelector": {"gpu": "h100"}}}}
    tried = builders.trials(parsed(experiment(finalTraining=final)), SETTINGS)
    assert [trial.field for trial in tried] == [
        "spec.trainer.template",
        "spec.trainer.template",
        "spec.finalTraining.template",
        "spec.finalTraining.template",
        "spec.controller.template",
    ]
    child, pod = tried[0].body["spec"], tried[3].body["spec"]
    assert (child["completions"], tried[2].body["spec"]["completions"]) == (1, 2)
    assert (child["template"]["spec"].get("nodeSelector"), pod["nodeSelector"]) == (None, {"gpu": "h100"})
    assert pod["activeDeadlineSeconds"] == 48 * 3600


def test_a_pod_of_too_many_deep_networks_is_told_before_the_search_comes_to_them() -> None:
    layers = {"initial": 4, "increment": 4, "everySamples": 100}
    trainer = {
        "dataset": {"cifar10": {"uri": f"/{'x' * 1000}"}},
        "datasetCache": f"/{'x' * 1000}",
        "childrenPerPod": 16,
    }
    spec: dict[str, Any] = {"searchSpace": {"convolutional": {"layers": layers}}, "trainer": trainer, "parallelism": 16}
    assert CreatePod in kinds(look(experiment(**spec, budget={"samples": 100})))
    done = plan(Observed(raw=experiment(**spec, budget={"samples": 1000})), NOW, SETTINGS)
    assert done.actions == ()
    assert condition(done, "Progressing")["reason"] == "InvalidTemplate"
    assert "spec.trainer.childrenPerPod: 16 children need" in condition(done, "Progressing")["message"]


def refused(raw: dict[str, Any], reason: Reason, *, seconds: float, detail: str = "the server's words") -> Refusal:
    key = builders.digest([trial.body for trial in builders.trials(parsed(raw), SETTINGS)])
    return Refusal(key, reason, detail, NOW + timedelta(seconds=seconds))


@pytest.mark.parametrize(
    "reason", [Reason.INVALID_TEMPLATE, Reason.QUOTA_EXCEEDED, Reason.NOT_PERMITTED, Reason.CONFIG_MISSING]
)
def test_a_refusal_is_told_and_tried_again_later(reason: Reason) -> None:
    raw = experiment()
    waiting = look(raw, refusal=refused(raw, reason, seconds=30), accepted=frozenset())
    assert waiting.actions == ()
    assert waiting.requeue_after == timedelta(seconds=30)
    assert waiting.status["state"] == "Waiting"
    assert condition(waiting, "Progressing")["status"] == "False"
    assert condition(waiting, "Progressing")["reason"] == reason
    assert condition(waiting, "Progressing")["message"].startswith("the server's words. ")
    assert condition(waiting, "Failed")["status"] == "False"
    due = look(raw, refusal=refused(raw, reason, seconds=0), accepted=frozenset())
    assert kinds(due) == [Try, CreatePod]


def test_a_corrected_template_is_tried_at_once() -> None:
    wrong = experiment(trainer={"dataset": {"digits": {}}, "image": "wrong"})
    right = experiment(status={"observedGeneration": 1}, generation=2)
    done = look(right, refusal=refused(wrong, Reason.INVALID_TEMPLATE, seconds=30), accepted=frozenset())
    assert kinds(done) == [Try, CreatePod]


def test_a_refusal_outlives_the_operator_that_met_it() -> None:
    raw = experiment(status=SEARCHING)
    told = written(look(raw, pod(1), refusal=refused(raw, Reason.INVALID_TEMPLATE, seconds=30)), raw)
    assert kinds(look(told, pod(1), accepted=frozenset())) == [Try]


def test_a_template_that_cannot_be_laid_over_ours_is_told_without_a_call() -> None:
    raw = experiment(trainer={"dataset": {"digits": {}}, "template": {"spec": {"containers": [{"image": "x"}]}}})
    done = plan(Observed(raw=raw), NOW, SETTINGS)
    assert done.actions == ()
    assert condition(done, "Progressing")["reason"] == "InvalidTemplate"
    assert "spec.trainer.template: containers[0]" in condition(done, "Progressing")["message"]


@pytest.mark.parametrize(
    ("field", "value"),
    [("budget", {}), ("searchSpace", {"quantum": {}}), ("trainer", {"dataset": {"imagenet": {}}})],
)
def test_a_spec_of_another_version_is_told_by_field(field: str, value: Any) -> None:
    done = plan(Observed(raw=experiment(**{field: value})), NOW, SETTINGS)
    assert done.actions == ()
    assert condition(done, "Progressing")["reason"] == "InvalidSpec"
    assert f"spec.{field}" in condition(done, "Progressing")["message"]


def test_unknown_fields_of_a_newer_version_are_no_trouble() -> None:
    assert CreatePod in kinds(plan(Observed(raw=experiment(novelty=1), access=True), NOW, SETTINGS))


@pytest.mark.parametrize(("type_", "state"), [("Complete", "Complete"), ("Failed", "Failed")])
def test_only_the_outcome_ends_an_experiment(type_: str, state: str) -> None:
    outcome = {"type": type_, "reason": "SamplesSpent", "message": "All 100 samples were tried."}
    raw = experiment(status={**SEARCHING, "outcome": outcome}, suspend=True)
    for pods in ((), (ended(1, quick=True),), (pod(1),)):
        done = look(raw, *pods)
        assert done.actions == ()
        assert done.status["state"] == state
        assert condition(done, type_)["status"] == "True"
        assert condition(done, type_)["message"] == "All 100 samples were tried."
        assert condition(done, "Progressing")["status"] == "False"


@pytest.mark.parametrize(
    ("state", "observed", "told"), [("Pending", 0, True), ("Waiting", 0, True), ("Waiting", 3, False)]
)
def test_the_start_is_told_once_also_after_a_wait(state: str, observed: int, told: bool) -> None:
    done = look(experiment(status=SEARCHING | {"state": state, "samples": {"observed": observed}}), pod(1))
    assert ("Searching" in [event.reason for event in done.events]) is told


def test_completion_is_told_with_the_best() -> None:
    best = {"sample": 7, "reward": "0.8", "metric": "0.93", "architecture": "3x3:24", "digest": "d", "uri": "s3://x"}
    outcome = {"type": "Complete", "reason": "SamplesSpent", "message": "Done"}
    raw = experiment(status={**SEARCHING, "outcome": outcome, "best": best})
    done = look(raw, ended(1))
    assert [(event.type, event.reason, event.note) for event in done.events] == [
        ("Normal", "Complete", "Done. Best: 0.93 by sample 7: 3x3:24")
    ]
    assert look(written(done, raw), ended(1)).events == ()


def test_an_exit_code_is_never_completion() -> None:
    done = look(experiment(status=SEARCHING), pod(1, running=False, ended=NOW, last_words="exit code 0"))
    assert condition(done, "Complete")["status"] == "False"
    assert CreatePod in kinds(done)


def test_suspended_before_the_start_means_no_pod_at_all() -> None:
    done = look(experiment(suspend=True), access=False, accepted=frozenset())
    assert done.actions == ()
    assert done.status["state"] == "Suspended"
    assert condition(done, "Suspended")["status"] == "True"


def test_a_controller_ends_its_children_before_it_goes() -> None:
    raw = experiment(status=SEARCHING, suspend=True)
    first = look(raw, pod(1), children=2)
    assert first.actions == ()
    assert (first.status["state"], condition(first, "Suspended")["status"]) == ("Searching", "False")
    assert "is ending 2 children" in condition(first, "Suspended")["message"]
    assert first.requeue_after is not None
    raw = experiment(status={**SEARCHING, "samples": {"running": 0}}, suspend=True)
    unseen = look(raw, pod(1), children=1)
    assert unseen.actions == ()
    last = look(raw, pod(1), children=0)
    assert last.actions == (DeletePod(names.controller_pod("digits", UID, 1), "pod-1"),)
    assert condition(last, "Suspended")["status"] == "True"


def test_children_without_a_controller_get_one_to_end_them() -> None:
    raw = experiment(status=SEARCHING, suspend=True)
    assert CreatePod in kinds(look(raw, children=2))
    alone = look(raw, children=0)
    assert alone.actions == ()
    assert condition(alone, "Suspended")["status"] == "True"


def test_resuming_makes_a_pod_again() -> None:
    raw = experiment(status=SEARCHING, suspend=True)
    suspended = look(raw, children=0)
    raw = written(suspended, experiment(status=SEARCHING))
    resumed = look(raw)
    assert CreatePod in kinds(resumed)
    assert condition(resumed, "Suspended")["status"] == "False"
    assert condition(resumed, "Progressing")["reason"] == "Resumed"
    assert [event.reason for event in resumed.events] == ["Resumed"]
    starting = look(written(resumed, raw), pod(2, running=False))
    assert condition(starting, "Progressing")["reason"] == "Resumed"
    running = look(written(starting, raw), pod(2))
    assert condition(running, "Progressing")["reason"] == "Searching"


def test_what_the_controller_reports_is_told_in_its_words() -> None:
    problem = {"reason": "BucketNotFound", "message": "The bucket nas is not there. Create it."}
    raw = experiment(status={**SEARCHING, "problem": problem})
    done = look(raw, pod(1))
    assert done.actions == ()
    assert done.status["state"] == "Waiting"
    assert condition(done, "Progressing")["reason"] == "BucketNotFound"
    assert condition(done, "Progressing")["message"] == "The bucket nas is not there. Create it."
    assert [(event.type, event.key) for event in done.events] == [("Warning", "problem-BucketNotFound")]


def test_what_keeps_the_pod_from_running_is_told() -> None:
    finding = Finding(Reason.CONFIG_MISSING, 'secret "s3" not found')
    done = look(experiment(), pod(1, running=False, finding=finding))
    assert done.status["state"] == "Waiting"
    assert condition(done, "Progressing")["message"] == (
        'secret "s3" not found. Create it in the experiment\'s namespace; the pod starts by itself.'
    )


def test_a_transition_time_changes_only_with_the_status() -> None:
    raw = experiment(status=SEARCHING)
    first = written(look(raw, pod(1)), raw)
    for item in first["status"]["conditions"]:
        item["lastTransitionTime"] = "2020-01-01T00:00:00Z"
    starting = look(first, pod(1, running=False))
    assert condition(starting, "Progressing")["reason"] == "ControllerStarting"
    assert condition(starting, "Progressing")["lastTransitionTime"] == "2020-01-01T00:00:00Z"
    problem = {"reason": "StoreUnreachable", "message": "m"}
    waiting = look({**first, "status": {**first["status"], "problem": problem}}, pod(1))
    assert condition(waiting, "Progressing")["lastTransitionTime"] == "2026-05-01T12:00:00Z"
    assert condition(waiting, "Failed")["lastTransitionTime"] == "2020-01-01T00:00:00Z"


def test_the_start_is_told_once() -> None:
    raw = experiment()
    pending = written(look(raw), raw)
    started = look({**pending, "status": {**pending["status"], "epoch": 1}}, pod(1))
    assert [event.reason for event in started.events] == ["Searching"]
    assert look(written(started, pending, epoch=1), pod(1)).events == ()


# ---------------------------------------------------------------- what others make of each state


def ended_as(kind: str) -> dict[str, Any]:
    return {**SEARCHING, "outcome": {"type": kind, "reason": "TheReason", "message": "The log's words."}}


def in_state(state: str) -> dict[str, Any]:
    """An experiment as the API server shows it when the operator has written what it makes of a state."""
    raw = experiment(status=dict(SEARCHING))
    pods: tuple[ControllerPod, ...] = (pod(1),)
    seen: dict[str, Any] = {}
    match state:
        case "new":
            return experiment(status={"observedGeneration": -1})  # By the CRD's default.
        case "edited":
            return {**in_state("Complete"), "metadata": experiment(generation=2)["metadata"]}
        case "being deleted":
            done = in_state("Complete")
            return {**done, "metadata": {**done["metadata"], "deletionTimestamp": "2026-05-01T12:00:00Z"}}
        case "Pending":
            raw, pods = experiment(), (pod(1, running=False),)
        case "final training":
            raw["status"] |= {"final": {"trained": 1, "total": 5}}
        case "Waiting":
            raw["status"] |= {"problem": {"reason": "TheReason", "message": "The controller's words."}}
        case "invalid spec":
            raw["spec"]["budget"] = {}
            return written(plan(Observed(raw=raw), NOW, SETTINGS), raw)
        case "suspending":
            raw, seen = experiment(status=SEARCHING, suspend=True), {"children": 2}
        case "Suspended":
            raw, pods, seen = experiment(status=SEARCHING, suspend=True), (), {"children": 0}
        case "Complete" | "Failed":
            raw = experiment(status=ended_as(state))
    return written(look(raw, *pods, **seen), raw)


def documented() -> dict[str, list[str]]:
    """The table of states in docs/gitops.md: by state, what is said of Ready, of others, by kstatus and by Argo CD."""
    text = (REPOSITORY / "docs/gitops.md").read_text().split("| state |", 1)[1].split("\n\n", 1)[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()[2:]]
    return {state: cells for state, _, *cells in rows}


DOCUMENTED = documented()


@pytest.mark.parametrize("state", DOCUMENTED)
def test_the_conditions_of_each_state(state: str) -> None:
    """As the table in docs/gitops.md has them, which is read here."""
    raw, (ready, others, _, _) = in_state(state), DOCUMENTED[state]
    told = {item["type"]: item["status"] for item in raw["status"].get("conditions", ())}
    assert "False" not in (told.get("Reconciling"), told.get("Stalled"))
    if ready == others == "as before":
        assert raw["status"] == in_state("Complete")["status"]
    else:
        assert told.pop("Ready", "absent") == ready
        assert {f"`{kind}`" for kind, status in told.items() if status == "True"} == set(
            filter(None, others.split(", "))
        )


@pytest.mark.usefixtures("judging_programs")
@pytest.mark.parametrize("state", DOCUMENTED)
def test_what_kstatus_and_argo_cd_make_of_each_state(state: str) -> None:
    """As the table in docs/gitops.md has it. What is being deleted, Argo CD judges without a script."""
    raw, (_, _, kstatus, health) = in_state(state), DOCUMENTED[state]
    assert judges.kstatus(raw).status == kstatus
    assert judges.argo_cd(raw).status == health or health.endswith("by its own rule")


@pytest.mark.usefixtures("judging_programs")
def test_cause_and_cure_come_through() -> None:
    raw = in_state("invalid spec")
    assert "spec.budget" in judges.kstatus(raw).message
    assert judges.argo_cd(raw).message.startswith("InvalidSpec: spec.budget")
    assert judges.kstatus(in_state("Failed")).message == "The log's words."
    assert judges.argo_cd(in_state("Failed")).message == "TheReason: The log's words."


def test_ready_changes_once_and_reconciling_begins_anew() -> None:
    raw = in_state("Searching")
    for item in raw["status"]["conditions"]:
        item["lastTransitionTime"] = "2020-01-01T00:00:00Z"
    problem = {"reason": "StoreUnreachable", "message": "m"}
    waiting = look({**raw, "status": {**raw["status"], "problem": problem}}, pod(1))
    assert condition(waiting, "Ready")["lastTransitionTime"] == "2020-01-01T00:00:00Z"
    assert condition(waiting, "Ready")["reason"] == "StoreUnreachable"
    cured = look(written(waiting, raw), pod(1))
    assert condition(cured, "Ready")["lastTransitionTime"] == "2020-01-01T00:00:00Z"
    assert condition(cured, "Reconciling")["lastTransitionTime"] == "2026-05-01T12:00:00Z"


def test_an_experiment_from_before_these_conditions_is_written_once_and_nothing_is_told() -> None:
    raw = in_state("Searching")
    batch = ("Progressing", "Suspended", "Complete", "Failed")
    raw["status"]["conditions"] = [item for item in raw["status"]["conditions"] if item["type"] in batch]
    first = look(raw, pod(1))
    assert differs(raw, first.status)
    assert (first.actions, first.events) == ((), ())
    assert not differs(written(first, raw), look(written(first, raw), pod(1)).status)
