"""The trainer's process from outside: results, exit codes, messages, signals."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from patience import HANG_SECONDS

from nas_api import names
from nas_api.child import ExitCode, FinalSettings, Result, S3Location, StoreLocation, TrainerInput
from nas_api.experiment import CifarDataset, DatasetSpec, DigitsDataset, OptimizerSpec
from nas_api.spaces.convolutional import ConvolutionalArchitecture
from nas_api.stopping import Stopped, StopRule
from nas_store import open_store
from nas_store.errors import StoreUnreachable
from nas_store.folder import FolderStore
from nas_store.s3 import S3Store
from nas_trainer import checkpoint, patience
from nas_trainer.child import Terminated
from nas_trainer.images import training
from nas_trainer.main import main

Draw = Callable[..., ConvolutionalArchitecture]


@pytest.fixture
def job(draw: Draw, tmp_path: Path) -> Callable[..., dict[str, str]]:
    """Return a function that makes a trainer's environment; what is given replaces what is valid."""

    def environment(**changes: Any) -> dict[str, str]:
        values: dict[str, Any] = {
            "experiment": "digits",
            "sample": 3,
            "attempt": 1,
            "seed": 1,
            "metric": "accuracy",
            "architecture": draw(1, layers=2),
            "dataset": DatasetSpec(digits=DigitsDataset(training_images=200)),
            "epochs": 2,
            "reward_epochs": 2,
            "batch_size": 64,
            "optimizer": OptimizerSpec(),
            "store": StoreLocation(folder=str(tmp_path / "store")),
            **changes,
        }
        text = TrainerInput.model_validate(values).model_dump_json(by_alias=True)
        return {names.ENV_TRAINER_INPUT: text, "NAS_TERMINATION_LOG": str(tmp_path / "message")}

    return environment


Job = Callable[..., dict[str, str]]


def message(tmp_path: Path) -> str:
    text = (tmp_path / "message").read_text()
    assert "\n" not in text
    return text


def test_a_result_is_written_once_and_repeated_as_the_message(job: Job, draw: Draw, tmp_path: Path) -> None:
    assert main(job()) == ExitCode.OK
    data = FolderStore(tmp_path / "store").get(names.result_key(3))
    assert data is not None
    result = Result.parse(data, sample=3, digest=draw(1, layers=2).digest, metric="accuracy")
    assert result.status == "Trained"
    assert result.metrics["accuracy"] == max(result.history) > 0.1
    assert len(result.history) == 2
    assert result.parameters > 100
    assert json.loads(message(tmp_path)) == json.loads(data)
    assert FolderStore(tmp_path / "store").list("samples/") == [names.result_key(3)]  # no checkpoint of a short run

    assert main(job(attempt=2, seed=9)) == ExitCode.OK
    assert FolderStore(tmp_path / "store").get(names.result_key(3)) == data
    assert "exists already" in message(tmp_path)


def test_nothing_is_trained_when_the_result_exists(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    FolderStore(tmp_path / "store").put_if_absent(names.result_key(3), b"even one that is malformed")
    monkeypatch.setattr("nas_trainer.child.image_training", None)
    assert main(job()) == ExitCode.OK


def test_a_diverged_training_is_a_result(job: Job, draw: Draw, tmp_path: Path) -> None:
    assert main(job(optimizer=OptimizerSpec(learning_rate="999999999999"), epochs=20)) == ExitCode.OK
    data = FolderStore(tmp_path / "store").get(names.result_key(3))
    assert data is not None
    result = Result.parse(data, sample=3, digest=draw(1, layers=2).digest, metric="accuracy")
    assert result.diverged("accuracy")
    assert result.metrics == {}


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({}, "no NAS_INPUT"),
        ({"NAS_INPUT": "{"}, "Invalid JSON"),
        ({"NAS_INPUT": "{}"}, "experiment: Field required"),
    ],
)
def test_an_unusable_document_is_invalid_input(environment: dict[str, str], words: str, tmp_path: Path) -> None:
    assert main({**environment, "NAS_TERMINATION_LOG": str(tmp_path / "message")}) == ExitCode.INVALID_INPUT
    assert words in message(tmp_path)


def test_what_this_trainer_cannot_do_is_invalid_input(job: Job, tmp_path: Path) -> None:
    assert main(job(metric="perplexity")) == ExitCode.INVALID_INPUT
    assert "spec.objective.metric" in message(tmp_path)


def test_a_batch_of_one_is_invalid_input(job: Job, tmp_path: Path) -> None:
    # Batch normalisation needs two; the manifest's bound is the document's, too.
    environment = job()
    document = {**json.loads(environment[names.ENV_TRAINER_INPUT]), "batchSize": 1}
    assert main({**environment, names.ENV_TRAINER_INPUT: json.dumps(document)}) == ExitCode.INVALID_INPUT
    assert "batchSize: Input should be greater than or equal to 2" in message(tmp_path)


def test_a_missing_dataset_has_its_own_code(job: Job, tmp_path: Path) -> None:
    dataset = DatasetSpec(cifar10=CifarDataset(uri=str(tmp_path / "cifar")))
    assert main(job(dataset=dataset)) == ExitCode.DATASET_UNAVAILABLE
    assert f"{tmp_path / 'cifar'} is missing" in message(tmp_path)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
    ],
    ids=["python", "gpu", "cpu"],
)
def test_out_of_memory_has_its_own_code(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(training.ImageTraining, "_train_epoch", fail)
    assert main(job()) == ExitCode.OUT_OF_MEMORY
    assert "lower trainer.batchSize" in message(tmp_path)


@pytest.mark.slow
def test_real_memory_exhaustion_is_recognised(job: Job, tmp_path: Path) -> None:
    # A limit on the address space makes the allocator itself say no.
    program = (
        "import resource, sys; from nas_trainer.main import main;"
        "resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30)); sys.exit(main())"
    )
    big = ConvolutionalArchitecture.parse_short(" ".join(["31x31:4096", "31x31:4096<0"]))
    end = subprocess.run([sys.executable, "-c", program], env={**os.environ, **job(architecture=big)}, check=False)
    assert end.returncode == ExitCode.OUT_OF_MEMORY
    assert "does not fit into memory" in message(tmp_path)


def test_an_unexpected_error_is_raised_with_its_traceback(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(training.ImageTraining, "_train_epoch", fail)
    with pytest.raises(RuntimeError, match="mat1"):
        main(job())


@pytest.mark.s3
def test_results_go_to_s3(job: Job, s3_location: S3Location) -> None:
    location = StoreLocation(s3=s3_location)
    assert main(job(store=location)) == ExitCode.OK
    assert open_store(location).get(names.result_key(3)) is not None


@pytest.mark.s3
@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        ({"bucket": "no-such-bucket"}, ExitCode.STORAGE_REFUSED, "no-such-bucket"),
        ({"endpoint": "http://127.0.0.1:9"}, ExitCode.STORAGE_UNREACHABLE, "does not answer"),
    ],
)
def test_a_refusing_store_and_a_silent_one_differ(
    job: Job,
    s3_location: S3Location,
    change: dict[str, str],
    code: int,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(patience, "READING_SECONDS", 0)
    assert main(job(store=StoreLocation(s3=s3_location.model_copy(update=change)))) == code
    assert words in message(tmp_path)


@pytest.mark.s3
def test_a_store_that_is_away_for_a_while_costs_no_training(
    job: Job, s3_location: S3Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    put, failures, pauses = S3Store.put_if_absent, iter(range(20)), list[float]()

    def failing(store: S3Store, key: str, data: bytes) -> bool:
        if key == names.result_key(3) and next(failures, None) is not None:
            raise StoreUnreachable("no answer")
        return put(store, key, data)

    monkeypatch.setattr(S3Store, "put_if_absent", failing)
    monkeypatch.setattr(time, "sleep", pauses.append)
    location = StoreLocation(s3=s3_location)
    assert main(job(store=location)) == ExitCode.OK
    assert open_store(location).get(names.result_key(3)) is not None
    assert len(pauses) == 20 and sum(pauses) > 300


@pytest.mark.s3
def test_wrong_keys_are_refused(
    job: Job, s3_location: S3Location, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    assert main(job(store=StoreLocation(s3=s3_location))) == ExitCode.STORAGE_REFUSED
    assert "credentialsSecret" in message(tmp_path)


@pytest.mark.slow
def test_sigterm_saves_and_the_next_attempt_ends_with_the_same_bits(job: Job, draw: Draw, tmp_path: Path) -> None:
    dataset = DatasetSpec(digits=DigitsDataset(training_images=1000))
    # However late the signal comes: what it says of each epoch fills the pipe, and it waits to be read.
    environment = job(epochs=10_000, dataset=dataset)
    process = subprocess.Popen(
        [sys.executable, "-m", "nas_trainer"],
        env={**os.environ, **environment, "NAS_LOG_LEVEL": "debug"},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    # The third epoch's line: it is certainly training.
    while '"number": 3' not in (line := process.stderr.readline()):
        assert line, "the trainer ended before its third epoch"
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=HANG_SECONDS)
    assert process.returncode == ExitCode.TERMINATED
    assert "SIGTERM" in message(tmp_path)
    store = FolderStore(tmp_path / "store")
    assert store.get(names.result_key(3)) is None
    data = store.get(names.checkpoint_key(3))
    assert data is not None
    _, progress = checkpoint.decode(TrainerInput.model_validate_json(environment[names.ENV_TRAINER_INPUT]), data)
    assert progress.epochs >= 3
    epochs = progress.epochs + 12

    def history(folder: Path) -> tuple[float, ...]:
        result = FolderStore(folder).get(names.result_key(3))
        assert result is not None
        return Result.parse(result, sample=3, digest=draw(1, layers=2).digest, metric="accuracy").history

    assert main(job(epochs=epochs, dataset=dataset, attempt=2)) == ExitCode.OK
    whole = StoreLocation(folder=str(tmp_path / "whole"))
    assert main(job(epochs=epochs, dataset=dataset, store=whole)) == ExitCode.OK
    assert history(tmp_path / "store") == history(tmp_path / "whole")
    assert history(tmp_path / "store")[: progress.epochs] == progress.metrics


def test_a_long_training_saves_now_and_then_and_goes_on_from_there(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nas_trainer.child._CHECKPOINT_SECONDS", 0.0)
    assert main(job(epochs=2)) == ExitCode.OK
    store = FolderStore(tmp_path / "store")
    (tmp_path / "store" / names.result_key(3)).unlink()
    trained: list[int] = []
    train = training.ImageTraining._train_epoch

    def noted(each: training.ImageTraining, epoch: int) -> torch.Tensor:
        trained.append(epoch)
        return train(each, epoch)

    monkeypatch.setattr(training.ImageTraining, "_train_epoch", noted)
    assert main(job(epochs=3, attempt=2)) == ExitCode.OK
    assert trained == [2]
    result = store.get(names.result_key(3))
    assert result is not None and len(json.loads(result)["history"]) == 3


@pytest.mark.parametrize(("every", "saved"), [("0s", True), ("1h", False), (None, False)])
def test_how_often_a_final_training_saves_is_for_the_manifest_to_say(
    job: Job, tmp_path: Path, every: str | None, saved: bool
) -> None:
    assert main(job(epochs=2, final=FinalSettings(), checkpoint_every=every)) == ExitCode.OK
    assert (FolderStore(tmp_path / "store").get(names.checkpoint_key(3)) is not None) is saved


def test_an_attempt_that_has_not_got_on_leaves_no_checkpoint_of_its_own(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By that the controller knows that another attempt would not get on either."""
    assert main(job(epochs=2, final=FinalSettings(), checkpoint_every="0s")) == ExitCode.OK
    store = FolderStore(tmp_path / "store")
    (tmp_path / "store" / names.result_key(3)).unlink()

    def ended(*_: object) -> None:
        raise Terminated

    monkeypatch.setattr(training.ImageTraining, "_train_epoch", ended)
    further = job(epochs=3, attempt=2, final=FinalSettings(), checkpoint_every="0s")
    assert main(further) == ExitCode.TERMINATED
    assert store.get(names.checkpoint_key(3, 2)) is None
    assert store.get(names.inherited_checkpoint_key(3, 2)) is not None


def test_a_checkpoint_that_cannot_be_used_costs_only_time(job: Job, tmp_path: Path) -> None:
    FolderStore(tmp_path / "store").put(names.checkpoint_key(3), b"nonsense")
    assert main(job(attempt=2)) == ExitCode.OK


def test_main_leaves_the_signal_as_it_was(job: Job) -> None:
    before = signal.getsignal(signal.SIGTERM)
    main(job())
    assert signal.getsignal(signal.SIGTERM) is before


# ---------------------------------------------------------------- early stopping


def result_of(tmp_path: Path, store: str = "store") -> Result:
    data = FolderStore(tmp_path / store).get(names.result_key(3))
    assert data is not None
    return Result.model_validate_json(data)


def test_a_hopeless_child_ends_after_the_rule_s_epoch_and_says_so(job: Job, tmp_path: Path) -> None:
    rule = StopRule(epoch=2, bound=1.1, goal="Maximize")
    assert main(job(epochs=4, stop=rule)) == ExitCode.OK
    result = result_of(tmp_path)
    assert (result.status, result.stopped) == ("Trained", Stopped(epoch=2, of=4))
    assert len(result.history) == 2 and result.metrics["accuracy"] == max(result.history)


def test_one_that_meets_the_bound_ends_as_if_there_were_no_rule(job: Job, tmp_path: Path) -> None:
    assert main(job(epochs=3, store=StoreLocation(folder=str(tmp_path / "free")))) == ExitCode.OK
    free = result_of(tmp_path, "free")
    rule = StopRule(epoch=2, bound=max(free.history[:2]), goal="Maximize")
    assert main(job(epochs=3, stop=rule)) == ExitCode.OK
    ruled = result_of(tmp_path)
    assert ruled.stopped is None
    assert (ruled.history, ruled.metrics) == (free.history, free.metrics)


def test_an_interrupted_child_is_judged_by_its_own_attempt_s_rule_and_only_once(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nas_trainer.child._CHECKPOINT_SECONDS", 0.0)
    hopeless = StopRule(epoch=2, bound=1.1, goal="Maximize")
    result = tmp_path / "store" / names.result_key(3)
    # From before the rule's epoch, and from just after it: judged, with the very bits of one that went through.
    assert main(job(epochs=4, stop=hopeless, store=StoreLocation(folder=str(tmp_path / "through")))) == ExitCode.OK
    for epochs in (1, 2):
        assert main(job(epochs=epochs)) == ExitCode.OK
        result.unlink()
        assert main(job(epochs=4, attempt=2, stop=hopeless)) == ExitCode.OK
        assert result_of(tmp_path).stopped == Stopped(epoch=2, of=4)
        assert result_of(tmp_path).history == result_of(tmp_path, "through").history
        shutil.rmtree(result.parent)
    # An earlier attempt's rule let it pass.
    assert main(job(epochs=3)) == ExitCode.OK
    result.unlink()
    assert main(job(epochs=4, attempt=2, stop=hopeless)) == ExitCode.OK
    assert result_of(tmp_path).stopped is None and len(result_of(tmp_path).history) == 4


def test_a_child_that_diverged_is_not_stopped(job: Job, tmp_path: Path) -> None:
    rule = StopRule(epoch=19, bound=1.1, goal="Maximize")
    wild = OptimizerSpec(learning_rate="999999999999")
    assert main(job(optimizer=wild, epochs=20, stop=rule)) == ExitCode.OK
    result = result_of(tmp_path)
    assert result.status == "Diverged" and result.stopped is None
