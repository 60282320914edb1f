"""What the paper's experiments would cost: the arithmetic behind docs/reproduction.md, from what networks multiply.

    python bench/paper_cost.py [--samples 400]

Architectures are drawn at random from the space of each manifest in examples/paper, spread over its depth schedule,
and their multiplications and additions counted; nothing is trained. A training step costs three forward passes: one
forward, two backward.
"""

import argparse
import random
import statistics
from pathlib import Path

from nas_api.decisions import Anchor
from nas_api.experiment import LanguageSpec, NASExperimentSpec
from nas_api.search_space import SearchSpace, search_space
from nas_api.spaces.convolutional import ConvolutionalArchitecture
from nas_api.spaces.recurrent_cell import RecurrentCellArchitecture
from nas_cli.manifest import read_experiment
from nas_trainer.images.network import multiply_adds
from nas_trainer.text.model import fitting_width, model_parameters

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


if __name__ == "__main__":
    main()
