"""What stands for a recording of the GPU in tests."""

from collections.abc import Callable

import torch

from nas_api.child import UsedGpu
from nas_api.experiment import GpuSpec
from nas_trainer.gpu import Gpu


class Tape:
    """Replays by doing the work again, on the buffers that were recorded; a recording does nothing itself."""

    def __init__(self) -> None:
        self.warmed_up = self.recorded = self.replayed = 0

    def warm_up(self, work: Callable[[], None]) -> None:
        self.warmed_up += 1
        work()

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        self.recorded += 1

        def replay() -> None:
            self.replayed += 1
            work()

        return replay


def as_on_a_gpu(half: torch.dtype | None = None, *, cuda_graphs: bool = False) -> Gpu:
    """Return how a training on a CPU is told to compute as it would on a GPU."""
    used = UsedGpu(name="a CPU", capability="7.5", precision="float32")
    return Gpu(GpuSpec(autocast=half is not None, cuda_graphs=cuda_graphs), used, half)
