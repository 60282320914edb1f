"""All samples of a search, read from its log: as JSON lines for programs, as a table for people."""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from rich.table import Table
from rich.text import Text

from nas_api.architecture import Architecture
from nas_api.search_space import arranged, search_space
from nas_api.stopping import Stopped
from nas_log.records import FinalProposed, Launched, Lost, Observed, Proposed, Record, Started


@dataclass
class Sample:
    """What the log says of one sample."""

    number: int
    architecture: Architecture
    arm: str
    """``policy``, ``random`` for the control arm, or ``final`` for a final training."""
    state: str = "Open"
    """Open, Observed, Diverged or Lost."""
    attempts: int = 0
    reward: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    seconds: float | None = None
    parameters: int | None = None
    reused: int | None = None
    """The sample whose result this is, where nothing was trained."""
    stopped: Stopped | None = None
    """Where its training was stopped early: metrics and reward are underestimates."""
    message: str | None = None
    """Why it was lost."""

    def document(self, metric: str) -> dict[str, Any]:
        """Return it as plain JSON values; ``metric`` is the objective's name. Unknown and infinite numbers are null."""
        return {
            "sample": self.number,
            "state": self.state,
            "arm": self.arm,
            "metric": _finite(self.metrics.get(metric)),
            "reward": _finite(self.reward),
            "metrics": {name: _finite(value) for name, value in self.metrics.items()},
            "seconds": self.seconds,
            "parameters": self.parameters,
            "attempts": self.attempts,
            "reused": self.reused,
            "stopped": None if self.stopped is None else self.stopped.model_dump(),
            "message": self.message,
            "digest": self.architecture.digest,
            "architecture": self.architecture.document(),
        }


def samples(records: Iterable[Record]) -> list[Sample]:
    """Return the samples of a log in their order."""
    found: dict[int, Sample] = {}
    for record in records:
        match record:
            case Started():
                space = search_space(record.search_space, record.architecture)
            case Proposed():
                found[record.sample] = Sample(record.sample, arranged(space, record.architecture), record.arm)
            case FinalProposed():
                found[record.sample] = Sample(record.sample, arranged(space, record.architecture), "final")
            case Launched():
                for number in record.samples:
                    found[number].attempts = record.attempt
            case Observed():
                sample = found[record.sample]
                sample.state = "Diverged" if record.diverged else "Observed"
                sample.reward, sample.metrics, sample.reused = record.reward, record.metrics, record.reused
                sample.seconds, sample.parameters = record.seconds, record.parameters
                sample.stopped = record.stopped
            case Lost():
                found[record.sample].state = "Lost"
                found[record.sample].message = f"{record.reason}: {record.message}".rstrip(": ")
    return list(found.values())


def json_lines(found: Iterable[Sample], metric: str) -> str:
    """Return one JSON document a line."""
    return "".join(json.dumps(sample.document(metric), separators=(",", ":")) + "\n" for sample in found)


def table(found: Iterable[Sample], metric: str) -> Table:
    """Return a table with one row a sample."""
    out = Table(show_edge=False, pad_edge=False, header_style="bold")
    out.add_column("sample", justify="right")
    out.add_column("state")
    out.add_column(metric, justify="right")
    out.add_column("seconds", justify="right")
    out.add_column("architecture, or why it was lost", overflow="fold")
    for sample in found:
        value = _finite(sample.metrics.get(metric))
        state = sample.state if sample.reused is None else f"{sample.state}, as {sample.reused}"
        if sample.stopped is not None:
            state += f", stopped after {sample.stopped.epoch} of {sample.stopped.of} epochs"
        out.add_row(
            str(sample.number),
            state if sample.arm == "policy" else f"{state} ({sample.arm})",
            "" if value is None else f"{value:.4f}",
            "" if sample.seconds is None else f"{sample.seconds:.1f}",
            Text(sample.message or sample.architecture.short()),
        )
    return out


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
