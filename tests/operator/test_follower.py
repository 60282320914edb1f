"""The follower's Job, and what the status says of it; a search with a broken tracker is planned as one without."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from experiments import manifest

from nas_api import names
from nas_api.experiment import NASExperiment
from nas_api.follower import FollowerInput
from nas_api.reasons import Reason
from nas_operator import builders
from nas_operator.cache import Cache
from nas_operator.observed import ControllerPod, Finding, FollowerPod, Observed, follower_pod
from nas_operator.plan import DeletePod, EnsureFollower, Plan, RemoveFollower, plan
from nas_operator.settings import Settings

NOW = datetime(2026, 5, 1, 12, 0, 0, tzinfo=UTC)
SETTINGS = Settings(
    controller_image="controller:1",
    trainer_image="trainer:1",
    follower_image="follower:1",
    image_pull_secrets=("hub",),
    templates_unrestricted=True,
)
UID = "12345678-aaaa-bbbb-cccc-1234567890ab"
OWNER = ("lab", "digits", UID)
URI = "http://mlflow.example:5000"
TRACKING = {"mlflow": {"uri": URI, "credentialsSecret": {"name": "mlflow"}}}
SEARCHING = {"epoch": 1, "observedGeneration": 1, "state": "Searching", "samples": {"running": 2}}
COMPLETE = {**SEARCHING, "outcome": {"type": "Complete", "reason": "SamplesSpent", "message": "The log's words."}}


def experiment(status: dict[str, Any] | None = None, **spec: Any) -> dict[str, Any]:
    raw = manifest("lab", **spec)
    raw["metadata"] |= {"uid": UID, "generation": 1, "resourceVersion": "1"}
    return raw if status is None else {**raw, "status": status}


def parsed(raw: dict[str, Any]) -> NASExperiment:
    return NASExperiment.model_validate(raw)


def controller(raw: dict[str, Any]) -> ControllerPod:
    """A controller pod that has run for ten minutes."""
    return ControllerPod(
        name=names.controller_pod("digits", UID, 1),
        uid="pod-1",
        index=1,
        created=NOW - timedelta(minutes=10),
        terminating=False,
        running=True,
        inputs=builders.inputs(parsed(raw)),
        quick_failures=0,
    )


def follower(raw: dict[str, Any], **fields: Any) -> FollowerPod:
    """A follower's pod that has run for ten minutes."""
    basis = FollowerPod(
        uid="follower-1",
        age=(True, "2026-05-01T11:50:00Z"),
        inputs=builders.follower_inputs(parsed(raw)),
        done=False,
        since=NOW - timedelta(minutes=10),
        last_words="",
        failed=False,
    )
    return replace(basis, **fields)


def look(raw: dict[str, Any], pod: FollowerPod | None = None, **fields: Any) -> Plan:
    """Plan with all else in order; the Job has been seen unless a test says otherwise."""
    key = builders.digest([trial.body for trial in builders.trials(parsed(raw), SETTINGS)])
    tracking = raw["spec"].get("tracking")
    fields = {"followed": builders.follower_inputs(parsed(raw)) if tracking else "", **fields}
    basis = Observed(raw=raw, pods=(controller(raw),), access=True, accepted=frozenset({key}), follower=pod)
    return plan(replace(basis, **fields), NOW, SETTINGS)


def said(done: Plan) -> tuple[str, str, str] | None:
    """Return status, reason and message of the condition."""
    found = [item for item in done.status["conditions"] if item["type"] == "Tracking"]
    return (found[0]["status"], found[0]["reason"], found[0]["message"]) if found else None


def reason(done: Plan) -> str:
    found = said(done)
    assert found is not None
    return found[1]


def rest(done: Plan) -> list[dict[str, Any]]:
    return [item for item in done.status["conditions"] if item["type"] != "Tracking"]


def written(done: Plan, raw: dict[str, Any]) -> dict[str, Any]:
    return {**raw, "status": {**(raw.get("status") or {}), **done.status}}


# ---------------------------------------------------------------- the Job


def test_the_follower_has_keys_of_the_bucket_and_no_token() -> None:
    job = builders.follower_job(parsed(experiment(tracking=TRACKING)), SETTINGS)
    assert job["metadata"]["name"] == "digits-12345678-follower"
    assert job["metadata"]["ownerReferences"][0]["uid"] == UID
    assert job["metadata"]["labels"][names.LABEL_ROLE] == "follower"
    assert job["spec"]["backoffLimit"] == 2**31 - 1
    pod = job["spec"]["template"]
    assert pod["metadata"]["labels"] == job["metadata"]["labels"]
    assert pod["metadata"]["annotations"] == job["metadata"]["annotations"]
    spec = pod["spec"]
    assert (spec["automountServiceAccountToken"], spec["restartPolicy"]) == (False, "OnFailure")
    assert "serviceAccountName" not in spec and spec["imagePullSecrets"] == [{"name": "hub"}]
    (container,) = spec["containers"]
    assert (container["name"], container["image"]) == ("follower", "follower:1")
    environment = {item["name"]: item for item in container["env"]}
    asked = FollowerInput.model_validate_json(environment[names.ENV_FOLLOWER_INPUT]["value"])
    assert (asked.experiment, asked.namespace, asked.uid, asked.mlflow.uri) == ("digits", "lab", UID, URI)
    assert asked.store.s3 is not None and asked.store.s3.prefix == f"nas/lab/digits/{UID}/"
    assert environment["AWS_ACCESS_KEY_ID"]["valueFrom"]["secretKeyRef"] == {"name": "s3", "key": "AWS_ACCESS_KEY_ID"}
    for key in names.MLFLOW_CREDENTIAL_KEYS:
        reference = {"name": "mlflow", "key": key, "optional": True}
        assert environment[key]["valueFrom"]["secretKeyRef"] == reference


def test_the_users_template_is_laid_over_the_pod_and_keeps_what_is_ours() -> None:
    template = {
        "metadata": {"labels": {names.LABEL_ROLE: "trainer", "team": "a"}},
        "spec": {
            "containers": [{"name": "follower", "env": [{"name": "MLFLOW_TRACKING_INSECURE_TLS", "value": "true"}]}]
        },
    }
    raw = experiment(tracking={**TRACKING, "template": template}, controller={"serviceAccountName": "with-a-role"})
    pod = builders.follower_job(parsed(raw), SETTINGS)["spec"]["template"]
    assert pod["metadata"]["labels"] | {"team": "a"} == pod["metadata"]["labels"]
    assert pod["metadata"]["labels"][names.LABEL_ROLE] == "follower"
    assert pod["spec"]["serviceAccountName"] == "with-a-role"
    found = {item["name"] for item in pod["spec"]["containers"][0]["env"]}
    assert {"MLFLOW_TRACKING_INSECURE_TLS", names.ENV_FOLLOWER_INPUT} <= found


def test_the_longest_name_fits() -> None:
    raw = experiment(tracking=TRACKING)
    raw["metadata"]["name"] = "a" * names.MAX_EXPERIMENT_NAME
    assert len(builders.follower_job(parsed(raw), SETTINGS)["metadata"]["name"]) <= 63


def test_a_follower_is_replaced_for_its_own_settings_only() -> None:
    before = builders.follower_inputs(parsed(experiment(tracking=TRACKING)))
    assert builders.follower_inputs(parsed(experiment(tracking=TRACKING, parallelism=7, suspend=True))) == before
    other = {"mlflow": {**TRACKING["mlflow"], "uri": "http://other.example"}}
    assert builders.follower_inputs(parsed(experiment(tracking=other))) != before


# ---------------------------------------------------------------- plans


@pytest.mark.parametrize("status", [None, SEARCHING, COMPLETE, {**SEARCHING, "state": "Suspended"}])
def test_what_is_off_leaves_no_trace(status: dict[str, Any] | None) -> None:
    done = look(experiment(status))
    assert said(done) is None
    assert not [action for action in done.actions if isinstance(action, EnsureFollower | RemoveFollower)]


@pytest.mark.parametrize(
    "raw",
    [
        experiment(SEARCHING, tracking=TRACKING),
        experiment(SEARCHING, tracking=TRACKING, suspend=True),
        experiment(COMPLETE, tracking=TRACKING),
    ],
    ids=["searching", "suspended", "complete"],
)
def test_a_follower_is_made_once_whatever_the_search_does(raw: dict[str, Any]) -> None:
    done = look(raw, followed="")
    # After all that the search itself needs.
    assert isinstance(done.actions[-1], EnsureFollower)
    assert said(done) == ("False", "FollowerStarting", "The follower's pod is starting.")
    assert not [action for action in look(raw).actions if not isinstance(action, DeletePod)]


def test_what_the_follower_says_is_said() -> None:
    raw = experiment(SEARCHING, tracking=TRACKING)
    words = "MLflow at http://mlflow.example:5000 refuses the credentials (401): correct Secret mlflow"
    assert said(look(raw, follower(raw))) == ("True", "Following", "The tracker is told of the search as it goes on.")
    failed = look(raw, follower(raw, since=None, failed=True, last_words=words))
    status, reason, message = said(failed) or ("", "", "")
    assert (status, reason) == ("False", "FollowerFailed") and message.startswith(f"{words}. ")
    (event,) = [event for event in failed.events if event.action == "Track"]
    assert (event.type, event.reason, event.note) == ("Warning", "FollowerFailed", message)
    assert not look(written(failed, raw), follower(raw, since=None, failed=True)).events
    finding = Finding(Reason.IMAGE_PULL_FAILED, "follower:1: not found")
    assert said(look(raw, follower(raw, since=None, finding=finding))) == (
        "False",
        "ImagePullFailed",
        "follower:1: not found. Correct the image or its pull secret; the search goes on by itself.",
    )


def test_one_that_was_started_again_is_believed_after_a_minute() -> None:
    raw = experiment(SEARCHING, tracking=TRACKING)
    young = look(raw, follower(raw, since=NOW - timedelta(seconds=20), failed=True, last_words="away"))
    assert reason(young) == "FollowerFailed"
    assert young.requeue_after == timedelta(seconds=40)
    old = look(raw, follower(raw, since=NOW - timedelta(seconds=60), failed=True, last_words="away"))
    assert reason(old) == "Following" and old.requeue_after is None


def test_a_follower_that_is_done_is_left_alone_even_when_its_pod_is_cleared_away() -> None:
    raw = experiment(COMPLETE, tracking=TRACKING)
    words = "MLflow at http://mlflow.example:5000 has all 24 samples."
    done = look(raw, follower(raw, since=None, done=True, last_words=words), followed="")
    assert said(done) == ("True", "CaughtUp", words) and done.actions == ()
    later = look(written(done, raw), followed="")
    assert said(later) == ("True", "CaughtUp", words) and later.actions == ()
    # Another server has nothing yet.
    other = experiment(COMPLETE, tracking={"mlflow": {"uri": "http://other.example"}})
    other["metadata"]["generation"] = 2
    changed = look({**other, "status": written(done, raw)["status"]}, follower(raw, done=True), followed="old")
    assert isinstance(changed.actions[-1], EnsureFollower) and reason(changed) == "FollowerStarting"


def test_a_tracker_that_is_named_no_more_is_removed_once() -> None:
    raw = experiment(SEARCHING, tracking=TRACKING)
    without = {**experiment(SEARCHING), "status": written(look(raw, follower(raw)), raw)["status"]}
    done = look(without, follower(raw))
    assert [type(action) for action in done.actions] == [RemoveFollower] and said(done) is None
    after = look(without, follower(raw), followed=None)
    assert after.actions == () and said(after) is None


@pytest.mark.parametrize(
    "broken",
    [
        {"follower_refusal": "exceeded quota"},
        {"follower": "failed"},
        {"tracking": {**TRACKING, "template": {"spec": {"containers": {}}}}},
    ],
    ids=["refused", "failed", "template"],
)
@pytest.mark.parametrize("status", [SEARCHING, COMPLETE], ids=["searching", "complete"])
def test_a_broken_tracker_changes_nothing_else(status: dict[str, Any], broken: dict[str, Any]) -> None:
    raw = experiment(status, tracking=broken.pop("tracking", TRACKING))
    pod = follower(raw, since=None, failed=True, last_words="x") if broken.pop("follower", None) else None
    done = look(raw, pod, **broken)
    found = said(done)
    assert found is not None and found[0] == "False"
    assert rest(done) == rest(look(experiment(status)))
    assert done.status["state"] == look(experiment(status)).status["state"]


# ---------------------------------------------------------------- what pods say


def raw_pod(name: str = "digits-12345678-follower-x", *, version: int = 1, **status: Any) -> dict[str, Any]:
    metadata = {
        "name": name,
        "namespace": "lab",
        "uid": name,
        "resourceVersion": str(version),
        "creationTimestamp": "2026-05-01T11:00:00Z",
        "labels": names.labels("digits", UID, names.ROLE_FOLLOWER),
        "ownerReferences": [{"kind": "Job", "name": "digits-12345678-follower", "uid": "job", "controller": True}],
        "annotations": {names.ANNOTATION_INPUTS: "abc"},
    }
    return {"metadata": metadata, "status": {"phase": "Running", **status}}


def test_a_followers_pod_is_read() -> None:
    end = {"terminated": {"exitCode": 1, "message": "no answer\n"}}
    runs = {"running": {"startedAt": "2026-05-01T11:59:00Z"}}
    waits = {"waiting": {"reason": "CrashLoopBackOff"}}
    (fresh, again, waiting, done) = (
        follower_pod(raw_pod(containerStatuses=[{"name": "follower", **each}], phase=phase))
        for each, phase in (
            ({"state": runs}, "Running"),
            ({"state": runs, "lastState": end}, "Running"),
            ({"state": waits, "lastState": end}, "Running"),
            ({"state": {"terminated": {"exitCode": 0, "message": "all"}}}, "Succeeded"),
        )
    )
    assert (fresh.inputs, fresh.done, fresh.failed, fresh.since) == ("abc", False, False, NOW - timedelta(minutes=1))
    assert (again.failed, again.last_words, again.since) == (True, "no answer", NOW - timedelta(minutes=1))
    assert (waiting.failed, waiting.last_words, waiting.since, waiting.finding) == (True, "no answer", None, None)
    assert (done.done, done.failed, done.last_words) == (True, False, "all")


def test_the_cache_keeps_the_newest_follower_apart_from_controllers() -> None:
    cache = Cache()
    old, new = raw_pod("a"), raw_pod("b")
    new["metadata"]["creationTimestamp"] = "2026-05-01T11:30:00Z"
    for each in (new, old):
        cache.take_pod(each)
    found = cache.follower(OWNER)
    assert found is not None and found.uid == "b"
    assert cache.pods(OWNER) == () and cache.follower(("lab", "digits", "another")) is None
    cache.drop_pod("b")
    assert (cache.follower(OWNER) or found).uid == "a"


@pytest.mark.parametrize("going", ["a", "b"])
def test_a_followers_pod_that_is_being_deleted_hides_no_other(going: str) -> None:
    """A Job that is replaced in the second in which it was made leaves a pod as old as the new one."""
    cache = Cache()
    for uid in ("a", "b"):
        pod = raw_pod(uid)
        if uid == going:
            pod["metadata"]["deletionTimestamp"] = "2026-05-01T11:50:30Z"
        cache.take_pod(pod)
    found = cache.follower(OWNER)
    assert found is not None and found.uid != going
