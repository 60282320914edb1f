"""What an author of experiments may do, and what a controller's token may: the chart's policies on a real API server.

Three authors may write NASExperiments in one namespace: ``tenant`` nothing else, ``builder`` create pods as well,
``reader`` get one Secret.
"""

import copy
import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import yaml
from chart.test_chart import Render
from cluster_fixtures import ControlPlane
from patience import eventually

from nas_api import names
from nas_api.child_job import owner_reference
from nas_api.experiment import NASExperiment

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.usefixtures("programs")]
Object = dict[str, Any]
EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "digits.yaml"
RBAC = "rbac.authorization.k8s.io"
LIMITS = {"samples": 200, "parallelism": 10, "pods": 4, "finalTop": 5, "ttlSecondsAfterFinished": 3600}
RESTRICTED = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def manifest(**spec: Any) -> Object:
    document: Object = yaml.safe_load(EXAMPLE.read_text(encoding="utf-8"))
    document["metadata"]["name"] = f"a-{uuid4().hex[:8]}"
    for field, value in spec.items():
        place = document["spec"]
        *outer, last = field.split("__")
        for key in outer:
            place = place.setdefault(key, {})
        place[last] = value
    return document


@dataclass(frozen=True)
class Place:
    """A namespace in which the chart's policies are in force."""

    control_plane: ControlPlane
    namespace: str

    def kubectl(self, *words: str, document: Any = None, who: str = "") -> subprocess.CompletedProcess[str]:
        as_user = [f"--as={who}"] if who else []
        text = None if document is None else json.dumps(document)
        return self.control_plane.kubectl(*words, "-n", self.namespace, *as_user, stdin=text)

    def done(self, *words: str, document: Any = None, who: str = "") -> str:
        outcome = self.kubectl(*words, document=document, who=who)
        assert outcome.returncode == 0, outcome.stderr
        return outcome.stdout

    def create(self, who: str, document: Object, *, keep: bool = False) -> str:
        """Return what somebody is told who creates an object; nothing if it is taken."""
        dry = [] if keep else ["--dry-run=server"]
        outcome = self.kubectl("create", *dry, "-f", "-", document=document, who=who)
        return "" if outcome.returncode == 0 else outcome.stderr

    def change(self, who: str, name: str, spec: Object) -> str:
        """Return what somebody is told who changes an experiment; nothing if that is taken."""
        patch = json.dumps({"spec": spec})
        outcome = self.kubectl("patch", "nas", name, "--type=merge", "--dry-run=server", "-p", patch, who=who)
        return "" if outcome.returncode == 0 else outcome.stderr

    def allow(self, who: Object, *rules: Object) -> None:
        """Let a subject do something in the namespace."""
        name = f"r-{uuid4().hex[:8]}"
        role = {"apiVersion": f"{RBAC}/v1", "kind": "Role", "metadata": {"name": name}, "rules": list(rules)}
        reference = {"apiGroup": RBAC, "kind": "Role", "name": name}
        binding = {**role, "kind": "RoleBinding", "roleRef": reference, "subjects": [who]}
        del binding["rules"]
        for document in (role, binding):
            self.done("create", "-f", "-", document=document)


def rule(group: str, resource: str, *verbs: str, **more: Any) -> Object:
    return {"apiGroups": [group], "resources": [resource], "verbs": list(verbs), **more}


def user(name: str) -> Object:
    return {"kind": "User", "name": name, "apiGroup": RBAC}


@pytest.fixture(scope="module")
def place(control_plane: ControlPlane, shared_namespace: str, render: Render) -> Iterator[Place]:
    place = Place(control_plane, shared_namespace)
    values = [f"limits.{name}={value}" for name, value in LIMITS.items()]
    # A name of their own, for this namespace alone: the control plane is shared.
    objects = render(f"watchNamespaces={{{shared_namespace}}}", *values, release=shared_namespace, file="default")
    policies = [item for item in objects if item["kind"].startswith("ValidatingAdmissionPolicy")]
    assert len(policies) == 4
    for document in policies:
        place.done("create", "--validate=strict", "-f", "-", document=document)
    write = rule(names.GROUP, names.PLURAL, "create", "get", "list", "update", "patch")
    for name in ("tenant", "builder", "reader"):
        place.allow(user(name), write)
    place.allow(user("builder"), rule("", "pods", "create"))
    place.allow(user("reader"), rule("", "secrets", "get", resourceNames=["mine"]))
    beyond = manifest(trainer__template={"spec": {"hostPID": True}})
    # The API server takes a moment to know a new policy.
    eventually(lambda: place.create("tenant", beyond), message="the policy is in force")
    job = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": "x"},
        "spec": {"template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "x", "image": "x"}]}}},
    }
    account = names.controller_service_account("probe", UID)
    place.allow(
        {"kind": "ServiceAccount", "name": account, "namespace": shared_namespace}, rule("batch", "jobs", "create")
    )
    who = f"system:serviceaccount:{shared_namespace}:{account}"
    eventually(lambda: "of its own experiment only" in place.create(who, job), message="that of Jobs, too")
    yield place
    for document in policies:
        place.done("delete", document["kind"], document["metadata"]["name"])


UID = "12345678-0000-4000-8000-000000000000"
SECRET = {"secretKeyRef": {"name": "mine", "key": "k"}}
OTHERS = {"secretKeyRef": {"name": "theirs", "key": "k"}}


def env(*sources: Object) -> Object:
    variables = [{"name": f"A{index}", "valueFrom": source} for index, source in enumerate(sources)]
    return {"spec": {"containers": [{"name": "trainer", "env": variables}]}}


def mlflow(secret: str) -> Object:
    return {"mlflow": {"uri": "http://mlflow", "credentialsSecret": {"name": secret}}}


ALL, BUILDER, NOBODY = {"tenant", "builder", "reader"}, {"builder"}, set[str]()
MANY = [{"name": f"A{index}", "value": "x" * 30} for index in range(1000)]
WHAT: dict[str, tuple[set[str], Object]] = {
    "the example": (ALL, {}),
    "GPUs, volumes, a program": (
        ALL,
        {
            "trainer__template": {
                "metadata": {"labels": {"team": "a"}},
                "spec": {
                    "nodeSelector": {"gpu": "h100"},
                    "tolerations": [{"operator": "Exists"}],
                    "securityContext": {"runAsUser": 1000},
                    "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}],
                    "containers": [
                        {
                            "name": "trainer",
                            "command": ["sh"],
                            "resources": {"limits": {"nvidia.com/gpu": 1}},
                            "volumeMounts": [{"name": "data", "mountPath": "/data"}],
                        },
                        {"name": "beside", "image": "x", "securityContext": RESTRICTED},
                    ],
                },
            }
        },
    ),
    "a large template": (ALL, {"trainer__template": {"spec": {"containers": [{"name": "trainer", "env": MANY}]}}}),
    "storage's Secrets": (ALL, {"storage__s3__trainerCredentialsSecret": {"name": "mine"}}),
    "the host's network": (BUILDER, {"trainer__template": {"spec": {"hostNetwork": True}}}),
    "a folder of the host": (
        BUILDER,
        {"finalTraining__template": {"spec": {"volumes": [{"name": "x", "hostPath": {"path": "/"}}]}}},
    ),
    "a privileged container": (
        BUILDER,
        {"trainer__template": {"spec": {"containers": [{"name": "trainer", "securityContext": {"privileged": True}}]}}},
    ),
    "a container without a context": (
        BUILDER,
        {"trainer__template": {"spec": {"containers": [{"name": "beside", "image": "x"}]}}},
    ),
    "a controller's image": (
        BUILDER,
        {"controller__template": {"spec": {"containers": [{"name": "controller", "image": "x"}]}}},
    ),
    "a follower's token": (
        BUILDER,
        {
            "tracking": {
                "mlflow": {"uri": "http://mlflow"},
                "template": {"spec": {"automountServiceAccountToken": True}},
            }
        },
    ),
    "a trainer's account": (BUILDER, {"trainer__serviceAccountName": "default"}),
    "a controller's account": (BUILDER, {"controller__serviceAccountName": "default"}),
    "a Secret": ({"builder", "reader"}, {"trainer__template": env(SECRET)}),
    "it twice": ({"builder", "reader"}, {"trainer__template": env(SECRET, SECRET)}),
    "another Secret": (BUILDER, {"trainer__template": env(OTHERS)}),
    "one after the other": (BUILDER, {"trainer__template": env(SECRET, OTHERS)}),
    "a Secret as a volume": (
        {"builder", "reader"},
        {"trainer__template": {"spec": {"volumes": [{"name": "x", "secret": {"secretName": "mine"}}]}}},
    ),
    "MLflow's Secret": ({"builder", "reader"}, {"tracking": mlflow("mine")}),
    "another for MLflow": (BUILDER, {"tracking": mlflow("theirs")}),
    "no shape": (BUILDER, {"trainer__template": {"metadata": "x", "spec": None}}),
    "containers without shape": (BUILDER, {"trainer__template": {"spec": {"containers": ["x", None]}}}),
    "a finalizer": (NOBODY, {"trainer__template": {"metadata": {"finalizers": ["a/b"]}}}),
    "as many samples as there may be": (ALL, {"budget__samples": LIMITS["samples"]}),
    "more samples": (NOBODY, {"budget__samples": LIMITS["samples"] + 1}),
    "more at once": (NOBODY, {"parallelism": LIMITS["parallelism"] + 1}),
    "more in the end": (NOBODY, {"finalTraining__top": LIMITS["finalTop"] + 1}),
    "more pods": (NOBODY, {"finalTraining__pods": LIMITS["pods"] + 1}),
    "Jobs that stay": (NOBODY, {"trainer__ttlSecondsAfterFinished": LIMITS["ttlSecondsAfterFinished"] + 1}),
}


@pytest.mark.parametrize(("who", "spec"), WHAT.values(), ids=WHAT)
def test_who_may_ask_for_what(place: Place, who: set[str], spec: Object) -> None:
    told = {author: place.create(author, manifest(**copy.deepcopy(spec))) for author in sorted(ALL)}
    assert {author for author, words in told.items() if not words} == who, told
    for words in told.values():
        assert not words or "ValidatingAdmissionPolicy" in words, words


def test_a_refusal_names_the_field_and_the_cure(place: Place) -> None:
    template = {"metadata": {"ownerReferences": []}, "spec": {"hostPID": True, "nodeName": "x", "nodeSelector": {}}}
    words = place.create("tenant", manifest(trainer__template=template))
    places = words.partition("spec.trainer.template: ")[2].partition(": beyond what a template may ask for")[0]
    # Keys of a map have no order.
    assert set(places.split(", ")) == {"metadata.ownerReferences", "spec.hostPID", "spec.nodeName"}, words
    assert "needs an author who may create pods in this namespace, and you may not: remove it, or let one" in words
    words = place.create("tenant", manifest(trainer__serviceAccountName="default"))
    assert "spec.trainer.serviceAccountName: naming a ServiceAccount needs an author" in words
    words = place.create("builder", manifest(budget__samples=201))
    assert "spec.budget.samples: at most 200 in this cluster" in words


def test_an_update_is_asked_about_what_it_changes(place: Place) -> None:
    template = {"spec": {"hostPID": True}}
    document = manifest(trainer__template=template, trainer__serviceAccountName="default")
    name = document["metadata"]["name"]
    assert place.create("builder", document, keep=True) == ""
    # What somebody else was entitled to stays, whoever changes something else.
    assert place.change("tenant", name, {"suspend": True, "parallelism": 5, "budget": {"samples": 50}}) == ""
    assert place.done("label", "nas", name, "team=a", who="tenant")
    # Another program would run with what was given to this one.
    assert "spec.hostPID" in place.change("tenant", name, {"trainer": {"image": "mine"}})
    assert "spec.hostPID" in place.change("tenant", name, {"trainer": {"template": {"spec": {"nodeSelector": {}}}}})
    without = {"trainer": {"template": {"spec": {"hostPID": None}}, "serviceAccountName": None}}
    assert place.change("tenant", name, without) == ""
    assert place.change("builder", name, {"trainer": {"image": "mine"}}) == ""


def test_what_is_above_a_limit_already_may_only_sink(place: Place) -> None:
    document = manifest(budget__samples=200)
    name = document["metadata"]["name"]
    assert place.create("tenant", document, keep=True) == ""
    assert place.change("tenant", name, {"budget": {"samples": 150}}) == ""
    assert "at most 200" in place.change("tenant", name, {"budget": {"samples": 300}})


def job_for(experiment: Object | None) -> Object:
    pod = {"restartPolicy": "Never", "containers": [{"name": "x", "image": "x"}]}
    metadata: Object = {"name": f"j-{uuid4().hex[:8]}"}
    if experiment is not None:
        metadata["ownerReferences"] = [owner_reference(NASExperiment.model_validate(experiment, extra="ignore"))]
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": {"template": {"spec": pod}}}


@pytest.fixture
def experiments(place: Place) -> tuple[Object, Object]:
    """Two experiments that are there, with their uids."""
    found = []
    for _ in range(2):
        document = manifest()
        assert place.create("tenant", document, keep=True) == ""
        found.append(json.loads(place.done("get", "nas", document["metadata"]["name"], "-o", "json")))
    return found[0], found[1]


def allow_jobs(place: Place, account: str) -> None:
    """Give a ServiceAccount what every controller may in its namespace."""
    subject = {"kind": "ServiceAccount", "name": account, "namespace": place.namespace}
    place.allow(subject, rule("batch", "jobs", "create", "get", "delete"))


def test_a_controllers_token_makes_jobs_for_its_own_experiment_only(
    place: Place, experiments: tuple[Object, Object]
) -> None:
    mine, other = experiments
    account = names.controller_service_account(mine["metadata"]["name"], mine["metadata"]["uid"])
    allow_jobs(place, account)
    who = f"system:serviceaccount:{place.namespace}:{account}"
    refused = "may make and end Jobs of its own experiment only"
    assert place.create(who, job_for(mine)) == ""
    assert refused in place.create(who, job_for(None))
    assert refused in place.create(who, job_for(other))
    loose = job_for(mine)
    loose["metadata"]["ownerReferences"][0]["controller"] = False
    assert refused in place.create(who, loose)
    # Nobody else's Jobs are asked about.
    assert place.create("", job_for(None)) == ""


def test_a_controllers_token_ends_the_jobs_of_its_own_experiment_only(
    place: Place, experiments: tuple[Object, Object]
) -> None:
    mine, other = experiments
    account = names.controller_service_account(mine["metadata"]["name"], mine["metadata"]["uid"])
    allow_jobs(place, account)
    who = f"system:serviceaccount:{place.namespace}:{account}"
    for owner, ended in ((mine, True), (other, False), (None, False)):
        job = job_for(owner)
        assert place.create("", job, keep=True) == ""
        done = place.kubectl("delete", "job", job["metadata"]["name"], "--dry-run=server", who=who)
        assert (done.returncode == 0) is ended, done.stderr
        assert ended or "may make and end Jobs of its own experiment only" in done.stderr


def test_a_controller_under_a_named_account_is_known_by_its_pod(
    place: Place, experiments: tuple[Object, Object], tmp_path: Path
) -> None:
    mine, _ = experiments
    account = f"named-{uuid4().hex[:8]}"
    place.done("create", "serviceaccount", account)
    allow_jobs(place, account)
    pod = names.controller_pod(mine["metadata"]["name"], mine["metadata"]["uid"], 1)
    spec = {"serviceAccountName": account, "containers": [{"name": "x", "image": "x"}]}
    document = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": pod}, "spec": spec}
    place.done("create", "-f", "-", document=document)
    token = place.done("create", "token", account, "--bound-object-kind=Pod", f"--bound-object-name={pod}").strip()
    kubeconfig = yaml.safe_load(place.control_plane.kubeconfig.read_text())
    kubeconfig["users"] = [{"name": item["name"], "user": {"token": token}} for item in kubeconfig["users"]]
    file = tmp_path / "kubeconfig"
    file.write_text(yaml.safe_dump(kubeconfig))

    def told(job: Object) -> str:
        done = place.kubectl("create", "--dry-run=server", f"--kubeconfig={file}", "-f", "-", document=job)
        return "" if done.returncode == 0 else done.stderr

    assert "may make and end Jobs of its own experiment only" in told(job_for(None))
    assert told(job_for(mine)) == ""
    # The same account in another pod is no controller.
    assert place.create(f"system:serviceaccount:{place.namespace}:{account}", job_for(None)) == ""
