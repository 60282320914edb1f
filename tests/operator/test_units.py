"""The operator's pieces on their own: what is read from pods, the cache, the queue, settings, events, logs."""

import asyncio
import json
import logging
import subprocess
import sys
from collections.abc import Coroutine, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import pytest
import structlog
from experiments import manifest

from nas_api import names
from nas_api.experiment import NASExperiment
from nas_api.reasons import Reason
from nas_kube.errors import ApiError
from nas_operator import builders, logs
from nas_operator.cache import Cache
from nas_operator.conditions import Event, differs, event_object, explain, told
from nas_operator.observed import ControllerPod, pod_of, starts_late
from nas_operator.reconciler import _refusal
from nas_operator.settings import Settings, SettingsError
from nas_operator.workqueue import WorkQueue

NOW = datetime(2026, 5, 1, 12, 0, 0, tzinfo=UTC)
UID = "12345678-aaaa-bbbb-cccc-1234567890ab"
OWNER = ("lab", "digits", UID)
UNSCHEDULED = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes"}
T = TypeVar("T")


def raw_pod(index: int = 1, *, version: int = 1, deleted: bool = False, **status: Any) -> dict[str, Any]:
    metadata: dict[str, Any] = {
        "name": names.controller_pod("digits", UID, index),
        "namespace": "lab",
        "uid": f"pod-{index}",
        "resourceVersion": str(version),
        "creationTimestamp": "2026-05-01T11:00:00Z",
        "labels": names.labels("digits", UID, names.ROLE_CONTROLLER),
        "ownerReferences": [{"kind": names.KIND, "name": "digits", "uid": UID, "controller": True}],
        "annotations": {names.ANNOTATION_QUICK_FAILURES: "2", names.ANNOTATION_INPUTS: "abc"},
    }
    if deleted:
        metadata["deletionTimestamp"] = "2026-05-01T11:59:00Z"
    return {"metadata": metadata, "status": {"phase": "Pending", **status}}


def controller_pod(raw: dict[str, Any]) -> ControllerPod | None:
    _, pod = pod_of(raw) or (None, None)
    assert pod is None or isinstance(pod, ControllerPod)
    return pod


def terminated(code: int, *, seconds: int, **more: Any) -> dict[str, Any]:
    start = datetime(2026, 5, 1, 11, 0, 0, tzinfo=UTC)
    state = {
        "exitCode": code,
        "startedAt": start.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "finishedAt": (start + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ"),
        **more,
    }
    return {"phase": "Failed", "containerStatuses": [{"name": "controller", "state": {"terminated": state}}]}


@pytest.mark.parametrize(
    ("status", "quick"),
    [
        (terminated(1, seconds=59), True),
        (terminated(1, seconds=60), False),
        (terminated(0, seconds=5), True),
        (terminated(137, seconds=5), True),
        (terminated(143, seconds=5), False),
        ({**terminated(1, seconds=5), "conditions": [{"type": "DisruptionTarget", "status": "True"}]}, False),
        ({"phase": "Failed", "reason": "Evicted", "message": "low on disk", "startTime": "2026-05-01T11:00:00Z"}, True),
    ],
)
def test_what_counts_as_a_quick_failure(status: dict[str, Any], quick: bool) -> None:
    pod = controller_pod(raw_pod(**status))
    assert pod is not None
    assert (pod.live, pod.quick, pod.failures) == (False, quick, 3 if quick else 0)


def test_a_pod_that_is_told_to_end_has_not_failed() -> None:
    pod = controller_pod(raw_pod(deleted=True, **terminated(137, seconds=5)))
    assert pod is not None
    assert not pod.quick


def test_last_words() -> None:
    pod = controller_pod(raw_pod(**terminated(1, seconds=5, message="Traceback\nKeyError: 'x'\n")))
    assert pod is not None
    assert pod.last_words == "exit code 1: Traceback\nKeyError: 'x'"
    evicted = controller_pod(raw_pod(phase="Failed", reason="Evicted", message="low on disk"))
    assert evicted is not None
    assert evicted.last_words == "it left no exit code: low on disk"


@pytest.mark.parametrize(
    ("status", "reason", "detail"),
    [
        (
            {"conditions": [UNSCHEDULED]},
            Reason.UNSCHEDULABLE,
            "0/3 nodes",
        ),
        (
            {
                "containerStatuses": [
                    {"image": "i:1", "state": {"waiting": {"reason": "ErrImagePull", "message": "no"}}}
                ]
            },
            Reason.IMAGE_PULL_FAILED,
            "i:1: no",
        ),
        (
            {"initContainerStatuses": [{"image": "j", "state": {"waiting": {"reason": "InvalidImageName"}}}]},
            Reason.IMAGE_PULL_FAILED,
            "j: InvalidImageName",
        ),
        (
            {"containerStatuses": [{"image": "i:1", "state": {"waiting": {"reason": "ImageInspectError"}}}]},
            Reason.IMAGE_PULL_FAILED,
            "i:1: ImageInspectError",
        ),
        (
            {"containerStatuses": [{"image": "i:1", "state": {"waiting": {"reason": "RegistryUnavailable"}}}]},
            Reason.IMAGE_PULL_FAILED,
            "i:1: RegistryUnavailable",
        ),
        (
            {"containerStatuses": [{"state": {"waiting": {"reason": "CreateContainerConfigError", "message": "s3"}}}]},
            Reason.CONFIG_MISSING,
            "The controller's pod: s3",
        ),
        (
            {"containerStatuses": [{"state": {"waiting": {"reason": "RunContainerError", "message": "no python3"}}}]},
            Reason.INVALID_TEMPLATE,
            "The controller's container cannot start: no python3",
        ),
    ],
)
def test_what_a_pod_waits_for(status: dict[str, Any], reason: Reason, detail: str) -> None:
    pod = controller_pod(raw_pod(**status))
    assert pod is not None and pod.finding is not None
    assert (pod.finding.reason, pod.finding.detail) == (reason, detail)


def test_a_pod_that_merely_starts_waits_for_nothing() -> None:
    waiting = {"state": {"waiting": {"reason": "ContainerCreating"}}}
    pod = controller_pod(raw_pod(containerStatuses=[waiting]))
    assert pod is not None
    assert pod.finding is None
    assert starts_late((pod,), pod.created + timedelta(seconds=19)) is None
    assert starts_late((pod,), pod.created + timedelta(seconds=20)) == pod
    running = controller_pod(raw_pod(phase="Running"))
    assert running is not None
    assert starts_late((running,), NOW) is None


@pytest.mark.parametrize(
    ("name", "index"),
    [
        ("digits-12345678-controller-12", 12),
        ("digits-12345678-controller-999999999", 999_999_999),
        ("digits-12345678-controller-1000000000", None),
        (f"digits-12345678-controller-{'9' * 5000}", None),
        ("digits-12345678-controller-012", None),
        ("digits-12345678-controller-²", None),
        ("digits-12345678-controller-", None),
        ("digits-87654321-controller-12", None),
        ("x-digits-12345678-controller-12", None),
        ("digits-controller-x", None),
        ("controller-3", None),
        ("", None),
    ],
)
def test_numbers_in_names(name: str, index: int | None) -> None:
    assert names.controller_pod_index(name, "digits", UID) == index


def test_damaged_annotations_are_no_trouble() -> None:
    raw = raw_pod()
    for damaged in ("many", "²", "-1", "9" * 5000):
        raw["metadata"]["annotations"] = {names.ANNOTATION_QUICK_FAILURES: damaged}
        pod = controller_pod(raw)
        assert pod is not None
        assert (pod.quick_failures, pod.inputs) == (0, "")


# ---------------------------------------------------------------- cache


def raw_experiment(version: int, uid: str = UID, namespace: str = "lab") -> dict[str, Any]:
    raw = manifest(namespace)
    raw["metadata"] |= {"uid": uid, "resourceVersion": str(version)}
    return raw


def test_the_newer_version_stays_whatever_comes_first() -> None:
    cache = Cache()
    cache.take_experiment(raw_experiment(7))
    cache.take_experiment(raw_experiment(5))
    kept = cache.experiment(("lab", "digits"))
    assert kept is not None
    assert kept["metadata"]["resourceVersion"] == "7"
    cache.take_pod(raw_pod(version=9, phase="Running"))
    cache.take_pod(raw_pod(version=8))
    assert [pod.running for pod in cache.pods(OWNER)] == [True]


def test_the_end_of_a_namesake_is_not_ours() -> None:
    cache = Cache()
    cache.take_experiment(raw_experiment(7, uid="new"))
    cache.drop_experiment(raw_experiment(5, uid="old"))
    assert cache.experiment(("lab", "digits")) is not None
    cache.drop_experiment(raw_experiment(8, uid="new"))
    assert cache.experiment(("lab", "digits")) is None


def test_a_pod_that_we_deleted_is_gone_for_us_at_once() -> None:
    cache = Cache()
    cache.take_pod(raw_pod(1, phase="Running"))
    cache.condemn_pod("pod-1")
    cache.take_pod(raw_pod(1, version=2, phase="Running"))
    (pod,) = cache.pods(OWNER)
    assert (pod.live, pod.running) == (False, False)
    cache.drop_pod("pod-1")
    assert cache.pods(OWNER) == ()


def test_a_list_mends_what_a_watch_missed_and_keeps_what_is_newer() -> None:
    cache = Cache()
    cache.take_experiment(raw_experiment(5, uid="gone"))
    other = raw_experiment(20, uid="newer")
    other["metadata"]["name"] = "newer"
    cache.take_experiment(other)
    elsewhere = raw_experiment(3, uid="elsewhere", namespace="other")
    cache.take_experiment(elsewhere)
    missed = raw_experiment(8, uid="missed")
    missed["metadata"]["name"] = "missed"
    changed = cache.replace_experiments([missed], 10, "lab")
    assert changed == {("lab", "digits"), ("lab", "missed")}
    assert set(cache.keys()) == {("lab", "missed"), ("lab", "newer"), ("other", "digits")}
    cache.take_pod(raw_pod(1, version=5))
    cache.take_pod(raw_pod(2, version=20))
    cache.replace_pods([raw_pod(3, version=7)], 10, None)
    assert [pod.index for pod in cache.pods(OWNER)] == [2, 3]


def test_a_watch_that_lags_is_found_out() -> None:
    cache = Cache()
    cache.take_experiment(raw_experiment(5), watched=True)
    assert cache.unwatched({UID: 5}) == []
    cache.replace_experiments([raw_experiment(6)], 6, None)
    assert cache.unwatched({UID: 6}) == [UID]
    cache.take_experiment(raw_experiment(6), watched=True)
    assert cache.unwatched({UID: 6}) == []
    cache.drop_experiment(raw_experiment(7))
    assert cache.unwatched({UID: 6}) == []


# ---------------------------------------------------------------- queue


class VirtualTime(asyncio.SelectorEventLoop):
    """A loop whose clock jumps to what is due next as soon as nothing else is to be done."""

    now = 0.0

    def time(self) -> float:
        return self.now

    def _run_once(self) -> None:
        if not self._ready and self._scheduled:  # type: ignore[attr-defined]
            self.now = max(self.now, self._scheduled[0].when())  # type: ignore[attr-defined]
        super()._run_once()  # type: ignore[misc]


def in_virtual_time(test: Coroutine[Any, Any, T]) -> T:
    with asyncio.Runner(loop_factory=VirtualTime) as runner:
        return runner.run(test)


def test_a_key_waits_once_and_comes_back_if_it_changes_while_it_is_worked_on() -> None:
    async def run() -> list[str]:
        queue: WorkQueue[str] = WorkQueue()
        seen: list[str] = []

        async def handle(key: str) -> float | None:
            seen.append(key)
            if seen == ["a"]:
                queue.add("a")
                queue.add("a")
            return None

        queue.add("a")
        queue.add("a")
        queue.add("b")
        workers = [asyncio.create_task(queue.work(handle, lambda *_: None)) for _ in range(2)]
        await asyncio.sleep(0.05)
        for worker in workers:
            worker.cancel()
        return seen

    assert sorted(in_virtual_time(run())) == ["a", "a", "b"]


def test_one_key_is_never_worked_on_twice_at_once() -> None:
    async def run() -> int:
        queue: WorkQueue[str] = WorkQueue()
        inside = most = 0

        async def handle(key: str) -> float | None:
            nonlocal inside, most
            inside += 1
            most = max(most, inside)
            queue.add(key)
            await asyncio.sleep(0.001)
            inside -= 1
            return None

        queue.add("a")
        workers = [asyncio.create_task(queue.work(handle, lambda *_: None)) for _ in range(4)]
        await asyncio.sleep(0.05)
        for worker in workers:
            worker.cancel()
        return most

    assert in_virtual_time(run()) == 1


def test_an_error_comes_back_after_growing_pauses_and_stops_nothing_else() -> None:
    async def run() -> tuple[list[str], list[float]]:
        queue: WorkQueue[str] = WorkQueue()
        seen: list[str] = []
        pauses: list[float] = []

        async def handle(key: str) -> float | None:
            seen.append(key)
            if key == "bad":
                raise RuntimeError("no")
            return None

        queue.add("bad")
        worker = asyncio.create_task(queue.work(handle, lambda key, error, pause: pauses.append(pause)))
        await asyncio.sleep(0.02)
        for _ in range(3):
            queue.add("bad")
            await asyncio.sleep(0.02)
        queue.add("good")
        await asyncio.sleep(0.02)
        worker.cancel()
        return seen, pauses

    seen, pauses = in_virtual_time(run())
    assert seen == ["bad"] * 4 + ["good"]
    for pause, longest in zip(pauses, [1, 2, 4, 8], strict=True):
        assert longest / 2 <= pause <= longest


def test_a_key_comes_back_when_its_handler_wants() -> None:
    async def run() -> int:
        queue: WorkQueue[str] = WorkQueue()
        count = 0

        async def handle(key: str) -> float | None:
            nonlocal count
            count += 1
            return 0.005 if count < 3 else None

        queue.add("a")
        worker = asyncio.create_task(queue.work(handle, lambda *_: None))
        await asyncio.sleep(0.1)
        worker.cancel()
        return count

    assert in_virtual_time(run()) == 3


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ApiError(403, "Forbidden", 'pods "nas-trial-ab12c" is forbidden: exceeded quota: q'), Reason.QUOTA_EXCEEDED),
        (ApiError(403, "Forbidden", 'pods is forbidden: User "x" cannot create resource "pods"'), Reason.NOT_PERMITTED),
        (
            ApiError(403, "Forbidden", 'User "x" is attempting to grant RBAC permissions not currently held'),
            Reason.NOT_PERMITTED,
        ),
        (ApiError(403, "Forbidden", "violates PodSecurity"), Reason.INVALID_TEMPLATE),
        (ApiError(403, "Forbidden", "error looking up service account a/b"), Reason.CONFIG_MISSING),
        (ApiError(422, "Invalid", "bad"), Reason.INVALID_TEMPLATE),
        (ApiError(400, "BadRequest", "strict decoding error"), Reason.INVALID_TEMPLATE),
    ],
)
def test_what_a_refusal_means(error: ApiError, reason: Reason) -> None:
    refusal = _refusal(error, "spec.trainer.template", "key", NOW)
    assert refusal.reason == reason
    assert refusal.retry_at > NOW
    assert "nas-trial-" not in refusal.detail  # A name made up by the server would make each try a new message.


@pytest.mark.parametrize(
    "error",
    [
        ApiError(500, "InternalError", "etcd"),
        ApiError(429, "TooManyRequests", "later"),
        ApiError(404, "NotFound", "namespace"),
        ApiError(409, "Conflict", "again"),
        ApiError(403, "Forbidden", "namespace lab is forbidden because it is being terminated"),
    ],
)
def test_what_says_nothing_about_the_template_is_tried_again(error: ApiError) -> None:
    with pytest.raises(ApiError):
        _refusal(error, "spec.trainer.template", "key", NOW)


# ---------------------------------------------------------------- words


def test_a_message_has_cause_and_cure() -> None:
    assert explain(Reason.UNSCHEDULABLE, "0/3 nodes are available") == (
        "0/3 nodes are available. Add nodes, or correct requests, nodeSelector or tolerations in the template."
    )
    assert explain(Reason.SEARCHING) == "Children are being trained."
    assert len(explain(Reason.INVALID_TEMPLATE, "x" * 100_000)) <= 4100


def test_a_reason_that_the_server_would_refuse_is_replaced() -> None:
    assert told(False, "Bucket Not Found!", "m").reason == "ControllerFailed"
    assert told(False, "BucketNotFound", "m").reason == "BucketNotFound"


def test_an_event_has_one_name_however_often_it_is_told() -> None:
    raw = raw_experiment(1)
    event = Event("Warning", "QuotaExceeded", "Search", "n" * 5000, "problem-QuotaExceeded")
    one, two = (event_object(raw, event, "host", NOW + timedelta(seconds=s)) for s in (0, 1))
    assert one["metadata"]["name"] == two["metadata"]["name"] == "digits.12345678.problem-quotaexceeded"
    assert len(one["note"]) <= 1024
    assert one["eventTime"] == "2026-05-01T12:00:00.000000Z"


def test_the_order_of_conditions_is_no_difference() -> None:
    conditions = [{"type": "A", "status": "True"}, {"type": "B", "status": "False"}]
    document = {"observedGeneration": 1, "state": "Pending", "conditions": conditions}
    raw = {"status": {**document, "conditions": conditions[::-1], "epoch": 3, "samples": {"running": 1}}}
    assert not differs(raw, document)
    assert differs(raw, {**document, "state": "Searching"})
    assert differs(raw, {**document, "controller": {"pod": "p"}})
    assert differs({}, document)


# ---------------------------------------------------------------- builders


def parsed(**spec: Any) -> NASExperiment:
    raw = manifest("lab", **spec)
    raw["metadata"] |= {"uid": UID}
    return NASExperiment.model_validate(raw)


SETTINGS = Settings(
    controller_image="controller:1", trainer_image="trainer:1", follower_image="follower:1", image_pull_secrets=("hub",)
)
UNRESTRICTED = SETTINGS.model_copy(update={"templates_unrestricted": True})


def test_the_users_template_cannot_take_the_pod_from_its_experiment() -> None:
    template = {
        "metadata": {"name": "mine", "labels": {names.LABEL_ROLE: "trainer", "team": "a"}, "ownerReferences": []},
        "spec": {"containers": [{"name": "controller", "resources": {"requests": {"cpu": "2"}}}]},
    }
    pod = builders.controller_pod(parsed(controller={"template": template}), 3, 1, UNRESTRICTED)
    assert pod["metadata"]["name"] == "digits-12345678-controller-3"
    assert pod["metadata"]["labels"][names.LABEL_ROLE] == names.ROLE_CONTROLLER
    assert pod["metadata"]["labels"]["team"] == "a"
    assert pod["metadata"]["ownerReferences"][0]["uid"] == UID
    (container,) = pod["spec"]["containers"]
    assert container["resources"]["requests"] == {"cpu": "2", "memory": "512Mi"}
    assert pod["spec"]["imagePullSecrets"] == [{"name": "hub"}]
    assert pod["spec"]["securityContext"]["runAsNonRoot"] is True


def test_a_users_service_account_is_bound_and_none_is_made() -> None:
    experiment = parsed(controller={"serviceAccountName": "with-a-role"})
    assert builders.service_account(experiment) is None
    for binding in builders.role_bindings(experiment):
        assert [subject["name"] for subject in binding["subjects"]] == ["with-a-role"]
    assert builders.controller_pod(experiment, 1, 0, UNRESTRICTED)["spec"]["serviceAccountName"] == "with-a-role"


def test_a_controller_may_write_its_own_status_and_no_other() -> None:
    role = builders.role(parsed())
    assert role["rules"] == [
        {
            "apiGroups": ["nas-operator.io"],
            "resourceNames": ["digits"],
            "resources": ["nasexperiments"],
            "verbs": ["get", "list", "watch"],
        },
        {
            "apiGroups": ["nas-operator.io"],
            "resourceNames": ["digits"],
            "resources": ["nasexperiments/status"],
            "verbs": ["patch"],
        },
    ]
    shared, own = builders.role_bindings(parsed())
    assert shared["roleRef"] | {"name": names.CONTROLLER_CLUSTER_ROLE, "kind": "ClusterRole"} == shared["roleRef"]
    assert own["roleRef"] | {"name": role["metadata"]["name"], "kind": "Role"} == own["roleRef"]
    # The one that operators before this one made: its roleRef can never change.
    assert shared["metadata"]["name"] == names.controller_service_account("digits", UID)
    assert {item["metadata"]["ownerReferences"][0]["uid"] for item in (role, shared, own)} == {UID}


def test_what_a_template_may_not_ask_for_is_refused_before_anything_is_made() -> None:
    beyond: dict[str, Any] = {"template": {"spec": {"hostNetwork": True}}}
    dataset: dict[str, Any] = {"dataset": {"digits": {}}}
    refused = pytest.raises(ValueError, match=r"spec\.\w+\.template: spec.hostNetwork: beyond what a")
    with refused:
        builders.trials(parsed(trainer={**dataset, **beyond}), SETTINGS)
    with refused:
        builders.trials(parsed(finalTraining=beyond), SETTINGS)
    with refused:
        builders.controller_pod(parsed(controller=beyond), 1, 0, SETTINGS)
    tracking = {"mlflow": {"uri": "http://mlflow"}, **beyond}
    with refused:
        builders.follower_job(parsed(tracking=tracking), SETTINGS)
    spec = parsed(trainer={**dataset, **beyond}, finalTraining=beyond, controller=beyond, tracking=tracking)
    assert builders.trials(spec, UNRESTRICTED) and builders.follower_job(spec, UNRESTRICTED)


def test_a_controller_is_told_whether_authors_were_asked() -> None:
    def told(settings: Settings) -> list[str | None]:
        (container,) = builders.controller_pod(parsed(), 1, 0, settings)["spec"]["containers"]
        return [item.get("value") for item in container["env"] if item["name"] == names.ENV_UNRESTRICTED]

    assert (told(SETTINGS), told(UNRESTRICTED)) == ([], ["true"])


def test_a_controller_is_told_its_image_and_its_template_may_fix_its_kernels() -> None:
    """As docs/concept.md has it for who wants the same bits on every node."""
    pinned = {"ATEN_CPU_CAPABILITY": "default", "MKL_CBWR": "COMPATIBLE"}
    env = [{"name": name, "value": value} for name, value in pinned.items()]
    template = {"spec": {"containers": [{"name": "controller", "env": env}]}}
    raw = parsed(controller={"template": template})
    (container,) = builders.controller_pod(raw, 1, 0, SETTINGS)["spec"]["containers"]
    environment = {item["name"]: item.get("value") for item in container["env"]}
    assert environment.items() >= {**pinned, "NAS_CONTROLLER_IMAGE": SETTINGS.controller_image}.items()


def test_autoscalers_leave_a_controller_alone_unless_its_template_lets_them() -> None:
    def annotations(**controller: Any) -> dict[str, str]:
        pod = builders.controller_pod(parsed(controller=controller), 1, 0, SETTINGS)
        ours = (names.ANNOTATION_INPUTS, names.ANNOTATION_QUICK_FAILURES)
        return {key: value for key, value in pod["metadata"]["annotations"].items() if key not in ours}

    evict, disrupt = "cluster-autoscaler.kubernetes.io/safe-to-evict", "karpenter.sh/do-not-disrupt"
    assert annotations() == {evict: "false", disrupt: "true"}
    template = {"metadata": {"annotations": {evict: "true", disrupt: None, "team": "a"}}}
    assert annotations(template=template) == {evict: "true", "team": "a"}


@pytest.mark.parametrize(
    ("spec", "before"),
    [
        ({}, "a243db8780e70a1b"),
        (
            {"controller": {"serviceAccountName": "x", "template": {"spec": {"nodeSelector": {"pool": "cpu"}}}}},
            "861d78bda63a3aaa",
        ),
        (
            {"storage": {"s3": {"bucket": "mine", "region": "eu-west-1", "prefix": "p", "pathStyle": False}}},
            "c5dff6254927c18c",
        ),
    ],
    ids=["least", "controller", "storage"],
)
def test_a_running_controller_outlives_an_upgrade(spec: dict[str, Any], before: str) -> None:
    """What controllers that run now were built from, as their annotation says: another value would restart them all."""
    assert builders.inputs(parsed(**spec)) == before


def test_a_restart_is_asked_for_by_settings_and_storage_only() -> None:
    before = builders.inputs(parsed())
    assert builders.inputs(parsed(parallelism=7, budget={"samples": 3})) == before
    assert builders.inputs(parsed(controller={"serviceAccountName": "x"})) != before
    storage = {"s3": {**manifest()["spec"]["storage"]["s3"], "region": "eu-west-1"}}
    assert builders.inputs(parsed(storage=storage)) != before
    # Written out or not, a default is the same.
    written = {"s3": {**manifest()["spec"]["storage"]["s3"], "pathStyle": True, "prefix": "nas"}}
    assert builders.inputs(parsed(storage=written)) == before


# ---------------------------------------------------------------- settings and logs


def test_settings_come_from_the_environment() -> None:
    settings = Settings.from_environment(
        {
            "NAS_CONTROLLER_IMAGE": "c",
            "NAS_TRAINER_IMAGE": "t",
            "NAS_FOLLOWER_IMAGE": "f",
            "NAS_WATCH_NAMESPACES": "a, b,",
            "NAS_IMAGE_PULL_POLICY": "",
            "NAS_HEALTH_PORT": "9000",
            "OTHER": "x",
        }
    )
    assert (settings.watch_namespaces, settings.image_pull_policy, settings.health_port) == (("a", "b"), None, 9000)


def test_wrong_settings_are_named() -> None:
    with pytest.raises(SettingsError) as error:
        Settings.from_environment(
            {
                "NAS_TRAINER_IMAGE": "t",
                "NAS_FOLLOWER_IMAGE": "f",
                "NAS_HEALTH_PORT": "0",
                "NAS_IMAGE_PULL_POLICY": "Often",
            }
        )
    for name in ("NAS_CONTROLLER_IMAGE", "NAS_HEALTH_PORT", "NAS_IMAGE_PULL_POLICY"):
        assert name in str(error.value)


@pytest.fixture
def restored_logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def test_everybodys_lines_are_json_with_the_experiments_name(
    restored_logging: None, capsys: pytest.CaptureFixture[str]
) -> None:
    logs.configure(terminal=False)
    with structlog.contextvars.bound_contextvars(namespace="lab", experiment="digits"):
        structlog.get_logger("ours").info("pod created", pod="p")
        logging.getLogger("kopf.reactor").warning("something %s", "happened")
    ours, theirs = (json.loads(line) for line in capsys.readouterr().err.splitlines())
    assert (ours["event"], ours["pod"], ours["experiment"]) == ("pod created", "p", "digits")
    assert (theirs["event"], theirs["level"], theirs["experiment"]) == ("something happened", "warning", "digits")


def test_the_log_level_is_the_charts(restored_logging: None, capsys: pytest.CaptureFixture[str]) -> None:
    environment = {
        "NAS_CONTROLLER_IMAGE": "c:1",
        "NAS_TRAINER_IMAGE": "t:1",
        "NAS_FOLLOWER_IMAGE": "f:1",
        "NAS_LOG_LEVEL": "warning",
    }
    logs.configure(level=Settings.from_environment(environment).log_level, terminal=False)
    structlog.get_logger("ours").info("small talk")
    structlog.get_logger("ours").warning("look here")
    (line,) = capsys.readouterr().err.splitlines()
    assert json.loads(line)["event"] == "look here"


def test_the_operator_needs_neither_torch_nor_boto3() -> None:
    code = "import sys, nas_operator.main; print([m for m in ('torch', 'boto3', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
