"""Children that share a process: the same results as alone, each judged by itself, ended together."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from patience import HANG_SECONDS
from torch import nn

from nas_api import names
from nas_api.child import ExitCode, Result, StoreLocation, TrainerInput, TrainerPack, trainer_document
from nas_api.experiment import DatasetSpec, DigitsDataset, LanguageSpec, OptimizerSpec, TextDataset
from nas_api.spaces.convolutional import ConvolutionalArchitecture
from nas_api.spaces.recurrent_cell import RecurrentCellSpace, RecurrentCellSpec
from nas_store.folder import FolderStore
from nas_trainer import checkpoint
from nas_trainer.images import training
from nas_trainer.images.architectures import build
from nas_trainer.main import main
from nas_trainer.together import Defer, run_together

Draw = Callable[..., ConvolutionalArchitecture]
Document = Callable[..., TrainerInput]


class Interruption(BaseException):
    """What the tests interrupt with."""


@pytest.fixture
def document(draw: Draw, tmp_path: Path) -> Document:
    """Return a function that makes what one child is told; what is given replaces what is valid."""

    def make(sample: int, **changes: Any) -> TrainerInput:
        values: dict[str, Any] = {
            "experiment": "digits",
            "sample": sample,
            "attempt": 1,
            "seed": sample,
            "metric": "accuracy",
            "architecture": draw(sample, layers=2),
            "dataset": DatasetSpec(digits=DigitsDataset(training_images=200)),
            "epochs": 2,
            "reward_epochs": 2,
            "batch_size": 64,
            "optimizer": OptimizerSpec(),
            "store": StoreLocation(folder=str(tmp_path / "store")),
            **changes,
        }
        return TrainerInput.model_validate(values)

    return make


def environment(tmp_path: Path, *documents: TrainerInput) -> dict[str, str]:
    return {names.ENV_TRAINER_INPUT: trainer_document(documents), "NAS_TERMINATION_LOG": str(tmp_path / "message")}


def message(tmp_path: Path) -> str:
    return (tmp_path / "message").read_text()


def result(document: TrainerInput) -> Result | None:
    data = FolderStore(Path(document.store.folder or "")).get(names.result_key(document.sample))
    if data is None:
        return None
    digest = document.architecture.digest
    return Result.parse(data, sample=document.sample, digest=digest, metric=document.metric)


def numbers(document: TrainerInput) -> tuple[object, ...]:
    """Return what a training computes, all bits of it."""
    found = result(document)
    assert found is not None
    return found.metrics, found.history, found.parameters


def language(sample: int, folder: Path) -> dict[str, Any]:
    space = RecurrentCellSpace(RecurrentCellSpec(base=2))
    width = len(space.decisions(0))
    return {
        "architecture": space.decode((sample % 2,) * width),
        "dataset": DatasetSpec(text=TextDataset(uri=str(folder), vocabulary=20)),
        "metric": "perplexity",
        "language": LanguageSpec(parameters=2000, steps=5),
        "batch_size": 4,
    }


@pytest.mark.parametrize("kind", ["images", "text"])
def test_children_of_one_process_have_the_results_that_they_have_alone(
    document: Document, tmp_path: Path, kind: str
) -> None:
    changes: Callable[[int], dict[str, Any]] = lambda sample: {}  # noqa: E731
    if kind == "text":
        for name in ("train", "valid"):
            (tmp_path / f"ptb.{name}.txt").write_text("the cat sat on the mat and so did the dog\n" * 20)
        changes = lambda sample: language(sample, tmp_path)  # noqa: E731
    alone = StoreLocation(folder=str(tmp_path / "alone"))
    pack = [document(sample, **changes(sample)) for sample in range(4)]
    assert main(environment(tmp_path, *pack)) == ExitCode.OK
    assert message(tmp_path) == "all 4 children have their results"
    for each in pack:
        single = each.model_copy(update={"store": alone})
        assert main(environment(tmp_path, single)) == ExitCode.OK
        assert numbers(each) == numbers(single)
    assert len({numbers(each)[1] for each in pack}) > 1


def test_initial_weights_follow_from_the_seed_whoever_else_draws(
    document: Document, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Each has seeded torch before any has drawn its weights, unless they are kept apart.
    def slowly(*arguments: Any) -> nn.Module:
        time.sleep(0.05)
        return build(*arguments)

    monkeypatch.setattr(training, "build", slowly)
    pack = [document(sample, architecture=document(0).architecture) for sample in range(3)]
    assert main(environment(tmp_path, *pack)) == ExitCode.OK
    monkeypatch.undo()
    for each in pack:
        single = each.model_copy(update={"store": StoreLocation(folder=str(tmp_path / "alone"))})
        assert main(environment(tmp_path, single)) == ExitCode.OK
        assert numbers(each) == numbers(single)


def test_they_train_at_the_same_time_on_one_copy_of_the_dataset(
    document: Document, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    met = threading.Barrier(3, timeout=HANG_SECONDS)
    seen: list[int] = []
    train_epoch = training.ImageTraining._train_epoch

    def meet(self: training.ImageTraining, epoch: int) -> torch.Tensor:
        met.wait()
        seen.append(self._images.train_images[:].data_ptr())
        return train_epoch(self, epoch)

    monkeypatch.setattr(training.ImageTraining, "_train_epoch", meet)
    assert main(environment(tmp_path, *[document(sample) for sample in range(3)])) == ExitCode.OK
    assert len(seen) == 6 and len(set(seen)) == 1


def test_one_that_fails_leaves_the_others_their_results(
    document: Document, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors = {1: RuntimeError("shapes cannot be multiplied"), 2: torch.OutOfMemoryError("CUDA out of memory")}
    train_epoch = training.ImageTraining._train_epoch

    def fail(self: training.ImageTraining, epoch: int) -> torch.Tensor:
        if self._seed in errors:
            raise errors[self._seed]
        return train_epoch(self, epoch)

    monkeypatch.setattr(training.ImageTraining, "_train_epoch", fail)
    pack = [document(sample) for sample in range(4)]
    # The first failure's code, in the order of the samples: that of an unforeseen error.
    assert main(environment(tmp_path, *pack)) == 1
    assert message(tmp_path) == "2 of 4 children have no result; sample 1: shapes cannot be multiplied"
    assert [result(each) is not None for each in pack] == [True, False, False, True]
    del errors[1]
    assert main(environment(tmp_path, *pack)) == ExitCode.OUT_OF_MEMORY
    assert "1 of 4 children have no result; sample 2: the network does not fit into memory" in message(tmp_path)
    del errors[2]
    assert main(environment(tmp_path, *pack)) == ExitCode.OK


def test_an_unusable_pack_is_invalid_input(document: Document, tmp_path: Path) -> None:
    text = TrainerPack(children=(document(0), document(1))).model_dump_json(by_alias=True)
    broken = json.loads(text)
    del broken["children"][1]["seed"]
    variables = {names.ENV_TRAINER_INPUT: json.dumps(broken), "NAS_TERMINATION_LOG": str(tmp_path / "message")}
    assert main(variables) == ExitCode.INVALID_INPUT
    assert "children.1.seed: Field required" in message(tmp_path)


@pytest.mark.slow
def test_sigterm_saves_all_of_them(document: Document, tmp_path: Path) -> None:
    dataset = DatasetSpec(digits=DigitsDataset(training_images=1000))
    # One is done before the signal comes: its result stays, and the process is terminated all the same.
    pack = [document(sample, epochs=3000, dataset=dataset) for sample in range(3)] + [document(3, epochs=1)]
    process = subprocess.Popen(
        [sys.executable, "-m", "nas_trainer"],
        env={**os.environ, **environment(tmp_path, *pack), "NAS_LOG_LEVEL": "debug"},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    waited_for = {*(('"number": 2', sample) for sample in range(3)), ('"event": "result"', 3)}
    while waited_for:
        line = process.stderr.readline()
        assert line, "the trainer ended too soon"
        waited_for = {(words, of) for words, of in waited_for if words not in line or f'"sample": {of},' not in line}
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=HANG_SECONDS)
    assert process.returncode == ExitCode.TERMINATED
    assert "SIGTERM" in message(tmp_path)
    store = FolderStore(tmp_path / "store")
    for each in pack[:3]:
        data = store.get(names.checkpoint_key(each.sample))
        assert data is not None and result(each) is None
        assert checkpoint.decode(each, data)[1].epochs >= 2
    assert result(pack[3]) is not None


def test_an_interruption_reaches_all_that_have_not_deferred_it() -> None:
    at_work, deferred, interrupted = threading.Event(), threading.Event(), threading.Event()

    def endless(defer: Defer) -> None:
        at_work.set()
        try:
            until = time.monotonic() + HANG_SECONDS
            while time.monotonic() < until:
                time.sleep(0.001)
        finally:
            interrupted.set()

    def last_words(defer: Defer) -> None:
        defer()
        deferred.set()
        assert interrupted.wait(HANG_SECONDS)
        time.sleep(0.05)

    def fails(defer: Defer) -> None:
        raise ValueError("its own fault")

    def handler(number: int, frame: object) -> None:
        raise Interruption

    before = signal.signal(signal.SIGUSR1, handler)

    def send() -> None:
        assert at_work.wait(HANG_SECONDS) and deferred.wait(HANG_SECONDS)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)

    sender = threading.Thread(target=send)
    try:
        sender.start()
        third, first, second = run_together([fails, endless, last_words], Interruption)
    finally:
        sender.join()
        signal.signal(signal.SIGUSR1, before)
    assert isinstance(first, Interruption)
    assert second is None
    assert isinstance(third, ValueError)
