"""Random architectures for the trainer's tests."""

import random
from collections.abc import Callable, Sequence

import pytest

from nas_api.spaces.convolutional import BlockOutput, ConvolutionalArchitecture, ConvolutionalLayer

Draw = Callable[..., ConvolutionalArchitecture]


@pytest.fixture
def draw() -> Draw:
    """Return a function that draws an architecture: each earlier layer is an input with probability 1/2."""

    def architecture(
        seed: int,
        layers: int = 6,
        sizes: Sequence[int] = (1, 3, 5, 7),
        filters: Sequence[int] = (6, 12, 24, 36),
        strides: Sequence[int] = (1, 2),
        block_layers: int = 1,
        block_output: BlockOutput = "Last",
        pooling: float = 0.0,
    ) -> ConvolutionalArchitecture:
        rng = random.Random(seed)
        return ConvolutionalArchitecture(
            block_layers=block_layers,
            block_output=block_output,
            layers=tuple(
                ConvolutionalLayer(
                    filter_height=rng.choice(sizes),
                    filter_width=rng.choice(sizes),
                    filters=rng.choice(filters),
                    stride_height=rng.choice(strides),
                    stride_width=rng.choice(strides),
                    inputs=tuple(source for source in range(index) if rng.random() < 0.5),
                    pool=pooling > 0 and rng.random() < pooling,
                )
                for index in range(layers)
            ),
        )

    return architecture
