"""What a search space asks of a policy: a tuple of decisions, each answered with one integer.

A policy knows nothing of networks. The tuple of a sample is fixed before anything is drawn, whatever is
chosen: a decision that an earlier choice makes pointless is still in it, and is answered with 0.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class When:
    """A decision counts only if the one at ``step`` (from 0, earlier) counts and chose one of ``choices``."""

    step: int
    choices: frozenset[int]


@dataclass(frozen=True)
class Categorical:
    """One softmax over ``len(options)`` choices; decisions of one kind share an embedding and a softmax."""

    kind: str
    options: tuple[str, ...]
    when: When | None = None
    """None: it always counts."""


@dataclass(frozen=True)
class Anchor:
    """Skip connections into layer ``index`` (paper section 3.3): one yes/no for each earlier anchor.

    Anchors of a sample are numbered from 0 in order; the choice at anchor ``index`` is a bit mask in
    [0, 2**index) whose bit j says that layer j is an input of layer ``index``.
    """

    index: int


Decision = Categorical | Anchor
Choices = tuple[int, ...]


def answer(decisions: Sequence[Decision], choose: Callable[[int, Decision], int]) -> Choices:
    """Answer decisions in their order: ``choose(step, decision)`` each that counts, and with 0 each that does not."""
    choices: list[int] = []
    counts: list[bool] = []
    for step, decision in enumerate(decisions):
        when = decision.when if isinstance(decision, Categorical) else None
        counts.append(when is None or (counts[when.step] and choices[when.step] in when.choices))
        choices.append(choose(step, decision) if counts[-1] else 0)
    return tuple(choices)


def counting(decisions: Sequence[Decision], choices: Choices) -> tuple[bool, ...]:
    """Return which decisions count, given the choices; the others are answered with 0, with probability 1."""
    out: list[bool] = []
    for decision in decisions:
        when = decision.when if isinstance(decision, Categorical) else None
        out.append(when is None or (out[when.step] and choices[when.step] in when.choices))
    return tuple(out)


def longest(decisions: Sequence[Decision]) -> Choices:
    """Return the choices that take the most words: the longest options, with all that hangs on them, and all inputs.

    The options' and kinds' names stand for what a space makes of them.
    """
    # From the last one back: what hangs on a decision comes after it, and is known by then.
    choices = [0] * len(decisions)
    lengths: list[dict[int, int]] = [{} for _ in decisions]
    """By step: what the decisions that hang on each of its choices add."""
    for step, decision in reversed(list(enumerate(decisions))):
        if isinstance(decision, Anchor):
            choices[step] = 2**decision.index - 1
            continue
        told = [len(option) + lengths[step].get(choice, 0) for choice, option in enumerate(decision.options)]
        choices[step] = told.index(max(told))
        if decision.when is not None:
            for choice in decision.when.choices:
                below = lengths[decision.when.step]
                below[choice] = below.get(choice, 0) + len(decision.kind) + max(told)
    return answer(decisions, lambda step, _: choices[step])
