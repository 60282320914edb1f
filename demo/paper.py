"""`make paper`: the small twins of the paper's rows, one search after the other, and their table."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any

from demo.demo import Demo
from demo.places import Place
from demo.steps import ROOT, DemoError, SearchFailedError, Steps

PAPER = ROOT / "examples" / "paper"


def twins() -> list[str]:
    """Return the names of the small twins of the paper's rows."""
    return sorted(path.stem for path in PAPER.glob("*-small.yaml"))


def in_order(wanted: Sequence[str], sources: Mapping[str, str]) -> list[str]:
    """Return what to run: each once, and what another takes its architecture from before all, wanted or not.

    Args:
        sources: by experiment, where its architecture comes from; one that searches itself is not in it.
    """
    needed = [sources[name] for name in wanted if name in sources]
    return list(dict.fromkeys([*needed, *wanted]))


COLUMNS = (
    *("twin", "samples", "first 20, last 20", "best of the search", "final trainings"),
    *("validation", "test", "tau", "wall time"),
)


def row(experiment: Mapping[str, Any]) -> tuple[str, ...]:
    """Return what a complete experiment's status says in the COLUMNS; empty where it says nothing.

    Metrics have four significant digits, rewards two. The wall time is that from its creation to its completion.
    """
    status = experiment["status"]
    samples, policy, final = (status.get(part, {}) for part in ("samples", "policy", "final"))

    def number(value: str | None, digits: int) -> str:
        return "" if value is None else f"{float(value):#.{digits}g}"

    rewards = [number(policy.get(key), 2) for key in ("firstMeanReward", "meanReward") if samples["observed"] >= 20]
    tau = number(final.get("kendallTau"), 2)
    if "kendallLow" in final:
        tau += f" ({number(final['kendallLow'], 2)} to {number(final.get('kendallHigh'), 2)})"
    ended = next(condition for condition in status["conditions"] if condition["type"] == "Complete")
    times = (experiment["metadata"]["creationTimestamp"], ended["lastTransitionTime"])
    began, completed = (datetime.fromisoformat(time) for time in times)
    return (
        experiment["metadata"]["name"],
        f"{samples['observed']}" + (f", {samples['lost']} lost" if samples.get("lost") else ""),
        ", ".join(filter(None, rewards)),
        f"{experiment['spec']['objective']['metric']} {number(status['best']['metric'], 4)}",
        f"{final.get('trained', '')}" + (f", {final['lost']} lost" if final.get("lost") else ""),
        number(final.get("bestMetric"), 4),
        number(final.get("testMetric"), 4),
        tau,
        f"{(completed - began).total_seconds():.0f} s",
    )


def table(rows: Sequence[Sequence[str]]) -> str:
    """Return rows under the COLUMNS as a Markdown table whose columns are aligned."""
    widths = [max(map(len, column)) for column in zip(COLUMNS, *rows, strict=True)]
    lines = [COLUMNS, ["-" * width for width in widths], *rows]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    )


def paper(place: Place, steps: Steps, wanted: Sequence[str]) -> None:
    """Run small twins of the paper's rows one after the other and print a table of them, also when interrupted.

    One that is complete already is not run again. After one that failed the others go on.

    Args:
        wanted: their names.

    Raises:
        DemoError: some failed, named with their reasons; or one did not end, and those behind it were not begun.
    """
    experiments = {name: Demo(place, steps, PAPER / f"{name}.yaml", name) for name in twins()}
    sources = {name: source for name in wanted if (source := experiments[name].source()) is not None}
    names = in_order(wanted, sources)
    rows: list[tuple[str, ...]] = []
    failed: dict[str, str] = {}
    try:
        for count, name in enumerate(names, 1):
            if sources.get(name) in failed:
                failed[name] = f"{name} was not run: it needs the architecture of {sources[name]}"
                continue
            try:
                steps.step(f"{name}, {count} of {len(names)}", partial(experiments[name].search, keep=True))
            except SearchFailedError as error:
                failed[name] = str(error)
            else:
                rows.append(row(experiments[name].experiment()))
    finally:
        if rows:
            print(f"\n{table(rows)}\n", flush=True)
    if failed:
        raise DemoError("\n  ".join([f"{len(failed)} of {len(names)} twins have no result", *failed.values()]))
