"""What the pods of an experiment may reach, and which endpoints they may be told of."""

from datetime import UTC, datetime
from typing import Any

import pytest
from experiments import manifest

from nas_api import names
from nas_api.experiment import NASExperiment
from nas_operator.network import network_policies
from nas_operator.observed import Observed
from nas_operator.plan import CreatePod, DeletePod, EnsureAccess, EnsureFollower, Plan, plan
from nas_operator.settings import Settings

NOW = datetime(2026, 5, 1, 12, 0, 0, tzinfo=UTC)
UID = "12345678-aaaa-bbbb-cccc-1234567890ab"
METADATA = {"169.254.0.0/16", "fe80::/10", "fd00:ec2::/32"}


def settings(**more: Any) -> Settings:
    return Settings(controller_image="controller:1", trainer_image="trainer:1", follower_image="follower:1", **more)


def experiment(**s3: Any) -> dict[str, Any]:
    raw = manifest("lab")
    raw["metadata"]["uid"] = UID
    raw["spec"]["storage"]["s3"] |= s3
    return raw


def policies(raw: dict[str, Any], **more: Any) -> dict[str, dict[str, Any]]:
    """Return the policies' specs by the role that they are for."""
    found = network_policies(NASExperiment.model_validate(raw), settings(network_policies=True, **more))
    for policy in found:
        assert policy["metadata"]["ownerReferences"][0]["uid"] == UID
        assert policy["metadata"]["namespace"] == "lab"
        assert policy["spec"]["podSelector"]["matchLabels"][names.LABEL_EXPERIMENT_UID] == UID
        assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]
    return {policy["spec"]["podSelector"]["matchLabels"][names.LABEL_ROLE]: policy["spec"] for policy in found}


def excepted(spec: dict[str, Any]) -> set[str]:
    """Return what a pod does not reach."""
    (_, everything) = spec["egress"]
    return {network for peer in everything["to"] for network in peer.get("ipBlock", {}).get("except", ())}


def test_ranks_reach_each_other_and_metrics_are_there_for_all() -> None:
    found = policies(experiment(), controller_metrics_port=9090)
    assert set(found) == {"trainer", "controller", "follower"}
    (peer,) = found["trainer"]["ingress"][0]["from"]
    assert peer == {"podSelector": found["trainer"]["podSelector"]} and "ports" not in found["trainer"]["ingress"][0]
    assert found["controller"]["ingress"] == [{"ports": [{"protocol": "TCP", "port": 9090}]}]
    assert "ingress" not in found["follower"]
    assert "ingress" not in policies(experiment())["controller"]


def test_everything_is_reached_but_where_nodes_get_their_credentials() -> None:
    for spec in policies(experiment()).values():
        dns, everything = spec["egress"]
        assert {port["port"] for port in dns["ports"]} == {53} and "to" not in dns
        assert {"namespaceSelector": {}} in everything["to"] and "ports" not in everything
        assert {peer["ipBlock"]["cidr"] for peer in everything["to"] if "ipBlock" in peer} == {"0.0.0.0/0", "::/0"}
        assert excepted(spec) == METADATA


@pytest.mark.parametrize(
    ("s3", "open_to_roles"),
    [
        ({"credentialsSecret": None}, {"trainer", "controller", "follower"}),
        ({"credentialsSecret": None, "trainerCredentialsSecret": {"name": "t"}}, {"controller", "follower"}),
        ({"trainerCredentialsSecret": {"name": "t"}}, set[str]()),
    ],
    ids=["a role", "keys for trainers", "two keys"],
)
def test_a_pod_without_keys_reaches_its_nodes_role(s3: dict[str, Any], open_to_roles: set[str]) -> None:
    assert {role for role, spec in policies(experiment(**s3)).items() if not excepted(spec)} == open_to_roles


def test_policies_are_made_before_any_pod_and_only_where_they_are_asked_for() -> None:
    def access(**more: Any) -> EnsureAccess:
        done = plan(Observed(raw=experiment()), NOW, settings(**more))
        assert isinstance(done.actions[0], EnsureAccess)
        return done.actions[0]

    assert len(access(network_policies=True).network_policies) == 3
    assert access().network_policies == ()


def reason(done: Plan, kind: str = "Progressing") -> tuple[str, str]:
    found = next(item for item in done.status["conditions"] if item["type"] == kind)
    return found["reason"], found["message"]


@pytest.mark.parametrize(
    ("endpoint", "more", "words"),
    [
        ("http://s3.example", {"require_tls": True}, "takes https alone (storage.requireTls). Correct the endpoint"),
        ("http://169.254.169.254", {}, "allows none (storage.allowLinkLocal). Correct the endpoint"),
    ],
)
def test_an_endpoint_that_is_not_allowed_is_told_and_no_pod_is_made(
    endpoint: str, more: dict[str, Any], words: str
) -> None:
    done = plan(Observed(raw=experiment(endpoint=endpoint)), NOW, settings(**more))
    told, message = reason(done)
    assert told == "EndpointRefused" and message.startswith(f"spec.storage.s3.endpoint is {endpoint}")
    assert words in message
    assert not [action for action in done.actions if not isinstance(action, DeletePod)]
    allowed = plan(Observed(raw=experiment(endpoint=endpoint)), NOW, settings(allow_link_local=True))
    assert [action for action in allowed.actions if isinstance(action, CreatePod)]


@pytest.mark.parametrize(
    ("uri", "s3"), [("http://169.254.169.254", {}), ("http://m", {"endpoint": "http://[fe80::1]"})]
)
def test_a_tracker_that_is_not_allowed_gets_no_follower(uri: str, s3: dict[str, Any]) -> None:
    raw = experiment(**s3)
    raw["spec"]["tracking"] = {"mlflow": {"uri": uri}}
    done = plan(Observed(raw=raw), NOW, settings())
    assert reason(done, "Tracking")[0] == "EndpointRefused"
    assert not [action for action in done.actions if isinstance(action, EnsureFollower)]
