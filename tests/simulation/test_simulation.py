"""Whole searches on a virtual clock, with everything that may happen to them, held to what is promised."""

from dataclasses import replace

import pytest
from simulation.history import History, simulate
from simulation.mutants import MUTANTS
from simulation.scripts import EARLIER, MORE, TROUBLES, Happening, Script, calm, script, spec

SEEDS = 300
_CHUNK = 30


def held(history: History) -> None:
    """Fail with the last lines of a history in which a promise was broken."""
    if history.violations:
        pytest.fail(f"python -m simulation {history.seed}, from tests/:\n" + "\n".join(history.events[-10:]))


def test_a_calm_search_comes_to_its_end() -> None:
    history = simulate(0, calm())

    held(history)
    assert [line for line in history.events if "ends with code" in line] == [history.events[-1]]
    assert len(history.nodes.results) == 6


def test_a_calm_search_begins_with_what_another_left_and_ends_with_a_final_training() -> None:
    asked = calm().spec
    searcher = {**asked["searcher"], "warmStart": {"experiment": EARLIER[0], "uid": EARLIER[1]}}
    final = {"top": 2, "epochs": 1, "seeds": 2, "grid": {"learningRate": ["0.1", "0.01"]}}
    history = simulate(
        0, replace(calm(), earlier_at=400.0, spec={**asked, "searcher": searcher, "finalTraining": final})
    )

    held(history)
    assert sorted(history.nodes.results) == list(range(6, 6 + 6 + 2 * 2 * 2 + 1))


def test_who_has_to_wait_again_goes_on_as_the_same_launch() -> None:
    preempted = [Happening("queue-preempts", at) for at in (15.0, 40.0, 65.0, 90.0)]
    happenings = (*preempted, Happening("queue-stops", 110.0, 1500.0))
    history = simulate(0, replace(calm(), spec=spec(6, 2, queue="gpu"), happenings=happenings, room=2))

    held(history)
    waited = sum("wait again" in line for line in history.events)
    assert waited >= 4
    assert len(history.nodes.results) == history.posts == 6


def test_one_seed_is_one_history() -> None:
    assert [simulate(seed).events for seed in range(12, 18)] == [simulate(seed).events for seed in range(12, 18)]


@pytest.mark.parametrize("seed", range(15))
def test_promises_hold(seed: int) -> None:
    held(simulate(seed))


@pytest.mark.slow
@pytest.mark.parametrize("first", range(15, SEEDS, _CHUNK))
def test_promises_hold_in_many_histories(first: int) -> None:
    for seed in range(first, min(first + _CHUNK, SEEDS)):
        held(simulate(seed))


def strangers() -> Script:
    """Return a script in which somebody's Jobs bear our children's labels."""
    foreign = [Happening("foreign-job", 0.5 + number, launch=number) for number in range(4)]
    return Script(spec(4, 1), {"trained": 1.0}, happenings=tuple(foreign))


def test_whoever_ignores_uid_and_owner_is_found() -> None:
    held(simulate(0, strangers()))
    with MUTANTS["ignore uid and owner"]():
        assert any(simulate(seed, strangers()).violations for seed in range(5))


def test_every_trouble_comes_up() -> None:
    seen = {trouble for seed in range(SEEDS) for trouble in script(seed).troubles}

    assert seen == {*TROUBLES, *MORE}
