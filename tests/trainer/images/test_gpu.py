"""What images do on a GPU, as far as it can be seen without one: recorded trainings, and types of layers."""

import pytest
import torch
from trainer.tape import Tape, as_on_a_gpu

from nas_api.child import FinalSettings, StoreLocation
from nas_api.experiment import DatasetSpec, DigitsDataset, OptimizerSpec
from nas_api.spaces.convolutional import ConvolutionalArchitecture
from nas_trainer import descent
from nas_trainer.gpu import Gpu
from nas_trainer.images import training
from nas_trainer.images.data import load_images
from nas_trainer.images.training import ImageTraining


def test_a_recorded_training_is_the_plain_one_and_records_anew_when_the_learning_rate_falls(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.set_num_threads(1)
    tapes: list[Tape] = []

    def recorder() -> Tape:
        tapes.append(Tape())
        return tapes[-1]

    monkeypatch.setattr(descent, "GpuRecorder", recorder)
    images = load_images(DatasetSpec(digits=DigitsDataset(training_images=300)), StoreLocation(folder="/"))

    def train(gpu: Gpu | None) -> ImageTraining:
        monkeypatch.setattr(training, "on_gpu", lambda *_: gpu)
        each = ImageTraining(
            ConvolutionalArchitecture.parse_short("3x3:4 3x3:6p<0"),
            images,
            OptimizerSpec(),
            64,
            1,
            torch.device("cpu"),
            final=FinalSettings(decay_epoch=2),
        )
        each.run(4, lambda: None)
        return each

    assert train(as_on_a_gpu(cuda_graphs=True)).progress == train(None).progress
    assert [tape.recorded for tape in tapes] == [1, 1]
    assert sum(tape.warmed_up + tape.replayed for tape in tapes) == 4 * (300 // 64)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_autocast_computes_layers_in_half_precision_and_keeps_weights_in_float32(
    half: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "on_gpu", lambda *_: as_on_a_gpu(half))
    images = load_images(DatasetSpec(digits=DigitsDataset(training_images=300)), StoreLocation(folder="/"))

    def begin() -> ImageTraining:
        architecture = ConvolutionalArchitecture.parse_short("3x3:4 3x3:6<0")
        return ImageTraining(architecture, images, OptimizerSpec(), 64, 1, torch.device("cpu"))

    each = begin()
    types: list[torch.dtype] = []
    each.network.get_submodule("layers.1").register_forward_hook(lambda _, inputs, output: types.append(output.dtype))
    each.run(2, lambda: None)
    assert set(types) == {half}
    assert all(tensor.dtype != half for tensor in each.state().values())
    assert each.progress.losses[1] < each.progress.losses[0]

    # The scale of the loss is among what a checkpoint keeps.
    state, progress = each.state(), each.progress
    assert ("scaler.scale" in state) == (half == torch.float16)
    each.run(4, lambda: None)
    again = begin()
    again.restore(state, progress)
    again.run(4, lambda: None)
    assert again.progress == each.progress
    assert all(torch.equal(tensor, again.state()[name]) for name, tensor in each.state().items())
    if half == torch.float16:
        # An attempt on another GPU may have left none.
        begin().restore({name: each for name, each in state.items() if "scaler" not in name}, progress)
