"""Choices and architectures are two forms of one thing, and the space is as large as it says."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nas_api.decisions import Anchor, Categorical
from nas_api.spaces.convolutional import (
    ConvolutionalArchitecture,
    ConvolutionalLayer,
    ConvolutionalSpace,
    ConvolutionalSpec,
    LayersSpec,
)


def space(**settings: object) -> ConvolutionalSpace:
    return ConvolutionalSpace(ConvolutionalSpec.model_validate(settings))


SKIPS = space(layers={"initial": 5}, strides=[1, 2])


@st.composite
def choices_of(draw: st.DrawFn, of: ConvolutionalSpace) -> tuple[int, ...]:
    return tuple(
        draw(st.integers(0, (2**decision.index if isinstance(decision, Anchor) else len(decision.options)) - 1))
        for decision in of.decisions(0)
    )


@given(choices_of(SKIPS))
def test_decode_and_encode_are_inverse(choices: tuple[int, ...]) -> None:
    assert SKIPS.encode(SKIPS.decode(choices)) == choices


def test_a_tiny_space_has_as_many_architectures_as_it_says() -> None:
    tiny = space(layers={"initial": 3}, filterHeights=[1, 3], filterWidths=[3], filters=[8, 16])
    ranges = [
        range(2**decision.index if isinstance(decision, Anchor) else len(decision.options))
        for decision in tiny.decisions(0)
    ]
    digests = {tiny.decode(choices).digest for choices in itertools.product(*ranges)}
    assert len(digests) == tiny.size(0) == (2 * 1 * 2) ** 3 * 2**3


def test_the_paper_s_depth_schedule() -> None:
    paper = ConvolutionalSpace(
        ConvolutionalSpec(layers=LayersSpec(initial=6, increment=2, every_samples=1600, maximum=20))
    )
    assert [paper.depth(sample) for sample in (0, 1599, 1600, 3200, 12_799, 99_999)] == [6, 6, 8, 10, 20, 20]


def test_the_order_of_decisions_is_the_paper_s() -> None:
    kinds = [d.kind if isinstance(d, Categorical) else f"anchor{d.index}" for d in SKIPS.decisions(0)]
    row = ["filterHeight", "filterWidth", "filters", "strideHeight", "strideWidth"]
    assert kinds[:12] == [*row, "anchor0", *row, "anchor1"]


def test_without_skips_layers_form_a_chain() -> None:
    chain = space(layers={"initial": 3}, skipConnections=False)
    assert [layer.inputs for layer in chain.decode((0,) * 9).layers] == [(), (0,), (1,)]
    fork = ConvolutionalArchitecture(
        layers=tuple(
            ConvolutionalLayer(filter_height=1, filter_width=1, filters=24, inputs=inputs) for inputs in [(), (), (1,)]
        )
    )
    with pytest.raises(ValueError, match="inputs are fixed"):
        chain.encode(fork)


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ((), "not a whole number of layers"),
        ((0, 0, 0), "not a whole number of layers"),
        ((4, 0, 0, 0, 0, 0), "filterHeight has 4 options"),
        ((0, 0, 0, 0, 0, 1), "mask 1 names layers that are not earlier"),
    ],
)
def test_choices_outside_the_space_are_refused(choices: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SKIPS.decode(choices)


def test_a_layer_cannot_take_a_later_one() -> None:
    with pytest.raises(ValueError, match=r"layers\[0\].inputs may name only layers before 0"):
        ConvolutionalArchitecture(layers=(ConvolutionalLayer(filter_height=1, filter_width=1, filters=1, inputs=(0,)),))


def test_the_digest_is_stable() -> None:
    layer = ConvolutionalLayer(filter_height=3, filter_width=5, filters=24)
    # A change here breaks every log in the world: it needs a new version of the architecture.
    assert ConvolutionalArchitecture(layers=(layer,)).canonical() == (
        '{"layers":[{"filterHeight":3,"filterWidth":5,"filters":24,"inputs":[],'
        '"strideHeight":1,"strideWidth":1}],"space":"convolutional","version":1}'
    )
