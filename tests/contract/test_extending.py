"""The worked example of docs/extending.md is a space that works."""

import itertools
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture
def module() -> ModuleType:
    """Return the page's module."""
    text = Path("docs/extending.md").read_text(encoding="utf-8").partition("## A space of your own")[2]
    made = ModuleType("perceptron")
    exec(text.partition("```python\n")[2].partition("```")[0], made.__dict__)
    return made


def test_its_networks_can_be_encoded_and_read_back(module: ModuleType) -> None:
    space = module.PerceptronSpace(module.PerceptronSpec(layers=2, widths=(8, 16)))
    ranges = [range(len(decision.options)) for decision in space.decisions(0)]
    found = [space.decode(choices) for choices in itertools.product(*ranges)]
    assert len({each.digest for each in found}) == space.size(0) == 16
    for architecture, choices in zip(found, itertools.product(*ranges), strict=True):
        assert space.encode(architecture) == choices
        assert space.parse_short(architecture.short()) == architecture
        assert type(architecture).model_validate_json(architecture.canonical()) == architecture
