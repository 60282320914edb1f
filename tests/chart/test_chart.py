"""The chart renders what the contract fixes, grants what is needed and no more, and refuses values it does not know."""

import copy
import re
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from chart.conftest import CHART, CI, Objects, helm, values_file
from docs import generate
from hack.cluster import binaries

from nas_api import crd, names

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("programs")]
Render = Callable[..., Objects]
# Rendered without a cluster, the chart draws no keys.
S3 = ("embeddedS3.enabled=true", "embeddedS3.existingSecret=nas-s3")


def one(objects: Objects, kind: str, name: str) -> dict[str, Any]:
    """Return the one object of that kind and name."""
    (found,) = [item for item in objects if item["kind"] == kind and item["metadata"]["name"] == name]
    return found


def pod_specs(objects: Objects) -> dict[str, dict[str, Any]]:
    """Return every pod spec by kind/name."""
    out = {}
    for item in objects:
        if item["kind"] in ("Deployment", "Job"):
            out[f"{item['kind']}/{item['metadata']['name']}"] = item["spec"]["template"]["spec"]
        elif item["kind"] == "Pod":
            out[f"Pod/{item['metadata']['name']}"] = item["spec"]
    return out


@pytest.mark.parametrize("file", CI)
def test_lint_and_schemas(render: Render, file: str) -> None:
    linted = helm("lint", "--strict", str(CHART), "--values", str(values_file(file)))
    assert linted.returncode == 0, linted.stdout
    # Schemas are not at hand without a network: -ignore-missing-schemas leaves syntax, kinds and duplicate keys.
    done = subprocess.run(
        [binaries.BINARIES["kubeconform"].path, "-ignore-missing-schemas", "-schema-location", str(CHART), "-"],
        input=yaml.safe_dump_all(render(file=file)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    "value",
    [
        "imagez.tag=1",
        "images.operator.repositry=x",
        "images.pullPolicy=Sometimes",
        "operator.replicas=many",
        "operator.logLevel=loud",
        "operator.resources.request.cpu=1",
        "operator.podLabel.a=b",
        "operator.podDisruptionBudget=2",
        "operator.extraEnv[0].value=x",
        "operator.topologySpreadConstraints[0].maxSkew=1",
        "images.operator.digest=sha256:abc",
        "embeddedS3.image.digest=latest",
        "watchNamespaces=a",
        "watchNamespaces={A_b}",
        "crds.instal=true",
        "embeddedS3.bucket=UPPER",
        "embeddedS3.persistence.size=ten",
        "rbac.wide=true",
        "gpuTest.enabled=true",
        "admission.enabled=maybe",
        "templates.restricted=true",
        "limits.samples=-1",
        "limits.epochs=5",
        "networkPolicy.enabled=maybe",
        "networkPolicy.apiServerPorts={}",
        "storage.requireTLS=true",
    ],
)
def test_unknown_and_wrong_values_are_refused(value: str) -> None:
    done = helm("template", "x", str(CHART), "--set", value)
    assert done.returncode != 0
    assert "values don't meet the specifications of the schema" in done.stderr
    assert value.split("=")[0].split(".")[0] in done.stderr


def test_crd_is_the_models(render: Render) -> None:
    """The chart carries the CRD as nas_api has it, and `helm uninstall` keeps it."""
    document = one(render(), "CustomResourceDefinition", "nasexperiments.nas-operator.io")
    assert document["metadata"].pop("annotations") == {"helm.sh/resource-policy": "keep"}
    assert document["metadata"].pop("labels")
    assert document == yaml.safe_load(yaml.safe_dump(crd.custom_resource_definition()))
    assert not [item for item in render("crds.install=false") if item["kind"] == "CustomResourceDefinition"]


def test_operator_rights_are_exactly_these(render: Render) -> None:
    rules = one(render(), "ClusterRole", "nas-operator")["rules"]
    assert rules == [
        # Follow experiments; a person's spec is never written.
        {"apiGroups": ["nas-operator.io"], "resources": ["nasexperiments"], "verbs": ["get", "list", "watch"]},
        # Conditions, by server-side apply: no update, which could overwrite the controller's part.
        {"apiGroups": ["nas-operator.io"], "resources": ["nasexperiments/status"], "verbs": ["patch"]},
        # Controllers' pods are replaced, never changed; create is also the dry run of a child's pod.
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch", "create", "delete"]},
        # The dry run of a child's Job; list, to see that a suspended search has none left. Never get, delete or watch.
        {"apiGroups": ["batch"], "resources": ["jobs"], "verbs": ["get", "list", "create", "delete"]},
        # No delete: they go with their experiment.
        {"apiGroups": [""], "resources": ["serviceaccounts"], "verbs": ["get", "create"]},
        # Only for children of several pods.
        {"apiGroups": [""], "resources": ["services"], "verbs": ["get", "create"]},
        # A Role for each controller; without escalate it holds no more than the operator itself has.
        {"apiGroups": ["rbac.authorization.k8s.io"], "resources": ["roles"], "verbs": ["get", "create", "patch"]},
        {
            "apiGroups": ["rbac.authorization.k8s.io"],
            "resources": ["rolebindings"],
            "verbs": ["get", "create", "patch"],
        },
        # The one role that may be handed out: without resourceNames the operator could make itself an administrator.
        {
            "apiGroups": ["rbac.authorization.k8s.io"],
            "resources": ["clusterroles"],
            "resourceNames": [names.CONTROLLER_CLUSTER_ROLE],
            "verbs": ["bind"],
        },
        {"apiGroups": ["events.k8s.io"], "resources": ["events"], "verbs": ["create"]},
        # Find out which volume a controller's pod cannot mount.
        {"apiGroups": [""], "resources": ["events"], "verbs": ["list"]},
    ]


def test_controller_rights_are_exactly_these(render: Render) -> None:
    rules = one(render(), "ClusterRole", names.CONTROLLER_CLUSTER_ROLE)["rules"]
    assert rules == [
        # No experiment: the operator gives each controller its own (nas_operator.builders.role).
        {"apiGroups": ["batch"], "resources": ["jobs"], "verbs": ["get", "list", "watch", "create", "delete"]},
        # Diagnosis only, so no watch: 800 children would be 800 streams of pod events.
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list"]},
        {"apiGroups": ["", "events.k8s.io"], "resources": ["events"], "verbs": ["list"]},
        {"apiGroups": ["kueue.x-k8s.io"], "resources": ["workloads"], "verbs": ["list"]},
    ]


@pytest.mark.parametrize("file", CI)
def test_nobody_reads_secrets_or_has_wildcards(render: Render, file: str) -> None:
    for item in render(file=file):
        for rule in item.get("rules", ()):
            words = [*rule["apiGroups"], *rule["resources"], *rule["verbs"]]
            assert "*" not in words
            assert "secrets" not in words


def test_watched_namespaces_bind_only_there(render: Render) -> None:
    objects = render("watchNamespaces={a,b}")
    assert not [item for item in objects if item["kind"] == "ClusterRoleBinding"]
    bindings = [item for item in objects if item["kind"] == "RoleBinding"]
    assert [item["metadata"]["namespace"] for item in bindings] == ["a", "b"]
    assert {item["subjects"][0]["namespace"] for item in bindings} == {"nas-system"}


def test_names_that_the_contract_fixes(render: Render) -> None:
    objects = render(*S3, release="other")
    assert one(objects, "ClusterRole", names.CONTROLLER_CLUSTER_ROLE)
    assert one(objects, "Service", "nas-s3")["spec"]["ports"][0]["port"] == 7070
    assert one(objects, "Deployment", "other-nas-operator")


def test_images_reach_the_operator(render: Render) -> None:
    objects = render(
        "images.registry=registry.example", "images.tag=v7", "images.trainer.tag=v8", "watchNamespaces={a,b}"
    )
    (container,) = one(objects, "Deployment", "nas-operator")["spec"]["template"]["spec"]["containers"]
    environment = {item["name"]: item["value"] for item in container["env"]}
    assert container["image"] == "registry.example/nas-operator:v7"
    assert environment["NAS_CONTROLLER_IMAGE"] == "registry.example/nas-controller:v7"
    assert environment["NAS_TRAINER_IMAGE"] == "registry.example/nas-trainer:v8"
    assert environment["NAS_WATCH_NAMESPACES"] == "a,b"


def test_an_upgrade_does_not_restart_the_embedded_store(render: Render) -> None:
    """Its objects may be in an emptyDir, which goes with the pod."""
    before = one(render(*S3, "images.tag=v1"), "Deployment", "nas-s3")
    after = one(render(*S3, "images.tag=v2"), "Deployment", "nas-s3")
    assert before["spec"] == after["spec"]
    assert "version" not in str(before["spec"]["template"]["metadata"])
    released = yaml.safe_load((Path(__file__).parent / "embedded-s3.yaml").read_text())
    assert after["spec"]["template"] == released, (
        "who upgrades to this loses what is in an emptyDir: if it must be, let CHANGELOG.md say what to do before,"
        " correct embedded-s3.yaml, and begin test_upgrade.py at a commit with it"
    )


def test_two_renderings_are_the_same(render: Render) -> None:
    """As GitOps tools compare them: keys that were drawn anew would take the store from running searches."""
    assert render(*S3) == render(*S3)
    store = one(render(*S3[:1], "embeddedS3.existingSecret=mine"), "Deployment", "nas-s3")
    (container,) = store["spec"]["template"]["spec"]["containers"]
    named = {item["valueFrom"]["secretKeyRef"]["name"]: item["name"] for item in container["env"]}
    assert set(named) == {"mine"}
    assert not [item for item in render(*S3) if item["kind"] == "Secret"]
    refused = helm("template", "x", str(CHART), "--set", S3[0])
    assert refused.returncode != 0
    assert "embeddedS3.existingSecret: helm has no cluster here, so it cannot keep the keys" in refused.stderr


@pytest.mark.parametrize("file", CI)
def test_pods_have_requests_and_a_read_only_root(render: Render, file: str) -> None:
    specs = pod_specs(render(*S3, file=file))
    assert len(specs) == (4 if file == "everything" else 3)
    for name, spec in specs.items():
        for container in spec["containers"]:
            assert container["securityContext"]["readOnlyRootFilesystem"] is True, name
            assert not container["image"].endswith(":latest"), name
        if not name.startswith("Pod/"):
            assert spec["containers"][0]["resources"]["requests"], name


# ---------------------------------------------------------------- every value


def leaves(values: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the path of every value; an empty map is one."""
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, (*path, key))
        else:
            yield (*path, key)


def at(values: dict[str, Any], path: tuple[str, ...]) -> Any:
    """Return the value at a path."""
    for key in path:
        values = values[key]
    return values


DEFAULTS = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
EVERYTHING = yaml.safe_load(values_file("everything").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def everything(render: Render) -> Objects:
    return render(file="everything")


@pytest.mark.parametrize("path", tuple(leaves(DEFAULTS)), ids=".".join)
def test_something_comes_of_every_value(
    render: Render, everything: Objects, path: tuple[str, ...], tmp_path: Path
) -> None:
    """Each value of values.yaml is among everything, and another one there gives other objects."""
    value, default = at(EVERYTHING, path), at(DEFAULTS, path)
    if isinstance(value, bool):
        other: Any = not value
    elif path[-1] == "digest":
        other = "sha256:" + "5" * 64
    elif path[-1] == "existingSecret":
        # Empty, the chart would have to draw keys.
        other = "other"
    else:
        other = default if value != default else "other"
    changed = copy.deepcopy(EVERYTHING)
    at(changed, path[:-1])[path[-1]] = other
    file = tmp_path / "values.yaml"
    file.write_text(yaml.safe_dump(changed))
    assert render(file=file) != everything


def test_every_value_has_a_meaning_on_the_charts_page() -> None:
    rows = re.findall(r"^\| `([\w.]+)` \|.*\| (.*) \|$", generate.chart_page(), re.MULTILINE)
    assert all(meaning for _, meaning in rows)
    named = {name for name, _ in rows}
    # A value that is a map on one line has one row.
    missing = [path for path in leaves(DEFAULTS) if not named & {".".join(path[:n]) for n in range(2, 5)} | {path[0]}]
    assert not missing


def test_an_uncommented_value_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "Chart.yaml").write_text((CHART / "Chart.yaml").read_text())
    (tmp_path / "values.yaml").write_text("a:\n  # What it is.\n  b: 1\n\n  c: {d: x}\n")
    monkeypatch.setattr(generate, "CHART", tmp_path)
    rows = [line for line in generate.chart_page().splitlines() if line.startswith("| `")]
    assert rows == ["| `a.b` | `1` | What it is. |", '| `a.c` | `{"d": "x"}` |  |']


# ---------------------------------------------------------------- labels and annotations


def test_common_labels_and_annotations_are_everywhere(render: Render) -> None:
    objects = render(file="everything")
    operator = one(objects, "Deployment", "nas-operator")
    for item in (*objects, operator["spec"]["template"]):
        assert item["metadata"]["labels"].items() >= EVERYTHING["commonLabels"].items(), item
        assert item["metadata"]["annotations"].items() >= EVERYTHING["commonAnnotations"].items(), item
    pod = operator["spec"]["template"]["metadata"]
    assert pod["labels"]["tier"] == "system"
    assert pod["annotations"]["sidecar.istio.io/inject"] == "false"
    # The store would restart, and lose an emptyDir, at each change of a common one.
    store = one(objects, "Deployment", "nas-s3")["spec"]["template"]["metadata"]
    assert store["labels"] == {**SELECTORS["nas-s3"], "tier": "store"}
    assert store["annotations"] == EVERYTHING["embeddedS3"]["podAnnotations"]


def selector(component: str) -> dict[str, str]:
    names = {"name": "nas-operator", "instance": "nas-operator", "component": component}
    return {f"app.kubernetes.io/{key}": value for key, value in names.items()}


SELECTORS = {"nas-operator": selector("operator"), "nas-s3": selector("s3")}


@pytest.mark.parametrize("file", CI)
@pytest.mark.parametrize("labels", ["commonLabels", "operator.podLabels", "embeddedS3.podLabels"])
def test_no_label_of_a_user_reaches_a_selector(render: Render, file: str, labels: str) -> None:
    """The selector of a Deployment cannot be changed, so every later version has these."""
    mine = rf"{labels}.app\.kubernetes\.io/name=mine"
    objects = render(mine, *S3, file=file)
    for name, own in SELECTORS.items():
        deployment = one(objects, "Deployment", name)["spec"]
        assert deployment["selector"] == {"matchLabels": own}
        assert deployment["template"]["metadata"]["labels"].items() >= own.items()
        assert one(objects, "Service", name)["spec"]["selector"] == own


# ---------------------------------------------------------------- nodes


def test_two_operators_are_spread_and_drained_one_at_a_time(render: Render) -> None:
    objects = render("operator.replicas=2")
    deployment = one(objects, "Deployment", "nas-operator")["spec"]
    assert deployment["replicas"] == 2
    assert deployment["strategy"] == {"type": "Recreate"}, "two versions at once fight over the status"
    (spread,) = deployment["template"]["spec"]["topologySpreadConstraints"]
    assert spread["topologyKey"] == "kubernetes.io/hostname"
    assert spread["labelSelector"] == deployment["selector"]
    budget = one(objects, "PodDisruptionBudget", "nas-operator")["spec"]
    assert budget["maxUnavailable"] == 1
    assert budget["selector"] == deployment["selector"]


def test_a_constraint_keeps_a_selector_of_its_own(render: Render) -> None:
    deployment = one(render(file="everything"), "Deployment", "nas-operator")["spec"]
    filled, own = deployment["template"]["spec"]["topologySpreadConstraints"]
    assert filled["labelSelector"] == deployment["selector"]
    assert own["labelSelector"] == {"matchLabels": {"tier": "system"}}


def test_the_pod_of_helm_test_runs_where_the_operator_may(render: Render) -> None:
    specs = pod_specs(render(file="everything"))
    for field in ("nodeSelector", "tolerations"):
        assert specs["Pod/nas-operator-test"][field] == specs["Deployment/nas-operator"][field]


# ---------------------------------------------------------------- GPUs


def test_a_gpu_is_tried_where_the_chart_is_told_of_one(render: Render) -> None:
    specs = pod_specs(render(r"gpuTest.limits.nvidia\.com/gpu=1"))
    spec = specs["Pod/nas-operator-test-gpu"]
    (container,) = spec["containers"]
    assert container["image"] == images_of(render())["NAS_TRAINER_IMAGE"]
    assert container["resources"]["limits"] == {"nvidia.com/gpu": 1}
    assert container["env"] == [{"name": names.ENV_GPU, "value": "nvidia.com/gpu"}]
    assert container["command"] == ["python3", "-m", "nas_trainer.smoke"]
    assert spec["automountServiceAccountToken"] is False
    said = 'print("skipped", "the GPU: gpuTest.limits asks for none")'
    assert said not in specs["Pod/nas-operator-test"]["containers"][0]["command"][-1]
    without = pod_specs(render())
    assert "Pod/nas-operator-test-gpu" not in without
    assert said in without["Pod/nas-operator-test"]["containers"][0]["command"][-1]


def images_of(objects: Objects) -> dict[str, str]:
    """Return what the operator is told of images."""
    (container,) = one(objects, "Deployment", "nas-operator")["spec"]["template"]["spec"]["containers"]
    return {item["name"]: item["value"] for item in container["env"] if item["name"].endswith("_IMAGE")}


# ---------------------------------------------------------------- images, and what Artifact Hub reads


def images(objects: Objects) -> set[str]:
    """Return every image that the objects make a cluster pull, now or for an experiment."""
    found = set()
    for spec in pod_specs(objects).values():
        for container in spec["containers"]:
            found.add(container["image"])
            found |= {item["value"] for item in container.get("env", ()) if item["name"].endswith("_IMAGE")}
    return found


def annotation(name: str) -> Any:
    """Return what one of Artifact Hub's annotations says."""
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))
    return yaml.safe_load(chart["annotations"][f"artifacthub.io/{name}"])


def test_the_list_of_images_is_the_charts(render: Render) -> None:
    listed = [item["image"] for item in annotation("images")]
    assert sorted(listed) == sorted(images(render(*S3)))
    page = (generate.ROOT / "docs" / "installing.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `([^`]+:[^`]+)` \|", page, re.MULTILINE) == listed


def test_without_internet_access_every_image_comes_from_the_mirror_by_digest(render: Render) -> None:
    values = yaml.safe_load(values_file("air-gapped").read_text(encoding="utf-8"))
    found = images(render(file="air-gapped"))
    assert len(found) == 5
    for image in found:
        assert re.fullmatch(r"mirror\.example/[\w/-]+@sha256:[0-9a-f]{64}", image)
    wanted = {values["images"][name]["digest"] for name in ("operator", "controller", "trainer", "follower")}
    assert {image.partition("@")[2] for image in found} == wanted | {values["embeddedS3"]["image"]["digest"]}


def test_a_digest_takes_precedence_over_every_tag(render: Render) -> None:
    digest = "sha256:" + "a" * 64
    found = images(render("images.tag=v1", "images.controller.tag=v2", f"images.controller.digest={digest}"))
    rest = {f"localhost/nas-{name}:v1" for name in ("operator", "trainer", "follower")}
    assert found == rest | {f"localhost/nas-controller@{digest}"}


def test_artifact_hub_is_told_what_the_definition_is() -> None:
    (definition,) = annotation("crds")
    assert definition["name"] == f"{names.PLURAL}.{names.GROUP}"
    assert (definition["kind"], definition["version"]) == (names.KIND, names.VERSION)
    example = yaml.safe_load((generate.ROOT / "examples" / "digits.yaml").read_text(encoding="utf-8"))
    assert annotation("crdsExamples") == [example]
    kinds = {"added", "changed", "deprecated", "removed", "fixed", "security"}
    assert {change["kind"] for change in annotation("changes")} <= kinds


def test_the_package_has_what_users_need_and_no_more(programs: None, tmp_path: Path) -> None:
    done = helm("package", str(CHART), "--destination", str(tmp_path))
    assert done.returncode == 0, done.stderr
    (package,) = tmp_path.iterdir()
    with tarfile.open(package) as tar:
        found = {name.partition("/")[2] for name in tar.getnames()}
    assert {"Chart.yaml", "README.md", "values.yaml", "values.schema.json", "templates/crd.yaml"} <= found
    assert not [name for name in found if name.startswith("ci/")]
