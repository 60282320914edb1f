"""What the paper's experiments would cost: the arithmetic behind docs/reproduction.md, from what networks multiply.

    python bench/paper_cost.py [--samples 400]

Architectures are drawn at random from the space of each manifest in examples/paper, spread over its depth schedule,
and their multiplications and additions counted; nothing is trained. A training step costs three forward passes: one
forward, two backward.

A cell's step is a row of small kernels that wait for each other, so for text the kernels of a window are counted, too:
what torch is asked to do to tensors without contents, from drawing the masks to the optimiser. A child takes as long as
the longer of both. Every column of hours is an estimate from these counts; none was measured.
"""

import argparse
import random
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch._ops import OpOverload
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from nas_api.decisions import Anchor
from nas_api.experiment import LanguageSpec, NASExperimentSpec
from nas_api.search_space import SearchSpace, search_space
from nas_api.spaces.convolutional import ConvolutionalArchitecture
from nas_api.spaces.recurrent_cell import RecurrentCellArchitecture
from nas_cli.manifest import read_experiment
from nas_trainer.images.network import multiply_adds
from nas_trainer.optimizer import NesterovSGD
from nas_trainer.text.model import LanguageModel, fitting_width, model_parameters

PAPER = Path(__file__).resolve().parents[1] / "examples" / "paper"
SEARCHES = ("cifar-v1", "cifar-v2", "cifar-v3", "ptb", "ptb-random", "ptb-max-sin")
CIFAR_IMAGE = (3, 32, 32)
CIFAR_TRAINING_IMAGES = 45_000
# Penn Treebank in the usual split; all three parts have 10,000 different words.
PTB_TRAINING_WORDS = 929_589
PTB_VOCABULARY = 10_000
# An ordinary training of ResNet-18 on CIFAR-10: 32.3 PFLOP in 7 minutes on an A100
# (github.com/KellerJordan/cifar10-airbench). Narrow layers reach less.
A100_FLOPS = 32.3e15 / 420
PASSES, FLOP_PER_MULTIPLY_ADD = 3, 2
# Assumed, of a small kernel: launched one by one from Python, and as one of many in a CUDA graph, each waiting for the
# one before. `python -m nas_trainer.smoke` measures both on a GPU.
LAUNCHED_SECONDS, REPLAYED_SECONDS = 5e-6, 3e-6


def drawn(space: SearchSpace, sample: int, rng: random.Random) -> ConvolutionalArchitecture | RecurrentCellArchitecture:
    """Return an architecture drawn uniformly at random as the sample-th."""
    options = [
        2**decision.index if isinstance(decision, Anchor) else len(decision.options)
        for decision in space.decisions(sample)
    ]
    architecture = space.decode(tuple(rng.randrange(count) for count in options))
    assert isinstance(architecture, ConvolutionalArchitecture | RecurrentCellArchitecture)
    return architecture


def example_cost(architecture: ConvolutionalArchitecture | RecurrentCellArchitecture, language: LanguageSpec) -> int:
    """Return the multiply-adds of one image or one word, forward."""
    if isinstance(architecture, ConvolutionalArchitecture):
        return multiply_adds(architecture, CIFAR_IMAGE, classes=10)
    width = fitting_width(architecture, PTB_VOCABULARY, language)
    # What is looked up is not multiplied: the embedding. The softmax is, whether it has weights of its own or not.
    looked_up = 0 if language.shared_embeddings else PTB_VOCABULARY * width
    return model_parameters(architecture, PTB_VOCABULARY, width, language) - looked_up


class Kernels(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts what would be a kernel: every operation but those that only allocate or look at the same memory."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(
        self, func: OpOverload, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Count an operation and do it."""
        self.count += not func.is_view and "empty" not in str(func)
        return func(*args, **(kwargs or {}))


def kernels(cell: RecurrentCellArchitecture, spec: LanguageSpec, steps: int, batch: int) -> int:
    """Return how many kernels a window of training launches."""
    with torch.device("meta"):
        model = LanguageModel(cell, PTB_VOCABULARY, fitting_width(cell, PTB_VOCABULARY, spec), spec)
        words = torch.zeros(steps, batch, dtype=torch.int64)
        following = torch.zeros(steps * batch, dtype=torch.int64)
        generator = torch.Generator("cpu")
    optimizer = NesterovSGD(model.parameters(), 1.0, 0.0, 0.0)
    counted = Kernels()
    with counted:
        logits = model(words, *model.start(batch), model.masks(words, generator))[0]
        torch.autograd.backward(functional.cross_entropy(logits, following, reduction="sum") / batch)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    # Autocast's: h before each product, and the gradients before the one in the way back.
    return counted.count + 2 * spec.layers * steps


def window_kernels(cell: RecurrentCellArchitecture, spec: LanguageSpec, batch: int) -> int:
    """Return the same for a window of the length that the manifest says: each step takes as many as any other."""
    two, three = (kernels(cell, spec, steps, batch) for steps in (2, 3))
    return two + (spec.steps - 2) * (three - two)


def search_kernels(spec: NASExperimentSpec, samples: int) -> tuple[float, float]:
    """Return the kernels of a window, mean over samples, and the windows of one child."""
    rng = random.Random(0)
    space, trainer = search_space(spec.search_space), spec.trainer
    counts = []
    for index in range(samples):
        cell = drawn(space, index, rng)
        assert isinstance(cell, RecurrentCellArchitecture)
        counts.append(window_kernels(cell, trainer.language, trainer.batch_size))
    windows = PTB_TRAINING_WORDS / trainer.batch_size / trainer.language.steps * trainer.epochs
    return statistics.fmean(counts), windows


def search_cost(spec: NASExperimentSpec, samples: int) -> tuple[float, float]:
    """Return the multiply-adds of one example, mean over samples, and the operations of one child."""
    rng = random.Random(0)
    space, budget = search_space(spec.search_space), spec.budget.samples
    costs = [
        example_cost(drawn(space, index * budget // samples, rng), spec.trainer.language) for index in range(samples)
    ]
    mean = statistics.fmean(costs)
    examples = CIFAR_TRAINING_IMAGES if spec.search_space.convolutional is not None else PTB_TRAINING_WORDS
    return mean, mean * FLOP_PER_MULTIPLY_ADD * PASSES * examples * spec.trainer.epochs


def main() -> None:
    """Print a line for each search."""
    parser = argparse.ArgumentParser(description="Cost of the paper's experiments.")
    parser.add_argument("--samples", type=int, default=400)
    samples = parser.parse_args().samples
    print(f"A100: {A100_FLOPS / 1e12:.0f} TFLOP/s, as an ordinary training of ResNet-18 reaches")
    print(f"{'search':18}{'M multiply-adds':>17}{'PFLOP a child':>15}{'children':>10}{'EFLOP':>8}{'A100 hours':>12}")
    for name in SEARCHES:
        spec = read_experiment(PAPER / f"{name}.yaml").spec
        mean, child = search_cost(spec, samples)
        whole = child * spec.budget.samples
        print(
            f"{name:18}{mean / 1e6:17,.0f}{child / 1e15:15.1f}{spec.budget.samples:10,}{whole / 1e18:8.1f}"
            f"{whole / A100_FLOPS / 3600:12,.0f}"
        )
    print(f"\n{'search':18}{'kernels a window':>17}{'hours launched':>16}{'hours recorded':>16}")
    for name in SEARCHES:
        spec = read_experiment(PAPER / f"{name}.yaml").spec
        if spec.search_space.recurrent_cell is None:
            continue
        # They differ less than the networks' operations do.
        count, windows = search_kernels(spec, -(-samples // 10))
        computed = search_cost(spec, samples)[1] / A100_FLOPS
        hours = [
            max(count * windows * each, computed) * spec.budget.samples / 3600
            for each in (LAUNCHED_SECONDS, REPLAYED_SECONDS)
        ]
        print(f"{name:18}{count:17,.0f}{hours[0]:16,.0f}{hours[1]:16,.0f}")


if __name__ == "__main__":
    main()
