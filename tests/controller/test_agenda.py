"""Calls that are to be made later, in virtual time."""

from virtual_clock import VirtualClock

from nas_controller.executors.agenda import Agenda


def test_calls_are_made_when_they_are_due_and_in_the_order_they_were_added() -> None:
    clock = VirtualClock()
    agenda = Agenda(clock)
    made: list[tuple[float, str]] = []

    def call(name: str) -> None:
        made.append((clock.now, name))

    agenda.add(30.0, lambda: call("late"))
    agenda.add(10.0, lambda: call("first"))
    agenda.add(10.0, lambda: call("second"))
    agenda.start()
    # Sooner than what it waits for.
    clock.at(3.0, lambda: agenda.add(1.0, lambda: call("soon")))
    # From a call of its own.
    agenda.add(12.0, lambda: agenda.add(0.0, lambda: call("at once")))
    clock.at(40.0, agenda.stop)
    agenda.add(50.0, lambda: call("never"))
    clock.run()
    assert made == [(4.0, "soon"), (10.0, "first"), (10.0, "second"), (12.0, "at once"), (30.0, "late")]


def test_an_empty_agenda_waits_until_there_is_something() -> None:
    clock = VirtualClock()
    agenda = Agenda(clock)
    made: list[float] = []
    agenda.start()
    clock.at(1000.0, lambda: agenda.add(2.0, lambda: made.append(clock.now)))
    clock.at(2000.0, agenda.stop)
    clock.run()
    assert made == [1002.0]
