"""What the GPU path does that can be seen without a GPU: the recorded step's buffers, and where its settings go."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from nas_api.child import FinalSettings, StoreLocation
from nas_api.experiment import DatasetSpec, DigitsDataset, GpuSpec, OptimizerSpec
from nas_api.spaces.convolutional import ConvolutionalArchitecture
from nas_trainer.images import training
from nas_trainer.images.cuda_graph import WARM_UP_STEPS, RecordedStep
from nas_trainer.images.data import load_images
from nas_trainer.images.training import ImageTraining


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


def test_a_recorded_training_is_the_plain_one_and_records_anew_when_the_learning_rate_falls(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.set_num_threads(1)
    tapes: list[Tape] = []

    def recorder() -> Tape:
        tapes.append(Tape())
        return tapes[-1]

    monkeypatch.setattr(training, "GpuRecorder", recorder)
    images = load_images(DatasetSpec(digits=DigitsDataset(training_images=300)), StoreLocation(folder="/"))

    def train(gpu: GpuSpec | None) -> ImageTraining:
        each = ImageTraining(
            ConvolutionalArchitecture.parse_short("3x3:4 3x3:6p<0"),
            images,
            OptimizerSpec(),
            64,
            1,
            torch.device("cpu"),
            final=FinalSettings(decay_epoch=2),
        )
        each._gpu = gpu  # as it would be on a GPU
        each.run(4, lambda: None)
        return each

    assert train(GpuSpec(autocast=False, cuda_graphs=True)).progress == train(None).progress
    assert [tape.recorded for tape in tapes] == [1, 1]
    assert sum(tape.warmed_up + tape.replayed for tape in tapes) == 4 * (300 // 64)


def test_autocast_computes_layers_in_bfloat16_and_keeps_weights_in_float32() -> None:
    images = load_images(DatasetSpec(digits=DigitsDataset(training_images=300)), StoreLocation(folder="/"))
    each = ImageTraining(
        ConvolutionalArchitecture.parse_short("3x3:4 3x3:6<0"), images, OptimizerSpec(), 64, 1, torch.device("cpu")
    )
    each._gpu = GpuSpec()
    types: list[torch.dtype] = []
    each.network.get_submodule("layers.1").register_forward_hook(lambda _, inputs, output: types.append(output.dtype))
    each.run(2, lambda: None)
    assert set(types) == {torch.bfloat16}
    assert all(tensor.dtype != torch.bfloat16 for tensor in each.state().values())
    assert each.progress.losses[1] < each.progress.losses[0]
