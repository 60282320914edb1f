"""``nas submit``: what a pipeline relies on, which is exit codes and one document, and what people read meanwhile."""

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from canned_api import failure, kubeconfig
from click.testing import CliRunner, Result
from cluster_fixtures import ControlPlane
from experiments import manifest

from nas_api.experiment import NASExperiment
from nas_api.spaces.convolutional import ConvolutionalArchitecture
from nas_cli import submit
from nas_cli.main import main
from nas_kube.resources import EXPERIMENTS

Document = dict[str, Any]
UID = "12345678-0000-0000-0000-000000000000"
COLLECTION = "/apis/nas-operator.io/v1alpha1/namespaces/default/nasexperiments"
SHORT = "3x3:6 7x1:12/1x2<0 5x3:36<0,1"
ARCHITECTURE = ConvolutionalArchitecture.parse_short(SHORT)
BEST = {
    "sample": 7,
    "reward": "0.9",
    "metric": "0.9876",
    "architecture": SHORT,
    "digest": ARCHITECTURE.digest,
    "uri": "s3://nas/nas/default/digits/1/best/architecture.json",
}
FINAL = {"trained": 2, "total": 2, "sample": 3, "bestMetric": "0.99", "testMetric": "0.985"}


def status(state: str, *, observed: int = 0, reason: str = "", message: str = "words", **more: Any) -> Document:
    """Return a status in a state, as the operator writes it."""
    kind = state if state in ("Complete", "Failed", "Suspended") else "Progressing"
    condition = {
        "type": kind,
        "status": "False" if state == "Waiting" else "True",
        "reason": reason or state,
        "message": message,
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    }
    samples = {"budget": 100, "running": 2, "observed": observed}
    return {"observedGeneration": 1, "state": state, "conditions": [condition], "samples": samples, **more}


def nas(*words: str | Path) -> Result:
    return CliRunner().invoke(main, ["submit", *map(str, words)], catch_exceptions=False)


class Api:
    """An API server with one experiment, whose statuses come one after the other as they are asked for."""

    def __init__(self) -> None:
        self.made: Document | None = None
        self.posted = 0
        self.follows: list[Document | tuple[int, str] | Callable[[], object]] = []
        """Statuses, refusals, or something to do before the next one; the last status stays."""
        self.status: Document = {"observedGeneration": -1}

    def post(self, body: Document) -> tuple[int, str]:
        self.posted += 1
        if self.made is not None:
            return failure(409, "AlreadyExists", "it exists")
        self.made = {**body, "metadata": {"namespace": "default", **body["metadata"], "uid": UID}}
        return 201, json.dumps(self.made)

    def get(self) -> tuple[int, str]:
        following = self.follows.pop(0) if self.follows else self.status
        if callable(following):
            following()
            return self.get()
        if isinstance(following, tuple):
            return following
        self.status = following
        if self.made is None:
            return failure(404, "NotFound", "not found")
        return 200, json.dumps({**self.made, "status": self.status})


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    """An API server with what a kubeconfig names, and no pause between two looks."""
    known = Api()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            listing = json.dumps({"kind": "List", "metadata": {"resourceVersion": "1"}, "items": []})
            self.answer(*(known.get() if self.path == f"{COLLECTION}/digits" else (200, listing)))

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self.answer(*(known.post(body) if self.path.startswith(COLLECTION) else NO_NAMESPACE))

        def answer(self, code: int, body: str) -> None:
            if code == 0:
                # The connection breaks.
                return
            self.send_response(code)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            # An interrupted command does not wait for its answer.
            with suppress(BrokenPipeError):
                self.wfile.write(body.encode())

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig(tmp_path / "config", f"http://127.0.0.1:{server.server_port}")))
    monkeypatch.setattr(submit, "_POLL_SECONDS", 0.001)
    yield known
    server.shutdown()
    thread.join()
    server.server_close()


NO_NAMESPACE = failure(404, "NotFound", 'namespaces "other" not found')


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A manifest."""
    return write(tmp_path / "digits.yaml", manifest())


def write(path: Path, *documents: Document) -> Path:
    for document in documents:
        if document["metadata"].get("namespace") == "default":
            del document["metadata"]["namespace"]
    path.write_text(yaml.safe_dump_all(documents))
    return path


# ---------------------------------------------------------------- outcomes


def test_it_is_made_and_no_more(api: Api, file: Path) -> None:
    done = nas(file, "-o", "json")
    assert (done.exit_code, done.stderr) == (0, "digits: created in namespace default\n")
    assert json.loads(done.stdout) == {
        "name": "digits",
        "namespace": "default",
        "uid": UID,
        **dict.fromkeys(("outcome", "reason", "message", "best", "final", "modelUri")),
    }
    assert api.made is not None and api.made["spec"] == manifest()["spec"], "as it is written, without defaults"
    assert nas(file).stdout == "digits: not over yet\n"


def test_it_is_followed_to_its_end_through_trouble_of_the_cluster_s(api: Api, file: Path) -> None:
    searching = status("Searching", observed=40, best=BEST)
    api.follows = [
        {"observedGeneration": -1},
        status("Waiting", reason="BucketUnavailable", message="put it\x1b[2J there"),
        searching,
        searching,
        (0, ""),
        (0, ""),
        failure(500, "InternalError", "etcdserver: leader changed"),
        failure(403, "Forbidden", "not yet"),
        searching,
        status("Complete", reason="BudgetSpent", message="100 samples", observed=100, best=BEST, final=FINAL),
    ]
    done = nas(file, "--wait", "-o", "json")
    assert done.exit_code == 0, done.output
    created, unseen, waiting, progress, *trouble, again, end = done.stderr.splitlines()
    assert created == "digits: created in namespace default"
    assert "has not seen it yet" in unseen
    assert waiting == "digits: Waiting (BucketUnavailable): put it there"
    assert progress == again == "digits: Searching, 40/100 samples, 2 running, best accuracy 0.9876 (sample 7)"
    # Once for each kind, whatever the words.
    assert [line.rpartition("; ")[2] for line in trouble] == ["trying again", "trying again for 5 min 00 s"]
    assert "does not answer" in trouble[0] and "not yet: ask for the permission" in trouble[1]
    assert end == "digits: Complete (BudgetSpent): 100 samples"
    assert done.stdout.count("\n") == 1
    assert json.loads(done.stdout) == {
        "name": "digits",
        "namespace": "default",
        "uid": UID,
        "outcome": "Complete",
        "reason": "BudgetSpent",
        "message": "100 samples",
        "best": {
            "sample": 7,
            "metricName": "accuracy",
            "metric": 0.9876,
            "reward": 0.9,
            "digest": ARCHITECTURE.digest,
            "uri": BEST["uri"],
            "architecture": ARCHITECTURE.document(),
        },
        "final": {"sample": 3, "validationMetric": 0.99, "testMetric": 0.985},
        "modelUri": "s3://nas/nas/default/digits/1/best/",
    }


def test_people_read_the_same(api: Api, file: Path) -> None:
    api.follows = [status("Complete", message="100 samples", best=BEST, final=FINAL)]
    assert nas(file, "--wait").stdout.splitlines() == [
        "digits: Complete: 100 samples",
        "  best accuracy 0.9876 (sample 7)",
        f"  {BEST['uri']}",
        "  final training 2/2 trained, the best with accuracy 0.9900 (sample 3 of the search), 0.9850 on the test set",
        "  model in s3://nas/nas/default/digits/1/best/",
    ]


@pytest.mark.parametrize(
    ("spec", "final"),
    [
        ({}, None),
        ({}, {"trained": 0, "lost": 2, "total": 2}),
        ({"trainer": {"dataset": {"custom": {}}, "template": {"spec": {"containers": [{"name": "trainer"}]}}}}, FINAL),
    ],
    ids=["no final training", "all lost", "a user's own trainer"],
)
def test_without_a_trained_network_there_is_no_model(
    api: Api, tmp_path: Path, spec: Document, final: Document | None
) -> None:
    api.follows = [status("Complete", best=BEST) | ({} if final is None else {"final": final})]
    done = nas(write(tmp_path / "file.yaml", manifest(**spec)), "--wait", "-o", "json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["modelUri"] is None


def test_a_failed_search_is_exit_code_1(api: Api, file: Path) -> None:
    api.follows = [status("Failed", reason="TooManyFailures", message="12 children failed")]
    done = nas(file, "--wait", "-o", "json")
    assert done.exit_code == 1
    document = json.loads(done.stdout)
    assert (document["outcome"], document["reason"]) == ("Failed", "TooManyFailures")
    assert "Failed (TooManyFailures): 12 children failed" in done.stderr


def test_a_timeout_is_exit_code_3(api: Api, file: Path) -> None:
    api.status = status("Searching", observed=3)
    done = nas(file, "--wait", "--timeout", "1s", "-o", "json")
    assert done.exit_code == 3
    assert json.loads(done.stdout)["outcome"] is None
    *_, last = done.stderr.splitlines()
    assert last.startswith("Not over after 1.0 s. `nas status digits -n default` shows how digits goes on")


@pytest.fixture
def heard() -> Iterator[None]:
    """Hear Ctrl-C also where the tests were started behind a shell's ``&``, which has it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heard")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_is_exit_code_130(api: Api, file: Path, number: signal.Signals) -> None:
    before = signal.getsignal(signal.SIGTERM)
    api.status = status("Searching")
    api.follows = [lambda: os.kill(os.getpid(), number)]
    done = nas(file, "--wait")
    assert (done.exit_code, done.stdout) == (130, "")
    assert "Interrupted. `nas status digits -n default` shows" in done.stderr and "Traceback" not in done.stderr
    assert signal.getsignal(signal.SIGTERM) == before


def test_several_experiments_are_waited_for_together(api: Api, tmp_path: Path) -> None:
    other = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x"}}
    api.status = status("Complete")
    done = nas(write(tmp_path / "two.yaml", other, manifest(), manifest()), "--wait", "-o", "json")
    assert done.exit_code == 0, done.output
    assert [json.loads(line)["outcome"] for line in done.stdout.splitlines()] == ["Complete", "Complete"]
    assert "ConfigMap/x is of another kind: skipped" in done.stderr


# ---------------------------------------------------------------- one that is there


def test_one_with_the_same_spec_is_taken_as_it_is(api: Api, file: Path) -> None:
    api.made = manifest()
    # As the API server fills in what is left out.
    spec = NASExperiment.model_validate(api.made).spec
    api.made |= {"spec": spec.model_dump(mode="json", by_alias=True, exclude_none=True)}
    api.made["metadata"]["uid"] = UID
    api.status = status("Complete", best=BEST)
    done = nas(file, "--wait", "-o", "json")
    assert done.exit_code == 0, done.output
    assert done.stderr == "digits: there is one with this spec already in namespace default\n"
    assert json.loads(done.stdout)["outcome"] == "Complete"


def test_one_with_another_spec_is_refused(api: Api, file: Path) -> None:
    api.made = manifest(budget={"samples": 3}, parallelism=7)
    done = nas(file, "--wait")
    assert (done.exit_code, done.stdout) == (1, "")
    assert "spec.budget.samples is 3 there, 100 here" in done.stderr
    assert "kubectl delete nas digits" in done.stderr and done.stderr.count("\n") == 1


def test_one_that_is_being_deleted_is_refused(api: Api, file: Path) -> None:
    api.made = manifest()
    api.made["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    done = nas(file, "--wait")
    assert done.exit_code == 1 and "is being deleted: run the command again once it is gone" in done.stderr


def test_one_that_is_deleted_meanwhile_is_told(api: Api, file: Path) -> None:
    def replace() -> None:
        assert api.made is not None
        api.made = {**api.made, "metadata": {**api.made["metadata"], "uid": "another"}}

    api.follows = [status("Searching"), failure(404, "NotFound", "gone")]
    done = nas(file, "--wait")
    assert done.exit_code == 1 and "Error: digits was deleted before its end\n" in done.stderr
    api.made, api.follows = None, [status("Searching"), replace]
    done = nas(file, "--wait")
    assert done.exit_code == 1 and "and there is another of that name" in done.stderr


# ---------------------------------------------------------------- refusals


def test_a_lasting_refusal_ends_the_wait(api: Api, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submit, "_REFUSED_SECONDS", 0.0)
    api.follows = [status("Searching"), failure(401, "Unauthorized", "Unauthorized")]
    done = nas(file, "--wait")
    assert done.exit_code == 1
    assert "Error: you may not do this: Unauthorized" in done.stderr and "nas status digits" in done.stderr


def test_nothing_is_made_of_a_manifest_with_faults(api: Api, tmp_path: Path) -> None:
    broken = write(tmp_path / "broken.yaml", manifest(), manifest(parallelism=0))
    done = nas(broken, "--wait")
    assert done.exit_code == 1 and "spec.parallelism" in done.stderr and f"{broken}:" in done.stderr
    assert api.posted == 0
    assert "cannot be read" in nas(tmp_path / "none.yaml").stderr
    (tmp_path / "empty.yaml").write_text("")
    assert "holds no NASExperiment" in nas(tmp_path / "empty.yaml").stderr


def test_a_namespace_is_the_manifest_s_or_the_option_s(api: Api, file: Path, tmp_path: Path) -> None:
    done = nas(file, "-n", "other")
    assert done.exit_code == 1 and "there is no namespace other: make it" in done.stderr
    own = write(tmp_path / "own.yaml", manifest(namespace="other"))
    done = nas(own, "-n", "default")
    assert done.exit_code == 1 and "NASExperiment/digits is for namespace other" in done.stderr
    assert "there is no namespace other" in nas(own).stderr


@pytest.mark.parametrize("words", [["--timeout", "1h"], ["--wait", "--timeout", "soon"], ["-o", "yaml"]])
def test_a_wrong_command_line_is_exit_code_2(file: Path, words: list[str]) -> None:
    assert nas(file, *words).exit_code == 2


# ---------------------------------------------------------------- a real API server


@pytest.mark.cluster
def test_a_real_api_server(
    control_plane: ControlPlane, namespace: str, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(control_plane.kubeconfig))
    monkeypatch.setattr(submit, "_POLL_SECONDS", 0.05)
    assert nas(file, "-n", namespace).exit_code == 0
    assert "there is one with this spec already" in nas(file, "-n", namespace).stderr

    def end() -> None:
        for written in (status("Searching", best=BEST), status("Complete", best=BEST, final=FINAL)):
            time.sleep(0.5)
            client.patch(EXPERIMENTS, namespace, "digits", {"status": written}, subresource="status")

    client, thread = control_plane.client, threading.Thread(target=end)
    thread.start()
    done = nas(file, "-n", namespace, "--wait", "--timeout", "5m", "-o", "json")
    thread.join()
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert document["uid"] == client.get(EXPERIMENTS, namespace, "digits")["metadata"]["uid"]
    assert document["modelUri"] == "s3://nas/nas/default/digits/1/best/"
    client.patch(EXPERIMENTS, namespace, "digits", {"spec": {"parallelism": 9}})
    refused = nas(file, "-n", namespace, "--wait")
    assert refused.exit_code == 1 and "spec.parallelism is 9 there" in refused.stderr
    assert "there is no namespace never-made" in nas(file, "-n", "never-made").stderr
