"""Latency: asked for by a penalty, measured on the trained network, and only there."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from experiments import manifest

from nas_api import names
from nas_api.architecture import Architecture
from nas_api.child import LATENCY, ExitCode, Result, StoreLocation, TrainerInput
from nas_api.experiment import LatencySpec, NASExperiment, TextDataset
from nas_api.spaces.convolutional import ConvolutionalArchitecture
from nas_api.spaces.recurrent_cell import RecurrentCellArchitecture, RecurrentCellSpace, RecurrentCellSpec
from nas_api.trainer_input import trainer_input
from nas_cli.experiment_store import read_samples
from nas_store import open_store
from nas_store.folder import FolderStore
from nas_trainer import child, latency
from nas_trainer.images.training import ImageTraining
from nas_trainer.main import main
from nas_trainer.task import ExportFailed

SMALL = ConvolutionalArchitecture.parse_short("1x1:2/4x4")
LARGE = ConvolutionalArchitecture.parse_short("7x7:64 7x7:64<0 7x7:64<1 7x7:64<2")
PENALTY = {"metric": LATENCY, "target": "0.001"}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def experiment(**spec: Any) -> NASExperiment:
    return NASExperiment.model_validate(manifest(**spec))


def told(**spec: Any) -> TrainerInput:
    return trainer_input(experiment(**spec), StoreLocation(folder="/x"), 0, 1, SMALL)


def test_only_a_penalty_asks_the_built_in_trainer_for_it() -> None:
    digits: dict[str, Any] = {"dataset": {"digits": {}}}
    own = {"latency": {"batch": 8, "threads": 2, "runs": 20}}
    asks = {"penalties": [PENALTY]}
    assert told(trainer=digits).latency is None
    assert told(trainer=digits | own).latency is None
    assert told(trainer=digits, objective={"penalties": [{**PENALTY, "metric": "flops"}]}).latency is None
    assert told(trainer=digits, objective=asks).latency == LatencySpec()
    assert told(trainer=digits | own, objective=asks).latency == LatencySpec(batch=8, threads=2, runs=20)
    assert told(trainer={"dataset": {"custom": {}}}, objective=asks).latency is None


def job(tmp_path: Path, architecture: Architecture, sample: int, **changes: Any) -> dict[str, str]:
    values: dict[str, Any] = {
        "experiment": "digits",
        "sample": sample,
        "attempt": 1,
        "seed": 1,
        "metric": "accuracy",
        "architecture": architecture,
        "dataset": {"digits": {"trainingImages": 100}},
        "epochs": 1,
        "latency": LatencySpec(runs=20),
        "store": StoreLocation(folder=str(tmp_path / "store")),
        **changes,
    }
    text = TrainerInput.model_validate(values).model_dump_json(by_alias=True)
    return {names.ENV_TRAINER_INPUT: text, "NAS_TERMINATION_LOG": str(tmp_path / "message")}


def metrics(tmp_path: Path, architecture: ConvolutionalArchitecture, sample: int) -> dict[str, float]:
    data = FolderStore(tmp_path / "store").get(names.result_key(sample))
    assert data is not None
    return Result.parse(data, sample=sample, digest=architecture.digest, metric="accuracy").metrics


@pytest.mark.slow
def test_a_network_of_many_more_operations_takes_longer(tmp_path: Path) -> None:
    for sample, architecture in enumerate((SMALL, LARGE)):
        assert main(job(tmp_path, architecture, sample)) == ExitCode.OK
    small, large = (metrics(tmp_path, each, sample) for sample, each in enumerate((SMALL, LARGE)))
    assert small[LATENCY] > 0
    # A hundred thousand times the operations: whatever else this machine does, some of that must show.
    assert large["flops"] / small["flops"] > 1e5
    assert large[LATENCY] / small[LATENCY] > 5


@pytest.mark.slow
def test_a_batch_is_computed_as_a_whole(tmp_path: Path) -> None:
    for sample, batch in enumerate((1, 64)):
        assert main(job(tmp_path, LARGE, sample, latency=LatencySpec(batch=batch, runs=5))) == ExitCode.OK
    one, many = (metrics(tmp_path, LARGE, sample)[LATENCY] for sample in (0, 1))
    assert many / one > 5


@pytest.mark.slow
def test_a_cell_takes_time_too(tmp_path: Path) -> None:
    space = RecurrentCellSpace(RecurrentCellSpec(base=2))
    cell = space.decode((0,) * len(space.decisions(0)))
    assert isinstance(cell, RecurrentCellArchitecture)
    (tmp_path / "text").mkdir()
    for part in ("train", "valid", "test"):
        (tmp_path / "text" / f"ptb.{part}.txt").write_text("some words and some more\n" * 30)
    dataset = {"text": TextDataset(uri=str(tmp_path / "text"), vocabulary=10)}
    language = {"parameters": 2000, "steps": 5}
    changes = {"dataset": dataset, "metric": "perplexity", "language": language, "batch_size": 4}
    assert main(job(tmp_path, cell, 0, **changes)) == ExitCode.OK
    data = FolderStore(tmp_path / "store").get(names.result_key(0))
    assert data is not None
    assert Result.parse(data, sample=0, digest=cell.digest, metric="perplexity").metrics[LATENCY] > 0


def test_the_median_counts_after_runs_that_warm_up() -> None:
    times = iter([9.0] * 4 + [0.0] * 10 + [2.0] * 20 + [7.0] * 10)
    assert latency._median(lambda: next(times), 40) == 2.0
    assert list(times) == []


def test_a_network_without_an_onnx_model_is_said_to_have_no_latency(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: ImageTraining, *, compared: bool) -> tuple[bytes, float]:
        assert not compared
        raise ExportFailed("no such operator")

    monkeypatch.setattr(ImageTraining, "onnx", fail)
    assert main(job(tmp_path, SMALL, 0)) == ExitCode.INVALID_INPUT
    said = (tmp_path / "message").read_text()
    assert said.startswith(
        "latencySeconds cannot be measured, since there is no ONNX model of this network (no such op"
    )
    assert "\n" not in said


def test_without_a_penalty_nothing_is_loaded_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "latency", None)
    assert main(job(tmp_path, SMALL, 0, latency=None)) == ExitCode.OK
    assert LATENCY not in metrics(tmp_path, SMALL, 0)


def test_on_a_gpu_the_network_itself_is_what_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What only a GPU can show is the events' time; that all of a batch is computed in each run shows here."""
    seen: list[tuple[int, int]] = []

    def on_gpu(work: Any, spec: LatencySpec) -> float:
        seen.append((len(work()), spec.runs))
        return 0.25

    monkeypatch.setattr(latency, "on_gpu", on_gpu)
    monkeypatch.setattr(child, "choose_device", lambda: torch.device("cuda"))
    assert main(job(tmp_path, SMALL, 0, latency=LatencySpec(batch=7, runs=3))) == ExitCode.OK
    assert metrics(tmp_path, SMALL, 0)[LATENCY] == 0.25
    assert seen == [(7, 3)]


@pytest.mark.slow
def test_a_search_with_a_penalty_for_latency_completes(tmp_path: Path) -> None:
    """The whole way: the manifest asks, each child measures, the reward counts it."""
    body = manifest(
        objective={"penalties": [{**PENALTY, "exponent": "0.5"}]},
        budget={"samples": 2},
        trainer={"dataset": {"digits": {"trainingImages": 100}}, "epochs": 1, "latency": {"runs": 10}},
    )
    path, folder = tmp_path / "experiment.yaml", tmp_path / "run"
    path.write_text(yaml.safe_dump(body))
    command = [sys.executable, "-c", "from nas_cli.main import main; main()", "run", str(path), "--folder", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    found = list(read_samples(NASExperiment.model_validate(body), open_store(StoreLocation(folder=str(folder)))))
    assert len(found) == 2
    for sample in found:
        assert sample.state == "Observed" and sample.metrics[LATENCY] > 0
        factor = (sample.metrics[LATENCY] / 0.001) ** -0.5
        assert sample.reward == pytest.approx(sample.metrics["accuracy"] ** 3 * factor)


def test_a_model_that_the_runtime_refuses_has_no_latency() -> None:
    with pytest.raises(ExportFailed, match="onnxruntime refuses it"):
        latency.on_cpu(b"nonsense", LatencySpec())
