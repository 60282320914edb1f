"""MLflow's follower against the real server: whatever is killed, each sample has one run; and the model predicts.

No cluster: server and followers are processes, and the store is a folder. The server keeps everything in SQLite.
"""

import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import onnxruntime
import pytest
import yaml
from click.testing import CliRunner
from experiments import manifest
from hack.cluster.network import choose_ports
from mlflow import MlflowClient
from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException
from patience import HANG_SECONDS, eventually
from report import logs

from nas_api import names
from nas_api.child import StoreLocation
from nas_api.experiment import MlflowSpec
from nas_api.follower import FollowerInput
from nas_cli.main import main
from nas_followers import mlflow_runs
from nas_log.follower import Follower
from nas_log.log import Log
from nas_log.records import Lost, Observed
from nas_store.folder import FolderStore

pytestmark = [pytest.mark.platform, pytest.mark.slow]

Document = dict[str, Any]
LOAD = """
import json, sys
import mlflow.pyfunc
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model("models:/digits/1")
example = model.input_example
given = model.predict(example)
print(json.dumps({
    "pixels": example["pixels"].tolist(),
    "logits": given["logits"].tolist(),
    "signature": model.metadata.signature.to_dict(),
}))
"""


class Server:
    """MLflow's server, which may be killed and started again with all that it knew."""

    def __init__(self, python: Path, folder: Path) -> None:
        self._python, self._folder = python, folder
        self._port = choose_ports(["mlflow"], ())["mlflow"]
        self.uri = f"http://127.0.0.1:{self._port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        words = ["-m", "mlflow", "server", "--host=127.0.0.1", f"--port={self._port}", "--workers=1"]
        words += [f"--backend-store-uri=sqlite:///{self._folder / 'mlflow.db'}"]
        words += [f"--artifacts-destination={self._folder / 'artifacts'}"]
        more = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        with (self._folder / "server.log").open("ab") as log:
            # A session of its own: the server is several processes.
            self._process = subprocess.Popen(
                [str(self._python), *words], env={**os.environ, **more}, stdout=log, stderr=log, start_new_session=True
            )
        eventually(self._answers, message=lambda: (self._folder / "server.log").read_text()[-2000:])

    def kill(self) -> None:
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=HANG_SECONDS) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, ConnectionError):
            return False

    def ask(self, path: str, body: Document | None = None) -> Any:
        """Return the answer of its API, to a document if there is one."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            f"{self.uri}/api/2.0/mlflow/{path}", data, {"content-type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=HANG_SECONDS) as answer:
            return json.load(answer)

    def runs(self, experiment: str = "digits") -> list[Document]:
        """Return the runs that are not deleted."""
        try:
            found = self.ask(f"experiments/get-by-name?experiment_name={experiment}")["experiment"]["experiment_id"]
        except urllib.error.HTTPError as error:
            assert error.code == 404
            return []
        runs: list[Document] = []
        token = ""
        while True:
            page = self.ask("runs/search", {"experiment_ids": [found], "max_results": 500, "page_token": token})
            runs += page.get("runs", [])
            token = page.get("next_page_token", "")
            if not token:
                return runs


@pytest.fixture
def server(mlflow_python: Path, tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "server").mkdir()
    it = Server(mlflow_python, tmp_path / "server")
    it.start()
    yield it
    it.kill()


def tags(run: Document) -> dict[str, str]:
    return {item["key"]: item["value"] for item in run["data"].get("tags", ())}


class Followers:
    """Processes that follow one folder, each started as a pod's container would be."""

    def __init__(self, uri: str, folder: Path) -> None:
        self.folder = folder
        asked = FollowerInput(
            experiment="digits",
            namespace="team",
            uid="u-1",
            store=StoreLocation(folder=str(folder)),
            mlflow=MlflowSpec(uri=uri),
        )
        self._environment = {**os.environ, names.ENV_FOLLOWER_INPUT: asked.model_dump_json(by_alias=True)}
        self._all: list[subprocess.Popen[str]] = []

    def start(self) -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            [sys.executable, "-m", "nas_followers"],
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._all.append(process)
        return process

    def until_done(self) -> None:
        """Play the kubelet of one pod: start it again as often as it fails."""
        for _ in range(20):
            process = self.start()
            said, _ = process.communicate(timeout=2 * HANG_SECONDS)
            if process.returncode == 0:
                return
        pytest.fail(said)

    def end(self) -> None:
        for process in self._all:
            if process.poll() is None:
                process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()


def check(server: Server, store: FolderStore) -> None:
    """None double, none missing, each whole and below the one parent."""
    log = Follower(store)
    samples = {each.number: each for each in log.read()}
    facts = log.facts
    assert facts is not None
    runs = server.runs()
    (parent,) = [run for run in runs if mlflow_runs.SAMPLE not in tags(run)]
    assert parent["info"]["status"] == "FINISHED" and tags(parent)["nas.outcome"] == "SamplesSpent"
    children = [run for run in runs if mlflow_runs.SAMPLE in tags(run)]
    assert sorted(int(tags(run)[mlflow_runs.SAMPLE]) for run in children) == sorted(samples)
    for run in children:
        sample = samples[int(tags(run)[mlflow_runs.SAMPLE])]
        wanted = mlflow_runs.sample_run(facts, sample, (), "u-1")
        ours = {**wanted.tags, mlflow_runs.PARENT: parent["info"]["run_id"]}
        assert tags(run) == {**tags(run), **ours}
        assert {item["key"]: item["value"] for item in run["data"].get("params", ())} == wanted.parameters
        metrics = {item["key"]: item["value"] for item in run["data"].get("metrics", ())}
        assert metrics == pytest.approx({each.key: each.value for each in wanted.metrics})
        info = run["info"]
        assert (info["status"], info["start_time"], info["end_time"]) == (wanted.status, wanted.begin, wanted.end)
    query = f"metrics/get-history?run_id={parent['info']['run_id']}&metric_key=reward"
    course = [each.step for each in mlflow_runs.course(facts, tuple(samples.values())) if each.key == "reward"]
    assert sorted(int(each.get("step", 0)) for each in server.ask(query)["metrics"]) == sorted(course)


def test_whatever_is_killed_none_is_double_and_none_missing(server: Server, tmp_path: Path) -> None:
    """The log grows in parts, so that there is something to do when something is done to those who do it."""
    store = FolderStore(tmp_path / "store")
    objects = [*logs.records(logs.CONVOLUTIONAL, 60, control="0.2", losses=0.05, final={"top": 2, "epochs": 3})]
    parts = [objects[: len(objects) // 4], objects[len(objects) // 4 : len(objects) // 2]]
    parts += [objects[len(objects) // 2 : 3 * len(objects) // 4], objects[3 * len(objects) // 4 :]]
    log, ended = Log(store), 0

    def grow() -> int:
        """Add a part; return a number of runs that is reached in the midst of it."""
        nonlocal ended
        before = ended
        for each in parts.pop(0):
            log.append(each)
            ended += sum(isinstance(record, Observed | Lost) for record in each)
        return 1 + before + (ended - before) // 3

    def until_there_are(runs: int) -> None:
        eventually(lambda: len(server.runs()) >= runs, message=lambda: f"{len(server.runs())} of {runs} runs")

    followers = Followers(server.uri, tmp_path / "store")
    try:
        first = followers.start()
        until_there_are(grow())
        first.kill()
        # Two at once; the later one works, and then its server is away.
        pair = [followers.start(), followers.start()]
        until_there_are(grow())
        server.kill()
        midst = grow()
        eventually(lambda: any(process.poll() is not None for process in pair), message="no follower gives up")
        server.start()
        # One hangs in the midst of its work, and wakes when another one has taken over.
        hung = followers.start()
        until_there_are(midst)
        hung.send_signal(signal.SIGSTOP)
        third = followers.start()
        until_there_are(grow())
        hung.send_signal(signal.SIGCONT)
        for process in (third, hung, *pair):
            said, _ = process.communicate(timeout=3 * HANG_SECONDS)
            away = process in pair and f"MLflow at {server.uri} does not answer" in said
            assert process.returncode == (1 if away else 0), said
        assert any(process.returncode == 1 for process in pair)
    finally:
        followers.end()
    check(server, store)


def test_the_registered_model_predicts(server: Server, mlflow_python: Path, tmp_path: Path) -> None:
    space = {"layers": {"initial": 2}, "filterHeights": [1, 3], "filterWidths": [1, 3], "filters": [4, 8]}
    document = manifest(
        searchSpace={"convolutional": space},
        budget={"samples": 3},
        trainer={"dataset": {"digits": {"trainingImages": 100}}, "epochs": 3, "rewardEpochs": 1, "batchSize": 50},
        finalTraining={"top": 1, "epochs": 1, "grid": {"learningRate": ["0.1"]}},
    )
    (tmp_path / "digits.yaml").write_text(yaml.safe_dump(document))
    words = ["run", str(tmp_path / "digits.yaml"), "--folder", str(tmp_path / "run")]
    outcome = CliRunner().invoke(main, words, catch_exceptions=False)
    assert outcome.exit_code == 0, outcome.output
    followers = Followers(server.uri, tmp_path / "run")
    try:
        followers.until_done()
        # Again, as when its Job is made anew: nothing is registered twice.
        followers.until_done()
    finally:
        followers.end()
    (parent,) = [run for run in server.runs() if mlflow_runs.SAMPLE not in tags(run)]
    (version,) = server.ask("model-versions/search?filter=name%3D%27digits%27")["model_versions"]
    assert version["run_id"] == parent["info"]["run_id"] and version["version"] == "1"
    files = server.ask(f"artifacts/list?run_id={parent['info']['run_id']}&path=model")["files"]
    assert {"model/MLmodel", "model/model.onnx", "model/architecture.html"} <= {each["path"] for each in files}
    curve = next(run for run in server.runs() if run["info"]["run_name"] == "sample 0")
    query = f"metrics/get-history?run_id={curve['info']['run_id']}&metric_key=epochs/accuracy"
    assert [each["step"] for each in server.ask(query)["metrics"]] == [1, 2, 3]
    command = [str(mlflow_python), "-c", LOAD, server.uri]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    pixels = numpy.array(said["pixels"], numpy.float32)
    session = onnxruntime.InferenceSession(tmp_path / "run" / "best" / "network.onnx")
    numpy.testing.assert_allclose(said["logits"], session.run(None, {"pixels": pixels})[0], rtol=1e-4, atol=1e-5)
    (item,) = json.loads(said["signature"]["inputs"])
    assert item["tensor-spec"]["shape"] == [-1, 1, 8, 8]


def test_the_server_is_as_the_tests_without_one_take_it_to_be(server: Server) -> None:
    """What ``tests/followers/fake_mlflow.py`` says of it."""
    client = MlflowClient(server.uri, server.uri)
    experiment = client.create_experiment("fake")
    with pytest.raises(MlflowException, match="already exists") as exists:
        client.create_experiment("fake")
    assert exists.value.error_code == "RESOURCE_ALREADY_EXISTS"
    one, two = (client.create_run(experiment, 1, {"nas.uid": "u"}, "same").info.run_id for _ in range(2))
    assert one != two
    for _ in range(2):
        client.log_batch(one, metrics=[Metric("m", 0.5, 7, 3)], params=[Param("p", "a")])
    assert len(client.get_metric_history(one, "m")) == 1
    with pytest.raises(MlflowException):
        client.log_batch(one, params=[Param("p", "b")])
    client.set_terminated(one, "FINISHED", 9)
    # What has ended may be completed.
    client.log_batch(one, metrics=[Metric("m", 0.5, 7, 4)])
    client.set_tag(one, "t", "v")
    client.delete_run(two)
    client.delete_run(two)
    with pytest.raises(MlflowException):
        client.log_batch(two, params=[Param("p", "a")])
    client.create_registered_model("fake")
    with pytest.raises(MlflowException) as registered:
        client.create_registered_model("fake")
    assert registered.value.error_code == "RESOURCE_ALREADY_EXISTS"
