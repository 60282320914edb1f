"""What people see of a search: a live panel on a terminal, plain lines elsewhere, and tables of architectures."""

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from nas_api.architecture import Architecture
from nas_api.experiment import (
    Best,
    Condition,
    FinalStatus,
    NASExperimentStatus,
    Outcome,
    PolicyVitals,
    Problem,
    SampleCounts,
)
from nas_api.spaces.convolutional import ConvolutionalArchitecture
from nas_api.spaces.convolutional_cell import ConvolutionalCellArchitecture
from nas_api.spaces.custom import CustomArchitecture
from nas_api.spaces.recurrent_cell import RecurrentCellArchitecture
from nas_api.wording import duration

if TYPE_CHECKING:
    # It loads torch, for which `nas status` need not wait.
    from nas_controller.executor import Launch
    from nas_controller.status import SearchStatus

# On no terminal: one line at most so often, and one for each better network.
_LINE_EVERY_SECONDS = 10.0
# Children that fail are shown one by one up to so many: whatever is wrong shows in the first ones.
_FAILURES_SHOWN = 5
# Rates are told from this many samples on: the first ones wait for the start.
_SAMPLES_FOR_A_RATE = 3


class Status(Protocol):
    """What a search's status and an experiment's have in common."""

    @property
    def samples(self) -> SampleCounts | None: ...
    @property
    def best(self) -> Best | None: ...
    @property
    def policy(self) -> PolicyVitals | None: ...
    @property
    def final(self) -> FinalStatus | None: ...
    @property
    def problem(self) -> Problem | None: ...
    @property
    def outcome(self) -> Outcome | None: ...


def architecture_table(architecture: Architecture, in_channels: int) -> Table:
    """Return a table of an architecture of any space."""
    match architecture:
        case ConvolutionalArchitecture():
            return _layers_table(architecture, in_channels)
        case ConvolutionalCellArchitecture():
            return _convolutional_cell_table(architecture)
        case RecurrentCellArchitecture():
            return _cell_table(architecture)
        case CustomArchitecture():
            return _choices_table(architecture)


def _cell_table(architecture: RecurrentCellArchitecture) -> Table:
    """Return a table with one row a node, from the leaves up."""
    table = Table(show_edge=False, pad_edge=False, header_style="bold")
    table.add_column("node", justify="right")
    for column in ("combines", "combination", "activation", "cell state"):
        table.add_column(column)
    base = architecture.base
    for index, node in enumerate(architecture.nodes):
        first = 2 * (index - base)
        state = []
        if index == architecture.injected:
            state.append(f"takes c[t-1] by {architecture.inject.short()}")
        if index == architecture.cell_output:
            state.append("gives c[t]")
        table.add_row(
            str(index),
            # As text: in a string, rich takes [t] for a mark of its own.
            Text("x[t], h[t-1]" if index < base else f"{first}, {first + 1}"),
            node.combination,
            node.activation,
            Text("; ".join(state)),
        )
    return table


def _convolutional_cell_table(architecture: ConvolutionalCellArchitecture) -> Table:
    """Return a table with one row a node; a cell's inputs have the numbers before its first node's."""
    table = Table(show_edge=False, pad_edge=False, header_style="bold")
    table.add_column("cell")
    table.add_column("node", justify="right")
    table.add_column("is the sum of")
    table.add_column("output")
    for name, nodes in (("normal", architecture.normal), ("reduction", architecture.reduction)):
        outputs = architecture.outputs(nodes)
        for index, node in enumerate(nodes, architecture.cell_inputs):
            terms = (f"{operation}({source})" for source, operation in zip(node.inputs, node.operations, strict=True))
            table.add_row(name, str(index), " + ".join(terms), "yes" if index in outputs else "")
    return table


def _choices_table(architecture: CustomArchitecture) -> Table:
    """Return a table with one row a decision."""
    table = Table(show_edge=False, pad_edge=False, header_style="bold")
    table.add_column("decision")
    table.add_column("value")
    for name, value in architecture.choices.items():
        table.add_row(name, Text(", ".join(map(str, value)) if isinstance(value, tuple) else str(value)))
    return table


def _layers_table(architecture: ConvolutionalArchitecture, in_channels: int) -> Table:
    """Return a table with one row a layer; layers count from 0, sizes are height x width."""
    leaves = architecture.leaves()
    table = Table(show_edge=False, pad_edge=False, header_style="bold")
    table.add_column("layer", justify="right")
    table.add_column("filter")
    table.add_column("filters", justify="right")
    table.add_column("stride")
    table.add_column("inputs")
    table.add_column("weights", justify="right")
    table.add_column("feeds")
    for index, layer in enumerate(architecture.layers):
        feeds = [other for other, later in enumerate(architecture.layers) if index in later.inputs]
        table.add_row(
            str(index),
            f"{layer.filter_height}x{layer.filter_width}",
            str(layer.filters),
            f"{layer.stride_height}x{layer.stride_width}",
            ", ".join(map(str, layer.inputs)) or "image",
            f"{architecture.weights(index, in_channels):,}",
            "classifier" if index in leaves else ", ".join(map(str, feeds)),
        )
    return table


def policy_text(policy: PolicyVitals) -> str:
    """Return how the newest rewards compare with the first ones."""
    if policy.mean_reward is None or policy.first_mean_reward is None:
        return ""
    newest, first = float(policy.mean_reward), float(policy.first_mean_reward)
    change = f" ({(newest / first - 1) * 100:+.0f} %)" if first > 0 else ""
    return f"mean reward of the last 20: {newest:.3f}, of the first 20: {first:.3f}{change}"


def best_text(best: Best | None, metric: str) -> str:
    """Return the best sample in one line."""
    return f"{metric} {float(best.metric):.4f} (sample {best.sample})" if best is not None else "none yet"


def final_text(final: FinalStatus, metric: str) -> str:
    """Return how far the final training is, and its best, in one line."""
    line = f"{final.trained + final.lost}/{final.total} trained"
    if final.best_metric is not None:
        line += f", the best with {metric} {float(final.best_metric):.4f} (sample {final.sample} of the search)"
    if final.test_metric is not None:
        line += f", {float(final.test_metric):.4f} on the test set"
    return line


@dataclass
class _Pace:
    """How fast samples become done in this run."""

    started: float
    done_at_start: int | None = None

    def remaining_seconds(self, samples: SampleCounts) -> float | None:
        """Return the seconds to the last sample; None where nobody can tell, or none is left."""
        done = samples.observed + samples.lost
        if self.done_at_start is None:
            self.done_at_start = done
        fresh = done - self.done_at_start
        left = samples.budget - done
        if fresh < _SAMPLES_FOR_A_RATE or left <= 0:
            return None
        return (time.monotonic() - self.started) / fresh * left


class Progress:
    """Shows a search's status as it changes: a :class:`nas_controller.status.StatusSink` and a context manager."""

    def __init__(self, console: Console, name: str, metric: str) -> None:
        """Prepare to show the search called ``name`` on ``console``."""
        self._console = console
        self._name = name
        self._metric = metric
        self._lock = threading.Lock()
        self._status: Status = NASExperimentStatus()
        self._pace = _Pace(time.monotonic())
        self._live = Live(
            get_renderable=self._render, console=console, refresh_per_second=4, transient=False, redirect_stderr=False
        )
        self._line_at = float("-inf")
        self._line_done = -1
        self._line_best: int | None = None
        self._line_problem: Problem | None = None
        self._failures = 0

    def __enter__(self) -> "Progress":
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._console.is_terminal:
            self._live.stop()

    @property
    def status(self) -> Status:
        """The newest status."""
        with self._lock:
            return self._status

    def publish(self, status: "SearchStatus") -> None:
        """See :class:`nas_controller.status.StatusSink`."""
        with self._lock:
            self._status = status
            if not self._console.is_terminal:
                self._line(status)

    def failed(self, launch: "Launch", message: str) -> None:
        """Show why a child failed; called from any thread."""
        with self._lock:
            self._failures += 1
            number = self._failures
        # Not under our lock: the live panel has one of its own, and takes ours while it draws.
        if number <= _FAILURES_SHOWN:
            samples = ", ".join(str(child.sample) for child in launch.inputs)
            text = f"sample {samples}, attempt {launch.inputs[0].attempt}: {message}"
            self._console.print(text, style="yellow", highlight=False, soft_wrap=True, markup=False)
        if number == _FAILURES_SHOWN:
            self._console.print("further failures are not shown one by one", style="yellow", highlight=False)

    def _line(self, status: Status) -> None:
        """Print a line when there is news: at once a better network or a problem, else now and then."""
        samples = status.samples
        if samples is None:
            return
        done, now = samples.observed + samples.lost, time.monotonic()
        best = None if status.best is None else status.best.sample
        news = best != self._line_best or status.problem != self._line_problem or done == samples.budget
        if done == self._line_done and status.problem == self._line_problem:
            return
        if not news and now - self._line_at < _LINE_EVERY_SECONDS:
            return
        self._line_at, self._line_done, self._line_best, self._line_problem = now, done, best, status.problem
        words = [
            f"{done}/{samples.budget} samples",
            f"{samples.running} running",
            "no result yet" if status.best is None else f"best {best_text(status.best, self._metric)}",
        ]
        if samples.stopped:
            words.append(f"{samples.stopped} stopped early")
        if samples.lost:
            words.append(f"{samples.lost} lost")
        if (seconds := self._pace.remaining_seconds(samples)) is not None:
            words.append(f"{duration(seconds)} left")
        if status.problem is not None:
            words.append(f"waiting: {status.problem.reason}: {status.problem.message}")
        self._console.print(", ".join(words), highlight=False, soft_wrap=True)

    def _render(self) -> RenderableType:
        status = self.status
        samples = status.samples
        if samples is None:
            return Text("starting ...", style="dim")
        elapsed = time.monotonic() - self._pace.started
        remaining = self._pace.remaining_seconds(samples)
        return status_panel(
            status,
            self._metric,
            tail=f"{duration(elapsed)} so far"
            + ("" if remaining is None or status.outcome is not None else f", about {duration(remaining)} left"),
        )


def telling_condition(status: NASExperimentStatus) -> Condition | None:
    """Return the condition that explains the state; None before the operator has written any."""
    telling = ["Failed", "Complete", "Suspended", "Progressing"]
    known = {condition.type: condition for condition in status.conditions}
    shown = next((known[kind] for kind in telling if kind in known and known[kind].status == "True"), None)
    return shown or known.get("Progressing")


def conditions(status: NASExperimentStatus) -> RenderableType:
    """Return what the operator says: the state, and the condition that explains it."""
    shown = telling_condition(status)
    line = Text(status.state or "Pending", style="bold")
    if shown is not None:
        line.append(f"  {shown.reason}", style="cyan")
        if shown.message:
            line.append(f": {shown.message}", style="default")
    return line


def status_panel(status: Status, metric: str, *, tail: str = "") -> RenderableType:
    """Return a search's status as a few aligned lines."""
    samples = status.samples or SampleCounts()
    done = samples.observed + samples.lost
    bar = Table.grid(padding=(0, 1))
    bar.add_row(
        ProgressBar(total=max(1, samples.budget), completed=done, width=30),
        Text(f"{done}/{samples.budget}"),
        Text(counts_text(samples), style="dim"),
    )
    rows: list[tuple[str, RenderableType]] = [("samples", bar)]
    rows.append(("best", Text(best_text(status.best, metric), style="bold green" if status.best else "dim")))
    if status.best is not None:
        rows.append(("", Text(status.best.architecture, overflow="fold")))
    if status.final is not None:
        rows.append(("final", Text(final_text(status.final, metric))))
    if status.policy is not None and samples.observed > 20 and (text := policy_text(status.policy)):
        rows.append(("policy", Text(text)))
    if tail:
        rows.append(("time", Text(tail)))
    return Group(_grid(rows), *_problem(status.problem))


def counts_text(samples: SampleCounts) -> str:
    """Return how many samples are in which state, beside those that are done; empty where none is."""
    parts = [
        (samples.running - samples.queued, "running"),
        (samples.queued, "queued"),
        (samples.diverged, "diverged"),
        (samples.stopped, "stopped early"),
        (samples.lost, "lost"),
        (samples.retried, "retried"),
    ]
    return ", ".join(f"{number} {word}" for number, word in parts if number)


def _problem(problem: Problem | None) -> Sequence[RenderableType]:
    if problem is None:
        return ()
    return (Text(f"waiting: {problem.reason}: {problem.message}", style="bold yellow", overflow="fold"),)


def _grid(rows: Sequence[tuple[str, RenderableType]]) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim")
    grid.add_column(overflow="fold")
    for name, value in rows:
        grid.add_row(name, value)
    return grid
