"""What a policy costs: milliseconds of CPU time, on one thread, to propose a sample, to learn, and for a snapshot.

    python bench/policy_speed.py [--samples 3200] [--searchers ppo reinforce ...]

15 layers with skip connections are sampled, as in the paper's first result. Proposals include redraws; an update may
be several steps of the optimiser, ppo's is 8. The first and the last tenth of a run are shown apart: a cost must not
grow with the samples. The paper's 12,800 samples are to cost less than 10 minutes: 25 ms a sample in all, 20 ms a step
of the optimiser, 50 ms a snapshot at most; the exit code is 1 where one of these, as a median, is missed.
"""

import argparse
import statistics
import time
from dataclasses import dataclass, field

from safetensors.torch import save

from nas_api.experiment import EvolutionSpec, GuidedSpec, PpoSpec, ReinforceSpec, SearcherSpec
from nas_api.search_space import SearchSpaceSpec, search_space
from nas_api.spaces.convolutional import ConvolutionalSpec, LayersSpec
from nas_controller.policies import Policy
from nas_controller.policies.factory import make_policy
from nas_controller.policies.guided import EPOCHS as GUIDED_STEPS

SEARCHERS = {
    "ppo": (SearcherSpec(ppo=PpoSpec()), 8, PpoSpec().epochs),
    "reinforce": (SearcherSpec(reinforce=ReinforceSpec()), 8, 1),
    "reinforce-K100": (SearcherSpec(reinforce=ReinforceSpec(replicas=100)), 800, 1),
    "guided": (SearcherSpec(guided=GuidedSpec()), 8, GUIDED_STEPS),
    "evolution": (SearcherSpec(evolution=EvolutionSpec()), 8, 1),
}
"""Searchers, how many of their samples are in flight, and steps of the optimiser in one update."""
PAPER = 12_800
SAMPLE_MS, STEP_MS, SNAPSHOT_MS, MINUTES = 25.0, 20.0, 50.0, 10.0


@dataclass
class Costs:
    """Milliseconds of CPU time by what they were spent on."""

    proposals: list[float] = field(default_factory=list)
    updates: list[float] = field(default_factory=list)
    whole: float = 0.0
    """Of everything but snapshots."""


def run(policy: Policy, samples: int, in_flight: int) -> Costs:
    """Search without children: the oldest sample in flight is observed, then the next one is proposed."""
    costs = Costs()
    rewards: dict[int, float] = {}
    for sample in range(samples):
        if sample >= in_flight:
            before = policy.vitals().updates
            started = time.process_time()
            policy.observed(sample - in_flight, rewards.pop(sample - in_flight))
            spent = 1000 * (time.process_time() - started)
            costs.whole += spent
            if policy.vitals().updates > before:
                costs.updates.append(spent)
        started = time.process_time()
        proposal = policy.propose(sample)
        policy.proposed(sample, proposal)
        costs.proposals.append(1000 * (time.process_time() - started))
        rewards[sample] = sum(proposal.choices[::4]) / 100
    costs.whole += sum(costs.proposals)
    return costs


def ends(values: list[float]) -> tuple[float, float]:
    """Return the medians of the first and of the last tenth."""
    tenth = max(1, len(values) // 10)
    return statistics.median(values[:tenth]), statistics.median(values[-tenth:])


def main() -> int:
    """Print a line for each policy."""
    parser = argparse.ArgumentParser(description="Cost of the policies.")
    parser.add_argument("--samples", type=int, default=3200, help="samples of each search, at least 1600")
    parser.add_argument("--searchers", nargs="+", default=list(SEARCHERS), choices=list(SEARCHERS))
    arguments = parser.parse_args()
    space = search_space(SearchSpaceSpec(convolutional=ConvolutionalSpec(layers=LayersSpec(initial=15))))
    slow = False
    print(f"medians of the first and the last tenth of {arguments.samples} samples of 15 layers with skips, in ms")
    for name in arguments.searchers:
        searcher, in_flight, steps = SEARCHERS[name]
        policy = make_policy(searcher, space)
        costs = run(policy, arguments.samples, in_flight)
        started = time.process_time()
        snapshot = save(policy.dump())
        snapshot_ms = 1000 * (time.process_time() - started)
        proposals, updates = ends(costs.proposals), ends(costs.updates)
        minutes = costs.whole / arguments.samples * PAPER / 60_000
        slow |= costs.whole / arguments.samples > SAMPLE_MS or minutes > MINUTES
        slow |= max(updates) / steps > STEP_MS or snapshot_ms > SNAPSHOT_MS
        print(
            f"{name}: propose {proposals[0]:.1f} and {proposals[1]:.1f}, update {updates[0]:.1f} and {updates[1]:.1f}"
            f" ({steps} steps of {max(updates) / steps:.1f}),"
            f" all {costs.whole / arguments.samples:.1f} a sample ({minutes:.1f} minutes for {PAPER:,});"
            f" snapshot {snapshot_ms:.0f}, {len(snapshot) / 1e6:.1f} MB",
            flush=True,
        )
    return 1 if slow else 0


if __name__ == "__main__":
    raise SystemExit(main())
