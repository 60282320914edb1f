"""Counter-based draws: functions of their arguments, uniform, and fixed for ever."""

import numpy as np

from nas_controller.policies.draws import Purpose, uniforms


def test_the_same_question_has_the_same_answer() -> None:
    first = uniforms(1, 2, Purpose.PROPOSE, 3, 10)
    uniforms(9, 9, Purpose.PROPOSE, 9, 1000)
    np.testing.assert_array_equal(first, uniforms(1, 2, Purpose.PROPOSE, 3, 10))
    np.testing.assert_array_equal(first[:4], uniforms(1, 2, Purpose.PROPOSE, 3, 4))


def test_every_argument_matters() -> None:
    variants = [
        uniforms(1, 2, Purpose.PROPOSE, 3, 4),
        uniforms(2, 2, Purpose.PROPOSE, 3, 4),
        uniforms(1, 3, Purpose.PROPOSE, 3, 4),
        uniforms(1, 2, Purpose.INITIALISE, 3, 4),
        uniforms(1, 2, Purpose.PROPOSE, 4, 4),
    ]
    assert len({variant.tobytes() for variant in variants}) == len(variants)


def test_draws_are_uniform_and_independent_between_samples() -> None:
    numbers = np.stack([uniforms(0, sample, Purpose.PROPOSE, 0, 20) for sample in range(2000)])
    assert numbers.min() >= 0
    assert numbers.max() < 1
    counts, _ = np.histogram(numbers, bins=20, range=(0, 1))
    expected = numbers.size / 20
    assert ((counts - expected) ** 2 / expected).sum() < 50  # 19 degrees of freedom: beyond 1e-4
    assert abs(np.corrcoef(numbers[:-1].ravel(), numbers[1:].ravel())[0, 1]) < 0.025


def test_draws_never_change() -> None:
    """A recorded answer: a running search that is upgraded must go on drawing as before."""
    np.testing.assert_array_equal(uniforms(7, 11, Purpose.PROPOSE, 0, 2), [0.2409400655562004, 0.954798165926806])
