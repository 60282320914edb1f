"""Commands against a cluster: what they show, and one line with the cure for everything that may be missing."""

import json
from pathlib import Path
from typing import Any

import pytest
from canned_api import Answer, failure, kubeconfig
from click.testing import CliRunner, Result
from cluster_fixtures import ControlPlane
from experiments import manifest

from nas_api import names
from nas_api.source import network_source
from nas_api.spaces.convolutional import ConvolutionalArchitecture
from nas_cli.cluster import readable
from nas_cli.main import main
from nas_kube.resources import EXPERIMENTS

ARCHITECTURE = "3x3:6 7x1:12/1x2<0 5x3:36<0,1"
STATUS: dict[str, Any] = {
    "observedGeneration": 1,
    "state": "Searching",
    "conditions": [
        {
            "type": "Progressing",
            "status": "True",
            "reason": "Searching",
            "message": "Children are being trained.",
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        }
    ],
    "controller": {"pod": "digits-12345678-controller-1"},
    "epoch": 1,
    "samples": {"budget": 100, "proposed": 42, "running": 2, "observed": 39, "lost": 1},
    "progress": "40/100",
    "best": {
        "sample": 7,
        "reward": "0.9",
        "metric": "0.9876",
        "architecture": ARCHITECTURE,
        "digest": ConvolutionalArchitecture.parse_short(ARCHITECTURE).digest,
        "uri": "s3://nas/best/architecture.json",
    },
    "policy": {"updates": 9, "meanReward": "0.88", "firstMeanReward": "0.8"},
}
UID = "12345678-0000-4000-8000-000000000000"
EXPERIMENT = {**manifest(), "status": STATUS}
EXPERIMENT["metadata"] |= {"uid": UID}
PATH = "/apis/nas-operator.io/v1alpha1/namespaces/default/nasexperiments/digits"
LOG = "/api/v1/namespaces/default/pods/digits-12345678-controller-1/log"


def nas(*words: str) -> Result:
    return CliRunner().invoke(main, list(words), catch_exceptions=False)


def refusal(*words: str) -> str:
    """Return what a command refuses with: one line, and exit code 1."""
    outcome = nas(*words)
    assert outcome.exit_code == 1, outcome.output
    assert outcome.stderr.startswith("Error: ")
    assert outcome.stderr.count("\n") == 1
    return outcome.stderr


# ---------------------------------------------------------------- what is shown


def test_status_tells_the_story(answer: Answer) -> None:
    answer({PATH: (200, json.dumps(EXPERIMENT))})
    shown = nas("status", "digits").stdout
    for words in ("Searching", "40/100", "2 running, 1 lost", "accuracy 0.9876 (sample 7)", ARCHITECTURE, "(+10 %)"):
        assert words in shown


def test_a_problem_is_shown(answer: Answer) -> None:
    problem = {"reason": "DatasetUnavailable", "message": "put it there"}
    answer({PATH: (200, json.dumps({**EXPERIMENT, "status": {**STATUS, "problem": problem}}))})
    assert "waiting: DatasetUnavailable: put it there" in nas("status", "digits").stdout


@pytest.mark.parametrize("status", [{}, {"status": {"observedGeneration": -1}}], ids=["none", "the CRD's default"])
def test_an_experiment_that_nobody_has_seen(answer: Answer, status: dict[str, Any]) -> None:
    answer({PATH: (200, json.dumps({**manifest(), **status}))})
    assert "is it running?" in nas("status", "digits").stdout
    assert "no sample of digits has a result yet" in refusal("best", "digits")
    assert "no controller pod yet" in refusal("logs", "digits")


def test_best_is_a_table_or_code_alone(answer: Answer) -> None:
    answer({PATH: (200, json.dumps(EXPERIMENT))})
    table = nas("best", "digits").stdout
    assert "accuracy 0.9876 (sample 7)" in table
    assert [line.split()[-1] for line in table.splitlines() if line.strip()[:1].isdigit()] == ["2", "2", "classifier"]
    assert nas("best", "digits", "--code").stdout == network_source(
        ConvolutionalArchitecture.parse_short(ARCHITECTURE), in_channels=1
    )


def test_the_final_training_is_told_beside_the_best_of_the_search(answer: Answer) -> None:
    answer({PATH: (200, json.dumps(EXPERIMENT))})
    assert json.loads(nas("best", "digits", "-o", "json").stdout)["final"] is None
    final = {"trained": 5, "lost": 1, "total": 6, "sample": 3, "bestMetric": "0.99", "testMetric": "0.985"}
    answer({PATH: (200, json.dumps({**EXPERIMENT, "status": {**STATUS, "final": final}}))})
    document = json.loads(nas("best", "digits", "-o", "json").stdout)
    assert document["sample"] == 7
    assert document["final"] == {"sample": 3, "validationMetric": 0.99, "testMetric": 0.985}
    words = "6/6 trained, the best with accuracy 0.9900 (sample 3 of the search), 0.9850 on the test set"
    assert words in " ".join(nas("status", "digits").stdout.split())
    shown = nas("best", "digits").stdout
    assert words in shown and "It prefers sample 3, whose network `nas export digits` hands over" in shown


def test_a_status_of_a_newer_operator_is_readable(answer: Answer) -> None:
    answer({PATH: (200, json.dumps({**EXPERIMENT, "status": {**STATUS, "novelty": 1}}))})
    assert "40/100" in nas("status", "digits").stdout


def test_an_architecture_that_was_cut_is_told(answer: Answer) -> None:
    best = {**STATUS["best"], "architecture": ARCHITECTURE[:-4]}
    answer({PATH: (200, json.dumps({**EXPERIMENT, "status": {**STATUS, "best": best}}))})
    assert "read s3://nas/best/architecture.json" in refusal("best", "digits")


def test_logs_are_printed_as_they_are(answer: Answer) -> None:
    lines = '{"event": "search begins", "level": "info"}\nplain\n'
    answer({PATH: (200, json.dumps(EXPERIMENT)), LOG: (200, lines)})
    assert nas("logs", "digits", "-f").stdout == lines


def test_the_log_of_a_sample_is_that_of_its_newest_pod(answer: Answer) -> None:
    def pod(launch: int, samples: str, number: int | None = None) -> dict[str, Any]:
        labels, annotations = {"nas-operator.io/launch": str(launch)}, {"nas-operator.io/samples": samples}
        if number is not None:
            labels["batch.kubernetes.io/job-completion-index"] = str(number)
        name = f"pod-{launch}{'-other' if number else ''}"
        job = {"kind": "Job", "name": names.child_job("digits", UID, launch), "controller": True}
        return {"metadata": {"name": name, "labels": labels, "annotations": annotations, "ownerReferences": [job]}}

    def foreign(launch: str, **owner: Any) -> dict[str, Any]:
        found = pod(99, "12")
        found["metadata"]["labels"]["nas-operator.io/launch"] = launch
        found["metadata"] |= {"ownerReferences": [owner] if owner else []}
        return found

    # 12 was in a pod with others, then alone; 1 is in none, though its digit is.
    pods = {
        "kind": "PodList",
        "metadata": {"resourceVersion": "1"},
        "items": [
            pod(10, "12"),
            pod(9, "11,12,13"),
            {"metadata": {"name": "x"}},
            # Anybody who may create pods can give them these labels.
            foreign("99"),
            foreign("9²"),
            foreign("99", kind="Job", name="another-99", controller=True),
            # One child of two pods, of which the first one speaks.
            pod(11, "14", 1),
            pod(11, "14", 0),
        ],
    }
    folder = "/api/v1/namespaces/default/pods"
    answer({PATH: (200, json.dumps(EXPERIMENT)), folder: (200, json.dumps(pods))})
    answer({f"{folder}/pod-{launch}/log": (200, f"launch {launch}\n") for launch in (9, 10, 11)})
    assert nas("logs", "digits", "--sample", "12").stdout == "launch 10\n"
    assert nas("logs", "digits", "--sample", "13").stdout == "launch 9\n"
    assert nas("logs", "digits", "--sample", "14").stdout == "launch 11\n"
    assert "there is no pod of sample 1:" in refusal("logs", "digits", "--sample", "1")


def test_log_lines_are_readable_for_people() -> None:
    line = '{"event": "sample done", "level": "info", "timestamp": "2026-01-01T00:00:00Z", "sample": 3}'
    assert readable(line).startswith("2026-01-01T00:00:00Z [info")
    assert "sample done" in readable(line) and "sample=3" in readable(line)
    assert readable("plain {") == "plain {"
    assert readable("[1]") == "[1]"
    assert readable("\x1b[2Jplain") == "plain"
    assert readable('["\x1b[2J"]') == '[""]'
    assert "\x1b[2J" not in readable('{"event": "\\u001b[2Jdone", "words": "\\u001b[2J", "list": ["\\u001b[2J"]}')


# ---------------------------------------------------------------- what may be missing


def test_without_our_resource(answer: Answer) -> None:
    answer({})
    for command in ("status", "best", "logs"):
        assert "this cluster does not know NASExperiment: install the operator's chart" in refusal(command, "digits")


def test_without_permission(answer: Answer) -> None:
    answer({PATH: failure(403, "Forbidden", 'User "me" cannot get resource "nasexperiments"')})
    assert 'User "me" cannot get resource' in refusal("status", "digits")


def test_a_log_that_is_gone_or_not_there_yet(answer: Answer) -> None:
    answer({PATH: (200, json.dumps(EXPERIMENT)), LOG: failure(404, "NotFound", "pods not found")})
    assert "is gone" in refusal("logs", "digits")
    answer({LOG: failure(400, "BadRequest", 'container "controller" is waiting to start: ContainerCreating')})
    assert "no log yet: container" in refusal("logs", "digits")


def test_without_a_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    assert "set KUBECONFIG" in refusal("status", "digits")
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig(tmp_path / "config", "http://127.0.0.1:9")))
    assert "the cluster does not answer" in refusal("status", "digits")


def test_a_local_run_of_that_name_is_hinted_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nas-runs" / "digits").mkdir(parents=True)
    (tmp_path / "nas-runs" / "digits" / "experiment.json").write_text("{}")
    for command in ("status", "best", "samples", "logs", "report"):
        assert "give its folder, nas-runs/digits" in refusal(command, "digits")


@pytest.mark.cluster
def test_a_real_api_server(control_plane: ControlPlane, namespace: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(control_plane.kubeconfig))
    assert "there is none" in refusal("status", "never-made", "-n", namespace)
    control_plane.client.create(EXPERIMENTS, namespace, manifest(namespace))
    control_plane.client.patch(EXPERIMENTS, namespace, "digits", {"status": STATUS}, subresource="status")
    assert "40/100" in nas("status", "digits", "-n", namespace).stdout
    assert nas("best", "digits", "-n", namespace, "--code").stdout.startswith(f'"""{ARCHITECTURE}"""')
    assert "did you mean digits?" in refusal("status", "digit", "-n", namespace)
    assert f"-n {namespace}" in refusal("status", "digits", "-n", "kube-system")
    assert "is gone" in refusal("logs", "digits", "-n", namespace)
