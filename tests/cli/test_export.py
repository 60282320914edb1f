"""``nas export``: a folder that needs nothing of ours, and a page in it that is run word for word."""

import hashlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy
import onnxruntime
import pytest
import torch
import yaml
from click.testing import CliRunner, Result
from experiments import manifest
from safetensors.torch import save

from nas_api import names
from nas_api.architecture import ARCHITECTURE, Architecture
from nas_api.child import FinalSettings, S3Location, StoreLocation
from nas_api.experiment import FinalTrainingSpec, NASExperiment, NASExperimentSpec, OptimizerSpec
from nas_api.handover import Preprocessing, Provenance
from nas_api.reasons import Reason
from nas_api.source import architecture_source
from nas_api.spaces.convolutional import ConvolutionalArchitecture
from nas_api.spaces.recurrent_cell import RecurrentCellArchitecture
from nas_cli.errors import Refusal
from nas_cli.local_status import read_run_status
from nas_cli.main import main
from nas_log.best import TRAINED
from nas_log.log import Log, read_objects
from nas_log.records import FinalProposed, FinalRun, Launched, Observed, Proposed, SearchEnded, Started
from nas_store import Store, open_store
from nas_trainer.images.export import onnx_model

NETWORK = ConvolutionalArchitecture.parse_short("*2 3x3:6 2x1:12/1x2p<0 5x3:8<0,1")
CELLS: dict[str, dict[str, Any]] = {
    "dense": {"stages": 2, "cellsPerStage": 1, "filters": 4},
    "pairs": {"wiring": "Pairs", "nodes": 2, "operations": ["skip", "sep_conv_3x3"], "stages": 2, "filters": 4},
}
UID = "12345678-0000-0000-0000-000000000000"


def nas(*words: str | Path) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words], catch_exceptions=False)


def run_folder(folder: Path, **spec: Any) -> Store:
    """Return the store of a local run's folder without a best network."""
    folder.mkdir()
    document = manifest(namespace="local", **spec)
    document["metadata"]["uid"] = UID
    (folder / "experiment.json").write_text(json.dumps(document))
    return open_store(StoreLocation(folder=str(folder)))


def leave_best(store: Store, architecture: Architecture, spec: NASExperimentSpec | None = None) -> str | None:
    """Leave what the controller writes, and return the module; ``spec`` is the store's manifest's if not given."""
    module = architecture_source(architecture, in_channels=1)
    store.put(names.BEST_ARCHITECTURE, architecture.canonical().encode())
    if spec is None:
        spec = NASExperiment.model_validate_json(store.get(names.RUN_MANIFEST) or b"").spec
    started = Started(
        epoch=1,
        moment=datetime(2026, 1, 1, tzinfo=UTC),
        search_space=spec.search_space,
        searcher=spec.searcher,
        objective=spec.objective,
    )
    Log(store).append(
        [
            started,
            Proposed(sample=0, architecture=architecture, log_probability=-1.0, version=0),
            Launched(launch=0, samples=(0,), attempt=1),
            Observed(sample=0, metrics={spec.objective.metric: 0.5}, reward=0.125),
        ]
    )
    return module


def leave_test(store: Store, architecture: Architecture, files: dict[str, str] | None) -> None:
    """Leave the log of a final training, whose test has left these files."""
    *_, last = read_objects(store)
    optimizer = OptimizerSpec()
    run = FinalRun(of=0, settings=FinalSettings(test=True), optimizer=optimizer, epochs=1)
    Log(store, last.sequence, last.digest).append(
        [
            SearchEnded(
                reason=Reason.SAMPLES_SPENT, message="", final_training=FinalTrainingSpec.model_validate(FINAL)
            ),
            FinalProposed(sample=1, architecture=architecture, run=run),
            Launched(launch=1, samples=(1,), attempt=1),
            Observed(sample=1, metrics={"accuracy": 0.5}, reward=0.125, files=files),
        ]
    )


def digests(store: Store) -> dict[str, str]:
    """Return what the controller finds of what a test has left."""
    found = {names.file(key): store.get(key) for _, key in TRAINED}
    return {name: hashlib.sha256(data).hexdigest() for name, data in found.items() if data is not None}


def leave_trained(store: Store, module: str, shape: tuple[int, int, int]) -> torch.nn.Module:
    """Leave what a final training on images does, and return the trained network; ``shape`` is one image's."""
    namespace: dict[str, Any] = {}
    exec(module, namespace)
    torch.manual_seed(0)
    network: torch.nn.Module = namespace["Network"]()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    network(torch.randn(64, *shape))
    channels, height, width = shape
    before = Preprocessing(
        channels=channels,
        height=height,
        width=width,
        brightest=16.0,
        mean=4.0,
        deviation=2.0,
        classes=tuple("abcdefghij"),
    )
    store.put(names.BEST_PREPROCESSING, before.model_dump_json(by_alias=True).encode())
    model, _ = onnx_model(network, before)
    store.put(names.BEST_ONNX, model)
    store.put(names.BEST_WEIGHTS, save({name: value.clone() for name, value in network.state_dict().items()}))
    leave_test(store, NETWORK, digests(store))
    return network


def run_page(folder: Path, tail: str) -> str:
    """Run all code of the folder's page, one block after the other, and return what it prints.

    In a process that sees nothing of ours: what is installed for development is not on its path.
    """
    blocks = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    assert blocks
    guard = "import sys\nsys.modules.update({name: None for name in ('nas_api', 'nas_trainer', 'nas_store')})\n"
    script = folder / "page.py"
    script.write_text(guard + "\nloaded = output\n".join(blocks) + tail)
    done = subprocess.run([sys.executable, str(script)], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_page_s_code_loads_the_weights(tmp_path: Path) -> None:
    store = run_folder(tmp_path / "run")
    module = leave_best(store, NETWORK)
    assert module is not None
    network = leave_trained(store, module, (1, 8, 8))
    outcome = nas("export", tmp_path / "run", "-o", tmp_path / "out")
    assert outcome.exit_code == 0, outcome.output
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        *("README.md", "architecture.json", "network.onnx", "network.py", "preprocessing.json", "weights.safetensors"),
    ]
    assert ARCHITECTURE.validate_json((tmp_path / "out" / "architecture.json").read_bytes()) == NETWORK
    label, printed = run_page(
        tmp_path / "out", "print([example.tolist(), loaded.tolist(), output.tolist()])"
    ).splitlines()
    example, loaded, by_onnx = (torch.tensor(each) for each in json.loads(printed))
    with torch.no_grad():
        expected = network((example - 4) / 2)
    assert label == "abcdefghij"[expected.argmax()]
    torch.testing.assert_close(loaded, expected)
    torch.testing.assert_close(by_onnx, expected, atol=1e-4, rtol=0)


def run_documented(name: str, folder: Path) -> float:
    """Run the code of docs/best-model.md under the heading in an exported folder, and return the figure it prints."""
    page = (Path(__file__).parents[2] / "docs" / "best-model.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page.split(f"## From raw {name} ")[1].split("\n## ")[0], re.DOTALL)
    assert "nas_" not in code and "torch" not in code
    (folder / "documented.py").write_text(code)
    done = subprocess.run([sys.executable, "documented.py"], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return float(done.stdout)


@pytest.mark.slow
def test_a_cell_that_was_found_is_shown_and_taken_into_a_larger_network(
    small: Callable[..., Path], tmp_path: Path
) -> None:
    found = {"searchSpace": {"convolutionalCell": CELLS["pairs"]}}
    run = nas("run", small(samples=3, **found), "--folder", tmp_path / "run")
    assert run.exit_code == 0, run.output
    assert "reduction" in nas("best", tmp_path / "run").output
    assert nas("samples", tmp_path / "run").output.count("pairs 2x5:4 |") == 3
    assert nas("report", tmp_path / "run", "-o", tmp_path / "report.html").exit_code == 0
    assert "reduction cell" in (tmp_path / "report.html").read_text()
    larger = {"searchSpace": {"fixed": {"experiment": "run", "cellsPerStage": 1, "filters": 6}}}
    run = nas("run", small("larger.yaml", samples=1, name="larger", **larger), "--folder", tmp_path / "larger")
    assert run.exit_code == 0, run.output
    assert nas("samples", tmp_path / "larger").output.count("pairs 2x1:6 |") == 1
    assert "ReductionCell(" in nas("best", tmp_path / "larger", "--code").output


def write_text(folder: Path) -> Path:
    """Write a small text in Penn Treebank's layout: the help that Python ships, with what its own words need."""
    lines = [line for topic in sorted(topics) for line in topics[topic].splitlines() if line.strip()]
    folder.mkdir()
    for part, chosen in {"train": lines[:1500], "valid": lines[1500:1600], "test": [*lines[1600:1700], "é ß"]}.items():
        (folder / f"ptb.{part}.txt").write_text("\n".join(chosen) + "\n", encoding="utf-8")
    return folder


FINAL: dict[str, Any] = {"top": 1, "epochs": 2, "grid": {"learningRate": ["0.1"]}}
TEXT: dict[str, Any] = {
    "searchSpace": {"recurrentCell": {"base": 2}},
    "objective": {"metric": "perplexity", "goal": "Minimize", "reward": {"inverseSquare": {}}},
    "trainer": {
        "dataset": {"text": {"vocabulary": 50}},
        "epochs": 1,
        "rewardEpochs": 1,
        "batchSize": 200,
        "language": {"layers": 2, "parameters": 4000, "steps": 20},
    },
}


def check_layouts(kserve: Path, mlflow: Path, *, onnx: Path) -> None:
    """Compare what two layouts say that a model takes and gives with what onnxruntime reads out of it."""
    session = onnxruntime.InferenceSession(onnx)
    sides = {"input": session.get_inputs(), "output": session.get_outputs()}
    # The batch has a name instead of a size.
    shapes = {
        side: [(each.name, [size if isinstance(size, int) else -1 for size in each.shape]) for each in tensors]
        for side, tensors in sides.items()
    }
    types = {"tensor(float)": ("TYPE_FP32", "float32"), "tensor(int64)": ("TYPE_INT64", "int64")}
    for model in (kserve / "1" / "model.onnx", mlflow / "model.onnx"):
        assert model.read_bytes() == onnx.read_bytes()

    config = (kserve / "config.pbtxt").read_text()
    assert f'name: "{kserve.name}"\nbackend: "onnxruntime"' in config
    signature = yaml.safe_load((mlflow / "MLmodel").read_text())["signature"]
    for side, tensors in sides.items():
        found = re.findall(rf'^{side} {{ name: "(\w+)" data_type: (\w+) dims: \[ (.*) \] }}$', config, re.MULTILINE)
        assert [(name, [int(size) for size in dims.split(", ")]) for name, _, dims in found] == shapes[side]
        assert [kind for _, kind, _ in found] == [types[each.type][0] for each in tensors]
        items = json.loads(signature[f"{side}s"])
        assert [(each["name"], each["tensor-spec"]["shape"]) for each in items] == shapes[side]
        assert [each["tensor-spec"]["dtype"] for each in items] == [types[each.type][1] for each in tensors]
    example = json.loads((mlflow / "input_example.json").read_text())
    assert {name: numpy.shape(values) for name, values in example.items()} == {
        name: tuple(1 if size == -1 else size for size in shape) for name, shape in shapes["input"]
    }
    before = "vocabulary.json" if (kserve / "vocabulary.json").exists() else "preprocessing.json"
    for folder in (kserve, mlflow):
        assert {before, "provenance.json"} < {path.name for path in folder.iterdir()}


@pytest.mark.slow
@pytest.mark.parametrize("data", ["pixels", *CELLS, "word", "character"])
def test_what_a_run_leaves_gives_its_figure_without_any_of_ours(
    small: Callable[..., Path], tmp_path: Path, data: str
) -> None:
    spec: dict[str, Any] = {"searchSpace": {"convolutionalCell": CELLS[data]}} if data in CELLS else {}
    reads_text = data in ("word", "character")
    if reads_text:
        text = {"vocabulary": 50, "level": data, "uri": str(write_text(tmp_path / "data"))}
        spec = {**TEXT, "trainer": {**TEXT["trainer"], "dataset": {"text": text}}}
    run = nas("run", small(samples=2, finalTraining=FINAL, **spec), "--folder", tmp_path / "run")
    assert run.exit_code == 0, run.output
    outcome = nas("export", tmp_path / "run", "-o", tmp_path / "out")
    assert outcome.exit_code == 0, outcome.output
    assert outcome.stderr == ""
    # A text's network answers all steps at once, and its ONNX model one after the other.
    last = "loaded = loaded[-1] if example.dtype == torch.int64 else loaded\n"
    for layout in ("kserve", "mlflow"):
        assert nas("export", tmp_path / "run", "-o", tmp_path / layout, "--format", layout).exit_code == 0
    check_layouts(tmp_path / "kserve" / "small", tmp_path / "mlflow", onnx=tmp_path / "out" / "network.onnx")
    *_, printed = run_page(tmp_path / "out", f"{last}print([loaded.tolist(), output.tolist()])").splitlines()
    loaded, by_onnx = (torch.tensor(each) for each in json.loads(printed))
    torch.testing.assert_close(by_onnx, loaded, atol=1e-4, rtol=0)

    provenance = Provenance.model_validate_json((tmp_path / "out" / "provenance.json").read_bytes())
    status = read_run_status(tmp_path / "run").status
    assert status.final is not None and status.final.sample == provenance.sample
    told = float(status.final.test_metric or "nan")
    assert provenance.test_metric == pytest.approx(told, rel=1e-5)
    if reads_text:
        shutil.copy(tmp_path / "data" / "ptb.test.txt", tmp_path / "out")
    assert run_documented("text" if reads_text else "pixels", tmp_path / "out") == pytest.approx(told, rel=1e-5)
    if data == "word":
        again = (
            "import json\nfrom network import *\nfrom safetensors.torch import load_file\n"
            "vocabulary = json.load(open('vocabulary.json', 'rb'))\n"
            "tokens = numbers(open('ptb.test.txt', encoding='utf-8').read(), vocabulary)\n"
            "print(perplexity(Network.of(load_file('weights.safetensors')), tokens, streams=200))"
        )
        done = subprocess.run([sys.executable, "-c", again], cwd=tmp_path / "out", capture_output=True, text=True)
        assert float(done.stdout) == pytest.approx(told, rel=1e-5), done.stderr


@pytest.mark.slow
def test_a_cell_s_page_builds_a_fresh_network(tmp_path: Path) -> None:
    cell = RecurrentCellArchitecture.parse_short("add/tanh elem_mult/relu elem_mult/sigmoid; inject add/relu at 0; c=1")
    leave_best(run_folder(tmp_path / "run", **TEXT), cell)
    assert nas("export", tmp_path / "run", "-o", tmp_path / "out").exit_code == 0
    assert run_page(tmp_path / "out", "print(tuple(output.shape))") == "(5, 1, 100)\n"


@pytest.mark.slow
def test_without_a_final_training_the_page_builds_a_fresh_network(tmp_path: Path) -> None:
    leave_best(run_folder(tmp_path / "run"), NETWORK)
    outcome = nas("export", tmp_path / "run", "-o", tmp_path / "deep" / "out")
    assert outcome.exit_code == 0
    assert "There are no weights yet" in outcome.stderr
    page = (tmp_path / "deep" / "out" / "README.md").read_text()
    assert "spec.finalTraining" in page
    assert "onnxruntime" not in page
    assert run_page(tmp_path / "deep" / "out", "print(tuple(output.shape))") == "(1, 10)\n"


def test_a_custom_architecture_is_handed_over_as_it_is(tmp_path: Path) -> None:
    architecture = ARCHITECTURE.validate_python({"space": "custom", "choices": {"op": "conv", "widths": [8, 16]}})
    widths = {"name": "widths", "range": {"from": 8, "to": 16, "step": 8}, "repeat": 2}
    store = run_folder(
        tmp_path / "run",
        searchSpace={"custom": {"decisions": [widths, {"name": "op", "options": ["conv"]}]}},
        trainer={"dataset": {"custom": {}}},
    )
    leave_best(store, architecture)
    outcome = nas("export", tmp_path / "run", "-o", tmp_path / "out")
    assert outcome.exit_code == 0
    assert outcome.stderr == "There are no weights: your own trainer keeps those.\n"
    page = (tmp_path / "out" / "README.md").read_text()
    assert "Only the trainer that trained it knows" in page
    assert "\n    widths=8,16 op=conv\n" in page, "in the manifest's order"
    assert not (tmp_path / "out" / "network.py").exists()


def test_nothing_of_an_earlier_export_stays(tmp_path: Path) -> None:
    store = run_folder(tmp_path / "run")
    leave_best(store, NETWORK)
    out = tmp_path / "out"
    out.mkdir()
    for name in ("weights.safetensors", "vocabulary.json", "mine.txt"):
        (out / name).write_text("of another network")
    assert nas("export", tmp_path / "run", "-o", out).exit_code == 0
    assert sorted(path.name for path in out.iterdir()) == ["README.md", "architecture.json", "mine.txt", "network.py"]


def test_files_of_two_networks_are_not_mixed(tmp_path: Path) -> None:
    store = run_folder(tmp_path / "run")
    leave_best(store, NETWORK)
    provenance = Provenance(
        experiment="digits",
        namespace="local",
        uid=UID,
        sample=3,
        digest="0" * 64,
        metric_name="accuracy",
        goal="Maximize",
        reward=0.5,
        validation_metric=0.8,
        software="0.1.0",
    )
    store.put(names.BEST_PROVENANCE, provenance.model_dump_json(by_alias=True).encode())
    refused = nas("export", tmp_path / "run", "-o", tmp_path / "out")
    assert refused.exit_code == 1
    assert "is just being replaced by a better one: run the command again" in refused.stderr
    assert not (tmp_path / "out").exists()


POISON = b"import os; os.system('touch poisoned')"


def trained_folder(folder: Path, files: dict[str, bytes]) -> Store:
    """Return a run's store with a trained network of these files, as its log has them."""
    store = run_folder(folder)
    leave_best(store, NETWORK)
    for key, data in files.items():
        store.put(key, data)
    leave_test(store, NETWORK, digests(store))
    return store


BEFORE = Preprocessing(channels=1, height=8, width=8, brightest=16.0, classes=tuple("abcdefghij"))
FILES = {
    names.BEST_PREPROCESSING: BEFORE.model_dump_json(by_alias=True).encode(),
    names.BEST_ONNX: b"onnx",
    names.BEST_WEIGHTS: b"weights",
}


def test_no_code_is_taken_from_the_bucket(tmp_path: Path) -> None:
    store = trained_folder(tmp_path / "run", FILES)
    store.put(names.BEST_MODULE, POISON)
    outcome = nas("export", tmp_path / "run", "-o", tmp_path / "out")
    assert outcome.exit_code == 0, outcome.output
    assert (tmp_path / "out" / "network.py").read_text() == architecture_source(NETWORK, in_channels=1)
    assert (tmp_path / "out" / "weights.safetensors").read_bytes() == b"weights"


@pytest.mark.parametrize("layout", ["folder", "kserve", "mlflow"])
@pytest.mark.parametrize("key", FILES)
def test_a_file_that_was_not_tested_is_refused(tmp_path: Path, key: str, layout: str) -> None:
    store = trained_folder(tmp_path / "run", FILES)
    store.put(key, FILES[key].replace(b"abc", b"acb") + b" ")
    refused = nas("export", tmp_path / "run", "-o", tmp_path / "out", "--format", layout)
    assert refused.exit_code == 1 and refused.stderr.count("\n") == 1
    assert f"{key} is not the file that was tested: its SHA-256 is" in refused.stderr
    assert not (tmp_path / "out").exists()


def test_a_file_that_no_test_has_left_is_refused(tmp_path: Path) -> None:
    leave_best(run_folder(tmp_path / "run"), NETWORK)
    open_store(StoreLocation(folder=str(tmp_path / "run"))).put(names.BEST_WEIGHTS, b"weights")
    refused = nas("export", tmp_path / "run", "-o", tmp_path / "out")
    assert refused.exit_code == 1
    assert "best/weights.safetensors is there, and no test in the search's log has left it" in refused.stderr


@pytest.mark.parametrize(
    ("key", "data"),
    [
        (names.BEST_ARCHITECTURE, ConvolutionalArchitecture.parse_short("3x3:6").canonical().encode()),
        (names.BEST_ARCHITECTURE, b'{"space":"convolutional"}'),
        (names.BEST_ARCHITECTURE, b"[" * 100_000),
        (names.BEST_PROVENANCE, b'{"digest": 3}'),
    ],
)
def test_documents_that_the_search_has_not_left_are_refused(tmp_path: Path, key: str, data: bytes) -> None:
    store = trained_folder(tmp_path / "run", FILES)
    store.put(key, data)
    refused = nas("export", tmp_path / "run", "-o", tmp_path / "out")
    assert refused.exit_code == 1
    assert f"the best network is not handed over: {key} " in refused.stderr
    assert "restore it from the bucket's versions" in refused.stderr


def test_other_digests_in_the_provenance_are_refused(tmp_path: Path) -> None:
    store = trained_folder(tmp_path / "run", FILES)
    provenance = Provenance(
        experiment="digits",
        namespace="local",
        uid=UID,
        sample=0,
        digest=NETWORK.digest,
        metric_name="accuracy",
        goal="Maximize",
        reward=0.5,
        validation_metric=0.8,
        software="0.1.0",
        files={"weights.safetensors": "0" * 64},
    )
    store.put(names.BEST_PROVENANCE, provenance.model_dump_json(by_alias=True).encode())
    refused = nas("export", tmp_path / "run", "-o", tmp_path / "out")
    assert refused.exit_code == 1 and "best/provenance.json has other digests" in refused.stderr


def test_what_an_older_version_has_tested_is_handed_over_with_a_warning(tmp_path: Path) -> None:
    store = run_folder(tmp_path / "run")
    leave_best(store, NETWORK)
    for key, data in FILES.items():
        store.put(key, data)
    leave_test(store, NETWORK, None)
    outcome = nas("export", tmp_path / "run", "-o", tmp_path / "out")
    assert outcome.exit_code == 0, outcome.output
    assert "Nothing vouches for preprocessing.json, network.onnx, weights.safetensors" in outcome.stderr


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    run_folder(tmp_path / "run")
    nothing = nas("export", tmp_path / "run", "-o", tmp_path / "out")
    assert nothing.exit_code == 1
    assert "has no best network yet" in nothing.stderr
    assert not (tmp_path / "out").exists()
    (tmp_path / "file").write_text("")
    leave_best(open_store(StoreLocation(folder=str(tmp_path / "run"))), NETWORK)
    refused = nas("export", tmp_path / "run", "-o", tmp_path / "file" / "out")
    assert refused.exit_code == 1
    assert "choose another with -o" in refused.stderr


@pytest.mark.parametrize("layout", ["kserve", "mlflow"])
def test_a_model_alone_needs_a_final_training_of_ours(tmp_path: Path, layout: str) -> None:
    leave_best(run_folder(tmp_path / "run"), NETWORK)
    refused = nas("export", tmp_path / "run", "-o", tmp_path / "out", "--format", layout)
    assert refused.exit_code == 1 and refused.stderr.count("\n") == 1
    assert "digits has no trained network: that is what spec.finalTraining leaves" in refused.stderr
    leave_best(run_folder(tmp_path / "own", trainer={"dataset": {"custom": {}}}), NETWORK)
    refused = nas("export", tmp_path / "own", "-o", tmp_path / "out", "--format", layout)
    assert refused.exit_code == 1 and "the trained network is your own trainer's" in refused.stderr
    assert not (tmp_path / "out").exists()


class OneExperiment:
    """A cluster that knows one experiment."""

    document: dict[str, Any]

    def __init__(self, namespace: str | None, context: str | None) -> None: ...

    def experiment(self, name: str) -> NASExperiment:
        if name != self.document["metadata"]["name"]:
            raise Refusal(f"no experiment {name}")
        return NASExperiment.model_validate(self.document)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> type[OneExperiment]:
    """One experiment on a cluster, with its bucket behind a name that only the cluster knows."""
    s3 = {"bucket": "nas", "endpoint": "http://nas-s3.team-a:7070", "credentialsSecret": {"name": "nas-s3"}}
    document = manifest("team-b", storage={"s3": s3})
    document["metadata"]["uid"] = UID
    monkeypatch.setattr(OneExperiment, "document", document, raising=False)
    monkeypatch.setattr("nas_cli.cluster.Cluster", OneExperiment)
    for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(key, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    return OneExperiment


@pytest.mark.s3
def test_an_experiment_s_bucket_is_read_at_another_address(
    cluster: type[OneExperiment], s3_location: S3Location, tmp_path: Path
) -> None:
    cluster.document["spec"]["storage"]["s3"]["bucket"] = s3_location.bucket
    prefix = names.experiment_prefix("nas", "team-b", "digits", UID)
    store = open_store(StoreLocation(s3=s3_location.model_copy(update={"prefix": prefix})))
    leave_best(store, NETWORK, NASExperiment.model_validate(cluster.document).spec)
    assert s3_location.endpoint is not None
    outcome = nas("export", "digits", "-o", tmp_path / "out", "--endpoint", s3_location.endpoint)
    assert outcome.exit_code == 0, outcome.output
    assert (tmp_path / "out" / "network.py").exists()


def test_without_keys_the_refusal_says_where_they_are(cluster: type[OneExperiment], tmp_path: Path) -> None:
    outcome = nas("export", "digits", "-o", tmp_path / "out")
    assert outcome.exit_code == 1
    for words in (
        "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
        "Secret nas-s3 of namespace team-b",
        "kubectl port-forward -n team-a service/nas-s3 7070",
        "--endpoint http://127.0.0.1:7070",
    ):
        assert words in outcome.stderr


@pytest.fixture
def keys(cluster: type[OneExperiment], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Keys of whoever calls, and a configuration of AWS of their own, which is this file."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "mine")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "mine")
    for variable in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setattr("nas_store.s3.S3Store.list", lambda *_: [])
    monkeypatch.setattr("nas_store.s3.S3Store.get", lambda *_, **__: None)
    return tmp_path / "config"


COMMANDS = {"export": "no best network yet", "report": "no record yet", "samples": ""}


@pytest.mark.parametrize("command", COMMANDS)
def test_keys_go_to_no_endpoint_that_somebody_else_has_chosen(keys: Path, tmp_path: Path, command: str) -> None:
    output: list[str | Path] = [] if command == "samples" else ["-o", tmp_path / "out"]
    refused = nas(command, "digits", *output)
    assert refused.exit_code == 1 and refused.stderr.count("\n") == 1
    assert (
        "signed with your own keys: if you trust it, give it with --endpoint http://nas-s3.team-a:7070"
        in refused.stderr
    )
    given = nas(command, "digits", *output, "--endpoint", "http://nas-s3.team-a:7070")
    assert COMMANDS[command] in given.output and "signed" not in given.output


@pytest.mark.parametrize("where", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "file"])
def test_an_endpoint_of_one_s_own_configuration_is_trusted(
    keys: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    if where == "file":
        keys.write_text("[default]\nendpoint_url = http://nas-s3.team-a:7070/\n")
    else:
        monkeypatch.setenv(where, "http://NAS-S3.team-a:7070")
    assert nas("samples", "digits").exit_code == 0
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://nas-s3.team-a:7071")
    assert "signed with your own keys" in nas("samples", "digits").stderr


def test_an_endpoint_of_aws_s_own_needs_no_word(cluster: type[OneExperiment], keys: Path) -> None:
    del cluster.document["spec"]["storage"]["s3"]["endpoint"]
    assert nas("samples", "digits").exit_code == 0


@pytest.mark.parametrize(("answer", "code"), [("y", 0), ("n", 1), ("", 1)])
def test_on_a_terminal_it_is_asked(keys: Path, monkeypatch: pytest.MonkeyPatch, answer: str, code: int) -> None:
    monkeypatch.setattr("nas_cli.experiment_store._somebody_is_there", lambda: True)
    outcome = CliRunner().invoke(main, ["samples", "digits"], input=f"{answer}\n", catch_exceptions=False)
    assert outcome.exit_code == code
    assert "requests to it are signed with your own keys. Go on? [y/N]" in outcome.stderr
    assert ("nothing was sent" in outcome.stderr) == bool(code)


def test_an_unknown_name_is_refused(cluster: type[OneExperiment], tmp_path: Path) -> None:
    outcome = nas("export", "other", "-o", tmp_path / "out")
    assert outcome.exit_code == 1
    assert "no experiment other" in outcome.stderr
