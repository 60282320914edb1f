"""How fast is a generated cell? Words per second of forward and backward against torch.nn.LSTM's, on one thread.

    python bench/recurrent_trainer.py [--cells 6] [--repeats 15] [--device cuda]

Both have the same number of parameters: the cell's width follows from that of the LSTM. Batch 20, windows of 35
steps. The cells are NASCell and random ones of base 8, with the paper's options and with max and sin. Then whole
children are compared: two layers, an embedding, a softmax over 10,000 words, and a step of the optimiser, at the LSTM's
number of parameters. The two take turns, and the medians are compared, so that both see the same machine.

On a GPU the LSTM is cuDNN's, and cells and children are recorded as with ``gpu.cudaGraphs``; all in float32.
"""

import argparse
import math
import random
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from nas_api.decisions import Categorical
from nas_api.experiment import LanguageSpec
from nas_api.spaces.recurrent_cell import (
    Activation,
    Combination,
    RecurrentCellArchitecture,
    RecurrentCellSpace,
    RecurrentCellSpec,
)
from nas_trainer.cuda_graph import WARM_UP_STEPS, GpuRecorder, RecordedStep
from nas_trainer.optimizer import NesterovSGD
from nas_trainer.text.cell import RecurrentCell
from nas_trainer.text.model import LanguageModel, fitting_width

STEPS, BATCH, WORDS = 35, 20, 10_000
# One more than a recording takes.
_WARM_UP = WARM_UP_STEPS + 1
NASCELL = RecurrentCellArchitecture.parse_short(
    "add/sigmoid add/relu add/sigmoid elem_mult/relu add/tanh add/sigmoid add/tanh add/sigmoid"
    " elem_mult/tanh add/tanh elem_mult/tanh add/sigmoid elem_mult/identity add/tanh elem_mult/tanh;"
    " inject add/tanh at 8; c=12"
)


def drawn(seed: int, spec: RecurrentCellSpec) -> RecurrentCellArchitecture:
    """Return a random cell of a space."""
    space = RecurrentCellSpace(spec)
    rng = random.Random(seed)
    return space.decode(
        tuple(rng.randrange(len(each.options)) for each in space.decisions(0) if isinstance(each, Categorical))
    )


def recorded(work: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """Return what does the work: on a GPU a recording of it."""
    if device.type == "cpu":
        return work

    def step(nothing: Tensor) -> Tensor:
        work()
        return nothing

    replay, nothing = RecordedStep(step, GpuRecorder()), torch.zeros((), device=device)

    def again() -> None:
        replay(nothing)

    return again


def lstm_window(width: int, device: torch.device) -> Callable[[], None]:
    """Return a function that runs one window of an LSTM forward and backward."""
    lstm = nn.LSTM(width, width).to(device)
    x, gradient = torch.randn(2, STEPS, BATCH, width, device=device).unbind()
    x.requires_grad_()

    def window() -> None:
        lstm.zero_grad()
        lstm(x)[0].backward(gradient)

    return window


def cell_window(cell: RecurrentCellArchitecture, width: int, device: torch.device) -> Callable[[], None]:
    """Return a function that runs one window of a cell forward and backward."""
    module = RecurrentCell(cell, width, width).to(device)
    x, gradient = torch.randn(2, STEPS, BATCH, width, device=device).unbind()
    x.requires_grad_()
    state = torch.zeros(BATCH, width, device=device)

    def window() -> None:
        module.zero_grad()
        x.grad = None
        module(x, state, state)[0].backward(gradient)

    return recorded(window, device)


class LstmModel(nn.Module):
    """The medium LSTM of the literature: embedding, two layers, softmax."""

    def __init__(self, words: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, width)
        self.lstm = nn.LSTM(width, width, 2)
        self.softmax = nn.Linear(width, words)

    def forward(self, words: Tensor) -> Tensor:
        """Return the logits."""
        logits: Tensor = self.softmax(self.lstm(self.embedding(words))[0].flatten(0, 1))
        return logits


def child_step(network: nn.Module, forward: Callable[[Tensor], Tensor], device: torch.device) -> Callable[[], None]:
    """Return a function that takes one step of training, from words to changed weights."""
    words = torch.randint(WORDS, (2, STEPS, BATCH), device=device)
    optimizer = NesterovSGD(network.parameters(), 0.01, 0.0, 0.0)

    def step() -> None:
        torch.autograd.backward(functional.cross_entropy(forward(words[0]), words[1].flatten()))
        nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimizer.step()

    return step


def compare_children(cells: dict[str, RecurrentCellArchitecture], repeats: int, device: torch.device) -> None:
    """Print a line for each cell: whole children of 20M parameters."""
    lstm = LstmModel(WORDS, 650).to(device)
    spec = LanguageSpec(dropout="0", parameters=sum(parameter.numel() for parameter in lstm.parameters()))
    for name, cell in cells.items():
        model = LanguageModel(cell, WORDS, fitting_width(cell, WORDS, spec), spec).to(device)
        state = model.start(BATCH)
        theirs, ours = seconds(
            child_step(lstm, lstm, device),
            recorded(
                child_step(
                    model,
                    partial(lambda words, model, state: model(words, *state)[0], model=model, state=state),
                    device,
                ),
                device,
            ),
            repeats,
            device,
        )
        words = STEPS * BATCH
        print(
            f"child of {spec.parameters:,} parameters: LSTM 650 wide {words / theirs:,.0f} words/s; {name},"
            f" {model.width} wide: {words / ours:,.0f} words/s, {theirs / ours:.2f}x",
            flush=True,
        )


def seconds(
    one: Callable[[], None], other: Callable[[], None], repeats: int, device: torch.device
) -> tuple[float, float]:
    """Return the median times of two functions that take turns."""
    times: tuple[list[float], list[float]] = ([], [])

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    for turn in range(repeats + _WARM_UP):
        for function, into in zip((one, other), times, strict=True):
            wait()
            started = time.perf_counter()
            function()
            wait()
            if turn >= _WARM_UP:
                into.append(time.perf_counter() - started)
    return statistics.median(times[0]), statistics.median(times[1])


def main() -> None:
    """Print a line for each width and cell, then the lowest ratio of each width."""
    parser = argparse.ArgumentParser(description="Speed of generated cells.")
    parser.add_argument("--cells", type=int, default=6, help="random cells besides NASCell")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    paper = RecurrentCellSpec()
    control = RecurrentCellSpec(combinations=get_args(Combination), activations=get_args(Activation))
    cells = {"NASCell": NASCELL} | {
        f"random {seed}": drawn(seed, control if seed % 2 else paper) for seed in range(arguments.cells)
    }
    for width in (200, 650):
        worst = math.inf
        for name, cell in cells.items():
            # An LSTM has 8 width^2 weights, a cell 2 base width^2.
            own = round(width * math.sqrt(8 / (2 * cell.base)))
            device = arguments.device
            lstm, ours = seconds(lstm_window(width, device), cell_window(cell, own, device), arguments.repeats, device)
            worst = min(worst, lstm / ours)
            words = STEPS * BATCH
            print(
                f"LSTM {width}: {words / lstm:,.0f} words/s; {name}, {own} wide: {words / ours:,.0f} words/s,"
                f" {lstm / ours:.2f}x",
                flush=True,
            )
        print(f"LSTM {width}: every cell at least {worst:.2f}x", flush=True)
    compare_children(dict(list(cells.items())[:3]), max(3, arguments.repeats // 3), arguments.device)


if __name__ == "__main__":
    main()
