"""A policy's state is a function of the log: replayed, or dumped and loaded anywhere, it is the same bit for bit."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save
from torch import Tensor

from nas_api.experiment import Empty, EvolutionSpec, GuidedSpec, PpoSpec, ReinforceSpec, SearcherSpec, TpeSpec
from nas_api.search_space import SearchSpace
from nas_controller.policies import Policy, Proposal
from nas_controller.policies.factory import make_policy

SEARCHERS = {
    "ppo": SearcherSpec(seed=5, ppo=PpoSpec(batch=3, imitation=4)),
    "reinforce": SearcherSpec(seed=5, reinforce=ReinforceSpec(batch=3)),
    "guided": SearcherSpec(seed=5, guided=GuidedSpec(batch=3, candidates=8)),
    "replicas": SearcherSpec(seed=5, reinforce=ReinforceSpec(batch=2, replicas=3, gradients_per_update=2)),
    "evolution": SearcherSpec(seed=5, evolution=EvolutionSpec(population=6, tournament=3)),
    "tpe": SearcherSpec(seed=5, tpe=TpeSpec(startup=4)),
    "random": SearcherSpec(seed=5, random=Empty()),
}
EVERY_SEARCHER = pytest.mark.parametrize("name", SEARCHERS)
SPACES = ["growing_space", "tiny_cell_space", "cell_space", "conditional_space"]
Record = Callable[[Policy], None]


def bits(state: dict[str, Tensor]) -> dict[str, bytes]:
    """Return the state in a form in which NaN equals NaN and 0.0 differs from -0.0."""
    return {name: tensor.numpy().tobytes() for name, tensor in state.items()}


def proposed(sample: int, proposal: Proposal) -> Record:
    return lambda policy: policy.proposed(sample, proposal)


def observed(sample: int, reward: float) -> Record:
    return lambda policy: policy.observed(sample, reward)


def lost(sample: int) -> Record:
    return lambda policy: policy.lost(sample)


@pytest.fixture(params=SPACES, scope="session")
def space(request: pytest.FixtureRequest) -> SearchSpace:
    made: SearchSpace = request.getfixturevalue(request.param)
    return made


@EVERY_SEARCHER
@settings(max_examples=15, deadline=None)
@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["propose", "propose", "observe", "observe", "lose", "restart"]), st.integers(0, 9)),
        max_size=60,
    )
)
def test_any_history_with_restarts_equals_its_replay(
    name: str, space: SearchSpace, steps: list[tuple[str, int]]
) -> None:
    policy = make_policy(SEARCHERS[name], space)
    records: list[Record] = []
    in_flight: list[int] = []
    samples = 0

    def append(record: Record) -> None:
        records.append(record)
        record(policy)

    for action, number in steps:
        if action == "restart":
            state = load(save(policy.dump()))
            policy = make_policy(SEARCHERS[name], space)
            policy.load(state)
        elif action == "propose":
            append(proposed(samples, policy.propose(samples)))
            in_flight.append(samples)
            samples += 1
        elif in_flight:
            sample = in_flight.pop(number % len(in_flight))
            append(
                observed(sample, float(number) / 10 if number else float("nan"))
                if action == "observe"
                else lost(sample)
            )
    replayed = make_policy(SEARCHERS[name], space)
    for record in records:
        record(replayed)
    assert bits(policy.dump()) == bits(replayed.dump())
    assert policy.propose(samples) == replayed.propose(samples)
    assert policy.vitals() == replayed.vitals()


@EVERY_SEARCHER
def test_loaded_in_the_middle_goes_on_as_if_nothing_had_been(name: str, space: SearchSpace) -> None:
    one = make_policy(SEARCHERS[name], space)

    def go_on(policy: Policy, first: int) -> list[Proposal]:
        out = []
        for sample in range(first, first + 10):
            out.append(policy.propose(sample))
            policy.proposed(sample, out[-1])
            if sample >= 2:  # two in flight, and a batch half full at the dump
                policy.observed(sample - 2, sum(out[-1].choices) / 10)
        return out

    go_on(one, 0)
    other = make_policy(SEARCHERS[name], space)
    other.load(load(save(one.dump())))
    assert go_on(one, 10) == go_on(other, 10)
    assert bits(one.dump()) == bits(other.dump())
    assert one.vitals() == other.vitals()
    assert one.vitals().updates == {"random": 0, "replicas": 4, "evolution": 18, "tpe": 18}.get(name, 6)


@EVERY_SEARCHER
def test_proposing_changes_nothing_and_depends_on_the_sample_alone(name: str, space: SearchSpace) -> None:
    policy = make_policy(SEARCHERS[name], space)
    before = bits(policy.dump())
    backwards = [policy.propose(sample) for sample in reversed(range(20))]
    assert [policy.propose(sample) for sample in range(20)] == backwards[::-1]
    assert bits(policy.dump()) == before
    assert len({proposal.choices for proposal in backwards}) > 10
    for sample, proposal in enumerate(reversed(backwards)):
        assert space.encode(space.decode(proposal.choices)) == proposal.choices
        assert len(proposal.choices) == len(space.decisions(sample))


@EVERY_SEARCHER
def test_the_seed_decides(name: str, space: SearchSpace) -> None:
    spec = SEARCHERS[name]
    one = make_policy(spec, space)
    other = make_policy(spec.model_copy(update={"seed": 6}), space)
    assert [one.propose(sample) for sample in range(5)] != [other.propose(sample) for sample in range(5)]


def test_a_dump_is_a_copy(growing_space: SearchSpace) -> None:
    policy = make_policy(SEARCHERS["ppo"], growing_space)
    state = policy.dump()
    before = bits(state)
    for sample in range(6):
        policy.proposed(sample, policy.propose(sample))
        policy.observed(sample, sample / 10)
    assert bits(state) == before
    assert bits(policy.dump()) != before
    policy.load(state)
    for sample in range(6):
        policy.proposed(sample, policy.propose(sample))
        policy.observed(sample, sample / 10)
    assert bits(state) == before, "learning after a load must not write into the loaded tensors"


def test_random_refuses_the_state_of_another_policy(growing_space: SearchSpace) -> None:
    with pytest.raises(ValueError, match="random search has no state"):
        make_policy(SEARCHERS["random"], growing_space).load({"parameters": torch.zeros(1)})
