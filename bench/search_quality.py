"""How good is what a searcher finds? NAS-Bench-Macro as the trainer: 8 decisions of 3 options, 6,561 networks.

    python bench/search_quality.py [--table PATH] [--seeds 20] [--samples 200]

A sample's reward is the accuracy of one of the table's three training runs, chosen by (seed, sample); what is
reported is the best noise-free accuracy (mean of the three) among the networks sampled so far, in per cent, as
mean and standard error over the seeds. Random search runs in the same call, seed by seed, and every other searcher
is compared with it. The bars are the figures published for this table; they hold when they are within two standard
errors of the measured mean, or are exceeded.

Table: Su et al., *Prioritized ConvolutionalArchitecture Sampling with Monto-Carlo Tree Search*, CVPR 2021 (CIFAR-10).
"""

import argparse
import json
import random
import statistics
import time
from pathlib import Path

from nas_api.decisions import Categorical, Choices, Decision
from nas_api.experiment import Empty, PpoSpec, ReinforceSpec, SearcherSpec
from nas_api.spaces.convolutional import ConvolutionalArchitecture
from nas_controller.policies.factory import make_policy

TABLE = Path(__file__).parents[2] / "shared" / "data" / "nas-bench-macro_cifar10.json"
CHECKPOINTS = (50, 100, 200, 500)
ROUNDING = 0.0005
"""The bars have three decimals: the best network of all, 93.1267, stands there as 93.127."""
BARS = {
    "random": (92.779, 92.862, 92.960, 93.005),
    "reinforce": (92.789, 92.867, 92.925, 92.999),
    "ppo": (92.984, 93.112, 93.127, 93.127),
}


class TableSpace:
    """The table's networks as a search space; a network is its key, so nothing is ever decoded."""

    def decisions(self, sample: int) -> tuple[Decision, ...]:
        """Return the eight decisions, all of one kind: which block stands at each place, in the network's order."""
        return (Categorical("block", ("identity", "mb3", "mb6")),) * 8

    def decode(self, choices: Choices) -> ConvolutionalArchitecture:
        """Refuse: the table's networks are no networks of ours."""
        raise ValueError("the table's networks cannot be built")

    def encode(self, architecture: ConvolutionalArchitecture) -> Choices:
        """Refuse: the table's networks are no networks of ours."""
        raise ValueError("the table's networks cannot be built")


def search(searcher: SearcherSpec, table: dict[str, dict[str, list[float]]], samples: int) -> list[float]:
    """Return the best noise-free accuracy after each sample of one search, results arriving in order."""
    policy = make_policy(searcher, TableSpace())
    best: list[float] = []
    for sample in range(samples):
        proposal = policy.propose(sample)
        policy.proposed(sample, proposal)
        network = table["".join(map(str, proposal.choices))]
        # The noise belongs to the table, not to the searcher: all searchers of a seed meet the same.
        run = random.Random(f"{searcher.seed}/{sample}").randrange(3)
        policy.observed(sample, network["test_acc"][run] / 100)
        best.append(max(network["mean_acc"], best[-1] if best else 0.0))
    return best


def searcher(name: str, seed: int) -> SearcherSpec:
    """Return a searcher with its default settings."""
    return SearcherSpec(
        seed=seed,
        ppo=PpoSpec() if name == "ppo" else None,
        reinforce=ReinforceSpec() if name == "reinforce" else None,
        random=Empty() if name == "random" else None,
    )


def mean_and_error(values: list[float]) -> tuple[float, float]:
    """Return the mean and its standard error."""
    return statistics.fmean(values), statistics.stdev(values) / len(values) ** 0.5


def main() -> int:
    """Run the comparison; the exit code is 1 when a bar does not hold, 0 also when there is no table."""
    parser = argparse.ArgumentParser(description="Search quality on NAS-Bench-Macro.")
    parser.add_argument("--table", type=Path, default=TABLE, help="nas-bench-macro_cifar10.json")
    parser.add_argument("--seeds", type=int, default=20, help="searches of each kind, at least 2")
    parser.add_argument("--samples", type=int, default=200, help="samples of each search, at least 50")
    parser.add_argument("--searchers", nargs="+", default=list(BARS), choices=list(BARS))
    arguments = parser.parse_args()
    if not arguments.table.exists():
        print(f"skipped: no table at {arguments.table}; give one with --table")
        return 0
    table = json.loads(arguments.table.read_text())
    checkpoints = [count for count in CHECKPOINTS if count <= arguments.samples]
    found: dict[str, dict[int, list[float]]] = {}
    missed = 0
    print(f"best noise-free accuracy in %, mean ± standard error over {arguments.seeds} seeds")
    for name in dict.fromkeys(["random", *arguments.searchers]):
        started = time.perf_counter()
        runs = [search(searcher(name, seed), table, arguments.samples) for seed in range(arguments.seeds)]
        seconds = (time.perf_counter() - started) / arguments.seeds
        found[name] = {count: [run[count - 1] for run in runs] for count in checkpoints}
        print(f"{name} ({seconds:.1f} s a search)")
        for count, bar in zip(checkpoints, BARS[name], strict=False):
            mean, error = mean_and_error(found[name][count])
            pairs = zip(found[name][count], found["random"][count], strict=True)
            gain, gain_error = mean_and_error([mine - control for mine, control in pairs])
            holds = mean + 2 * error >= bar - ROUNDING
            missed += not holds
            print(
                f"  {count:4} samples  {mean:.3f} ± {error:.3f}   against random {gain:+.3f} ± {gain_error:.3f}"
                f"   bar {bar:.3f} {'holds' if holds else 'MISSED'}"
            )
    return 1 if missed else 0


if __name__ == "__main__":
    raise SystemExit(main())
