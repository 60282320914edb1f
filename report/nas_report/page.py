"""The page: head, figures and style in one HTML document that loads nothing."""

from datetime import datetime
from html import escape
from pathlib import Path

from nas_api.architecture import Architecture
from nas_api.experiment import NASExperiment
from nas_api.wording import duration
from nas_report import panels
from nas_report.drawing import number
from nas_report.history import Fate, History
from nas_report.networks import picture
from nas_report.panels import Panel

# Nothing but the page's own style and drawings: a report from somebody else's bucket runs no script and calls nobody.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


_PANELS = (
    panels.rewards,
    panels.arms,
    panels.front,
    panels.decisions,
    panels.networks,
    panels.final_training,
    panels.cost,
    panels.failures,
    panels.top_samples,
)


def render(history: History, experiment: NASExperiment, made: datetime) -> str:
    """Return the report of a search as one HTML document.

    Args:
        history: what its log says.
        experiment: its manifest: the name, and what the log does not say of the children.
        made: the moment that the report calls its own.

    Raises:
        LogDamaged: an architecture is not of the search's space.
    """
    drawn = [draw(history) for draw in _PANELS]
    return _document(
        f"{experiment.metadata.name}: architecture search",
        f"<main>{_head(history, experiment)}{_figures(drawn)}</main><footer>{_foot(experiment, made)}</footer>",
    )


def drawing(architecture: Architecture) -> str:
    """Return the picture of one architecture as an HTML document."""
    return _document("architecture", f'<main><div class="wide">{picture(architecture)}</div></main>')


def _document(title: str, body: str) -> str:
    style = Path(__file__).with_name("style.css").read_text()
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="color-scheme" content="light dark"><title>{escape(title)}</title>'
        f"<style>{style}</style></head><body>{body}</body></html>\n"
    )


def _figures(drawn: list[Panel]) -> str:
    """Return the figures, narrow ones in pairs, and after them why the others are not there."""
    out: list[str] = []
    pair: list[Panel] = []
    for panel in [*drawn, None]:
        if panel is not None and not panel.body:
            continue
        if pair and (panel is None or panel.wide):
            out.append(_section(pair.pop(), wide=True))
        if panel is None:
            break
        if panel.wide:
            out.append(_section(panel, wide=True))
            continue
        pair.append(panel)
        if len(pair) == 2:
            out += [_section(each, wide=False) for each in pair]
            pair = []
    if missing := [panel for panel in drawn if not panel.body]:
        rows = "".join(f"<div><dt>{escape(panel.title)}</dt><dd>{panel.lead}</dd></div>" for panel in missing)
        out.append(f'<section class="panel wide missing" aria-label="Without a figure"><dl>{rows}</dl></section>')
    return "".join(out)


def _section(panel: Panel, *, wide: bool) -> str:
    return (
        f'<section class="panel{" wide" if wide else ""}" id="{panel.name}" aria-labelledby="{panel.name}-title">'
        f'<h2 id="{panel.name}-title">{escape(panel.title)}</h2><p class="lead">{panel.lead}</p>{panel.body}</section>'
    )


def _head(history: History, experiment: NASExperiment) -> str:
    state, words = _state(history, experiment)
    facts = "".join(f"<div><dt>{escape(term)}</dt><dd>{text}</dd></div>" for term, text in _facts(history, experiment))
    place = experiment.metadata.namespace
    return (
        f'<header><p class="kind">Neural architecture search · {escape(place)}</p>'
        f"<h1>{escape(experiment.metadata.name)}"
        f' <span class="state {state.lower().replace(" ", "-")}">{state}</span></h1><p class="lead">{escape(words)}</p>'
        f"<dl>{facts}</dl></header>"
    )


def _state(history: History, experiment: NASExperiment) -> tuple[str, str]:
    facts = history.facts
    if facts.finished is not None:
        return facts.finished.outcome, _sentence(facts.finished.message)
    if experiment.spec.suspend:
        return "Suspended", "The search goes on when spec.suspend is false."
    return "Final training" if facts.search_ended is not None else "Searching", f"As of {facts.end:%Y-%m-%d %H:%M} UTC."


def _sentence(words: str) -> str:
    return words[:1].upper() + words[1:].rstrip(".") + "."


def _facts(history: History, experiment: NASExperiment) -> list[tuple[str, str]]:
    log, spec = history.facts, experiment.spec
    trained, open_count = history.count(Fate.TRAINED), history.count(Fate.OPEN)
    budget = log.budget or spec.budget
    samples = f"<b>{len(history.samples):,}</b> of {budget.samples:,}"
    parts = [f"{trained:,} trained"]
    for count, word in (
        (history.count(Fate.DIVERGED), "diverged"),
        (history.count(Fate.LOST), "lost"),
        (sum(sample.stopped is not None for sample in history.samples), "stopped early"),
        (sum(sample.reused for sample in history.samples), "reused"),
        (sum(max(0, sample.launches - 1) for sample in history.samples), "retried"),
        (open_count if log.finished is None else 0, "in flight"),
    ):
        if count:
            parts.append(f"{count:,} {word}")
    facts = [("Samples", f"{samples}<small>{escape(', '.join(parts))}</small>")]
    best = history.best(1)
    if best:
        goal = "higher is better" if history.sign > 0 else "lower is better"
        metric = escape(log.objective.metric)
        facts.append(
            (f"Best {metric}", f"<b>{number(best[0].metric)}</b><small>sample {best[0].number:,}; {goal}</small>")
        )
    if log.end > log.begin:
        time = duration((log.end - log.begin).total_seconds())
        limit = f", of {escape(budget.duration)} at most" if budget.duration else ""
        facts.append(("Duration", f"<b>{time}</b><small>since {log.begin:%Y-%m-%d %H:%M} UTC{limit}</small>"))
    facts.append(("Space", _space(history)))
    searcher = f"<b>{escape(log.searcher.kind)}</b><small>seed {log.searcher.seed}"
    if log.searcher.control is not None:
        searcher += f", random arm {escape(log.searcher.control.random)}"
    if log.warm_start is not None:
        searcher += f", warm start with {log.inherited:,} samples of {escape(log.warm_start.experiment)}"
    facts.append(("Searcher", searcher + "</small>"))
    reward = log.objective.reward
    form = "cube" if reward.cube is not None else "inverse square" if reward.inverse_square is not None else ""
    form = form or ("identity" if reward.identity is not None else "cube")
    penalties = "".join(f", {escape(each.metric)} below {escape(each.target)}" for each in log.objective.penalties)
    facts.append(("Reward", f"<b>{form}</b><small>of {escape(log.objective.metric)}{penalties}</small>"))
    dataset = next(name for name in type(spec.trainer.dataset).model_fields if getattr(spec.trainer.dataset, name))
    epochs = "1 epoch" if spec.trainer.epochs == 1 else f"{spec.trainer.epochs:,} epochs"
    facts.append(("Children", f"<b>{escape(dataset)}</b><small>{epochs} each</small>"))
    controllers = f", {log.controllers} controllers one after the other" if log.controllers > 1 else ""
    facts.append(("At once", f"<b>{log.parallelism:,}</b><small>children in flight at most{controllers}</small>"))
    return facts


def _space(history: History) -> str:
    size = history.facts.space.size(history.samples[-1].number if history.samples else 0)
    spec = history.facts.space_spec
    if spec.fixed is not None:
        changes = "".join(f", {words}" for words in spec.fixed.changes)
        return f"<b>1</b><small>the network that {escape(spec.fixed.experiment)} has found{changes}</small>"
    if spec.convolutional is not None:
        kind = "convolutional"
    elif spec.convolutional_cell is not None:
        kind = f"convolutional cell, {spec.convolutional_cell.nodes} nodes"
    elif spec.recurrent_cell is not None:
        kind = f"recurrent cell, base {spec.recurrent_cell.base}"
    else:
        kind = "custom"
    return f"<b>{_size(size)}</b><small>networks, {kind}</small>"


def _size(size: int) -> str:
    if size < 1_000_000:
        return f"{size:,}"
    digits = str(size)
    return f"{digits[0]}.{digits[1:3]} × 10<sup>{len(digits) - 1}</sup>"


def _foot(experiment: NASExperiment, made: datetime) -> str:
    uid = f" · uid {escape(experiment.metadata.uid)}" if experiment.metadata.uid else ""
    return f"Made {made:%Y-%m-%d %H:%M} UTC by nas-operator from the search’s log{uid}"
