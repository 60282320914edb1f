"""What stands in each figure of a report, from the history of a search. A figure without data says why in a line."""

import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from html import escape
from itertools import pairwise

import numpy as np

from nas_api.agreement import kendall
from nas_api.bounds import mean, spread
from nas_api.child import FinalSettings
from nas_api.spaces.convolutional import ConvolutionalArchitecture
from nas_api.spaces.convolutional_cell import OPERATION, ConvolutionalCellArchitecture
from nas_api.spaces.recurrent_cell import RecurrentCellArchitecture
from nas_api.wording import duration
from nas_log.records import FinalRun
from nas_report import analysis
from nas_report.analysis import TOPS, KindMaps
from nas_report.drawing import (
    Axis,
    Point,
    band,
    density,
    dots,
    heat,
    key,
    line,
    merged,
    note,
    number,
    numbers,
    percent,
    plot,
    scale,
    short_number,
    stairs,
    table,
    whole_ticks,
)
from nas_report.history import Fate, FinalTraining, FinalTrial, History, Row
from nas_report.networks import picture

# From so many points on they are summed up: dots would lie on each other.
_MOST_DOTS = 1500
# Up to so many, each dot tells its numbers when pointed at.
_MOST_TITLES = 400
# Up to so many, dots are large.
_FEW = 120
_WINDOWS = 120
_MOST_STEPS = 24
_MOST_OPTIONS = 16
_MOST_KINDS = 12
_MOST_SINGLE = 29
_DRAWN = 3
_DRAWN_CELLS = 2
_CELLS = (ConvolutionalCellArchitecture, RecurrentCellArchitecture)
_LISTED = 15
_FEWEST_RANKED = 3
# From this median on, the times of trainings are told in this unit.
_UNITS = ((3 * 3600.0, 3600.0, "hours"), (180.0, 60.0, "minutes"), (0.0, 1.0, "seconds"))


@dataclass(frozen=True)
class Panel:
    """A figure of the page. ``lead`` is HTML: one or two sentences that say what is seen, or why there is nothing."""

    name: str
    title: str
    lead: str
    body: str = ""
    """HTML; empty where there is nothing to draw."""
    wide: bool = False
    """Whether it needs the whole width."""


# ---------------------------------------------------------------- rewards


def rewards(history: History) -> Panel:
    """Return the rewards of all samples in the order of their numbers, with the best so far."""
    title = "Reward over samples"
    trained = history.trained()
    if not history.best(1):
        return Panel("rewards", title, "No sample has a result yet.")
    policy = [sample for sample in trained if not sample.random]
    control = [sample for sample in trained if sample.random]
    first = history.samples[0].number
    x = Axis(first, max(first + 1, history.samples[-1].number))
    whole = [sample for sample in trained if sample.stopped is None]
    best = np.maximum.accumulate([sample.reward for sample in whole])
    top = whole[int(np.argmax([sample.reward for sample in whole]))]
    many = len(trained) > _MOST_DOTS
    marks: list[str] = []
    legend: list[tuple[str, str]] = []
    bands = _bands(policy, _WINDOWS) if many else []
    if many:
        y = Axis.around([value for row in bands for value in row[1:]] + [float(best[0]), top.reward])
        xs = [x.at(row[0]) for row in bands]
        levels = [[y.at(row[column]) for row in bands] for column in range(1, 6)]
        five, quarter, middle, three, most = ([*zip(xs, level, strict=True)] for level in levels)
        marks += [band(five, most, "policy faint"), band(quarter, three, "policy"), line(middle, "policy")]
        per = round(len(policy) / len(bands))
        legend += [
            ("policy line", f"median of {per} samples"),
            ("policy area", "their middle half"),
            ("policy area faint", "5th to 95th percentile"),
        ]
    else:
        y = Axis.around([sample.reward for sample in trained])
        marks.append(_dots(history, policy, x, y, "policy"))
        legend.append(("policy dot", "a sample"))
        if len(policy) >= 60:
            middle = [(x.at(row[0]), y.at(row[3])) for row in _bands(policy, max(6, len(policy) // 20))]
            marks.append(line(middle, "policy"))
            legend.append(("policy line", "running median"))
    if many and len(control) > _WINDOWS:
        rows = _bands(control, 40)
        marks.append(line([(x.at(row[0]), y.at(row[3])) for row in rows], "random"))
        legend.append(("random line", f"random arm, median of {round(len(control) / len(rows))}"))
    elif control:
        shown = [sample for sample in control if y.low <= sample.reward <= y.high]
        marks.append(_dots(history, shown, x, y, "random"))
        legend.append(("random dot", "random arm"))
    running = [(x.at(sample.number), y.at(value)) for sample, value in zip(whole, best, strict=True)]
    marks.append(stairs(running, "best"))
    legend.append(("best line", "best so far"))
    notes = [note(x.at(top.number), y.at(top.reward), f"sample {top.number:,}: {number(top.reward)}", "best up")]
    steps, step_notes = _depth_steps(history, x)
    grid = f'<path class="m step" d="{"".join(f"M{place:.5g} 0V1000" for place in steps)}"/>' if steps else ""
    metric = history.facts.objective.metric
    lead = (
        f"The best reward is <b>{number(top.reward)}</b>, that of sample {top.number:,} with a {escape(metric)} of"
        f" <b>{number(top.metric)}</b>."
    )
    if len(policy) >= 40:
        some = min(200, len(policy) // 4)
        lead += (
            f" Mean of the first {some} samples: {number(_mean(policy[:some]))}; of the last {some}:"
            f" {number(_mean(policy[-some:]))}."
        )
    if stopped := len(trained) - len(whole):
        lead += f" {stopped:,} samples were stopped early: their rewards are what they had then."
    if step_notes:
        lead += " Dotted: networks become deeper."
    body = plot(
        [grid, *marks],
        x,
        y,
        label=f"Reward of {len(trained)} samples; the best is {number(top.reward)}, that of sample {top.number}",
        names=("sample", "reward"),
        notes=[*step_notes, *notes],
        height=320,
        x_ticks=whole_ticks(x),
    )
    rows = bands or _bands(policy, 12)
    listed = rows[:: max(1, len(rows) // 12)]
    body += key(legend) + numbers(
        table(
            ("around sample", "5th percentile", "quarter", "median", "three quarters", "95th percentile"),
            [(f"{row[0]:,.0f}", *(number(value) for value in row[1:])) for row in listed],
        )
    )
    return Panel("rewards", title, lead, body, wide=True)


def _mean(samples: list[Row]) -> float:
    return float(np.mean([sample.reward for sample in samples]))


def _bands(samples: list[Row], most: int) -> list[tuple[float, ...]]:
    """Return for each window the middle sample's number and the 5, 25, 50, 75 and 95 % quantiles of the reward."""
    out = []
    for span in analysis.windows(len(samples), most, 1):
        window = samples[span]
        quantiles = np.quantile([sample.reward for sample in window], (0.05, 0.25, 0.5, 0.75, 0.95))
        out.append((float(np.mean([sample.number for sample in window])), *map(float, quantiles)))
    return out


def _dots(history: History, samples: list[Row], x: Axis, y: Axis, look: str) -> str:
    titles = None
    if len(samples) <= _MOST_TITLES:
        metric = history.facts.objective.metric
        titles = [
            f"sample {sample.number}: reward {number(sample.reward)}, {metric} {number(sample.metric)}"
            for sample in samples
        ]
    few = " few" if len(history.samples) <= _FEW else ""
    return dots([(x.at(sample.number), y.at(sample.reward)) for sample in samples], look + few, titles)


def _depth_steps(history: History, x: Axis) -> tuple[list[float], list[str]]:
    """Return where the schedule made networks deeper, and what to write there."""
    places, notes = [], []
    for before, sample in pairwise(history.samples):
        architecture = history.architecture(sample) if len(sample.choices) > len(before.choices) else None
        if isinstance(architecture, ConvolutionalArchitecture):
            places.append(x.at(sample.number))
            notes.append(note(places[-1], 0, f"{len(architecture.layers)} layers", "step", turn=930))
    return places, notes


# ---------------------------------------------------------------- arms


def arms(history: History) -> Panel:
    """Return how much better the best networks of the policy are than those of random search (figure 6)."""
    found = analysis.compare(history)
    title = "Top networks against random search"
    if not isinstance(found, str) and not found.random:
        title = "Top networks against the search’s beginning"
    if isinstance(found, str):
        return Panel("arms", title, escape(found))
    name = analysis.compared_name(history)
    values = [value for series in found.differences.values() for value in series]
    # Of few networks the best fifteen have hopeless ones among them, which must not flatten everything else.
    usual = [float(each) for each in np.percentile(values, (5, 95))]
    y = Axis.around([0.0, *usual, *(series[-1] for series in found.differences.values())], room=0.08)
    outside = sum(not y.low <= value <= y.high for value in values)
    x = Axis(found.counts[0], max(found.counts[-1], found.counts[0] + 1))
    marks = [f'<path class="m zero" d="M0 {1000 - y.at(0):.5g}H1000"/>']
    looks = {1: "top1", 5: "top5", 15: "top15"}
    legend = []
    for top in TOPS:
        series = found.differences[top]
        points: list[Point] = [
            (x.at(count), y.at(min(max(value, y.low), y.high)))
            for count, value in zip(found.counts, series, strict=True)
        ]
        marks.append(line(points, looks[top]) if len(points) > 1 else dots(points, looks[top]))
        legend.append((f"{looks[top]} line", f"top {top}: {series[-1]:+.3g}"))
    if found.random:
        lead = (
            f"Mean {escape(name)} of the best 1, 5 and 15 networks minus that of the random arm's, at equal counts of"
            f" different networks (the paper's figure 6); above 0 the policy is better. At {found.counts[-1]:,} each:"
        )
        x_name = "different networks of each arm"
    else:
        lead = (
            f"There is no random arm (spec.searcher.control). Mean {escape(name)} of the best 1, 5 and 15 among"
            f" {found.window:,} networks, minus that among the first {found.window:,}; above 0 is better. At the end:"
        )
        x_name = "sample at the window's end"
    lead += " " + ", ".join(f"top {top} <b>{found.differences[top][-1]:+.3g}</b>" for top in TOPS) + "."
    if outside:
        lead += f" {outside} of {len(values)} points lie outside the frame and are drawn at its edge."
    body = plot(
        marks,
        x,
        y,
        label=f"Difference of the top 1, 5 and 15 in {name} over {x_name}",
        names=(x_name, f"difference in {name}"),
        x_ticks=whole_ticks(x, 4),
    )
    picked = range(0, len(found.counts), max(1, len(found.counts) // 10))
    body += key(legend) + numbers(
        table(
            (x_name, *(f"top {top}" for top in TOPS)),
            [(f"{found.counts[i]:,}", *(f"{found.differences[top][i]:+.4g}" for top in TOPS)) for i in picked],
        )
    )
    return Panel("arms", title, lead, body)


# ---------------------------------------------------------------- decisions


def decisions(history: History) -> Panel:
    """Return how each kind of decision was taken over time: entropies and shares."""
    title = "What the searcher decides"
    if not history.samples:
        return Panel("decisions", title, "No sample has been proposed yet.")
    if history.facts.space_spec.fixed is not None:
        return Panel("decisions", title, "Nothing: the space has one architecture.")
    maps = analysis.decision_maps(history)
    ends = (f"sample {maps.first[0]:,}", f"{maps.last[-1]:,}") if maps.first else ("", "")
    if len(maps.first) < 2:
        over = f"All {len(history.samples)} samples together: shares over time are drawn from 40 on."
    else:
        over = (
            f"{len(maps.first)} windows of {round(len(history.samples) / len(maps.first))} samples, oldest to the left."
            " Entropy 1 is an even choice, 0 a settled one."
        )
    lead = f"Shares among the {'policy’s ' if any(s.random for s in history.samples) else ''}proposed networks. {over}"
    lead += f"<br>{scale('share or entropy 0', '1')}"
    repeated = [kind for kind in maps.kinds if kind.steps > 1]
    single = [kind for kind in maps.kinds if kind.steps == 1 and len(kind.options) > 1]
    spans = len(maps.first)
    parts = [_kind(history, kind, spans, ends) for kind in repeated[:_MOST_KINDS]]
    if single:
        maps_of = [_shares(kind, spans, ends) for kind in single[:_MOST_SINGLE]]
        if spans > 1:
            rows = np.array([kind.entropy[0] for kind in single])
            matrix, names = merged(rows, [_words(kind.kind) for kind in single], 40)
            maps_of.insert(0, heat(matrix, names, title="entropy, over samples", ends=ends))
        heading = "<h3>decisions taken once</h3>" if repeated else ""
        parts.append(f'<div class="maps">{heading}{"".join(maps_of)}</div>')
    left = [*repeated[_MOST_KINDS:], *single[_MOST_SINGLE:]]
    if left:
        names_left = escape(", ".join(_words(kind.kind) for kind in left))
        parts.append(f'<p class="lead">Not drawn, but in the numbers: {names_left}.</p>')
    table_rows = [
        (
            kind.kind,
            str(kind.steps),
            str(len(kind.options)) if not kind.anchor else "yes or no",
            *(_two(_mean_rows(kind.entropy)[index]) for index in (0, len(maps.first) // 2, -1)),
        )
        for kind in maps.kinds
    ]
    head = ("kind", "steps", "options", "entropy at first", "in the middle", "at last")
    parts.append(numbers(table(head, table_rows, words=frozenset({0}))))
    return Panel("decisions", title, lead, "".join(parts), wide=True)


def _two(value: float) -> str:
    return f"{value:.2f}" if math.isfinite(value) else "none"


def _mean_rows(matrix: analysis.Numbers) -> analysis.Numbers:
    known = np.isfinite(matrix)
    count = known.sum(axis=0)
    mean: analysis.Numbers = np.where(count, np.where(known, matrix, 0).sum(axis=0) / np.maximum(count, 1), np.nan)
    return mean


def _kind(history: History, kind: KindMaps, spans: int, ends: tuple[str, str]) -> str:
    step = "layer" if history.facts.space_spec.convolutional is not None else "step"
    if history.facts.space_spec.recurrent_cell is not None and kind.steps > 1:
        step = "node"
    labels = [f"{step} {index}" for index in range(kind.steps)]
    if step == "node":
        labels[-1] = "inject"
    cell = history.facts.space_spec.convolutional_cell
    if cell is not None and kind.kind == OPERATION:
        step, labels = "edge", [*cell.edges()]
    name = _words(kind.kind)
    parts = [f"<h3>{escape(name)}</h3>"]
    height = min(132, max(72, 7 * max(kind.steps, 2 * len(kind.options))))
    if spans > 1:
        entropy, names = merged(kind.entropy[int(kind.anchor) :], labels[int(kind.anchor) :], _MOST_STEPS)
        if len(entropy):
            parts.append(heat(entropy, names, title=f"entropy by {step}, over samples", ends=ends, height=height))
    parts.append(_shares(kind, spans, ends, title=_share_title(kind), height=height))
    if kind.steps > 1 and not (kind.anchor and kind.steps < 3):
        newest, rows = kind.newest, [*kind.options]
        if kind.anchor:
            newest, rows = newest[:-1], labels[:-1]
        columns = (labels[0], labels[-1])
        matrix, rows = merged(newest, rows, _MOST_STEPS)
        words = f"input (down) taken by {step} (across)" if kind.anchor else f"share by {step}"
        words += ", newest window" if spans > 1 else ", so far"
        parts.append(heat(matrix, rows, title=words, ends=columns, height=height))
    return f'<div class="maps">{"".join(parts)}</div>'


def _share_title(kind: KindMaps) -> str:
    return "share that takes the layer so far below" if kind.anchor else "share of each option"


def _shares(
    kind: KindMaps, spans: int, ends: tuple[str, str], title: str | None = None, height: int | None = None
) -> str:
    matrix, labels = kind.shares, [*kind.options]
    if not kind.anchor and len(labels) > _MOST_OPTIONS:
        order = np.argsort(-np.nan_to_num(matrix[:, -1]), kind="stable")
        kept = sorted(order[: _MOST_OPTIONS - 1])
        rest = sorted(set(range(len(labels))) - set(kept))
        matrix = np.vstack([matrix[kept], matrix[rest].sum(axis=0)])
        labels = [*(labels[index] for index in kept), f"{len(rest)} others"]
    matrix, labels = merged(matrix, labels, _MOST_OPTIONS)
    words = title or _words(kind.kind)
    if spans == 1:
        rows = [(label, percent(float(row[0]))) for label, row in zip(labels, matrix, strict=True)]
        bars = "".join(
            f'<tr><th>{escape(label)}</th><td><i class="bar" style="width:{100 * float(row[0]):.1f}%"></i></td>'
            f"<td>{share}</td></tr>"
            for (label, share), row in zip(rows, np.nan_to_num(matrix), strict=True)
        )
        return (
            f'<figure class="heat"><figcaption>{escape(words)}</figcaption><table class="bars">{bars}</table></figure>'
        )
    return heat(matrix, labels, title=f"{words}, over samples", ends=ends, height=height)


def _words(kind: str) -> str:
    """Return ``filterHeight`` as ``filter height``."""
    return "".join(f" {letter.lower()}" if letter.isupper() else letter for letter in kind)


# ---------------------------------------------------------------- the front


def front(history: History) -> Panel:
    """Return the metric against the first penalty's metric, or against parameters, with the Pareto front."""
    name, objective = history.cost_name, history.facts.objective
    title = f"{objective.metric.capitalize()} against {_words(name)}"
    known = [sample for sample in history.trained() if sample.cost > 0 and sample.stopped is None]
    if not known:
        return Panel("front", title, f"No result reports its {escape(name)}.")
    found = analysis.pareto_front(known, history.sign)
    costs = [sample.cost for sample in known]
    x = Axis.around(costs, log=max(costs) > 8 * min(costs))
    metrics = np.array([history.sign * sample.metric for sample in known])
    floor = float(np.quantile(metrics, 0.02)) if len(known) > 100 else float(metrics.min())
    floor = min(floor, *(history.sign * sample.metric for sample in found))
    inside = [sample for sample, metric in zip(known, metrics, strict=True) if metric >= floor]
    y = Axis.around([sample.metric for sample in inside])
    points = [(x.at(sample.cost), y.at(sample.metric)) for sample in inside]
    edge = [(x.at(sample.cost), y.at(sample.metric)) for sample in found]
    many = len(inside) > _MOST_DOTS
    titles = [
        f"sample {sample.number}: {objective.metric} {number(sample.metric)}, {name} {number(sample.cost)}"
        for sample in found
    ]
    marks = [
        density(points, 72, 36) if many else dots(points, "policy few" if len(points) <= _FEW else "policy"),
        stairs(edge, "best"),
        dots(edge, "best big", titles),
    ]
    goal = next((each for each in objective.penalties if each.metric == name), None)
    notes = []
    if goal is not None and x.low < float(goal.target) < x.high:
        place = x.at(float(goal.target))
        marks.insert(0, f'<path class="m step" d="M{place:.5g} 0V1000"/>')
        notes.append(note(place, 0, f"target {short_number(float(goal.target))}", "step"))
    outside = len(known) - len(inside)
    lead = f"{len(found)} networks that no other beats in both. "
    lead += f"The worst {outside:,} of {len(known):,} results lie outside the frame." if outside else ""
    body = plot(
        marks,
        x,
        y,
        label=f"{objective.metric} against {name}; {len(found)} networks are on the Pareto front",
        names=(_words(name), objective.metric),
        notes=notes,
        height=280,
    )
    dark = ("policy area", "more samples where darker") if many else ("policy dot", "a sample")
    body += key([dark, ("best dot", "on the Pareto front")])
    body += numbers(
        table(
            ("sample", _words(name), objective.metric),
            [(f"{sample.number:,}", number(sample.cost), number(sample.metric)) for sample in found],
        ),
        "The front",
    )
    return Panel("front", title, lead, body)


# ---------------------------------------------------------------- failures and cost


def failures(history: History) -> Panel:
    """Return how many samples gave no useful result, by reason."""
    title = "Failures"
    reasons = Counter(_reason(sample.reason) for sample in history.samples if sample.fate is Fate.LOST)
    if diverged := history.count(Fate.DIVERGED):
        reasons["diverged"] = diverged
    retried = sum(max(0, sample.launches - 1) for sample in history.samples)
    again = f"{retried:,} launches were repeats of earlier attempts." if retried else "No launch was repeated."
    if not reasons:
        return Panel("failures", title, f"No sample was lost, and no training run diverged. {again}")
    total, all_samples, most = sum(reasons.values()), len(history.samples), max(reasons.values())
    bars = "".join(
        f'<tr><th>{escape(reason)}</th><td><i class="bar loss" style="width:{100 * count / most:.1f}%">'
        f"</i></td><td>{count:,}</td></tr>"
        for reason, count in reasons.most_common()
    )
    lead = f"{total:,} of {all_samples:,} samples ({percent(total / all_samples)}) gave no useful result. {again}"
    return Panel("failures", title, lead, f'<table class="bars">{bars}</table>')


def _reason(reason: str) -> str:
    """Return ``OutOfMemory`` as ``out of memory``."""
    return _words(reason).strip()


def cost(history: History) -> Panel:
    """Return what the children's trainings took."""
    title = "Cost"
    timed = [sample.seconds for sample in history.samples if sample.seconds > 0 and not sample.reused]
    final = sum(each.seconds for each in history.finals)
    if not timed:
        return Panel("cost", title, "No result reports how long its training took.")
    total = sum(timed)
    low, middle, high = np.quantile(timed, (0.05, 0.5, 0.95))
    _, unit, unit_name = next(each for each in _UNITS if middle >= each[0])
    x = Axis.around([value / unit for value in timed], log=high > 8 * low, room=0.02)
    bins = min(40, max(5, round(math.sqrt(len(timed)))))
    edges = np.linspace(0, 1000, bins + 1)
    counts, _ = np.histogram([x.at(value / unit) for value in timed], edges)
    y = Axis(0, max(1, counts.max()) * 1.06)
    bars = "".join(
        f"M{edge + 1000 / bins * 0.06:.5g} 1000H{edge + 1000 / bins * 0.94:.5g}V{1000 - y.at(int(count)):.5g}"
        f"H{edge + 1000 / bins * 0.06:.5g}z"
        for edge, count in zip(edges, counts, strict=False)
        if count
    )
    lead = f"<b>{duration(total)}</b> of training in total, a median of {duration(float(middle))} per sample."
    if history.shared_seconds > 0:
        lead += f" Children shared pods, which trained for {duration(total - history.shared_seconds)}."
    if final:
        lead += f" The final training took {duration(final)} more."
    if history.facts.slot_seconds > 0:
        idle = max(0.0, 1 - (total + final + history.lost_seconds) / history.facts.slot_seconds)
        lead += (
            f" <b>{percent(idle)}</b> of {duration(history.facts.slot_seconds)} (parallelism times duration) was not"
            " training: pods that start, wait or load data, and pauses."
        )
    elif not history.facts.timed:
        lead += " The log does not say when things happened, so the idle share is not known."
    reused = sum(sample.reused for sample in history.samples)
    if reused:
        lead += f" {reused:,} duplicates took an earlier result and cost nothing."
    lead += _early_stopping(history, total)
    body = plot(
        [f'<path class="a policy solid" d="{bars}"/>'],
        x,
        y,
        label=f"Distribution of training times: median {duration(float(middle))}",
        names=(f"{unit_name} of one training run", "samples"),
        height=180,
        y_ticks=whole_ticks(y, 3),
    )
    body += numbers(
        table(
            ("training runs", "5th percentile", "median", "95th percentile", "longest", "in total"),
            [(f"{len(timed):,}", *(duration(float(value)) for value in (low, middle, high, max(timed), total)))],
        )
    )
    return Panel("cost", title, lead, body)


def _early_stopping(history: History, total: float) -> str:
    """Return what early stopping has spared, and what the random arm tells of its cost; empty without it.

    Args:
        history: of the search.
        total: seconds that its trainings took.
    """
    stopped = [(sample, sample.stopped) for sample in history.samples if sample.stopped and not sample.reused]
    if not stopped:
        return ""
    epochs = sum(ended.of - ended.epoch for _, ended in stopped)
    seconds = sum(sample.seconds * (ended.of / ended.epoch - 1) for sample, ended in stopped)
    out = (
        f" Early stopping ended {len(stopped):,} training runs and saved {epochs:,} epochs, about {duration(seconds)}:"
        f" <b>{percent(seconds / (seconds + total))}</b> of what all of them would have taken."
    )
    arm = [sample for sample in history.trained() if sample.random and sample.rule is not None]
    hopeless = [sample.metric for sample in arm if sample.hopeless]
    if hopeless:
        best = max if history.sign > 0 else min
        metric = escape(history.facts.objective.metric)
        out += (
            f" It would have ended {len(hopeless):,} of {len(arm):,} samples of the random arm: the best of those"
            f" ended with {metric} {number(best(hopeless))}, the arm’s best with"
            f" {number(best(sample.metric for sample in arm))}."
        )
    return out


# ---------------------------------------------------------------- networks and the final training


def networks(history: History) -> Panel:
    """Return the best architectures as pictures."""
    title = "The best networks"
    best = [(sample, history.architecture(sample)) for sample in history.best(_DRAWN)]
    if not best:
        return Panel("networks", title, "No sample has a result yet.")
    form = best[0][1]
    if isinstance(form, ConvolutionalArchitecture):
        lead = (
            "From the image down. The small box is the filter to scale, the shade behind it the number of filters"
            " (↓ stride). Arcs to the right are skip connections; dashed ones take the image, or feed the classifier."
        )
    elif isinstance(form, ConvolutionalCellArchitecture):
        best = best[:_DRAWN_CELLS]
        lead = (
            "A cell from its input down: each bar is a node, the sum of the operations above it. Those with weights are"
            " shaded, and those that are none left out."
        )
    elif isinstance(form, RecurrentCellArchitecture):
        # They are drawn wider than layers.
        best = best[:_DRAWN_CELLS]
        lead = "Each leaf takes W x<sub>t</sub> and U h<sub>t−1</sub>; the root’s value is h<sub>t</sub>."
    else:
        lead = "The values of their decisions; those that were not taken are left out."
    metric = escape(history.facts.objective.metric)
    cards = "".join(
        f'<article><h3>Sample {sample.number:,}</h3><p class="lead">reward <b>{number(sample.reward)}</b>, {metric}'
        f" {number(sample.metric)}{f', {short_number(sample.parameters)} parameters' if sample.parameters else ''}</p>"
        f"{picture(architecture)}</article>"
        for sample, architecture in best
    )
    return Panel(
        "networks",
        title,
        lead,
        f'<div class="cards{" cells" if isinstance(form, _CELLS) else ""}">{cards}</div>',
        wide=True,
    )


def final_training(history: History) -> Panel:
    """Return the trainings of the final stage, best first, and whether they rank as the search did."""
    title = "Final training"
    trials = history.final_trials()
    if not trials:
        if history.facts.finished is not None and history.facts.search_ended is None:
            return Panel("final", title, "The manifest asks for none (spec.finalTraining).")
        why = "It has not begun: it follows the search where spec.finalTraining asks for it."
        return Panel("final", title, why)
    metric = history.facts.objective.metric
    tests = [each for each in history.finals if each.run.settings.test and each.fate is Fate.TRAINED]
    done = [each for each in trials if each.metrics]
    # The last of a network is its best.
    best = {each.run.of: each for each in sorted(done, key=lambda each: each.reward)}
    runs, networks = [run for each in trials for run in each.trainings], {each.run.of for each in trials}
    trained = sum(run.fate is Fate.TRAINED for run in runs)
    lead = f"{trained:,} of {len(runs):,} training runs of {len(networks)} networks are done."
    if tests:
        lead += f" The winner’s {escape(metric)} on the test set, measured once: <b>{number(tests[0].metric, 5)}</b>."
    of = sorted(best)
    agreement = kendall([history.sample(each).reward for each in of], [best[each].reward for each in of])
    if agreement is not None:
        lead += f" Kendall’s τ between the search’s rewards and these: <b>{agreement.tau:.2f}</b>"
        if agreement.low is not None and agreement.high is not None:
            lead += f" (95 % interval {agreement.low:.2f} to {agreement.high:.2f})"
        lead += ": 1 is the same order, 0 none."
    body = ""
    if len(of) >= _FEWEST_RANKED:
        x = Axis.around([history.sample(each).reward for each in of])
        means = {each: mean(trial.metrics) for each, trial in best.items()}
        y = Axis.around(means.values())
        points = [(x.at(history.sample(each).reward), y.at(means[each])) for each in of]
        titles = [f"sample {each}: {metric} {number(means[each])}" for each in of]
        body += plot(
            [dots(points, "best big", titles)],
            x,
            y,
            label=f"The final {metric} of {len(of)} networks against their reward in the search",
            names=("reward in the search", f"final {metric}"),
            height=230,
            x_ticks=x.ticks(3),
        )
    ended = sorted(trials, key=lambda each: (not each.metrics, -each.reward if each.metrics else 0.0))
    # Language models alone have them, and only some.
    further = {
        name: of for name, of in _FURTHER_SETTINGS.items() if any(of(each.run.settings) is not None for each in trials)
    }
    rows = [_final_row(history, each, tests, further.values()) for each in ended]
    settings = ("learning rate", "weight decay", "epsilon", "decay epoch", *further, "epochs")
    body += table(("network", metric, "test", "search reward", *settings), rows)
    return Panel(
        "final", title, lead, f'<div class="split">{body}</div>' if len(of) >= _FEWEST_RANKED else body, wide=True
    )


_Setting = Callable[[FinalSettings], str | None]
_FURTHER_SETTINGS: dict[str, _Setting] = {
    "dropout": lambda settings: settings.dropout,
    "initial scale": lambda settings: settings.initial_scale,
}


def _final_row(
    history: History, trial: FinalTrial, tests: list[FinalTraining], further: Iterable[_Setting]
) -> tuple[str, ...]:
    run = trial.run
    won = [test for test in tests if test.run.of == run.of and _alike(test.run, run)]
    return (
        f"sample {run.of:,}",
        _measured(trial),
        number(won[0].metric, 5) if won else "",
        number(history.sample(run.of).reward),
        run.optimizer.learning_rate,
        run.optimizer.weight_decay,
        run.settings.batch_norm_epsilon,
        "never" if run.settings.decay_epoch is None else str(run.settings.decay_epoch),
        *(of(run.settings) or "" for of in further),
        f"{run.epochs:,}",
    )


def _measured(trial: FinalTrial) -> str:
    """Return what a trial has come to: the mean of its seeds with its spread, or why there is none."""
    metrics, of = trial.metrics, len(trial.trainings)
    if not metrics:
        return _words(trial.trainings[0].reason).strip() or trial.trainings[0].fate.value
    around = f" ± {number(spread(metrics), 2)}" if len(metrics) > 1 else ""
    return f"{number(mean(metrics), 5)}{around}{f' ({len(metrics)} of {of} seeds)' if of > len(metrics) else ''}"


def _alike(test: FinalRun, run: FinalRun) -> bool:
    """Return whether the test's training has the settings of this one."""
    settings = test.settings.model_copy(update={"test": False, "repeats": None})
    return (settings, test.optimizer) == (run.settings, run.optimizer)


def top_samples(history: History) -> Panel:
    """Return the best samples as a table."""
    best = history.best(_LISTED)
    if not best:
        return Panel("top", "Top samples", "No sample has a result yet.")
    rows = [
        (
            str(rank),
            f"{sample.number:,}",
            number(sample.reward, 5),
            number(sample.metric, 5),
            short_number(sample.parameters) if sample.parameters else "",
            duration(sample.seconds) if sample.seconds else "",
            "random" if sample.random else "policy",
            history.architecture(sample).short(),
        )
        for rank, sample in enumerate(best, 1)
    ]
    head = ("", "sample", "reward", history.facts.objective.metric, "parameters", "training", "arm", "architecture")
    lead = f"The {len(rows)} best architectures, each once, in the short form of their space."
    return Panel("top", "Top samples", lead, table(head, rows, words=frozenset({6, 7})), wide=True)
