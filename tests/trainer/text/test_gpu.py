"""What text does on a GPU, as far as it can be seen without one: recorded windows, and products in half precision."""

import random

import pytest
import torch
from trainer.tape import Tape, as_on_a_gpu

from nas_api.experiment import LanguageSpec, OptimizerSpec
from nas_api.spaces.recurrent_cell import RecurrentCellArchitecture
from nas_trainer import descent
from nas_trainer.gpu import Gpu
from nas_trainer.text import operations, training
from nas_trainer.text.data import Text
from nas_trainer.text.training import TextTraining

# All kinds of leaves and nodes; c comes from a leaf's parent and goes into a node above it.
CELL = RecurrentCellArchitecture.parse_short(
    "add/tanh max/sigmoid elem_mult/relu add/sin elem_mult/tanh add/sigmoid add/tanh; inject add/tanh at 4; c=5"
)
SPEC = LanguageSpec(
    layers=2,
    parameters=3000,
    steps=5,
    dropout="0.25",
    input_dropout="0.1",
    recurrent_dropout="0.1",
    embedding_dropout="0.1",
    steady_epochs=2,
)


@pytest.fixture
def text() -> Text:
    """A text in which each of eleven words has two that may follow it: four streams in 26 windows; one is short."""
    torch.set_num_threads(1)
    rng = random.Random(1)
    tokens = [0]
    while len(tokens) < 704:
        tokens.append((3 * tokens[-1] + rng.randrange(2)) % 11)
    return Text(torch.tensor(tokens[:505]), torch.tensor(tokens[505:]), tuple("abcdefghijk"))


def train(text: Text, monkeypatch: pytest.MonkeyPatch, gpu: Gpu | None, epochs: int = 4) -> TextTraining:
    monkeypatch.setattr(training, "on_gpu", lambda *_: gpu)
    optimizer = OptimizerSpec(learning_rate="0.1", momentum="0", weight_decay="0")
    each = TextTraining(CELL, text, SPEC, optimizer, 4, 1, torch.device("cpu"))
    each.run(epochs, lambda: None)
    return each


def test_recorded_windows_are_the_plain_ones(text: Text, monkeypatch: pytest.MonkeyPatch) -> None:
    tapes: list[Tape] = []

    def recorder() -> Tape:
        tapes.append(Tape())
        return tapes[-1]

    monkeypatch.setattr(descent, "GpuRecorder", recorder)
    plain = train(text, monkeypatch, None)
    recorded = train(text, monkeypatch, as_on_a_gpu(cuda_graphs=True))
    assert recorded.progress == plain.progress
    assert all(torch.equal(tensor, recorded.state()[name]) for name, tensor in plain.state().items())
    # 126 steps are 25 windows and a short one; the learning rate falls after the second epoch, and after the third.
    assert [(tape.recorded, tape.warmed_up + tape.replayed) for tape in tapes] == [(1, 50), (1, 25), (1, 25)]


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_products_are_in_half_precision_and_all_else_in_float32(
    text: Text, monkeypatch: pytest.MonkeyPatch, half: torch.dtype
) -> None:
    types: set[torch.dtype] = set()
    mm = torch.mm

    def spy(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        types.update((left.dtype, right.dtype))
        return mm(left, right)

    plain = train(text, monkeypatch, None)
    monkeypatch.setattr(operations.torch, "mm", spy)  # type: ignore[attr-defined]
    # In float32 the CPU takes another way.
    found = train(text, monkeypatch, as_on_a_gpu(half))
    assert types == {half}
    assert all(tensor.dtype == torch.float32 for name, tensor in found.state().items() if "scaler" not in name)
    assert ("scaler.scale" in found.state()) == (half == torch.float16)
    # Rounding apart it is the same training; what is dropped is.
    assert found.progress.losses == pytest.approx(plain.progress.losses, rel=0.01)
    assert found.progress.metrics == pytest.approx(plain.progress.metrics, rel=0.01)
