"""``python -m nas_trainer.smoke``: what works on this GPU, in one table, in about a minute.

``helm test`` runs it where the chart is told of a GPU. Figures are there to be compared between GPUs; only what is
wrong fails.
"""

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nas_api.child import ExitCode, StoreLocation
from nas_api.experiment import DatasetSpec, DigitsDataset, GpuSpec, LanguageSpec, OptimizerSpec, TextDataset
from nas_api.spaces.convolutional import ConvolutionalArchitecture
from nas_api.spaces.recurrent_cell import RecurrentCellArchitecture
from nas_trainer.cuda_graph import WARM_UP_STEPS, GpuRecorder, RecordedStep, Recorder
from nas_trainer.gpu import NoCuda, on_gpu, prepare
from nas_trainer.images.data import load_images
from nas_trainer.images.training import ImageTraining
from nas_trainer.text.data import load_text
from nas_trainer.text.training import TextTraining

# Kernels in a row, as small networks and cells launch them.
_KERNELS = 200
_TRAINING_WORDS, _HELD_OUT_WORDS = 3_000, 500


@dataclass(frozen=True)
class Machine:
    """Where the checks run: a GPU, or in their own tests something else."""

    device: torch.device
    wait: Callable[[], None]
    """Returns when all that was launched is done."""
    recorder: Callable[[], Recorder]
    stream: Callable[[], AbstractContextManager[object]]
    """Returns a block whose work goes to a stream of its own."""
    size: int = 4096
    """Rows of large matrices."""


def gpu() -> Machine:
    """Return the GPU."""
    return Machine(
        torch.device("cuda"),
        torch.cuda.synchronize,
        GpuRecorder,
        lambda: torch.cuda.stream(torch.cuda.Stream()),  # type: ignore[no-untyped-call]
    )


Check = Callable[[Machine], str]


def kernel(machine: Machine) -> str:
    """A product of matrices, against the same on the CPU."""
    a, b = torch.rand(2, 64, 64, dtype=torch.float64)
    found = a.to(machine.device).float() @ b.to(machine.device).float()
    assert torch.allclose(found.cpu().double(), a @ b, rtol=1e-2), "a product of matrices is wrong"
    return f"float32: {_teraflops(machine, torch.float32):.1f} TFLOP/s"


def half(machine: Machine) -> str:
    """The type of autocast, against float32."""
    used = on_gpu(GpuSpec(), machine.device)
    kind = torch.bfloat16 if used is None or used.half is None else used.half
    a, b = torch.rand(2, 64, 64, device=machine.device)
    assert torch.allclose((a.to(kind) @ b.to(kind)).float(), a @ b, rtol=5e-2), f"a product in {kind} is wrong"
    return f"{kind}: {_teraflops(machine, kind):.1f} TFLOP/s".removeprefix("torch.")


def graph(machine: Machine) -> str:
    """A recording, against the same kernels one by one."""

    def step(x: Tensor) -> Tensor:
        for _ in range(_KERNELS):
            x = x + 1
        return x

    recorded = RecordedStep(step, machine.recorder())
    given = torch.zeros(64, device=machine.device)
    for turn in range(2 * WARM_UP_STEPS):
        assert recorded(given + turn).eq(turn + _KERNELS).all(), "a recording computes something else"
    times = [_seconds(machine, lambda each=each: each(given)) for each in (step, recorded)]  # type: ignore[misc]
    launched, replayed = (1e6 * each / _KERNELS for each in times)
    return f"a small kernel takes {launched:.1f} us launched, {replayed:.1f} us replayed"


def streams(machine: Machine) -> str:
    """Two streams side by side, against one after the other: what childrenPerPod can gain at most."""
    x = torch.rand(256, 256, device=machine.device)

    def chain() -> None:
        y = x
        for _ in range(_KERNELS):
            y = y @ x
            y = y / y.norm()

    def both() -> None:
        for _ in range(2):
            with machine.stream():
                chain()

    def twice() -> None:
        chain()
        chain()

    machine.wait()
    return f"two take {_seconds(machine, both) / _seconds(machine, twice):.2f} of the time of one after the other"


def image_training(machine: Machine) -> str:
    """Digits, recorded and not."""
    images = load_images(DatasetSpec(digits=DigitsDataset(training_images=300)), StoreLocation(folder="/"))
    architecture = ConvolutionalArchitecture.parse_short("3x3:24 3x3:36<0")

    def train(settings: GpuSpec) -> list[float]:
        each = ImageTraining(architecture, images, OptimizerSpec(), 32, 1, machine.device, gpu=settings)
        each.run(5, lambda: None)
        return list(each.progress.losses)

    return _alike(train)


def text_training(machine: Machine) -> str:
    """The text that Python ships, recorded and not."""
    text = load_text(TextDataset(vocabulary=500), StoreLocation(folder="/"))
    text = replace(text, train=text.train[:_TRAINING_WORDS], held_out=text.held_out[:_HELD_OUT_WORDS])
    cell = RecurrentCellArchitecture.parse_short("add/tanh elem_mult/sigmoid add/tanh; inject add/tanh at 2; c=1")
    spec = LanguageSpec(parameters=100_000, steps=20)

    def train(settings: GpuSpec) -> list[float]:
        optimizer = OptimizerSpec(learning_rate="0.5", momentum="0", weight_decay="0")
        each = TextTraining(cell, text, spec, optimizer, 10, 1, machine.device, gpu=settings)
        each.run(3, lambda: None)
        return list(each.progress.losses)

    return _alike(train)


CHECKS: dict[str, Check] = {
    "kernel": kernel,
    "half precision": half,
    "CUDA graph": graph,
    "two streams": streams,
    "images": image_training,
    "text": text_training,
}


def table(machine: Machine, checks: Mapping[str, Check]) -> Iterator[tuple[str, bool, str]]:
    """Run the checks; yield the name of each, whether it went well, and what is to be said of it."""
    for name, check in checks.items():
        try:
            yield name, True, check(machine)
        # AssertionError: a wrong number. RuntimeError: what torch and the driver say.
        except (AssertionError, RuntimeError) as error:
            yield name, False, (str(error) or type(error).__name__).splitlines()[0]


def main(
    environment: Mapping[str, str] = os.environ,
    machine: Callable[[], Machine] = gpu,
    checks: Mapping[str, Check] = CHECKS,
) -> int:
    """Print the table and return the exit status: 0 if all is well or there is no GPU and none was asked for."""
    try:
        prepare(environment)
    except NoCuda as error:
        print(f"FAILED   {error}")
        return ExitCode.NO_CUDA
    if not torch.cuda.is_available():
        print(f"skipped  torch {torch.__version__} finds no GPU here, and none was asked for")
        return ExitCode.OK
    print(f"         torch {torch.__version__}, CUDA {torch.version.cuda}, {_device()}")
    status = ExitCode.OK.value
    for name, well, words in table(machine(), checks):
        print(f"{'ok' if well else 'FAILED':8} {name:16} {words}", flush=True)
        status = status if well else 1
    return status


def _device() -> str:
    used = on_gpu(GpuSpec(), torch.device("cuda"))
    assert used is not None
    _, total = torch.cuda.mem_get_info()
    return f"{used.used.name} ({total / 2**30:.0f} GiB), capability {used.used.capability}: {used.used.precision}"


def _seconds(machine: Machine, work: Callable[[], object]) -> float:
    work()
    machine.wait()
    started = time.perf_counter()
    work()
    machine.wait()
    return time.perf_counter() - started


def _teraflops(machine: Machine, kind: torch.dtype) -> float:
    x = torch.rand(machine.size, machine.size, device=machine.device).to(kind)
    return 2 * machine.size**3 / _seconds(machine, lambda: x @ x) / 1e12


def _alike(train: Callable[[GpuSpec], list[float]]) -> str:
    plain, recorded = train(GpuSpec()), train(GpuSpec(cuda_graphs=True))
    assert plain[-1] < plain[0], f"it does not learn: losses {plain[0]:.4f} and {plain[-1]:.4f}"
    assert abs(plain[-1] - recorded[-1]) < 0.05 * plain[0], f"loss {plain[-1]:.4f}, recorded {recorded[-1]:.4f}"
    return f"loss {plain[0]:.3f} to {plain[-1]:.3f}, recorded {recorded[-1]:.3f}"


if __name__ == "__main__":
    sys.exit(main())
