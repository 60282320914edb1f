"""The objective of proximal policy optimisation (Schulman et al., arXiv 1707.06347), which several policies use."""

import torch
from torch import Tensor

from nas_controller.policies.network import Evaluation

CLAMP = 20.0
"""Bound, in nats, of a draw's log-probability from below and of a log-ratio on both sides: a choice forced from
outside the policy may be as good as impossible under it, and exp() of that must stay finite."""


def log_likelihoods(evaluation: Evaluation) -> Tensor:
    """Return the log-probability of each sample, (samples,), in nats: of all its draws together, each bounded."""
    return evaluation.log_probabilities.clamp(min=-CLAMP).sum(1)


def clipped_gain(new: Tensor, old: Tensor, advantages: Tensor, clip: float) -> Tensor:
    """Return what each sample adds to the clipped objective; all are of shape (samples,).

    Args:
        new: log-probabilities under the parameters that are optimised.
        old: those that the samples were drawn with.
        advantages: how much better than expected each sample was.
        clip: how far the probability ratio may leave 1 and still gain.
    """
    ratio = (new - old).clamp(-CLAMP, CLAMP).exp()
    return torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)
