"""From a manifest's searcher to its policy. A new policy is a module of its own and a line in ``_POLICIES``."""

from collections.abc import Callable

import torch

from nas_api.experiment import SearcherSpec
from nas_api.search_space import SearchSpace
from nas_controller.policies import Policy
from nas_controller.policies.evolution import EvolutionPolicy
from nas_controller.policies.guided import GuidedPolicy
from nas_controller.policies.ppo import PpoPolicy
from nas_controller.policies.random import RandomPolicy
from nas_controller.policies.reinforce import ReinforcePolicy


def _tpe(searcher: SearcherSpec, space: SearchSpace) -> Policy:
    from nas_controller.policies.tpe import TpePolicy  # Optuna is loaded only where it is asked for

    return TpePolicy(searcher, space)


_POLICIES: dict[str, Callable[[SearcherSpec, SearchSpace], Policy]] = {
    "ppo": PpoPolicy,
    "reinforce": ReinforcePolicy,
    "guided": GuidedPolicy,
    "evolution": EvolutionPolicy,
    "tpe": _tpe,
    "random": RandomPolicy,
}


def make_policy(searcher: SearcherSpec, space: SearchSpace) -> Policy:
    """Return the policy that ``searcher`` names, in its state before the first sample.

    Holds torch to one thread for the whole process: sums split over threads differ in their last bits, and
    replay promises every bit.
    """
    torch.set_num_threads(1)
    return _POLICIES[searcher.kind](searcher, space)
