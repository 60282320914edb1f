"""The numbers that are drawn: windows, bands, arms compared, shares and entropies of decisions, Pareto fronts.

Pure functions on plain numbers. Shares and entropies are those of the architectures that were proposed, not of a
policy's softmax, so that they mean the same for every searcher.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from nas_api.decisions import Anchor, Categorical, Choices, Decision, counting
from nas_report.history import History, Row

Numbers = NDArray[np.float64]

TOPS = (1, 5, 15)
"""Of how many best networks the mean is compared (the paper's figure 6)."""


def windows(count: int, most: int, least: int) -> list[slice]:
    """Split ``count`` things into at most ``most`` runs of nearly equal length, none shorter than ``least``.

    Fewer than ``least`` things are one window; none are none.
    """
    if count == 0:
        return []
    number = max(1, min(most, count // least))
    edges = [round(count * index / number) for index in range(number + 1)]
    return [slice(one, other) for one, other in pairwise(edges)]


def top_mean(values: Numbers, top: int) -> float:
    """Return the mean of the ``top`` largest values."""
    return float(np.mean(np.partition(values, len(values) - top)[len(values) - top :]))


@dataclass(frozen=True)
class Comparison:
    """How much better the top-k mean is than the other side's, at equal counts (the paper's figure 6)."""

    random: bool
    """Whether the other side is a random arm; otherwise it is the search's own first window."""
    counts: list[int]
    """Networks of each side that have been compared; with no random arm, the number of the window's last sample."""
    differences: dict[int, list[float]]
    """For each k of TOPS, in the metric's unit, positive when better."""
    window: int
    """Networks of each side; with a random arm, the last count."""


def compare(history: History, points: int = 60) -> Comparison | str:
    """Compare the policy with the random arm, or with its own beginning; return why not, when it cannot be done.

    Each side counts a network once, with its first result: a policy that has settled on one has not found 15 of them.
    """
    trained = history.trained()
    value = _compared(history)
    found = _different(sample for sample in trained if not sample.random)
    policy = np.array([value(sample) for sample in found])
    other = np.array([value(sample) for sample in _different(sample for sample in trained if sample.random)])
    smallest = max(TOPS)
    if history.facts.searcher.control is not None or len(other):
        reach = min(len(policy), len(other))
        if reach < smallest:
            return f"Compared from {smallest} different networks of each arm on; the smaller one has {reach}."
        counts = sorted({round(each) for each in np.linspace(smallest, reach, min(points, reach - smallest + 1))})
        differences = {
            top: [top_mean(policy[:count], top) - top_mean(other[:count], top) for count in counts] for top in TOPS
        }
        return Comparison(True, counts, differences, reach)
    window = min(400, len(policy) // 4)
    if window < smallest:
        return (
            f"There is no random arm (spec.searcher.control), and the comparison with the search's own beginning needs"
            f" {4 * smallest} different networks; there are {len(policy)}."
        )
    ends = sorted({round(each) for each in np.linspace(window, len(policy), points)})
    differences = {
        top: [top_mean(policy[end - window : end], top) - top_mean(policy[:window], top) for end in ends]
        for top in TOPS
    }
    return Comparison(False, [found[end - 1].number for end in ends], differences, window)


def _different(samples: Iterable[Row]) -> list[Row]:
    """Return the first sample of each network."""
    first: dict[Choices, Row] = {}
    for sample in samples:
        first.setdefault(sample.choices, sample)
    return [*first.values()]


def compared_name(history: History) -> str:
    """Return what arms are compared by: the metric, or the reward where penalties are part of the aim."""
    return "reward" if history.facts.objective.penalties else history.facts.objective.metric


def _compared(history: History) -> Callable[[Row], float]:
    if history.facts.objective.penalties:
        return lambda sample: sample.reward
    sign = history.sign
    return lambda sample: sign * sample.metric


# ---------------------------------------------------------------- decisions


@dataclass(frozen=True)
class KindMaps:
    """How the decisions of one kind were taken over time. All values are in [0, 1]; NaN where there are none."""

    kind: str
    anchor: bool
    """Skip connections: ``options`` are then distances to the layer below, from 1."""
    options: tuple[str, ...]
    steps: int
    entropy: Numbers
    """Steps x windows: entropy over its maximum, with Miller and Madow's correction for few samples."""
    shares: Numbers
    """Options x windows: over all steps; for skips, the share of layers that take the one so far below."""
    newest: Numbers
    """Options x steps in the newest window; for skips, input x layer."""


@dataclass(frozen=True)
class DecisionMaps:
    """All kinds, in the order in which they are decided."""

    first: list[int]
    """The first sample of each window."""
    last: list[int]
    """The last sample of each window."""
    kinds: list[KindMaps]


def decision_maps(history: History, most: int = 48, least: int = 20) -> DecisionMaps:
    """Return shares and entropies of the policy's proposals (the random arm's left out) in windows of time."""
    samples = [sample for sample in history.samples if not sample.random]
    spans = windows(len(samples), most, least)
    tables: dict[tuple[str, int], Numbers] = {}
    totals: dict[tuple[str, int], Numbers] = {}
    options: dict[str, tuple[str, ...]] = {}
    for index, span in enumerate(spans):
        for decisions, rows, taken in _blocks(history, samples[span]):
            for column, (key, decision) in enumerate(_keys(decisions)):
                values = rows[:, column] if taken is None else rows[taken[:, column], column]
                if isinstance(decision, Anchor):
                    width = decision.index
                    counts = np.array([(values >> source & 1).sum() for source in range(width)], dtype=float)
                else:
                    width = len(decision.options)
                    options[key[0]] = decision.options
                    counts = np.bincount(values, minlength=width).astype(float)
                tables.setdefault(key, np.zeros((len(spans), width)))[index] += counts
                totals.setdefault(key, np.zeros(len(spans)))[index] += len(values)
    kinds = []
    for kind in dict.fromkeys(kind for kind, _ in tables):
        steps = sorted(step for each, step in tables if each == kind)
        own = [tables[kind, step] for step in steps]
        sums = [totals[kind, step] for step in steps]
        kinds.append(_choice_maps(kind, options[kind], own) if kind in options else _skip_maps(kind, own, sums))
    return DecisionMaps(
        [samples[span.start].number for span in spans], [samples[span.stop - 1].number for span in spans], kinds
    )


def _blocks(
    history: History, samples: Sequence[Row]
) -> list[tuple[tuple[Decision, ...], NDArray[np.int64], NDArray[np.bool_] | None]]:
    """Return the choices as arrays, samples x decisions, for each depth, with which of them counted (None: all)."""
    groups: dict[int, list[Row]] = {}
    for sample in samples:
        groups.setdefault(len(sample.choices), []).append(sample)
    out = []
    for group in groups.values():
        decisions = history.decisions(group[0])
        rows = np.array([sample.choices for sample in group], dtype=np.int64)
        conditional = any(isinstance(each, Categorical) and each.when is not None for each in decisions)
        taken = np.array([counting(decisions, sample.choices) for sample in group]) if conditional else None
        out.append((decisions, rows, taken))
    return out


def _keys(decisions: Sequence[Decision]) -> list[tuple[tuple[str, int], Decision]]:
    """Return each decision with its kind and the number of its step among those of the kind."""
    seen: dict[str, int] = {}
    out: list[tuple[tuple[str, int], Decision]] = []
    for decision in decisions:
        kind = SKIPS if isinstance(decision, Anchor) else decision.kind
        out.append(((kind, seen.get(kind, 0)), decision))
        seen[kind] = seen.get(kind, 0) + 1
    return out


SKIPS = "skip connections"


def _choice_maps(kind: str, options: tuple[str, ...], tables: list[Numbers]) -> KindMaps:
    entropy = np.array([[_entropy(row) for row in table] for table in tables])
    return KindMaps(
        kind=kind,
        anchor=False,
        options=options,
        steps=len(tables),
        entropy=entropy,
        shares=_ratio(np.sum(tables, axis=0), np.sum(tables, axis=(0, 2))[:, None]).T,
        newest=np.array([_ratio(table[-1], table[-1].sum()) for table in tables]).T,
    )


def _skip_maps(kind: str, tables: list[Numbers], totals: list[Numbers]) -> KindMaps:
    """Return the maps of skips: table i is windows x inputs of the layer i, with how often each was taken."""
    count, spans = len(tables), len(totals[0])
    entropy = np.full((count, spans), np.nan)
    newest = np.full((count, count), np.nan)
    taken, asked = np.zeros((max(1, count - 1), spans)), np.zeros((max(1, count - 1), spans))
    for layer, (table, total) in enumerate(zip(tables, totals, strict=True)):
        for source in range(layer):
            taken[layer - source - 1] += table[:, source]
            asked[layer - source - 1] += total
            if total[-1]:
                newest[source, layer] = table[-1, source] / total[-1]
        if layer:
            pairs = np.stack([table, total[:, None] - table], axis=-1)
            entropy[layer] = [
                np.mean([_entropy(pair) for pair in row]) if size else np.nan
                for row, size in zip(pairs, total, strict=True)
            ]
    distances = tuple(str(distance) for distance in range(1, max(2, count)))
    return KindMaps(kind, True, distances, count, entropy, _ratio(taken, asked), newest)


def _ratio(part: Numbers, whole: Numbers) -> Numbers:
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio: Numbers = part / whole
    return ratio


def _entropy(counts: Numbers) -> float:
    """Return the entropy of the shares behind these counts, over its maximum.

    Miller and Madow: few samples look too sure of themselves by (options seen - 1) / (2 samples) nats.
    """
    total = counts.sum()
    if total == 0 or len(counts) < 2:
        return math.nan
    seen = counts[counts > 0]
    nats = float(-(seen / total * np.log(seen / total)).sum()) + (len(seen) - 1) / (2 * float(total))
    return min(1.0, nats / math.log(len(counts)))


# ---------------------------------------------------------------- the front


def pareto_front(samples: Sequence[Row], sign: int) -> list[Row]:
    """Return the samples that none other beats in both cost and metric, from the cheapest on."""
    front: list[Row] = []
    for sample in sorted(samples, key=lambda each: (each.cost, -sign * each.metric, each.number)):
        if not front or sign * sample.metric > sign * front[-1].metric:
            front.append(sample)
    return front
