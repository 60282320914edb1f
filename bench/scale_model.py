"""What bounds a search at sizes that were not run: a small discrete-event model, fitted on runs that were.

    .venv/bin/python bench/scale_model.py            # prints the tables
    .venv/bin/python bench/scale_model.py --write    # and writes tables and plots into docs/scale.md

A Job goes through the controller, which works through all that waits for it at once and appends to the log once for it;
through the control plane, a queue with several processors, when it is made and again when it ends; its pod starts,
trains its children at the same time, and its end is found. Then the controller learns, and the slot is free.

CPU times of a child are measured (``bench/controller_scale.py``) and not fitted. Two numbers are fitted: how much
longer all takes than its CPU time, and how long a pod takes beside its training. Of ``bench/measured/scale.jsonl``,
lines with "use": "fit" are fitted on; those with "use": "check" are predicted, and the error is printed. Of "costs",
measured beside other work, counts and CPU times are taken alone.
"""

import argparse
import heapq
import json
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

from scipy.optimize import minimize

ROOT = Path(__file__).resolve().parents[1]
MEASURED = ROOT / "bench" / "measured"
PAGE = ROOT / "docs" / "scale.md"
MARKS = ("<!-- bench/scale_model.py --write: begin -->", "<!-- end -->")
CORES_HERE = 2

Call = Callable[[], None]


class Events:
    """Virtual time, and what happens in it, in order."""

    def __init__(self) -> None:
        self.now = 0.0
        self._heap: list[tuple[float, int, Call]] = []
        self._number = count()

    def after(self, seconds: float, call: Call) -> None:
        """Have a call made after so many seconds."""
        heapq.heappush(self._heap, (self.now + seconds, next(self._number), call))

    def run(self) -> None:
        """Go on until nothing happens any more."""
        while self._heap:
            self.now, _, call = heapq.heappop(self._heap)
            call()


class Server:
    """A queue, first come first served, with so many workers."""

    def __init__(self, events: Events, workers: int) -> None:
        self._events = events
        self._free = workers
        self._waiting: deque[tuple[float, Call]] = deque()

    def serve(self, seconds: float, then: Call) -> None:
        """Work so long, once a worker is free, then call."""
        self._waiting.append((seconds, then))
        self._begin()

    def _begin(self) -> None:
        while self._free and self._waiting:
            seconds, then = self._waiting.popleft()
            self._free -= 1
            self._events.after(seconds, lambda then=then: self._end(then))  # type: ignore[misc]

    def _end(self, then: Call) -> None:
        self._free += 1
        self._begin()
        then()


class Batches:
    """One worker that takes all that waits at once, for a time of its own and a time for each."""

    def __init__(self, events: Events, once: float, each: float) -> None:
        self._events = events
        self._once, self._each = once, each
        self._waiting: list[Call] = []
        self._busy = False

    def put(self, then: Call) -> None:
        """Have a call made when the batch that this is in has been worked through."""
        self._waiting.append(then)
        if not self._busy:
            self._begin()

    def _begin(self) -> None:
        batch, self._waiting = self._waiting, []
        self._busy = bool(batch)
        if batch:
            self._events.after(self._once + len(batch) * self._each, lambda: self._end(batch))

    def _end(self, batch: list[Call]) -> None:
        for then in batch:
            then()
        self._begin()


@dataclass(frozen=True)
class Machine:
    """What a Job costs, in seconds."""

    control_plane: float
    """CPU of the control plane for a Job's whole life, half of it at its beginning."""
    cores: int
    """Of the control plane."""
    controller: float
    """Serial work of the controller for a child, the policy's included."""
    append: float
    """Of one object of the log."""
    pod: float
    """From the Job's making to its training, and from that to its end being told, together; half at each end."""
    fetch: float
    """Until the store has given a result."""


@dataclass(frozen=True)
class Load:
    """A search."""

    children: int
    slots: int
    seconds: float
    """How long a child trains."""
    per_pod: int = 1


@dataclass(frozen=True)
class Outcome:
    """What came of it."""

    makespan: float
    """From the first Job to the last result, in seconds."""
    busy: float
    """Share of the slots' time in which they train."""


def simulate(machine: Machine, load: Load) -> Outcome:
    """Run a search in virtual time."""
    events = Events()
    plane = Server(events, machine.cores)
    controller = Batches(events, machine.append, machine.controller * load.per_pod)
    left = load.children // load.per_pod
    first: list[float] = []

    def propose() -> None:
        nonlocal left
        if left:
            left -= 1
            controller.put(launch)

    def launch() -> None:
        first.append(events.now)
        plane.serve(machine.control_plane / 2, start)

    def start() -> None:
        events.after(machine.pod / 2 + load.seconds, end)

    def end() -> None:
        plane.serve(machine.control_plane / 2, lambda: events.after(machine.pod / 2 + machine.fetch, propose))

    for _ in range(load.slots // load.per_pod):
        propose()
    events.run()
    makespan = events.now - first[0]
    return Outcome(makespan, load.children * load.seconds / (load.slots * makespan))


# ------------------------------------------------------------ measured runs


def lines(name: str) -> list[dict[str, Any]]:
    """Return what a bench has printed."""
    text = (MEASURED / name).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines() if line.strip()]


def load_of(line: dict[str, Any]) -> Load:
    """Return the search of a measured run."""
    return Load(line["children"], line["in_flight"], line["seconds"], line["children_per_pod"])


def machine_here(line: dict[str, Any], overhead: float, pod: float) -> Machine:
    """Return this machine as one queue: all that runs on it shares its processors.

    Args:
        line: a measured run, whose CPU times are taken.
        overhead: how much longer all takes than its CPU time.
        pod: see ``Machine``.
    """
    own = serial_ms(line)
    everything = sum(line["cpu_ms_a_child"].values()) + own
    return Machine(
        control_plane=everything / 1000 * overhead * line["children_per_pod"],
        cores=CORES_HERE,
        controller=own / 1000,
        append=0.005,
        pod=pod,
        fetch=0.005,
    )


def serial_ms(line: dict[str, Any]) -> float:
    """Return the controller's own CPU time for a child, in milliseconds; a bare client's is the bench's."""
    return float(line.get("controller_ms_a_child", 0.0) + line.get("policy_ms_a_child", 0.0))


def fit(runs: Sequence[dict[str, Any]]) -> tuple[float, float]:
    """Return overhead and pod seconds for which the model's makespans are nearest to the measured ones, by ratio."""

    def distance(guess: Sequence[float]) -> float:
        overhead, pod = max(0.1, guess[0]), max(0.0, guess[1])
        return sum(error(line, overhead, pod) ** 2 for line in runs)

    found = minimize(distance, (1.0, 2.0), method="Nelder-Mead", options={"maxfev": 80, "xatol": 0.01, "fatol": 1e-5})
    return max(0.1, float(found.x[0])), max(0.0, float(found.x[1]))


def error(line: dict[str, Any], overhead: float, pod: float) -> float:
    """Return by which share the model's makespan is off."""
    predicted = simulate(machine_here(line, overhead, pod), load_of(line)).makespan
    return float(predicted / line["makespan_seconds"] - 1)


# ------------------------------------------------------------ what bounds more


PLANE_CORES = 8
"""Of a control plane that is given to a cluster of this size."""
S3_PUTS, S3_GETS = 3500, 5500
"""A second and prefix, as AWS documents them."""
DEFAULT_RATE = 3.4
"""Children a second where kube-controller-manager has its own default of --kube-api-qps, 20: measured before."""
FLAT_FROM = 2000
"""From which child on the memory is to stay as it is."""
LARGEST_SNAPSHOT = 2**28
"""What ``nas_controller.snapshots`` reads at most, in bytes."""
SLOTS = (100, 300, 1000, 3000, 10000)
TRAININGS = {"10 s": 10.0, "1 minute": 60.0, "10 minutes": 600.0, "1 hour": 3600.0}
PLANE = ("apiserver", "etcd", "controller-manager", "scheduler")


def cluster_machine(line: dict[str, Any], pod: float) -> Machine:
    """Return a cluster whose control plane has processors of its own, and so has the controller."""
    plane = sum(line["cpu_ms_a_child"][name] for name in PLANE) * line["children_per_pod"]
    here = machine_here(line, 1.0, pod)
    return replace(here, control_plane=plane / 1000, cores=PLANE_CORES, append=0.03, fetch=0.03)


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a table in Markdown."""
    out = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in row) + " |" for row in out)


def chart(title: str, x: tuple[str, Sequence[str]], y: str, series: Mapping[str, Sequence[float]]) -> str:
    """Return a line chart in Mermaid; its lines have no legend, so the title names them in their order."""
    labels = ", ".join(f'"{label}"' for label in x[1])
    body = [
        "```mermaid",
        "xychart-beta",
        f'    title "{title}"',
        f'    x-axis "{x[0]}" [{labels}]',
        f'    y-axis "{y}"',
        *(f"    line [{', '.join(f'{value:.4g}' for value in values)}]" for values in series.values()),
        "```",
    ]
    return "\n".join(body)


def costs(runs: Sequence[dict[str, Any]]) -> str:
    """Return what was measured of each search."""
    bare = {load_of(line): line["makespan_seconds"] for line in runs if line["arm"] == "bare"}
    rows = []
    for line in runs:
        if line["arm"] == "bare":
            continue
        load, resident = load_of(line), line["resident_mib"]
        ratio = f"{line['makespan_seconds'] / bare[load]:.2f}" if load in bare else ""
        rows.append(
            (
                line["searcher"],
                f"{load.children:,} of {load.seconds:.0f} s",
                f"{load.slots} in pods of {load.per_pod}",
                f"{line['makespan_seconds']:.0f} s",
                ratio,
                f"{line['children_a_second']:.1f}",
                f"{line['idle']:.0%}",
                line["api_calls_a_child"],
                line["s3_requests_a_child"],
                f"{line['controller_ms_a_child']:.1f} ms",
                f"{line['policy_ms_a_child']:.1f} ms",
                f"{resident.get(str(FLAT_FROM), min(resident.values())):.0f}, {max(resident.values()):.0f} MiB",
                f"{line['status_bytes'] / 1024:.1f} KiB",
                f"{line['cpu_ms_a_child']['apiserver']:.0f} ms",
            )
        )
    head = (
        *("searcher", "children", "at once", "makespan", "over a bare client's", "children a second", "idle"),
        *("API calls a child", "S3 requests a child", "controller's CPU a child", "policy's"),
        *(f"resident at the {FLAT_FROM:,}th, at most", "status", "API server's CPU a child"),
    )
    return table(head, rows)


def fitted(runs: Sequence[dict[str, Any]], overhead: float, pod: float) -> str:
    """Return measured and modelled makespans."""
    rows = [
        (
            line["use"],
            line["arm"],
            line["searcher"],
            f"{line['children']:,}",
            line["in_flight"],
            line["seconds"],
            line["children_per_pod"],
            line["makespan_seconds"],
            f"{line['makespan_seconds'] * (1 + off):.1f}",
            f"{off:+.1%}",
        )
        for line in runs
        if line["use"] != "costs"
        for off in (error(line, overhead, pod),)
    ]
    head = ("run", "arm", "searcher", "children", "slots", "s each", "in a pod", "measured s", "model s", "error")
    return table(head, rows)


def bounds(line: dict[str, Any]) -> str:
    """Return the most children a second that each part lets through."""
    plane = sum(line["cpu_ms_a_child"][name] for name in PLANE)
    s3 = line["s3_requests"]
    puts = 1 + sum(number for what, number in s3.items() if what.startswith("Put")) / line["children"]
    gets = 1 + sum(number for what, number in s3.items() if not what.startswith("Put")) / line["children"]
    rows = [
        ("kube-controller-manager as it comes (`--kube-api-qps=20`)", DEFAULT_RATE),
        (f"control plane, {PLANE_CORES} processors ({plane:.0f} ms a child)", PLANE_CORES * 1000 / plane),
        (f"controller, one thread ({serial_ms(line):.1f} ms a child)", 1000 / serial_ms(line)),
        (f"S3, {S3_PUTS:,} PUT a second and prefix ({puts:.1f} a child)", S3_PUTS / puts),
        (f"S3, {S3_GETS:,} GET a second and prefix ({gets:.1f} a child)", S3_GETS / gets),
    ]
    head = ("bound", "children a second", *(f"slots it keeps busy, {name} each" for name in TRAININGS))
    cells = [
        (what, f"{rate:,.0f}" if rate >= 10 else f"{rate:.1f}", *(f"{rate * s:,.0f}" for s in TRAININGS.values()))
        for what, rate in rows
    ]
    return table(head, cells)


def busy(machine: Machine) -> dict[str, list[float]]:
    """Return the share of busy slots, for each training time by the number of slots, over six rounds of all slots."""
    return {
        name: [100 * simulate(machine, Load(6 * slots, slots, seconds)).busy for slots in SLOTS]
        for name, seconds in TRAININGS.items()
    }


def million(recovery: Sequence[dict[str, Any]]) -> str:
    """Return how log and snapshots grow, by a line through the two longest logs: what has a bound is full there."""
    small, large = recovery[-2:]

    def at(key: str, done: int) -> float:
        # What has a bound varies about it.
        slope = max(0.0, (large[key] - small[key]) / (large["done"] - small["done"]))
        return float(large[key] + slope * (done - large["done"]))

    rows = [
        (
            f"{done:,}",
            f"{at('log_objects', done):,.0f}",
            f"{at('log_bytes', done) / 1e6:,.0f} MB",
            f"{at('snapshots', done):,.0f}",
            f"{at('snapshot_bytes', done) / 1e6:,.1f} MB",
            f"{at('snapshot_cpu_ms', done) * at('snapshots', done) / done:,.1f} ms",
            # Each as large as the line says: a triangle.
            f"{at('snapshots', done) * (at('snapshot_bytes', 0) + at('snapshot_bytes', done)) / 2 / 1e9:,.1f} GB",
        )
        for done in (10_000, 100_000, 1_000_000)
    ]
    head = ("samples", "objects of the log", "log", "snapshots", "the newest", "its CPU, a child", "all snapshots")
    each = at("snapshot_bytes", 1) - at("snapshot_bytes", 0)
    told = "A snapshot does not grow with the samples: what is large in it are the replicas' parameters."
    if each > 0:
        limit = (LARGEST_SNAPSHOT - at("snapshot_bytes", 0)) / each
        told = (
            f"A snapshot has {each:,.0f} bytes a sample. From {limit:,.0f} samples on it is larger than what a restart"
            f" reads ({LARGEST_SNAPSHOT // 2**20} MiB), which folds the whole log then."
        )
    return f"{table(head, rows)}\n\n{told}"


def report() -> str:
    """Return tables and plots."""
    runs = lines("scale.jsonl")
    overhead, pod = fit([line for line in runs if line["use"] == "fit"])
    largest = max((line for line in runs if line["arm"] == "controller"), key=lambda line: int(line["children"]))
    shares = busy(cluster_machine(largest, pod))
    rows = [
        (f"{slots:,}", *(f"{values[index]:.0f} %" for values in shares.values())) for index, slots in enumerate(SLOTS)
    ]
    names = ", ".join(reversed(shares))
    recovery = lines("recovery.jsonl")
    times = {"first Job": [line["first_job_seconds"] for line in recovery]}
    parts = [
        "### What was measured",
        costs(runs),
        "### The model beside it",
        f"Fitted: everything takes {overhead:.2f} times its CPU time, and a pod {pod:.1f} s beside its training.",
        fitted(runs, overhead, pod),
        "### What bounds more",
        bounds(largest),
        table(("slots", *(f"busy, {name} each" for name in shares)), rows),
        chart(f"busy slots, from above: {names} each", ("slots", [f"{n:,}" for n in SLOTS]), "per cent", shares),
        "### Recovery, and a million samples",
        chart(
            "first new Job after a controller's sudden end",
            ("samples in the log", [f"{line['done']:,}" for line in recovery]),
            "seconds",
            times,
        ),
        million(recovery),
    ]
    return "\n\n".join(parts)


def main() -> int:
    """Print the report and, where that is asked for, write it into the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help=f"into {PAGE.relative_to(ROOT)}")
    arguments = parser.parse_args()
    text = report()
    print(text)
    if arguments.write:
        page = PAGE.read_text(encoding="utf-8")
        before, _, rest = page.partition(MARKS[0])
        _, _, after = rest.partition(MARKS[1])
        PAGE.write_text(f"{before}{MARKS[0]}\n\n{text}\n\n{MARKS[1]}{after}", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
