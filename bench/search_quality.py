"""How good is what a searcher finds? Tables answer in place of trainings.

    python bench/search_quality.py [--tables macro pairs …] [--searchers guided tpe …] [--seeds 20] [--samples 200]
                                   [--in-flight 1]

The tables are in ``tables.py``, ``modelled_tables.py`` (public benchmarks' structures) and ``space_tables.py`` (the
paper's spaces).

Every searcher is a policy as the controller runs it. A sample's reward is one noisy training, whose luck is a function
of (seed, sample); what is reported is the best noise-free value among the first samples that came back, as mean and
standard error over the seeds. With ``--in-flight N`` results come back in any order, N samples being in flight.

The bars on NAS-Bench-Macro are the figures known for it; they hold when they are within two standard errors of the
measured mean, or are exceeded. The other tables are made up anew for each seed; there ``guided`` must not be worse than
random search, TPE, local search or evolution by more than two standard errors of the difference, seed by seed. At the
end each searcher's mean rank over the tables is told.
"""

import argparse
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

from modelled_tables import blocks, cells, hyperparameters, sizes
from rivals import LocalSearch
from space_tables import recurrent, skips
from tables import MACRO, Table, branches, macro, pairs, perplexity, wide

from nas_api.decisions import Decision
from nas_api.experiment import Empty, EvolutionSpec, GuidedSpec, PpoSpec, ReinforceSpec, SearcherSpec, TpeSpec
from nas_api.search_space import SearchSpace
from nas_controller.policies import Policy
from nas_controller.policies.factory import make_policy

CHECKPOINTS = (50, 100, 200, 500)
ROUNDING = 0.0005
"""The bars have three decimals: the best network of NAS-Bench-Macro, 93.1267, stands there as 93.127."""
BARS = {
    "random": (92.779, 92.862, 92.960, 93.005),
    "reinforce": (92.789, 92.867, 92.925, 92.999),
    "ppo": (92.984, 93.112, 93.127, 93.127),
    "evolution": (92.779, 93.029, 93.118, 93.126),
    "tpe": (93.068, 93.119, 93.127),
    "local": (93.002, 93.079, 93.109, 93.121),
    "guided": (93.101, 93.127, 93.127),
}
"""Of NAS-Bench-Macro, at the checkpoints."""
BINDING = ("random", "reinforce", "ppo", "guided")
"""Searchers of ours whose bar must hold; the other figures are there to compare with."""
RIVALS = ("random", "tpe", "local", "evolution")
TABLES: dict[str, Callable[[int], Table]] = {
    "macro": lambda seed: macro(),
    "pairs": pairs,
    "branches": branches,
    "wide": wide,
    "perplexity": perplexity,
    "cells": cells,
    "sizes": sizes,
    "hyperparameters": hyperparameters,
    "blocks": blocks,
    "recurrent": recurrent,
    "skips": skips,
}
SEARCHERS: dict[str, Callable[[int], SearcherSpec]] = {
    "random": lambda seed: SearcherSpec(seed=seed, random=Empty()),
    "reinforce": lambda seed: SearcherSpec(seed=seed, reinforce=ReinforceSpec()),
    "ppo": lambda seed: SearcherSpec(seed=seed, ppo=PpoSpec()),
    "evolution": lambda seed: SearcherSpec(seed=seed, evolution=EvolutionSpec()),
    "tpe": lambda seed: SearcherSpec(seed=seed, tpe=TpeSpec()),
    "guided": lambda seed: SearcherSpec(seed=seed, guided=GuidedSpec()),
}


@dataclass(frozen=True)
class TableSpace:
    """A table's decisions as a search space; nothing is ever built, so nothing is decoded."""

    table: Table

    def decisions(self, sample: int) -> tuple[Decision, ...]:
        """Return the table's decisions, the same for every sample."""
        return self.table.decisions


def make(name: str, seed: int, table: Table) -> Policy:
    """Return a searcher with its default settings."""
    if name == "local":
        return LocalSearch(seed, table.decisions)
    return make_policy(SEARCHERS[name](seed), cast(SearchSpace, TableSpace(table)))


def search(policy: Policy, table: Table, seed: int, samples: int, in_flight: int) -> list[float]:
    """Return the best noise-free value after each result of one search."""
    order = random.Random(f"{seed}/order")
    values: dict[int, float] = {}
    rewards: dict[int, float] = {}
    best: list[float] = []
    proposed = 0
    while len(best) < samples:
        while len(values) < in_flight and proposed < samples:
            proposal = policy.propose(proposed)
            policy.proposed(proposed, proposal)
            values[proposed] = table.value(proposal.choices)
            rewards[proposed] = table.train(proposal.choices, random.Random(f"{seed}/{proposed}"))
            proposed += 1
        sample = order.choice(list(values))
        policy.observed(sample, rewards.pop(sample))
        best.append(max(values.pop(sample), best[-1] if best else float("-inf")))
    return best


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and its standard error."""
    return statistics.fmean(values), statistics.stdev(values) / len(values) ** 0.5


def main() -> int:
    """Run the comparison; the exit code is 1 when a bar does not hold, 0 also for a table that is not there."""
    parser = argparse.ArgumentParser(description="Quality of the searchers on tables.")
    parser.add_argument("--tables", nargs="+", default=list(TABLES), choices=list(TABLES))
    parser.add_argument("--searchers", nargs="+", default=list(BARS), choices=list(BARS))
    parser.add_argument("--seeds", type=int, default=20, help="searches of each kind, at least 2")
    parser.add_argument("--samples", type=int, default=200, help="samples of each search, at least 50")
    parser.add_argument("--in-flight", type=int, default=1, help="samples whose results are awaited at once")
    arguments = parser.parse_args()
    checkpoints = [count for count in CHECKPOINTS if count <= arguments.samples]
    missed = 0
    means: list[dict[str, list[float]]] = []
    for name in arguments.tables:
        if name == "macro" and not MACRO.exists():
            print(f"macro: skipped, no table at {MACRO}")
            continue
        # All searchers of a seed meet the same table with the same noise.
        found = runs([TABLES[name](seed) for seed in range(arguments.seeds)], checkpoints, arguments)
        means.append({who: [statistics.fmean(at) for at in zip(*found[who], strict=True)] for who in found})
        for line in misses(name, found, checkpoints):
            print(f"  MISSED: {line}")
            missed += 1
    print(f"mean rank over {len(means)} tables, after samples {checkpoints}")
    for who in arguments.searchers if means else ():
        ranks = [statistics.fmean(rank(table, who, place) for table in means) for place in range(len(checkpoints))]
        print(f"  {who:10}", *(f"{each:7.2f}" for each in ranks), sep="  ")
    return 1 if missed else 0


def rank(means: dict[str, list[float]], who: str, place: int) -> float:
    """Return a searcher's rank, from 1, by the means of a table at one checkpoint; equals share their mean rank."""
    mine = means[who][place]
    others = [row[place] for name, row in means.items() if name != who]
    return 1 + sum(other > mine for other in others) + sum(other == mine for other in others) / 2


def runs(
    tables: Sequence[Table], checkpoints: Sequence[int], arguments: argparse.Namespace
) -> dict[str, list[list[float]]]:
    """Print a line for each searcher, on one table a seed, and return the best at each checkpoint of each search."""
    first = tables[0]
    print(f"{first.name}: {first.unit}, mean ± standard error over {arguments.seeds} seeds", end="")
    print(f", {arguments.in_flight} in flight; after samples {checkpoints}", flush=True)
    found: dict[str, list[list[float]]] = {}
    for name in arguments.searchers:
        started = time.process_time()
        curves = [
            search(make(name, seed, table), table, seed, arguments.samples, arguments.in_flight)
            for seed, table in enumerate(tables)
        ]
        seconds = (time.process_time() - started) / arguments.seeds
        found[name] = [[curve[count - 1] for count in checkpoints] for curve in curves]
        entries = ["{:7.3f} ± {:.3f}".format(*mean_and_error(at)) for at in zip(*found[name], strict=True)]
        if first.name == "macro":
            entries = [
                f"{entry} ({BARS[name][place]:.3f})" if place < len(BARS[name]) else entry
                for place, entry in enumerate(entries)
            ]
        print(f"  {name:10}", *entries, f" {seconds:.1f} s of CPU a search", sep="  ", flush=True)
    return found


def misses(table: str, found: dict[str, list[list[float]]], checkpoints: Sequence[int]) -> list[str]:
    """Return a line for each bar that a table's searches did not reach."""
    out: list[str] = []
    for place, count in enumerate(checkpoints):
        if table == "macro":
            for name in (name for name in BINDING if name in found and place < len(BARS[name])):
                mean, error = mean_and_error([row[place] for row in found[name]])
                if mean + 2 * error < BARS[name][place] - ROUNDING:
                    out.append(f"{name} at {count}: {mean:.3f} ± {error:.3f}, not {BARS[name][place]:.3f}")
        elif "guided" in found:
            for rival in (name for name in RIVALS if name in found):
                both = zip(found["guided"], found[rival], strict=True)
                gain, error = mean_and_error([mine[place] - theirs[place] for mine, theirs in both])
                if gain + 2 * error < 0:
                    out.append(f"guided at {count}: {gain:+.3f} ± {error:.3f} against {rival}")
    return out


if __name__ == "__main__":
    raise SystemExit(main())
