"""The GPU path, as far as it can be seen without a GPU: the one that is missing, recorded steps, scaled losses."""

import json
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest
import torch
from torch import Tensor
from trainer.tape import Tape, as_on_a_gpu

from nas_api import names
from nas_api.child import ExitCode, Result, StoreLocation, TrainerInput, UsedGpu
from nas_api.experiment import DatasetSpec, DigitsDataset, GpuSpec
from nas_api.spaces.convolutional import ConvolutionalArchitecture
from nas_store.folder import FolderStore
from nas_trainer import gpu, smoke
from nas_trainer.cuda_graph import AHEAD, WARM_UP_STEPS, RecordedStep, first_error, paced
from nas_trainer.images import training
from nas_trainer.main import main
from nas_trainer.optimizer import NesterovSGD

CPU = torch.device("cpu")


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    document = TrainerInput(
        experiment="digits",
        sample=3,
        attempt=1,
        seed=1,
        metric="accuracy",
        architecture=ConvolutionalArchitecture.parse_short("3x3:4 3x3:6<0"),
        dataset=DatasetSpec(digits=DigitsDataset(training_images=200)),
        epochs=1,
        store=StoreLocation(folder=str(tmp_path / "store")),
    )
    text = document.model_dump_json(by_alias=True)
    return {names.ENV_TRAINER_INPUT: text, "NAS_TERMINATION_LOG": str(tmp_path / "message")}


def result(tmp_path: Path) -> bytes:
    data = FolderStore(tmp_path / "store").get(names.result_key(3))
    assert data is not None
    return data


# ---------------------------------------------------------------- asked for, and not there


def test_without_the_gpu_that_was_asked_for_nothing_is_trained(environment: dict[str, str], tmp_path: Path) -> None:
    assert main({**environment, names.ENV_GPU: "nvidia.com/gpu"}) == ExitCode.NO_CUDA
    message = (tmp_path / "message").read_text()
    assert message.startswith("nvidia.com/gpu was asked for, but this image has no CUDA (")
    assert "use one that has it, in trainer.image or the chart's images.trainer" in message
    assert FolderStore(tmp_path / "store").get(names.result_key(3)) is None


def test_a_build_with_cuda_on_a_node_without_says_what_the_driver_says(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> Tensor:
        raise RuntimeError("Found no NVIDIA driver on your system. Please check that\nyou have one")

    monkeypatch.setattr(torch, "ones", refuse)
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: True)
    with pytest.raises(gpu.NoCuda, match=r"cannot use it \(Found no NVIDIA driver on your system\. Please.*repair"):
        gpu.prepare({names.ENV_GPU: "nvidia.com/gpu"})


@pytest.mark.parametrize("words", [{}, {names.ENV_GPU: ""}], ids=["not asked", "a CPU will do"])
def test_nobody_else_needs_one(environment: dict[str, str], tmp_path: Path, words: dict[str, str]) -> None:
    assert main({**environment, **words}) == ExitCode.OK
    assert "gpu" not in json.loads(result(tmp_path)), "nothing is said of a GPU where there is none"


def test_the_result_says_on_which_gpu_and_how(
    environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(training, "on_gpu", lambda *_: as_on_a_gpu(torch.bfloat16))
    assert main(environment) == ExitCode.OK
    data = result(tmp_path)
    told = {"name": "a CPU", "capability": "7.5", "precision": "float32"}
    assert json.loads(data)["gpu"] == told
    digest = ConvolutionalArchitecture.parse_short("3x3:4 3x3:6<0").digest
    assert Result.parse(data, sample=3, digest=digest, metric="accuracy").gpu == UsedGpu(**told)
    said = capsys.readouterr()
    assert "a CPU" in said.out + said.err


@pytest.mark.parametrize(
    ("capability", "autocast", "precision", "half"),
    [
        ((9, 0), True, "bfloat16", torch.bfloat16),
        ((8, 0), False, "tf32", None),
        ((7, 5), True, "float16", torch.float16),
        ((7, 0), False, "float32", None),
    ],
)
def test_precision_follows_the_capability(
    monkeypatch: pytest.MonkeyPatch,
    capability: tuple[int, int],
    autocast: bool,
    precision: str,
    half: torch.dtype | None,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA something")
    # Whoever counts emulation finds bfloat16 everywhere.
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or capability[0] >= 8
    )
    found = gpu.on_gpu(GpuSpec(autocast=autocast), torch.device("cuda"))
    assert found is not None
    told = UsedGpu(name="NVIDIA something", capability=f"{capability[0]}.{capability[1]}", precision=precision)
    assert (found.used, found.half) == (told, half)
    assert (found.scaler(CPU) is not None) == (half == torch.float16)
    assert gpu.on_gpu(GpuSpec(), CPU) is None


# ---------------------------------------------------------------- recorded steps


def test_a_recorded_step_takes_every_step_once_on_fixed_buffers() -> None:
    seen: list[tuple[int, int, float]] = []

    def step(images: Tensor, labels: Tensor) -> Tensor:
        seen.append((images.data_ptr(), labels.data_ptr(), images.sum().item() + labels.sum().item()))
        return images.sum()

    tape = Tape()
    recorded = RecordedStep(step, tape)
    losses = [recorded(torch.full((2, 3), float(i)), torch.full((2,), i)).item() for i in range(8)]
    assert losses == [6.0 * i for i in range(8)]
    assert [total for _, _, total in seen] == [8.0 * i for i in range(8)]
    assert len({(images, labels) for images, labels, _ in seen}) == 1
    assert (tape.warmed_up, tape.recorded, tape.replayed) == (WARM_UP_STEPS, 1, 8 - WARM_UP_STEPS)


class Device:
    """Does one replay a look, and none by itself."""

    def __init__(self) -> None:
        self.launched = self.done = 0
        self.stuck = False

    def replay(self) -> None:
        self.launched += 1

    def record_event(self) -> "Passed":
        return Passed(self, self.launched)


class Passed:
    def __init__(self, device: Device, place: int) -> None:
        self._device, self._place = device, place

    def query(self) -> bool:
        self._device.done += not self._device.stuck
        return self._device.done >= self._place


def test_the_host_is_never_far_ahead_of_the_device() -> None:
    device = Device()
    replay = paced(device.replay, lambda: device)
    for _ in range(100):
        replay()
        assert device.launched - device.done <= AHEAD
    assert device.done == 100 - AHEAD, "nor does it wait for what it need not"


def test_sigterm_is_heard_while_the_device_is_busy() -> None:
    class Heard(BaseException):
        pass

    def hear(*_: object) -> None:
        raise Heard

    device = Device()
    device.stuck = True
    replay = paced(device.replay, lambda: device)
    for _ in range(AHEAD):
        replay()
    before = signal.signal(signal.SIGTERM, hear)
    sender = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGTERM))
    sender.start()
    try:
        with pytest.raises(Heard):
            replay()
    finally:
        sender.join()
        signal.signal(signal.SIGTERM, before)


@contextmanager
def capture() -> Iterator[None]:
    """End as torch.cuda.graph does when something has gone wrong in it."""
    try:
        yield
    finally:
        raise RuntimeError("CUDA error: operation failed due to a previous error during capture")


def test_out_of_memory_inside_a_capture_is_out_of_memory(
    environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        with first_error(), capture():
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(training.ImageTraining, "_train_epoch", fail)
    assert main(environment) == ExitCode.OUT_OF_MEMORY
    assert "Tried to allocate 2.00 GiB" in (tmp_path / "message").read_text()


def test_sigterm_inside_a_capture_is_sigterm(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    def end(*_: object) -> None:
        with first_error(), capture():
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(training.ImageTraining, "_train_epoch", end)
    assert main(environment) == ExitCode.TERMINATED


def test_a_capture_that_fails_by_itself_says_so() -> None:
    with pytest.raises(RuntimeError, match="during capture"), first_error(), capture():
        pass


# ---------------------------------------------------------------- scaled losses


def test_a_step_with_a_scaled_loss_is_the_plain_one_or_none() -> None:
    weights = [torch.nn.Parameter(torch.randn(3, 2)) for _ in range(2)]
    plain = [torch.nn.Parameter(weight.detach().clone()) for weight in weights]
    scaled, other = NesterovSGD(weights, 0.1, 0.9, 0.01), NesterovSGD(plain, 0.1, 0.9, 0.01)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=2)
    scales = []
    for turn in range(6):
        loss = sum((weight**2).sum() * (float("inf") if turn == 2 else 1) for weight in weights)
        assert isinstance(loss, Tensor)
        scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        scaler.unscale_(scaled)  # type: ignore[arg-type]
        scaler.step(scaled)  # type: ignore[arg-type]
        scaler.update()
        scales.append(scaler.get_scale())
        if turn != 2:
            for weight in plain:
                weight.grad = 2 * weight.detach()
            other.step()
        torch.testing.assert_close(weights, plain)
        torch.testing.assert_close(scaled.velocities, other.velocities)
    assert scales == [1024.0, 2048.0, 1024.0, 1024.0, 2048.0, 2048.0]


# ---------------------------------------------------------------- the smoke test


def machine() -> smoke.Machine:
    return smoke.Machine(CPU, lambda: None, Tape, nullcontext, size=64)


def test_the_smoke_test_is_skipped_where_there_is_no_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert smoke.main({}) == ExitCode.OK
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("skipped") and line.endswith("finds no GPU here, and none was asked for")
    assert smoke.main({names.ENV_GPU: "nvidia.com/gpu"}) == ExitCode.NO_CUDA
    assert capsys.readouterr().out.startswith("FAILED   nvidia.com/gpu was asked for")


def test_the_smoke_test_is_one_table(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    monkeypatch.setattr(torch, "set_float32_matmul_precision", lambda _: None)
    monkeypatch.setattr(smoke, "_device", lambda: "a GPU")
    monkeypatch.setattr(training, "choose_device", lambda: CPU)
    assert smoke.main({}, machine) == ExitCode.OK
    head, *lines = capsys.readouterr().out.splitlines()
    assert "a GPU" in head
    assert [line.split()[0] for line in lines] == ["ok"] * len(smoke.CHECKS)
    assert [line[9:26].strip() for line in lines] == list(smoke.CHECKS)

    def broken(_: smoke.Machine) -> str:
        raise RuntimeError("CUDA error: no kernel image is available\nfor execution")

    assert smoke.main({}, machine, {"kernel": broken, "CUDA graph": smoke.graph}) == 1
    _, failed, well = capsys.readouterr().out.splitlines()
    assert failed == "FAILED   kernel           CUDA error: no kernel image is available"
    assert well.startswith("ok       CUDA graph")
