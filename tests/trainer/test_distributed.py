"""Several processes train one network: with the same numbers as one process, and never without one another."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from patience import HANG_SECONDS

from nas_api import names
from nas_api.child import ExitCode, FinalSettings, Result, StoreLocation, TrainerInput
from nas_api.experiment import DatasetSpec, DigitsDataset, OptimizerSpec
from nas_api.spaces.convolutional import ConvolutionalArchitecture
from nas_store import tensors
from nas_store.folder import FolderStore
from nas_trainer.distributed import ALONE, Ranks
from nas_trainer.images.preprocessing import augment

Draw = Callable[..., ConvolutionalArchitecture]
pytestmark = pytest.mark.slow


def meeting(rank: int, count: int, port: int) -> dict[str, str]:
    """Return what a rank finds in its environment."""
    return {"RANK": str(rank), "WORLD_SIZE": str(count), "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}


@pytest.fixture
def port() -> int:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        number: int = free.getsockname()[1]
        return number


# ---------------------------------------------------------------- the same numbers


def test_shares_are_whole_and_weights_make_means_of_them() -> None:
    ranks = [Ranks(number, 3) for number in range(3)]
    assert [list(range(8))[each.share(8)] for each in ranks] == [[0, 1], [2, 3, 4], [5, 6, 7]]
    means = [0.5, 3.0, 6.0]
    assert sum(each.weight(8) * mean for each, mean in zip(ranks, means, strict=True)) / 3 == pytest.approx(3.5)
    assert (ALONE.share(8), ALONE.weight(8), ALONE.shared(b"as it is")) == (slice(0, 8), 1.0, b"as it is")


def test_a_share_is_augmented_as_in_the_whole_batch() -> None:
    images = torch.randn(7, 3, 32, 32)
    whole = augment(images, torch.Generator().manual_seed(0))
    for number in range(2):
        share = Ranks(number, 2).share(7)
        part = augment(images[share], torch.Generator().manual_seed(0), share, 7)
        assert torch.equal(part, whole[share])


@pytest.mark.parametrize("what", ["images", "cells", "text"])
def test_two_ranks_take_the_steps_of_one_process(what: str, port: int, tmp_path: Path) -> None:
    """At least 20 steps in float64, batch normalisation over both shares, which differ in size."""
    command = [sys.executable, str(Path(__file__).with_name("rank.py")), what]
    places = [({}, "one"), *((meeting(rank, 2, port), "two") for rank in range(2))]
    processes = [
        subprocess.Popen([*command, str(tmp_path / name)], env=os.environ | place, stderr=subprocess.PIPE, text=True)
        for place, name in places
    ]
    for process in processes:
        _, said = process.communicate(timeout=HANG_SECONDS)
        assert process.returncode == 0, said
    one, *two = (torch.load(tmp_path / name) for name in ("one.0", "two.0", "two.1"))
    for rank in two:
        assert rank.keys() == one.keys()
        for name, tensor in rank.items():
            # The loss of a step is told in float32.
            tolerance = 1e-6 if name == "progress" else 1e-9
            torch.testing.assert_close(tensor, one[name], rtol=0, atol=tolerance)
    assert one["progress"][0, -1] < one["progress"][0, 0], "it learns"


def test_torchrun_may_start_the_ranks_of_one_pod(tmp_path: Path) -> None:
    """As it would with a GPU for each."""
    program, file = str(Path(__file__).with_name("rank.py")), str(tmp_path / "two")
    options = ["--standalone", "--nproc-per-node=2", "--no-python"]
    command = [sys.executable, "-m", "torch.distributed.run", *options, sys.executable, program, "images", file]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG_SECONDS, check=False)
    assert done.returncode == 0, done.stderr
    one, other = (torch.load(tmp_path / f"two.{rank}") for rank in range(2))
    assert all(torch.equal(one[name], other[name]) for name in one)


# ---------------------------------------------------------------- one is lost, all are


@pytest.fixture
def start(draw: Draw, port: int, tmp_path: Path) -> Iterator[Callable[..., "subprocess.Popen[str]"]]:
    """Return a function that starts the trainer as one rank of two of a final training."""
    processes = []

    def rank(number: int, **changes: Any) -> "subprocess.Popen[str]":
        values: dict[str, Any] = {
            "experiment": "digits",
            "sample": 3,
            "attempt": 1,
            "seed": 1,
            "metric": "accuracy",
            "architecture": draw(1, layers=2),
            "dataset": DatasetSpec(digits=DigitsDataset(training_images=200)),
            "epochs": 3,
            "reward_epochs": 2,
            "batch_size": 50,
            "optimizer": OptimizerSpec(),
            "final": FinalSettings(),
            "store": StoreLocation(folder=str(tmp_path / "store")),
            **changes,
        }
        environment = {
            names.ENV_TRAINER_INPUT: TrainerInput.model_validate(values).model_dump_json(by_alias=True),
            "NAS_TERMINATION_LOG": str(tmp_path / f"message-{number}"),
            "NAS_LOG_LEVEL": "debug",
            **meeting(number, 2, port),
        }
        command = [sys.executable, "-m", "nas_trainer"]
        process = subprocess.Popen(command, env=os.environ | environment, stderr=subprocess.PIPE, text=True)
        processes.append(process)
        return process

    yield rank
    for process in processes:
        process.kill()
        process.communicate()


Start = Callable[..., "subprocess.Popen[str]"]


def read_until(process: "subprocess.Popen[str]", words: str) -> None:
    """Read what a rank says until some words come."""
    assert process.stderr is not None
    said = []
    while words not in (line := process.stderr.readline()):
        said.append(line)
        assert line, "".join(said)


def end(process: "subprocess.Popen[str]") -> int:
    process.communicate(timeout=HANG_SECONDS)
    return process.returncode


def test_the_first_rank_writes_for_both(start: Start, tmp_path: Path) -> None:
    settings = FinalSettings(test=True)
    second, first = start(1, final=settings), start(0, final=settings)
    assert (end(first), end(second)) == (ExitCode.OK, ExitCode.OK)
    data = FolderStore(tmp_path / "store").get(names.result_key(3))
    assert data is not None
    result = Result.model_validate_json(data)
    assert json.loads((tmp_path / "message-0").read_text()) == json.loads(data)
    assert "first one's result counts" in (tmp_path / "message-1").read_text()
    assert result.metrics["onnxDifference"] < 1e-4, "the network is handed over as one that was trained alone"


def test_a_rank_that_is_killed_ends_the_other_and_the_next_attempt_goes_on(start: Start, tmp_path: Path) -> None:
    first, second = start(0, epochs=10_000), start(1, epochs=10_000)
    read_until(first, '"number": 3')
    second.kill()
    assert end(second) == -signal.SIGKILL
    read_until(first, "another rank is lost")
    # Kubernetes has noticed: the one that fell is to tell, not this one.
    first.send_signal(signal.SIGTERM)
    assert end(first) == ExitCode.TERMINATED
    store = FolderStore(tmp_path / "store")
    data = store.get(names.checkpoint_key(3))
    assert data is not None and store.get(names.result_key(3)) is None
    kept = len(_metrics(data))
    assert kept >= 3

    again = [start(rank, epochs=kept + 2, attempt=2) for rank in (0, 1)]
    assert [end(each) for each in again] == [ExitCode.OK, ExitCode.OK]
    result = store.get(names.result_key(3))
    assert result is not None and len(json.loads(result)["history"]) == kept + 2
    assert json.loads(result)["history"][:kept] == _metrics(data)


def test_a_rank_that_waits_for_others_hears_sigterm(start: Start) -> None:
    for number, words in ((0, "waits for other ranks"), (1, "waits for the first rank")):
        process = start(number)
        read_until(process, words)
        process.terminate()
        assert end(process) == ExitCode.TERMINATED


def _metrics(data: bytes) -> list[float]:
    """Return the metrics of the epochs that a checkpoint covers."""
    found: list[float] = json.loads(tensors.metadata(data)["nas"])["metrics"]
    return found
