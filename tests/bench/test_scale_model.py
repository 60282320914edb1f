"""The model of a search at scale, against queues whose answer is known."""

import random
from dataclasses import replace
from typing import Any

import pytest
from scale_model import Batches, Events, Load, Machine, Server, fit, machine_here, simulate


def test_two_workers_take_three_jobs_in_two_turns() -> None:
    events = Events()
    server = Server(events, 2)
    ends: list[float] = []
    for _ in range(3):
        server.serve(1.0, lambda: ends.append(events.now))
    events.run()
    assert ends == [1.0, 1.0, 2.0]


@pytest.mark.parametrize("load", [0.3, 0.6])
def test_the_wait_in_a_queue_with_random_arrivals_is_pollaczeks_and_khinchines(load: float) -> None:
    events = Events()
    server = Server(events, 1)
    draw = random.Random(1)
    waits: list[float] = []
    at = 0.0
    for _ in range(50_000):
        at += draw.expovariate(load)
        events.after(at, lambda: _arrive(events, server, waits))
    events.run()
    # M/D/1 with a service of one second.
    assert sum(waits) / len(waits) == pytest.approx(load / (2 * (1 - load)), rel=0.1)


def _arrive(events: Events, server: Server, waits: list[float]) -> None:
    arrived = events.now
    server.serve(1.0, lambda: waits.append(events.now - arrived - 1.0))


def test_what_waits_is_taken_at_once() -> None:
    events = Events()
    batches = Batches(events, once=1.0, each=0.5)
    ends: list[float] = []
    for _ in range(3):
        batches.put(lambda: ends.append(events.now))
    events.run()
    # The first alone; the other two, which came meanwhile, together.
    assert ends == [1.5, 3.5, 3.5]


MACHINE = Machine(control_plane=0.2, cores=2, controller=0.1, append=0.05, pod=2.0, fetch=0.3)


def test_one_slot_goes_round_child_by_child() -> None:
    outcome = simulate(MACHINE, Load(children=3, slots=1, seconds=10.0))
    # From its Job on: 0.2 control plane, 2 pod, 10 training, 0.3 result; 0.15 of the controller between two.
    assert outcome.makespan == pytest.approx(3 * 12.5 + 2 * 0.15)
    assert outcome.busy == pytest.approx(30 / outcome.makespan)


def test_children_of_a_pod_share_its_job() -> None:
    outcome = simulate(MACHINE, Load(children=4, slots=2, seconds=10.0, per_pod=2))
    # 0.25 between two: the controller works for each child, and appends once.
    assert outcome.makespan == pytest.approx(2 * 12.5 + 0.25)


def test_a_control_plane_that_is_the_bottleneck_decides_alone() -> None:
    outcome = simulate(replace(MACHINE, controller=0.0, append=0.0), Load(children=4000, slots=1000, seconds=0.0))
    assert outcome.makespan == pytest.approx(4000 * 0.2 / 2, rel=0.02)


def test_a_controller_that_is_the_bottleneck_decides_alone() -> None:
    quick = replace(MACHINE, control_plane=0.001, append=0.0, pod=0.0, fetch=0.0)
    outcome = simulate(quick, Load(children=4000, slots=100, seconds=0.1))
    assert outcome.makespan == pytest.approx(4000 * 0.1, rel=0.02)


def test_what_is_fitted_is_found_again() -> None:
    runs: list[dict[str, Any]] = []
    for load in (Load(400, 20, 5.0), Load(800, 400, 5.0)):
        line = {
            "children": load.children,
            "in_flight": load.slots,
            "seconds": load.seconds,
            "children_per_pod": load.per_pod,
            "cpu_ms_a_child": {"apiserver": 40.0, "bench": 10.0},
        }
        runs.append({**line, "makespan_seconds": simulate(machine_here(line, 1.3, 3.0), load).makespan})
    overhead, pod = fit(runs)
    assert overhead == pytest.approx(1.3, rel=0.05)
    assert pod == pytest.approx(3.0, rel=0.05)
