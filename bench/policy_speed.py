"""What a policy costs: milliseconds of CPU time, on one thread, to propose a sample and to learn from one.

    python bench/policy_speed.py [--samples 200]

Two networks with skip connections are sampled: the demo's 6 layers with strides, and the 15 layers that the paper's
first result has. A proposal includes redraws; an update's time is also given per sample of its batch.
"""

import argparse
import statistics
import time

from nas_api.experiment import PpoSpec, ReinforceSpec, SearcherSpec
from nas_api.search_space import SearchSpaceSpec, search_space
from nas_api.spaces.convolutional import ConvolutionalSpec, LayersSpec
from nas_controller.policies.factory import make_policy

SPACES = {
    "6 layers, strides, skips": ConvolutionalSpec(layers=LayersSpec(initial=6), strides=(1, 2)),
    "15 layers, skips": ConvolutionalSpec(layers=LayersSpec(initial=15)),
}
SEARCHERS = {"ppo": SearcherSpec(ppo=PpoSpec()), "reinforce": SearcherSpec(reinforce=ReinforceSpec())}


def main() -> None:
    """Print a line for each network and policy: medians, and the slowest."""
    parser = argparse.ArgumentParser(description="Cost of the policies.")
    parser.add_argument("--samples", type=int, default=200)
    samples = parser.parse_args().samples
    for space_name, convolutional in SPACES.items():
        for name, searcher in SEARCHERS.items():
            space = search_space(SearchSpaceSpec(convolutional=convolutional))
            policy = make_policy(searcher, space)
            proposals, updates = [], []
            for sample in range(samples):
                started = time.process_time()
                proposal = policy.propose(sample)
                proposals.append(1000 * (time.process_time() - started))
                policy.proposed(sample, proposal)
                before = policy.vitals().updates
                started = time.process_time()
                policy.observed(sample, sum(proposal.choices[::3]) / 100)
                if policy.vitals().updates > before:
                    updates.append(1000 * (time.process_time() - started))
            batch = samples // len(updates)
            print(
                f"{space_name}, {name}: propose {statistics.median(proposals):.1f} ms (slowest {max(proposals):.1f}), "
                f"update of {batch} {statistics.median(updates):.1f} ms (slowest {max(updates):.1f}), "
                f"{statistics.median(updates) / batch:.1f} ms a sample"
            )


if __name__ == "__main__":
    main()
