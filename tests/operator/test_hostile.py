"""What anybody may put into an experiment or a pod, and what the operator makes of it: one object is one object."""

import asyncio
import copy
import json
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from canned_api import Answer
from experiments import manifest

from nas_api import names, template_bounds
from nas_api.experiment import NASExperiment
from nas_kube.client import KubeClient
from nas_kube.errors import ApiError
from nas_kube.resources import ROLE_BINDINGS, ROLES
from nas_operator import builders
from nas_operator.cache import Cache
from nas_operator.connection import connection
from nas_operator.intake import Intake
from nas_operator.kept import kept, whole
from nas_operator.main import _resource_is_served
from nas_operator.observed import Observed, pod_of, recorded_pod
from nas_operator.plan import EnsureAccess, Plan, plan, unreadable
from nas_operator.reconciler import Reconciler, _Memory
from nas_operator.settings import Settings

NOW = datetime(2026, 5, 1, 12, 0, 0, tzinfo=UTC)
UID = "12345678-aaaa-bbbb-cccc-1234567890ab"
OWNER = ("lab", "digits", UID)
SETTINGS = Settings(controller_image="controller:1", trainer_image="trainer:1", follower_image="follower:1")
OUTCOME = {"type": "Complete", "reason": "SamplesSpent", "message": "The log's words."}
TRACKING = {"mlflow": {"uri": "http://mlflow.example:5000"}}


def experiment(**spec: Any) -> dict[str, Any]:
    raw = manifest("lab", **spec)
    raw["metadata"] |= {"uid": UID, "generation": 1, "resourceVersion": "1"}
    return raw


def with_template(template: Any, part: str = "trainer") -> dict[str, Any]:
    before = {"trainer": manifest()["spec"]["trainer"], "tracking": TRACKING}.get(part, {})
    return experiment(**{part: {**before, "template": template}})


def nested(levels: int) -> Any:
    value: Any = "x"
    for _ in range(levels - 1):
        value = {"a": value}
    return value


def look(raw: dict[str, Any]) -> Plan:
    return plan(Observed(raw=raw, access=True), NOW, SETTINGS)


def condition(done: Plan, kind: str = "Progressing") -> tuple[str, str, str]:
    found = next(item for item in done.status["conditions"] if item["type"] == kind)
    return found["status"], found["reason"], found["message"]


# ---------------------------------------------------------------- templates


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (nested(33), "the template has more than 32 levels"),
        ({"spec": {"a": "x" * 65_520}}, "the template has more than 64 KiB as JSON"),
        ({"spec": {"a": "ä" * 33_000}}, "the template has more than 64 KiB as JSON"),
        ({"spec": {"a": [{}] * 400_000}}, "the template has more than 64 KiB as JSON"),
        ({"metadata": "x"}, "metadata must be a map"),
        ({"metadata": None}, "metadata must be a map"),
        ({"metadata": {"labels": ["x"]}}, "metadata.labels must be a map"),
        ({"metadata": {"annotations": "x"}}, "metadata.annotations must be a map"),
        ({"spec": None}, "spec must be a map"),
        ({"spec": [{}]}, "spec must be a map"),
        ({"spec": {"containers": None}}, "spec.containers a list"),
        ({"spec": {"containers": {"name": "trainer"}}}, "spec.containers must be a list of maps"),
        ({"spec": {"initContainers": ["x"]}}, "spec.initContainers must be a list of maps"),
        ({"spec": {"volumes": "x"}}, "spec.volumes must be a list of maps"),
    ],
)
@pytest.mark.parametrize("part", ["trainer", "controller"])
def test_a_template_that_cannot_be_used_is_told_of_with_its_field(part: str, template: Any, said: str) -> None:
    for raw in (with_template(template, part), whole(kept(with_template(template, part)))):
        status, reason, message = condition(look(raw))
        assert (status, reason) == ("False", "InvalidTemplate")
        assert message.startswith(f"spec.{part}.template: ") and said in message
        assert message.endswith("Correct the template; the search goes on by itself.")


@pytest.mark.parametrize(
    "template",
    [nested(32), {"spec": {"a": "x" * 65_519}}, {}, {"spec": {"volumes": None, "tolerations": None}}],
    ids=["levels", "bytes", "empty", "null"],
)
def test_a_template_within_bounds_is_nobodys_business(template: Any) -> None:
    template_bounds.check(template)
    assert whole(kept(with_template(template)))["spec"]["trainer"]["template"] == template


@pytest.mark.parametrize(
    "container",
    [{"env": {"NAS_INPUT": "x"}}, {"resources": 3}, {"resources": {"limits": "all"}}, {"name": {"a": 1}}],
    ids=str,
)
def test_whatever_else_a_template_has_is_no_more_than_an_invalid_template(container: dict[str, Any]) -> None:
    template = {"spec": {"containers": [{"name": "trainer", **container}]}}
    for dataset in ("digits", "custom"):
        trainer = {"dataset": {dataset: {}}, "epochs": 4, "image": "mine:1", "template": template}
        _, reason, _ = condition(look(experiment(trainer=trainer)))
        assert reason in ("ControllerStarting", "InvalidTemplate")


def test_a_trackers_hostile_template_stops_no_search() -> None:
    templates: list[Any] = [nested(1_000), {"spec": None}, {"spec": {"containers": {}}}]
    for template in templates:
        done = look(whole(kept(with_template(template, "tracking"))))
        assert condition(done, "Tracking")[1] == "InvalidTemplate"
        assert "spec.tracking.template" in condition(done, "Tracking")[2]
        assert condition(done)[1] == "ControllerStarting"


# ---------------------------------------------------------------- what no plan can be made for


class NoCalls(KubeClient):
    """An API server that nobody asks."""

    def __init__(self) -> None:
        self.told: list[tuple[str, Any]] = []

    def apply(self, *_: Any, **__: Any) -> dict[str, Any]:
        self.told.append(("apply", _[3]["status"]))
        return {**experiment(), "status": _[3]["status"]}

    def create(self, *_: Any, **__: Any) -> dict[str, Any]:
        return {}


def test_asking_whether_the_resource_is_served_keeps_nothing() -> None:
    class Counting(NoCalls):
        def list(self, *_: Any, keep: Any = lambda item: item, **__: Any) -> Any:
            self.told.append(("kept", keep(experiment())))

    client = Counting()
    asyncio.run(_resource_is_served(SETTINGS, client))
    assert client.told == [("kept", None)]


def test_what_nobody_foresaw_becomes_a_condition_and_is_looked_at_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object) -> Plan:
        raise RecursionError("maximum\nrecursion depth exceeded")

    monkeypatch.setattr("nas_operator.reconciler.plan", failing)
    client, cache, counted = NoCalls(), Cache(), list[str]()
    cache.take_experiment(experiment())
    intake = Intake(counted.append)
    reconciler = Reconciler(client, cache, SETTINGS, reporter="test", unreadable=intake.tell, clock=lambda: NOW)
    assert reconciler.reconcile(("lab", "digits")) == timedelta(seconds=60)
    ((_, status),) = client.told
    progressing = next(item for item in status["conditions"] if item["type"] == "Progressing")
    assert progressing["reason"] == "Unreadable"
    assert "RecursionError: maximum recursion depth exceeded" in progressing["message"]
    assert counted == ["NASExperiment"]


def test_a_search_that_has_ended_stays_ended_whatever_its_spec_has_become() -> None:
    raw = {**experiment(budget={"samples": "many"}), "status": {"outcome": OUTCOME}}
    assert condition(look(raw), "Complete")[0] == "True"
    again = unreadable(Observed(raw=raw), KeyError("x"), NOW, timedelta(seconds=1))
    assert condition(again, "Complete")[0] == "True"


@pytest.mark.parametrize(
    "pod", ["²", "digits-12345678-controller-²", f"digits-12345678-controller-{'9' * 200}", "x-controller-9", "../x"]
)
def test_a_recorded_pod_that_is_none_of_ours_counts_for_nothing(pod: str) -> None:
    raw = {**experiment(), "status": {"controller": {"pod": pod}}}
    assert recorded_pod(raw) is None
    assert "controller" not in look(raw).status


# ---------------------------------------------------------------- the door


def pod(**metadata: Any) -> dict[str, Any]:
    return {
        "metadata": {
            "name": names.controller_pod("digits", UID, 1),
            "namespace": "lab",
            "uid": "pod-1",
            "resourceVersion": "1",
            "creationTimestamp": "2026-05-01T11:00:00Z",
            "labels": names.labels("digits", UID, names.ROLE_CONTROLLER),
            "ownerReferences": [{"kind": names.KIND, "name": "digits", "uid": UID, "controller": True}],
            **metadata,
        },
        "spec": {"containers": [{"name": "controller"}]},
        "status": {"phase": "Running"},
    }


def test_what_cannot_be_read_is_left_out_counted_and_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    counted: list[str] = []
    intake = Intake(counted.append)
    damaged = pod()
    damaged["status"]["containerStatuses"] = [{"name": "controller", "state": {"terminated": {}}}]
    for _ in range(3):
        assert intake(damaged) is None
    assert counted == ["Pod"]
    assert names.controller_pod("digits", UID, 1) in capsys.readouterr().out
    damaged["metadata"]["resourceVersion"] = "2"
    assert intake(damaged) is None
    assert counted == ["Pod", "Pod"]
    for nothing in ({}, {"metadata": None}, {"metadata": {"name": "x"}}, {"metadata": "x", "kind": names.KIND}):
        assert intake(nothing) is None
    assert intake(pod()) is not None


@pytest.mark.parametrize("when", ["0000-01-01T00:00:00Z", "9999-12-31T23:59:59Z"])
def test_strange_times_are_no_trouble(when: str) -> None:
    state = {"terminated": {"exitCode": 1, "startedAt": when, "finishedAt": when}}
    raw = pod()
    raw["status"] = {
        "phase": "Failed",
        "startTime": when,
        "containerStatuses": [{"name": "controller", "state": state}],
    }
    assert Intake()(raw) is not None


def test_only_what_is_read_is_kept() -> None:
    raw = with_template(nested(9), "finalTraining")
    raw["metadata"] |= {
        "managedFields": [{"fieldsV1": nested(300)}],
        "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "{}", "nas-operator.io/x": "y"},
        "labels": {"team": "a"},
        "finalizers": ["theirs"],
    }
    raw["metadata"]["ownerReferences"] = [{"kind": "Workflow", "name": "w", "uid": "u"}]
    raw["status"] = {"state": "Searching"}
    found = kept(raw)
    assert {key: value for key, value in found["metadata"].items() if value} == {
        "name": "digits",
        "namespace": "lab",
        "uid": UID,
        "generation": 1,
        "resourceVersion": "1",
        "annotations": {"nas-operator.io/x": "y"},
    }
    assert found["spec"]["finalTraining"] == {"template": json.dumps(nested(9), separators=(",", ":"))}
    assert (whole(found)["spec"], found["status"]) == (raw["spec"], raw["status"])
    assert NASExperiment.model_validate(whole(found), extra="ignore").spec == NASExperiment.model_validate(raw).spec
    assert "spec" not in kept(pod())


@pytest.mark.parametrize("part", ["trainer", "controller", "finalTraining", "tracking"])
@pytest.mark.parametrize("template", [nested(90), {"spec": {"a": [{}] * 400_000}}], ids=["deep", "large"])
def test_what_is_kept_of_a_template_is_bounded(part: str, template: Any) -> None:
    raw = with_template(template, part)
    before = copy.copy(raw["spec"][part])
    found = kept(raw)
    assert len(json.dumps(found)) < 4_000
    assert found["spec"][part].keys() == before.keys()
    assert kept(found) == found
    assert raw["spec"][part] == before, "what came in is not ours to change"


def test_an_experiment_of_the_largest_templates_takes_little_while_it_is_kept() -> None:
    """kopf and the lists hold all that there are at once."""
    templates: list[dict[str, Any]] = [{"spec": {"x": [{}] * 21_000}} for _ in range(3)]
    parts = {
        part: {"template": one} for part, one in zip(("trainer", "controller", "tracking"), templates, strict=True)
    }
    found = kept({**experiment(), "spec": parts})

    def things(value: Any) -> int:
        inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        return 1 + sum(map(things, inside))

    assert things(found) < 100 and len(json.dumps(found)) < 3 * 64 * 1024 + 10_000


@pytest.mark.parametrize("text", ["no JSON", "[" * 60_000, "x" * 100_000, "\ud800"], ids=["a", "deep", "long", "half"])
def test_a_text_in_a_templates_place_harms_nobody(text: str) -> None:
    once = kept(with_template(text))
    assert kept(once) == once
    cache = Cache()
    cache.take_experiment(once)
    assert cache.experiment(("lab", "digits")) is not None


# ---------------------------------------------------------------- whose a pod is


@pytest.mark.parametrize(
    ("metadata", "ours"),
    [
        ({}, True),
        ({"labels": {}}, True),
        ({"ownerReferences": None}, False),
        ({"ownerReferences": [{"kind": names.KIND, "name": "digits", "uid": UID}]}, False),
        ({"ownerReferences": [{"kind": names.KIND, "name": "digits", "uid": "other", "controller": True}]}, False),
        ({"ownerReferences": [{"kind": names.KIND, "name": "other", "uid": UID, "controller": True}]}, False),
        ({"ownerReferences": [{"kind": "ReplicaSet", "name": "digits", "uid": UID, "controller": True}]}, False),
        ({"namespace": "elsewhere"}, False),
        ({"name": "x-controller-99999999999999999999"}, False),
        ({"name": "digits-12345678-controller-1000000000"}, False),
        ({"name": "digits-12345678-controller-01"}, False),
        ({"name": "digits-12345678-controller-1-controller-2"}, False),
    ],
    ids=str,
)
def test_a_controllers_pod_is_what_its_experiment_controls_under_a_name_of_ours(
    metadata: dict[str, Any], ours: bool
) -> None:
    cache = Cache()
    cache.take_pod(pod(**metadata))
    assert bool(cache.pods(OWNER)) is ours


@pytest.mark.parametrize(
    ("metadata", "ours"),
    [
        ({}, True),
        ({"namespace": "elsewhere"}, False),
        ({"ownerReferences": None}, False),
        ({"ownerReferences": [{"kind": "Job", "name": "another", "uid": "j", "controller": True}]}, False),
        ({"ownerReferences": [{"kind": "Job", "name": "digits-12345678-follower", "uid": "j"}]}, False),
        ({"labels": {**names.labels("digits", "87654321", names.ROLE_FOLLOWER)}}, False),
    ],
    ids=str,
)
def test_a_followers_pod_is_what_its_job_controls(metadata: dict[str, Any], ours: bool) -> None:
    owner = {"kind": "Job", "name": "digits-12345678-follower", "uid": "job", "controller": True}
    labels = names.labels("digits", UID, names.ROLE_FOLLOWER)
    raw = pod(**{"name": "digits-12345678-follower-x", "ownerReferences": [owner], "labels": labels, **metadata})
    cache = Cache()
    cache.take_pod(raw)
    assert (cache.follower(OWNER) is not None) is ours
    assert cache.pods(OWNER) == ()


def test_a_digit_that_is_none_is_no_number_of_failures() -> None:
    found = pod_of(pod(annotations={names.ANNOTATION_QUICK_FAILURES: "²"}))
    assert found is not None and getattr(found[1], "quick_failures", None) == 0


# ---------------------------------------------------------------- names that are taken


class Holding(NoCalls):
    """An API server with the experiment's Role, and one object of a kind."""

    def __init__(self, held: dict[str, Any], kind: str) -> None:
        super().__init__()
        self.held, self.kind = held, kind

    def get(self, resource: Any, namespace: str | None, name: str) -> dict[str, Any]:
        if resource.plural == self.kind:
            return self.held
        if resource == ROLES:
            return ROLE
        raise ApiError(404, "NotFound", name)


ROLE = builders.role(NASExperiment.model_validate(experiment()))
BINDING = builders.role_bindings(NASExperiment.model_validate(experiment()))[0]
REFERENCE = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole"}


@pytest.mark.parametrize(
    ("held", "said"),
    [
        (
            {**BINDING, "roleRef": {**REFERENCE, "name": "cluster-admin"}},
            "binds ClusterRole cluster-admin and not nas-",
        ),
        ({**BINDING, "metadata": {"name": "x"}}, "belongs to nothing"),
        (
            {**BINDING, "metadata": {"ownerReferences": [{"kind": "A", "name": "b", "uid": "c", "controller": True}]}},
            "belongs to A b",
        ),
    ],
)
def test_a_binding_that_is_not_what_we_would_make_is_told_of(held: dict[str, Any], said: str) -> None:
    action = EnsureAccess(None, ROLE, (BINDING,))
    memory = _Memory()
    client = Holding(held, ROLE_BINDINGS.plural)
    reconciler = Reconciler(client, Cache(), SETTINGS, reporter="test", clock=lambda: NOW)
    reconciler._carry_out(experiment(), Plan(status={}, actions=(action,), key="k"), memory, NOW)
    assert memory.refusal is not None and memory.access_until < NOW
    assert memory.refusal.reason == "NameTaken"
    assert "RoleBinding digits-12345678-controller" in memory.refusal.detail and said in memory.refusal.detail
    _, reason, message = condition(plan(_refused(memory), NOW, SETTINGS))
    assert (reason, said in message) == ("NameTaken", True)


def _refused(memory: _Memory) -> Observed:
    raw = experiment()
    trials = builders.trials(NASExperiment.model_validate(raw), SETTINGS)
    refusal = memory.refusal
    assert refusal is not None
    key = builders.digest([trial.body for trial in trials])
    return Observed(raw=raw, refusal=type(refusal)(key, refusal.reason, refusal.detail, refusal.retry_at))


def test_a_binding_of_ours_is_taken_as_it_is() -> None:
    memory = _Memory()
    reconciler = Reconciler(Holding(BINDING, "rolebindings"), Cache(), SETTINGS, reporter="test", clock=lambda: NOW)
    action = EnsureAccess(None, ROLE, (BINDING,))
    reconciler._carry_out(experiment(), Plan(status={}, actions=(action,), key="k"), memory, NOW)
    assert memory.refusal is None and memory.access_until > NOW


# ---------------------------------------------------------------- kopf's connection


def test_kopf_is_given_only_what_the_door_lets_in(answer: Answer) -> None:
    deep = json.dumps(with_template({"a": "here"})).replace('"here"', '{"a":' * 9_000 + "1" + "}" * 9_000)
    lines = [
        f'{{"type": "ADDED", "object": {deep}}}',
        json.dumps({"type": "MODIFIED", "object": {"kind": names.KIND, "metadata": "x"}}),
        json.dumps({"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": "7"}}}),
    ]
    answer(
        {
            "/watched": (200, "\n".join(lines) + "\n"),
            "/broken": (200, lines[0][:5_000]),
            "/listed": (200, f'{{"metadata": {{"resourceVersion": "5"}}, "items": [{deep}, {{}}]}}'),
        }
    )
    client, intake = KubeClient.from_environment(), Intake()

    async def run() -> None:
        info = connection(client, intake)
        session, server = info.aiohttp_session, info.server
        async with session:
            async with session.get(f"{server}/watched?watch=true") as response:
                got = b"".join([chunk async for chunk in response.content.iter_chunked(1000)])
            events = [json.loads(line) for line in got.splitlines()]
            assert [event["type"] for event in events] == ["ADDED", "BOOKMARK"]
            assert template_bounds.LEFT_OUT in events[0]["object"]["spec"]["trainer"]["template"]
            async with session.get(f"{server}/listed") as response:
                (item,) = (await response.json())["items"]
            assert item["metadata"]["name"] == "digits"
            async with session.get(f"{server}/broken?watch=true") as response:
                with pytest.raises(Exception, match="no JSON"):
                    _ = [chunk async for chunk in response.content.iter_chunked(1000)]

    asyncio.run(run())


def test_the_connection_asks_for_a_new_token_in_time(answer: Answer) -> None:
    answer({})
    client = KubeClient.from_environment()

    async def run() -> SimpleNamespace:
        info = connection(client, Intake())
        async with info.aiohttp_session:
            return SimpleNamespace(
                left=(info.expiration or NOW) - datetime.now(UTC), headers=dict(info.aiohttp_session.headers)
            )

    found = asyncio.run(run())
    assert found.headers["Authorization"] == "Bearer token"
    assert timedelta(minutes=9) < found.left <= timedelta(minutes=10)
