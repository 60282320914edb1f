"""The worked policy of docs/extending.md works, and keeps the promises that every policy keeps."""

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
from safetensors.torch import load, save

from nas_api.decisions import Choices
from nas_api.experiment import PpoSpec, SearcherSpec
from nas_api.search_space import SearchSpace
from nas_controller.policies import Policy
from nas_controller.policies import factory as factory_module

PAGE = Path(__file__).parents[2] / "docs" / "extending.md"


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Does what the page says: one module, and its line in the factory, here in the place of ppo."""
    section = PAGE.read_text(encoding="utf-8").partition("## A policy of your own")[2].partition("\n## ")[0]
    (code,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    (line,) = re.findall(r'`("local": \w+,)` in `_POLICIES`', section)
    module = ModuleType("nas_controller.policies.local")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(code, str(PAGE), "exec"), module.__dict__)
    policies = eval("{" + line + "}", module.__dict__)
    monkeypatch.setitem(factory_module._POLICIES, "ppo", policies["local"])
    yield


@pytest.fixture(params=["growing_space", "tiny_cell_space", "conditional_space"])
def space(request: pytest.FixtureRequest) -> SearchSpace:
    made: SearchSpace = request.getfixturevalue(request.param)
    return made


@pytest.mark.usefixtures("registered")
def test_the_pages_policy_climbs(
    flat_space: Callable[[int, int], SearchSpace], search: Callable[..., list[Choices]]
) -> None:
    def reward(choices: Choices) -> float:
        return sum(choice == 1 for choice in choices) / len(choices)

    policy = factory_module.make_policy(SearcherSpec(ppo=PpoSpec()), flat_space(10, 3))
    assert type(policy).__name__ == "LocalPolicy"
    assert max(map(reward, search(policy, 150, reward))) == 1


@pytest.mark.usefixtures("registered")
def test_the_pages_policy_is_restored_bit_for_bit(space: SearchSpace) -> None:
    def go_on(policy: Policy, first: int) -> list[Choices]:
        seen = []
        for sample in range(first, first + 12):
            proposal = policy.propose(sample)
            assert space.encode(space.decode(proposal.choices)) == proposal.choices
            policy.proposed(sample, proposal)
            if sample % 5 == 4:
                policy.lost(sample - 2)
            elif sample >= 2:
                policy.observed(sample - 2, sum(proposal.choices) / 10)
            seen.append(proposal.choices)
        return seen

    one = factory_module.make_policy(SearcherSpec(seed=4, ppo=PpoSpec()), space)
    go_on(one, 0)
    other = factory_module.make_policy(SearcherSpec(seed=4, ppo=PpoSpec()), space)
    other.load(load(save(one.dump())))
    assert go_on(one, 12) == go_on(other, 12)
    assert save(one.dump()) == save(other.dump())
