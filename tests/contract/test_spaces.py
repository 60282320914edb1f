"""All spaces: choices, architectures and short lines are three forms of one thing, and sizes are true."""

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nas_api.architecture import ARCHITECTURE
from nas_api.decisions import Anchor, Choices, Decision, counting
from nas_api.search_space import SearchSpace, SearchSpaceSpec, search_space
from nas_api.spaces.convolutional_cell import (
    OPERATION,
    ConvolutionalCellArchitecture,
    ConvolutionalCellSpace,
    ConvolutionalCellSpec,
)
from nas_api.spaces.custom import CustomArchitecture, CustomSpace

CONDITIONAL: list[dict[str, Any]] = [
    {"name": "op", "options": ["conv", "pool", "identity"]},
    {"name": "kernel", "range": {"from": 1, "to": 5, "step": 2}, "when": {"decision": "op", "in": ["conv"]}},
    {"name": "dilated", "options": ["yes", "no"], "when": {"decision": "kernel", "in": ["3", "5"]}},
    {"name": "rates", "range": {"from": -1, "to": 1}, "repeat": 2, "when": {"decision": "dilated", "in": ["yes"]}},
    {"name": "window", "options": ["2", "3"], "when": {"decision": "op", "in": ["pool", "identity"]}},
    {"name": "width", "options": ["8", "16"]},
]


CELLS: dict[str, dict[str, Any]] = {
    "NAS-Bench-201": {},
    "pairs": {"wiring": "Pairs", "nodes": 4, "operations": ["skip", "sep_conv_3x3", "conv_1x7_7x1"]},
    "pairs of one stage": {"wiring": "Pairs", "nodes": 2, "stages": 1, "cellsPerStage": 1, "filters": 256},
}


def space(**spec: Any) -> SearchSpace:
    return search_space(SearchSpaceSpec.model_validate(spec))


SPACES: dict[str, SearchSpace] = {
    "skips, strides, blocks, pooling": space(
        convolutional={
            "layers": {"initial": 5},
            "strides": [1, 2, 3],
            "blockLayers": 3,
            "extraFilters": 40,
            "poolingAfter": [4, 13],
        }
    ),
    "all skips": space(convolutional={"layers": {"initial": 4}, "allSkips": True, "strides": [2]}),
    "no skips": space(convolutional={"layers": {"initial": 4}, "skipConnections": False}),
    "cells of base 8": space(recurrentCell={}),
    "cells of base 2 with max and sin": space(
        recurrentCell={
            "base": 2,
            "combinations": ["add", "elem_mult", "max"],
            "activations": ["identity", "tanh", "sigmoid", "relu", "sin"],
        }
    ),
    **{name: space(convolutionalCell=spec) for name, spec in CELLS.items()},
    "custom": space(custom={"decisions": CONDITIONAL}),
}
SMALL: dict[str, SearchSpace] = {
    "convolutional": space(
        convolutional={"layers": {"initial": 2}, "filterHeights": [1, 3], "filters": [8], "filterWidths": [3, 5]}
    ),
    "convolutional with strides": space(
        convolutional={
            "layers": {"initial": 2},
            "filterHeights": [1],
            "filterWidths": [3],
            "filters": [8, 9],
            "strides": [1, 2],
        }
    ),
    "cells": space(recurrentCell={"base": 2, "combinations": ["add", "max"], "activations": ["tanh", "sin"]}),
    "dense cells": space(convolutionalCell={"nodes": 2}),
    "cells of pairs": space(convolutionalCell={"wiring": "Pairs", "nodes": 1, "operations": ["skip", "conv_3x3"]}),
    "custom": SPACES["custom"],
}


def options(decision: Decision) -> int:
    return 2**decision.index if isinstance(decision, Anchor) else len(decision.options)


def all_choices(of: SearchSpace) -> Iterator[Choices]:
    return itertools.product(*(range(options(decision)) for decision in of.decisions(0)))


@pytest.mark.parametrize("name", SPACES)
@given(data=st.data())
def test_choices_architectures_and_short_lines_are_forms_of_one_thing(name: str, data: st.DataObject) -> None:
    of = SPACES[name]
    decisions = of.decisions(0)
    drawn = tuple(data.draw(st.integers(0, options(decision) - 1)) for decision in decisions)
    architecture = of.decode(drawn)
    taken = tuple(choice if counts else 0 for choice, counts in zip(drawn, counting(decisions, drawn), strict=True))
    assert of.encode(architecture) == taken
    assert of.decode(taken) == architecture
    assert of.parse_short(architecture.short()) == architecture
    read = ARCHITECTURE.validate_json(architecture.canonical())
    assert read == architecture
    assert read.digest == architecture.digest


@pytest.mark.parametrize("name", SMALL)
def test_a_space_is_as_large_as_it_says(name: str) -> None:
    of = SMALL[name]
    assert len({of.decode(choices).digest for choices in all_choices(of)}) == of.size(0)


def test_the_paper_s_cell_space_has_its_size() -> None:
    assert SPACES["cells of base 8"].size(0) == 8**15 * 8 * 15**2
    assert f"{SPACES['cells of base 8'].size(0):.2e}" == "6.33e+16"


def test_the_order_of_a_cell_s_decisions_is_the_paper_s() -> None:
    kinds = [decision.kind for decision in SPACES["cells of base 8"].decisions(0) if not isinstance(decision, Anchor)]
    assert kinds == ["combination", "activation"] * 16 + ["cellOutput", "injected"]


@pytest.mark.parametrize(
    ("op", "kernel", "dilated", "there"),
    [
        ("pool", 0, 0, {"op", "window", "width"}),
        ("conv", 0, 0, {"op", "kernel", "width"}),
        ("conv", 1, 1, {"op", "kernel", "dilated", "width"}),
        ("conv", 2, 0, {"op", "kernel", "dilated", "rates", "width"}),
    ],
)
def test_what_hangs_on_another_choice_is_there_only_with_it(
    op: str, kernel: int, dilated: int, there: set[str]
) -> None:
    of = SPACES["custom"]
    choices = (["conv", "pool", "identity"].index(op), kernel, dilated, 0, 0, 1, 1)
    assert set(of.decode(choices).choices) == there


def test_a_long_chain_of_conditions_is_counted_at_once() -> None:
    chain: list[dict[str, Any]] = [{"name": "d0", "options": ["a", "b"]}]
    for index in range(1, 100):
        when = {"decision": f"d{index - 1}", "in": ["a", "b"]}
        chain.append({"name": f"d{index}", "options": ["a", "b"], "when": when})
    assert space(custom={"decisions": chain}).size(0) == 2**100


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        ({"op": "pool", "window": "2"}, "not in this space"),
        ({"op": "pool", "window": "2", "width": "8", "kernel": 1}, "not in this space"),
        ({"op": "pool", "window": ["2", "2"], "width": "8"}, "window has 2 values"),
        ({"op": "pool", "window": 2, "width": "8"}, "not in"),
        ({"op": "pool", "window": "2", "width": "8", "colour": "red"}, "not in this space"),
    ],
)
def test_what_a_custom_space_does_not_hold_is_refused(architecture: dict[str, Any], message: str) -> None:
    of = SPACES["custom"]
    assert isinstance(of, CustomSpace)
    document = {"space": "custom", "choices": architecture}
    with pytest.raises(ValueError, match=message):
        of.encode(CustomArchitecture.model_validate(document))


@pytest.mark.parametrize("name", SPACES)
def test_a_line_that_was_cut_never_passes_for_the_whole(name: str) -> None:
    """Cut anywhere, it is refused, or reads as another architecture, which its digest shows."""
    of = SPACES[name]
    architecture = of.decode(tuple(options(decision) - 1 for decision in of.decisions(0)))
    text = architecture.short()
    for end in range(len(text)):
        try:
            assert of.parse_short(text[:end]).digest != architecture.digest
        except ValueError:
            continue


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"wiring": "Pairs", "reduction": ()}, "a reduction cell"),
        ({"stages": 2, "reduction": ({"inputs": (0,), "operations": ("skip",)},)}, "a reduction cell"),
        ({"normal": ({"inputs": (0, 0), "operations": ("skip", "none")},)}, "must take all before it"),
        ({"normal": ({"inputs": (0,), "operations": ("skip", "none")},)}, "as many"),
        ({"wiring": "Pairs", "stages": 1}, "must take two"),
        (
            {"wiring": "Pairs", "stages": 1, "normal": ({"inputs": (0, 2), "operations": ("skip", "none")},)},
            "what comes before it",
        ),
    ],
)
def test_a_network_of_cells_that_cannot_be_is_refused(changed: dict[str, Any], message: str) -> None:
    body = {"wiring": "Dense", "stages": 3, "cellsPerStage": 1, "filters": 4}
    body["normal"] = ({"inputs": (0,), "operations": ("skip",)},)
    ConvolutionalCellArchitecture.model_validate(body)
    with pytest.raises(ValueError, match=message):
        ConvolutionalCellArchitecture.model_validate({**body, **changed})


@pytest.mark.parametrize(
    "other", [{"nodes": 2}, {"filters": 8}, {"stages": 2}, {"wiring": "Pairs"}, {"cellsPerStage": 1}]
)
def test_a_network_of_other_cells_is_not_in_the_space(other: dict[str, Any]) -> None:
    another = space(convolutionalCell=other)
    architecture = another.decode((0,) * len(another.decisions(0)))
    with pytest.raises(ValueError, match="in this space"):
        SPACES["NAS-Bench-201"].encode(architecture)


def test_a_cell_s_decisions_have_names_in_their_order() -> None:
    for name in ("NAS-Bench-201", "pairs", "pairs of one stage"):
        spec = CELLS[name]
        read = ConvolutionalCellSpec.model_validate(spec)
        kinds = [decision.kind for decision in ConvolutionalCellSpace(read).decisions(0)]
        assert len(read.edges()) == kinds.count(OPERATION)
    assert ConvolutionalCellSpec(nodes=2).edges() == ("0→1", "0→2", "1→2")
    assert ConvolutionalCellSpec(wiring="Pairs", nodes=1).edges() == ("2a", "2b", "reduction 2a", "reduction 2b")


@pytest.mark.parametrize("name", [name for name in SPACES if name != "custom"])
def test_an_architecture_of_another_experiment_is_read_from_its_line(name: str) -> None:
    of = SPACES[name]
    architecture = of.decode((0,) * len(of.decisions(0)))
    assert space(fixed={"experiment": "another"}).parse_short(architecture.short()) == architecture
