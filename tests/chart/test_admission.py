"""The chart's admission policies, as they are rendered; tests/operator/test_authors.py tries them on an API server."""

import json
import re
from typing import Any

import pytest
import yaml
from chart.conftest import CHART, Objects
from chart.test_chart import Render, one

from nas_api import authority, names

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("programs")]
UID = "12345678-0000-4000-8000-000000000000"


def policies(objects: Objects) -> dict[str, dict[str, Any]]:
    """Return the policies' specs by name."""
    kind = "ValidatingAdmissionPolicy"
    return {item["metadata"]["name"]: item["spec"] for item in objects if item["kind"] == kind}


def told(objects: Objects) -> str | None:
    """Return what the operator is told of templates."""
    (container,) = one(objects, "Deployment", "nas-operator")["spec"]["template"]["spec"]["containers"]
    return {item["name"]: item["value"] for item in container["env"]}.get(names.ENV_UNRESTRICTED)


def test_the_policy_asks_what_the_models_say(render: Render) -> None:
    found = policies(render())["nas-operator-experiments"]
    assert {key: found[key] for key in ("variables", "validations")} == authority.policy()
    assert found["failurePolicy"] == "Fail"
    assert yaml.safe_load((CHART / "files" / "authority.yaml").read_text()) == authority.policy()


@pytest.mark.parametrize(
    ("values", "made", "operators"),
    [
        ((), {"nas-operator-experiments", "nas-operator-jobs"}, "true"),
        (("templates.unrestricted=true",), {"nas-operator-jobs"}, "true"),
        (("admission.enabled=false",), set(), None),
        (("admission.enabled=false", "templates.unrestricted=true"), set(), "true"),
    ],
    ids=["as it is", "unrestricted", "no policies", "neither"],
)
def test_the_operator_lets_through_what_authors_were_asked_about(
    render: Render, values: tuple[str, ...], made: set[str], operators: str | None
) -> None:
    objects = render(*values)
    assert set(policies(objects)) == made
    bindings = [item for item in objects if item["kind"] == "ValidatingAdmissionPolicyBinding"]
    assert {item["spec"]["policyName"] for item in bindings} == made
    assert all(item["spec"]["validationActions"] == ["Deny"] for item in bindings)
    assert told(objects) == operators


def test_limits_are_rules_of_their_own(render: Render) -> None:
    found = policies(render("limits.samples=100", "limits.pods=2", "templates.unrestricted=true"))
    rules = found["nas-operator-experiments"]["validations"]
    assert [rule["message"] for rule in rules] == [
        "spec.trainer.pods: at most 2 in this cluster",
        "spec.finalTraining.pods: at most 2 in this cluster",
        "spec.budget.samples: at most 100 in this cluster",
    ]
    assert "object.spec.?budget.?samples.orValue(0) <= 100" in rules[2]["expression"]


def test_policies_are_in_force_where_the_operator_works(render: Render) -> None:
    for item in render("watchNamespaces={a,b}"):
        if item["kind"] == "ValidatingAdmissionPolicyBinding":
            (rule,) = item["spec"]["matchResources"]["namespaceSelector"]["matchExpressions"]
            assert (rule["key"], rule["values"]) == ("kubernetes.io/metadata.name", ["a", "b"])


def test_controllers_are_known_by_the_names_that_the_operator_gives(render: Render) -> None:
    (condition,) = policies(render())["nas-operator-jobs"]["matchConditions"]
    user, pod = (re.compile(words) for words in re.findall(r"matches\('(.*?)'\)", condition["expression"]))
    account = names.controller_service_account("digits", UID)
    assert user.search(f"system:serviceaccount:team:{account}")
    assert pod.search(names.controller_pod("digits", UID, 12))
    for other in ("digits", "default", "cronjob-controller", names.child_job("digits", UID, 3)):
        assert not user.search(f"system:serviceaccount:team:{other}")
        assert not pod.search(f"{other}-x7k2p")


def test_nothing_of_it_is_in_a_chart_without_admission(render: Render) -> None:
    assert "admissionregistration" not in json.dumps(render("admission.enabled=false"))
