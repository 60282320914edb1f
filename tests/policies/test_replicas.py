"""The paper's asynchronous replicas against a plain simulation of them, with a parameter vector for each."""

import math
from dataclasses import dataclass, field

import pytest
import torch
from safetensors.torch import save
from torch import Tensor

from nas_api.decisions import Choices
from nas_api.experiment import ReinforceSpec, SearcherSpec
from nas_api.search_space import SearchSpace
from nas_controller.policies.network import Network, vocabulary
from nas_controller.policies.reinforce import ReinforcePolicy


def reward(choices: Choices) -> float:
    return sum(choices) / 10


def replicas(space: SearchSpace, count: int, batch: int, gradients: int) -> ReinforcePolicy:
    spec = ReinforceSpec(replicas=count, batch=batch, gradients_per_update=gradients, learning_rate="0.01")
    return ReinforcePolicy(SearcherSpec(seed=3, reinforce=spec), space, torch.float64)


@dataclass
class Replica:
    """A controller replica as the paper has it."""

    parameters: Tensor
    batch: list[tuple[Choices, float]] = field(default_factory=list)


@pytest.mark.parametrize(("count", "batch", "gradients"), [(1, 3, 1), (3, 2, 1), (3, 1, 2), (4, 2, 3)])
def test_replicas_do_what_separate_processes_would(
    count: int, batch: int, gradients: int, tiny_space: SearchSpace
) -> None:
    """One child at a time, dealt in turn; each replica fetches when it begins a batch and sends when it is full."""
    policy = replicas(tiny_space, count, batch, gradients)
    decisions = tiny_space.decisions(0)
    server = policy._network.parameters.detach().clone().requires_grad_()
    adam = torch.optim.Adam([server], lr=0.01)
    network = Network(vocabulary(decisions), 3, torch.float64)
    all_replicas = [Replica(server.detach().clone()) for _ in range(count)]
    baseline = math.nan
    sent: list[Tensor] = []
    updates = stale = 0
    for sample in range(40):
        replica = all_replicas[sample % count]
        if not replica.batch:
            replica.parameters = server.detach().clone()
        proposal = policy.propose(sample)
        log_p = network.at(replica.parameters).evaluate(decisions, [proposal.choices]).log_probabilities.detach().sum()
        assert proposal.log_probability == pytest.approx(float(log_p), abs=1e-9), "drawn by the replica's parameters"
        policy.proposed(sample, proposal)
        policy.observed(sample, reward(proposal.choices))
        replica.batch.append((proposal.choices, reward(proposal.choices)))
        if len(replica.batch) < batch:
            continue
        if math.isnan(baseline):
            baseline = sum(each for _, each in replica.batch) / batch
        stale += not torch.equal(replica.parameters, server)
        own = replica.parameters.clone().requires_grad_()
        log_p = network.at(own).evaluate(decisions, [choices for choices, _ in replica.batch]).log_probabilities.sum(1)
        advantages = torch.tensor([each - baseline for _, each in replica.batch], dtype=torch.float64)
        sent.append(torch.autograd.grad(-(advantages * log_p).mean(), own)[0])
        for _, each in replica.batch:
            baseline = 0.95 * baseline + 0.05 * each
        replica.batch = []
        if len(sent) == gradients:
            server.grad = torch.stack(sent).mean(0)
            adam.step()
            updates += 1
            sent = []
    torch.testing.assert_close(policy._network.parameters.detach(), server.detach(), atol=1e-9, rtol=0)
    assert policy.vitals().updates == updates
    assert (stale > 3) == (count > 1 and batch > 1), "or nothing was tested"


def test_a_replica_that_is_dealt_ahead_draws_what_it_is_told_and_learns_from_it_there(tiny_space: SearchSpace) -> None:
    """Eight in flight for 2 x 2 places: gradients are taken at the parameters that drew, though newer ones exist."""
    policy = replicas(tiny_space, 2, 2, 1)
    decisions = tiny_space.decisions(0)
    network = Network(vocabulary(decisions), 3, torch.float64)
    versions: dict[int, Tensor] = {}
    proposals = {}
    checked = 0
    for sample in range(48):
        versions[policy.vitals().updates] = policy._network.parameters.detach().clone()
        proposals[sample] = policy.propose(sample)
        policy.proposed(sample, proposals[sample])
        if sample < 8:
            continue
        before, gathered = policy.vitals().updates, dict(policy._dealt)
        waiting = list(policy._waiting)
        baseline = policy._baseline
        policy.observed(sample - 8, reward(proposals[sample - 8].choices))
        if policy.vitals().updates == before or math.isnan(baseline):
            continue
        own = [seen.sample for seen in waiting if gathered[seen.sample] == gathered[sample - 8]] + [sample - 8]
        expected = torch.zeros_like(versions[0])
        for each in own:
            drawn = proposals[each]
            at = versions[drawn.version].clone().requires_grad_()
            log_p = network.at(at).evaluate(decisions, [drawn.choices]).log_probabilities.sum()
            assert drawn.log_probability == pytest.approx(float(log_p.detach()), abs=1e-9)
            expected -= torch.autograd.grad(log_p, at)[0] * (reward(drawn.choices) - baseline) / len(own)
            checked += drawn.version < before
        torch.testing.assert_close(policy._network.parameters.grad, expected, atol=1e-9, rtol=0)
    assert checked > 10, "stale draws were learnt from"


def test_lost_samples_hold_up_no_replica(tiny_space: SearchSpace) -> None:
    policy = replicas(tiny_space, 3, 2, 1)
    for sample in range(120):
        proposal = policy.propose(sample)
        policy.proposed(sample, proposal)
        if sample % 3:
            policy.lost(sample)
        else:
            policy.observed(sample, reward(proposal.choices))
    assert policy.vitals().updates >= 40 // 2 - 3
    assert len(policy._dealt) == len(policy._waiting) <= 3


@pytest.mark.slow
def test_four_hundred_replicas_fit_a_snapshot(tiny_space: SearchSpace) -> None:
    """The paper's language setting: K = 400, m = 1, an update of 10 gradients; so 40 versions are in use, not 400."""
    spec = ReinforceSpec(replicas=400, batch=1, gradients_per_update=10)
    policy = ReinforcePolicy(SearcherSpec(reinforce=spec), tiny_space)
    for sample in range(1200):
        if sample >= 400:
            policy.observed(sample - 400, sample % 5 / 5)
        proposal = policy.propose(sample)
        policy.proposed(sample, proposal)
    state = policy.dump()
    versions = state["old.version"].tolist()
    assert 35 <= len(versions) == len(set(versions)) <= 41
    assert len(save(state)) < 45 * state["parameters"].nbytes
