"""Logs of searches that were never run: a small policy that really learns, on a made-up table of accuracies.

Everything goes through the real records and the real log, so that a report of such a log is one of a search.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np

from nas_api.architecture import Architecture
from nas_api.decisions import Anchor, Choices, Decision
from nas_api.experiment import BudgetSpec, FinalTrainingSpec, ObjectiveSpec, OptimizerSpec, SearcherSpec
from nas_api.reasons import LostReason, Reason
from nas_api.search_space import SearchSpaceSpec, search_space
from nas_api.stopping import Rung, Stopped, StopRule
from nas_controller.final_stage import combinations
from nas_log.log import Log
from nas_log.records import (
    FinalProposed,
    FinalRun,
    Finished,
    Launched,
    Lost,
    Observed,
    Proposed,
    Reconfigured,
    Record,
    SearchEnded,
    Started,
)
from nas_store import Store

BEGIN = datetime(2026, 3, 2, 9, 30, tzinfo=UTC)
CONVOLUTIONAL: Mapping[str, Any] = {
    "convolutional": {"layers": {"initial": 6, "increment": 2, "everySamples": 1600, "maximum": 20}, "strides": [1, 2]}
}
BLOCKS: Mapping[str, Any] = {
    "convolutional": {
        "layers": {"initial": 13},
        "blockLayers": 3,
        "poolingAfter": [13, 24],
        "filters": [6, 36, 1024],
        "extraFilters": 40,
        "strides": [1, 2],
    }
}
"""The paper's third variant, with all that a layer's picture may have to say."""
CELL: Mapping[str, Any] = {"recurrentCell": {}}
DENSE: Mapping[str, Any] = {"convolutionalCell": {}}
PAIRS: Mapping[str, Any] = {
    "convolutionalCell": {"wiring": "Pairs", "nodes": 5, "operations": ["none", "skip", "conv_1x7_7x1", "max_pool_3x3"]}
}


class Learner:
    """A softmax of its own for each (kind, step), and the plain policy gradient with a moving average."""

    def __init__(self, seed: int, rate: float) -> None:
        self._draw = np.random.default_rng(seed)
        self._rate = rate
        self._logits: dict[tuple[str, int], np.ndarray] = {}
        self._baseline: float | None = None

    def propose(self, decisions: tuple[Decision, ...], uniform: bool) -> Choices:
        out = []
        for step, decision in enumerate(decisions):
            if isinstance(decision, Anchor):
                yes = self._draw.random(decision.index) < self._skips(decision, uniform)
                out.append(sum(1 << int(source) for source in np.flatnonzero(yes)))
            else:
                shares = np.ones(len(decision.options)) if uniform else np.exp(self._of(decision.kind, step, decision))
                out.append(int(self._draw.choice(len(shares), p=shares / shares.sum())))
        return tuple(out)

    def learn(self, decisions: tuple[Decision, ...], choices: Choices, reward: float) -> None:
        before = self._baseline if self._baseline is not None else reward
        self._baseline = 0.95 * before + 0.05 * reward
        step_size = self._rate * (reward - before)
        for step, (decision, choice) in enumerate(zip(decisions, choices, strict=True)):
            if isinstance(decision, Anchor):
                logits = self._logits.setdefault(("anchor", decision.index), np.zeros(decision.index))
                yes = np.array([choice >> source & 1 for source in range(decision.index)], dtype=float)
                logits += step_size * (yes - 1 / (1 + np.exp(-logits)))
            else:
                logits = self._of(decision.kind, step, decision)
                shares = np.exp(logits) / np.exp(logits).sum()
                logits -= step_size * shares
                logits[choice] += step_size

    def _of(self, kind: str, step: int, decision: Any) -> np.ndarray:
        return self._logits.setdefault((kind, step), np.zeros(len(decision.options)))

    def _skips(self, decision: Anchor, uniform: bool) -> Any:
        logits = self._logits.setdefault(("anchor", decision.index), np.zeros(decision.index))
        return 0.5 if uniform else 1 / (1 + np.exp(-logits))


def records(
    space: Mapping[str, Any],
    samples: int,
    *,
    seed: int = 0,
    rate: float = 4.0,
    losses: float = 0.004,
    control: str | None = None,
    objective: Mapping[str, Any] | None = None,
    parallelism: int = 8,
    finished: bool = True,
    final: Mapping[str, Any] | None = None,
) -> Iterator[list[Record]]:
    """Yield the records of a search, an object of the log at a time.

    Args:
        space: as ``spec.searchSpace`` says it.
        samples: the budget.
        seed: of everything.
        rate: how fast the policy learns.
        losses: share of samples that are lost; as many diverge.
        control: share of a random arm.
        objective: as ``spec.objective`` says it.
        parallelism: children in flight.
        finished: whether the log has an end.
        final: as ``spec.finalTraining`` says it.
    """
    spec = SearchSpaceSpec.model_validate(space)
    aim = ObjectiveSpec.model_validate(objective or {})
    searched = search_space(spec)
    table = np.random.default_rng(seed + 1)
    worth: dict[tuple[str, int], np.ndarray] = {}
    learner = Learner(seed, rate)
    draw = np.random.default_rng(seed + 2)
    budget = BudgetSpec(samples=samples)
    searcher = SearcherSpec.model_validate(
        {"reinforce": {}, "seed": seed, **({} if control is None else {"control": {"random": control}})}
    )
    moment = BEGIN
    yield [
        Started(epoch=1, moment=BEGIN, search_space=spec, searcher=searcher, objective=aim),
        Reconfigured(parallelism=parallelism, budget=budget),
    ]
    counts = {"observed": 0, "lost": 0}
    best: list[tuple[float, int, Architecture]] = []
    slots = [BEGIN] * parallelism
    for sample in range(samples):
        decisions = searched.decisions(sample)
        arm = {"arm": "random"} if control is not None and draw.random() < float(control) else {}
        choices = learner.propose(decisions, bool(arm))
        architecture = searched.decode(choices)
        proposed = Proposed(sample=sample, architecture=architecture, log_probability=-1.0, version=sample // 8, **arm)
        seconds = float(draw.lognormal(math.log(300 + 20 * len(decisions)), 0.35))
        begin = min(slots)
        moment = begin + timedelta(seconds=seconds + 12)
        slots[slots.index(begin)] = moment
        launched = Launched(launch=sample, samples=(sample,), attempt=1, moment=begin)
        fate = draw.random()
        if fate < losses:
            reason = draw.choice([LostReason.OUT_OF_MEMORY, LostReason.TRAINER_FAILED, LostReason.DEADLINE_EXCEEDED])
            counts["lost"] += 1
            yield [proposed, launched]
            yield [Lost(sample=sample, reason=LostReason(reason), message="its words", moment=moment)]
            continue
        counts["observed"] += 1
        if fate < 2 * losses:
            yield [proposed, launched]
            yield [Observed(sample=sample, metrics={}, diverged=True, reward=0.0, seconds=seconds, moment=moment)]
            continue
        scores = []
        for step, (decision, choice) in enumerate(zip(decisions, choices, strict=True)):
            if isinstance(decision, Anchor):
                tastes = worth.setdefault(("anchor", step), table.normal(size=decision.index))
                yes = np.array([choice >> source & 1 for source in range(decision.index)], dtype=float)
                scores.append(float((tastes * yes).sum() / max(1, decision.index)))
            else:
                scores.append(float(worth.setdefault(("", step), table.normal(size=len(decision.options)))[choice]))
        quality = sum(scores) / math.sqrt(len(scores))
        accuracy = 0.945 - 0.09 / (1 + math.exp(0.9 * quality)) + float(draw.normal(0, 0.003))
        perplexity = 60 + 80 / (1 + math.exp(0.9 * quality)) + float(draw.normal(0, 1))
        metric = accuracy if aim.goal == "Maximize" else perplexity
        reward = metric**3 if aim.goal == "Maximize" else 80 / metric**2
        parameters = int(4e5 * (1 + sum(choice % 7 for choice in choices)) * (1 + 0.1 * draw.random()))
        yield [proposed, launched]
        yield [
            Observed(
                sample=sample,
                metrics={aim.metric: metric, **{each.metric: 1e-9 * parameters for each in aim.penalties}},
                reward=reward,
                seconds=seconds,
                parameters=parameters,
                moment=moment,
            )
        ]
        best = sorted([*best, (reward, sample, architecture)], key=lambda each: -each[0])[:50]
        if not arm:
            learner.learn(decisions, choices, reward * (1 if aim.goal == "Maximize" else 80))
    if final is not None:
        yield from _final_stage(FinalTrainingSpec.model_validate(final), best, aim, samples, max(slots), draw)
    if finished:
        words = f"{counts['observed']} samples observed, {counts['lost']} lost"
        yield [Finished(outcome="Complete", reason=Reason.SAMPLES_SPENT, message=words, moment=max(slots))]


def stopped_early(found: Iterable[Record], bound: float) -> Iterator[Record]:
    """Yield records as if each child had half its accuracy after 5 of 50 epochs, where those below a bound end."""
    random: dict[int, bool] = {}
    for record in found:
        match record:
            case Proposed():
                random[record.sample] = record.arm == "random"
            case Launched():
                record = record.model_copy(update={"stop": StopRule(epoch=5, bound=bound, goal="Maximize")})
            case Observed() if not record.diverged:
                half = record.metrics["accuracy"] / 2
                changes: dict[str, Any] = {"rung": Rung(epoch=5, metric=half)}
                if half < bound and not random[record.sample]:
                    changes |= {"metrics": {"accuracy": half}, "reward": half**3, "stopped": Stopped(epoch=5, of=50)}
                    changes |= {"seconds": record.seconds / 10}
                record = record.model_copy(update=changes)
        yield record


def _final_stage(
    spec: FinalTrainingSpec,
    best: list[tuple[float, int, Architecture]],
    aim: ObjectiveSpec,
    first: int,
    moment: datetime,
    draw: np.random.Generator,
) -> Iterator[list[Record]]:
    """Train the best for longer: the better in the search, the better here, with noise; then test the winner."""
    yield [SearchEnded(reason=Reason.SAMPLES_SPENT, message="done", final_training=spec, moment=moment)]
    runs = [
        (architecture, reward, FinalRun(of=sample, settings=settings, optimizer=optimizer, epochs=spec.epochs))
        for _ in range(spec.seeds)
        for settings, optimizer in combinations(spec, OptimizerSpec())
        for reward, sample, architecture in best[: spec.top]
    ]
    metrics = []
    for number, (architecture, reward, run) in enumerate(runs, first):
        metrics.append(reward + float(draw.normal(0, 0.01)))
        yield _final(number, architecture, run, metrics[-1], aim, moment)
    winner = max(range(len(runs)), key=metrics.__getitem__)
    architecture, _, run = runs[winner]
    run = run.model_copy(update={"settings": run.settings.model_copy(update={"test": True})})
    yield _final(first + len(runs), architecture, run, metrics[winner] - 0.01, aim, moment)


def _final(
    number: int, architecture: Architecture, run: FinalRun, metric: float, aim: ObjectiveSpec, moment: datetime
) -> list[Record]:
    end = moment + timedelta(hours=9)
    return [
        FinalProposed(sample=number, architecture=architecture, run=run),
        Launched(launch=number, samples=(number,), attempt=1, moment=moment),
        Observed(sample=number, metrics={aim.metric: metric}, reward=metric, seconds=32_000.0, moment=end),
    ]


def write(store: Store, objects: Iterator[list[Record]]) -> None:
    """Write objects as a log."""
    log = Log(store)
    for each in objects:
        log.append(each)
