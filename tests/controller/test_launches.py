"""The bookkeeping of launches, in a time that is nothing but numbers: what it orders, asks, tells, and when."""

import pytest

from nas_api.experiment import Problem
from nas_api.reasons import LostReason, Reason
from nas_controller.decisions import AwaitCure, Retry, Verdict
from nas_controller.executor import Blocked, End, Ended, Queued
from nas_controller.launches import Launches, Orders, Question
from nas_log.records import Lost

DONE = Lost(sample=0, reason=LostReason.OUT_OF_MEMORY, message="")
CURE = AwaitCure(Reason.DATASET_UNAVAILABLE, "no such bucket", failures=1)
QUOTA = Blocked(0, Reason.QUOTA_EXCEEDED, "no room")


def out(*launches: int) -> Launches:
    """Return launches, of one sample each, that were ordered, as whoever took the orders sees them afterwards."""
    made = Launches()
    for launch in launches:
        made.launch(launch, (10 + launch,))
    made.take_orders()
    return made


def settle(
    launches: Launches, launch: int, verdict: Verdict, now: float, launched: int = 100, sample: int | None = None
) -> None:
    """End a launch, of one sample, and say what that means."""
    launches.ended(Ended(launch, End.FAILED), now)
    launches.take_questions()
    launches.settled(launch, {10 + launch if sample is None else sample: verdict}, launched, now)


# ---------------------------------------------------------------- orders and questions


def test_a_launch_is_ordered_once_and_asked_for_once_when_it_ends() -> None:
    launches = Launches()
    launches.launch(0, (3, 4))
    assert launches.samples_out == 2
    assert launches.take_orders() == Orders(launch=[(0, (3, 4))])
    assert launches.take_orders() == Orders()
    launches.ended(Ended(0, End.SUCCEEDED, "bye"), 1.0)
    launches.ended(Ended(0, End.FAILED), 1.0)
    assert launches.take_questions() == [Question(0, (3, 4), End.SUCCEEDED, "bye")]
    assert launches.take_questions() == []
    assert launches.samples_out == 0 and launches.next_look(1.0) is None


def test_what_is_cancelled_before_it_was_created_is_not_created() -> None:
    launches = Launches()
    launches.launch(0, (3,))
    launches.launch(1, (4,))
    launches.ended(Ended(1, End.SUCCEEDED), 0.0)
    launches.end_all()
    assert launches.take_orders() == Orders(cancel=[0], launch=[(1, (4,))])


def test_after_a_restart_only_what_the_executor_does_not_know_is_asked_for() -> None:
    launches = Launches()
    launches.recovered(0, (3,), exists=True)
    launches.recovered(1, (4,), exists=False)
    assert launches.take_questions() == [Question(1, (4,), None)]
    launches.never_created(1)
    assert launches.take_orders() == Orders(launch=[(1, (4,))], again={1})
    assert launches.samples_out == 2


def test_events_of_launches_that_are_not_out_change_nothing() -> None:
    launches = out(0)
    launches.ended(Ended(0, End.FAILED), 0.0)
    launches.take_questions()
    for number in (0, 7):
        launches.running(number, 50.0)
        launches.blocked(Blocked(number, Reason.QUOTA_EXCEEDED, ""))
        launches.ended(Ended(number, End.FAILED), 50.0)
    assert launches.take_questions() == [] and launches.next_look(50.0) is None and launches.problem(50.0) is None


# ---------------------------------------------------------------- a store that has no answer


def test_an_unanswered_question_is_asked_again_after_growing_pauses() -> None:
    launches = out(0)
    launches.ended(Ended(0, End.FAILED), 0.0)
    now, pauses = 0.0, []
    for failures in range(8):
        (question,) = launches.take_questions()
        assert question == Question(0, (10,), End.FAILED, failures=failures)
        launches.unanswered(question, now)
        later = launches.next_look(now)
        assert later is not None
        launches.ask_again(later - 0.01)
        assert launches.take_questions() == []
        launches.ask_again(later)
        pauses.append(later - now)
        now = later
    assert pauses == [1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 30.0, 30.0]


# ---------------------------------------------------------------- another attempt


def test_another_attempt_is_due_at_once_until_it_is_launched() -> None:
    launches = out(0)
    settle(launches, 0, Retry(1, alone=True), 5.0)
    assert launches.due == {10: Retry(1, alone=True)} and not launches.in_trouble
    launches.launch(1, (10,))
    assert launches.due == {}


def test_a_trouble_is_told_and_its_samples_wait_for_growing_pauses() -> None:
    launches = out(0)
    now, pauses = 100.0, []
    for launch in range(6):
        settle(launches, launch, CURE, now, launched=launch + 1, sample=10)
        assert launches.in_trouble
        assert launches.problem(now) == Problem(reason=Reason.DATASET_UNAVAILABLE, message="no such bucket")
        later = launches.next_look(now)
        assert later is not None
        launches.try_again(later - 0.01)
        assert launches.due == {}
        launches.try_again(later)
        assert launches.due == {10: Retry(1)}, "a failure of the environment is not the sample's"
        assert launches.in_trouble, "until the new try says otherwise"
        launches.launch(launch + 1, (10,))
        pauses.append(later - now)
        now = later
    assert pauses == [5.0, 10.0, 20.0, 40.0, 60.0, 60.0]


def test_a_sibling_of_those_that_met_the_trouble_does_not_lengthen_the_pause() -> None:
    launches = out(0, 1)
    settle(launches, 0, CURE, 100.0, launched=2)
    settle(launches, 1, AwaitCure(Reason.CREDENTIALS_REFUSED, "not with this key", 0), 103.0, launched=2)
    assert launches.next_look(103.0) == 105.0
    assert launches.problem(103.0) == Problem(reason=Reason.CREDENTIALS_REFUSED, message="not with this key")


@pytest.mark.parametrize(("number", "over"), [(1, False), (2, True)])
def test_only_a_new_try_that_ends_for_reasons_of_its_own_ends_the_trouble(number: int, over: bool) -> None:
    launches = out(0, 1)
    settle(launches, 0, CURE, 100.0, launched=2)
    launches.launch(2, (12,))
    settle(launches, number, DONE, 101.0)
    assert launches.in_trouble is not over


def test_a_trouble_that_does_not_come_back_is_over_after_a_minute() -> None:
    launches = out(0)
    settle(launches, 0, CURE, 100.0, launched=1)
    launches.try_again(105.0)
    launches.launch(1, (10,))
    assert launches.next_look(105.0) == 165.0
    launches.try_again(164.9)
    assert launches.in_trouble
    launches.try_again(165.0)
    assert not launches.in_trouble


# ---------------------------------------------------------------- blocked


def test_a_blocked_child_is_a_problem_only_once_nothing_has_moved_for_a_while() -> None:
    launches = out(0, 1, 2)
    launches.running(1, 100.0)
    launches.ended(Ended(1, End.SUCCEEDED), 100.0)
    launches.blocked(Blocked(2, Reason.NOT_PERMITTED, "no"))
    launches.blocked(QUOTA)
    assert launches.next_look(100.0) == 110.0 and launches.problem(109.9) is None
    assert launches.problem(110.0) == Problem(reason=Reason.QUOTA_EXCEEDED, message="no room")
    assert launches.next_look(200.0) == 201.0, "it looks again, though not in a hurry"


def test_a_blocked_child_waits_for_one_that_runs() -> None:
    launches = out(0, 1)
    launches.running(1, 100.0)
    launches.blocked(QUOTA)
    assert launches.problem(1000.0) is None


@pytest.mark.parametrize("how", ["runs", "ends", "is cancelled"])
def test_who_was_blocked_is_so_no_more(how: str) -> None:
    launches = out(0)
    launches.blocked(QUOTA)
    assert launches.problem(0.0) is not None
    match how:
        case "runs":
            launches.running(0, 0.0)
        case "ends":
            launches.ended(Ended(0, End.FAILED), 0.0)
        case _:
            launches.suspend()
    assert launches.problem(1000.0) is None and launches.next_look(1000.0) is None


# ---------------------------------------------------------------- queued


def test_children_that_wait_in_a_queue_are_counted_and_no_problem_while_one_runs() -> None:
    launches = Launches()
    for launch, samples in enumerate([(1,), (2,), (3, 4)]):
        launches.launch(launch, samples)
        launches.queued(Queued(launch, "gpu"))
    assert (launches.samples_out, launches.samples_queued) == (4, 4)
    launches.admitted(0, 100.0)
    launches.running(0, 101.0)
    assert (launches.samples_out, launches.samples_queued) == (4, 3)
    assert launches.problem(1000.0) is None and launches.next_look(1000.0) is None


def test_when_all_wait_the_queue_is_the_problem_in_its_own_words() -> None:
    launches = out(0, 1, 2)
    for launch in (2, 1, 0):
        launches.queued(Queued(launch, "gpu"))
    launches.admitted(1, 100.0)
    launches.ended(Ended(1, End.SUCCEEDED), 100.0)
    assert launches.next_look(100.0) == 110.0 and launches.problem(109.9) is None
    found = launches.problem(110.0)
    assert found is not None and found.reason == Reason.QUEUED
    assert found.message.startswith("2 of 2 wait in queue gpu. Wait, or correct trainer.queue")
    assert launches.next_look(110.0) is None, "the queue may take days, and nobody need ask it"
    launches.queued(Queued(2, "gpu", "insufficient quota"))
    launches.queued(Queued(0, "gpu", "LocalQueue gpu doesn't exist"))
    found = launches.problem(110.0)
    assert found is not None
    assert found.message.startswith("2 of 2 wait in queue gpu: LocalQueue gpu doesn't exist. Wait, or")
    launches.queued(Queued(2, "gpu", "does Kueue manage it?"))
    found = launches.problem(110.0)
    assert found is not None and "queue gpu: does Kueue manage it? Wait, or" in found.message
    launches.queued(Queued(0, "gpu"))
    assert launches.problem(110.0) == found, "one that says nothing yet does not silence another"


def test_what_the_queue_has_let_in_and_cannot_start_is_told_before_who_waits() -> None:
    launches = out(0, 1)
    launches.queued(Queued(0, "gpu"))
    launches.queued(Queued(1, "gpu"))
    # A look at its pod from before it was sent back.
    launches.blocked(Blocked(0, Reason.UNSCHEDULABLE, "no node"))
    found = launches.problem(100.0)
    assert found is not None and found.reason == Reason.QUEUED
    launches.admitted(1, 100.0)
    launches.blocked(Blocked(1, Reason.UNSCHEDULABLE, "no node"))
    assert launches.problem(110.0) == Problem(reason=Reason.UNSCHEDULABLE, message="no node")


def test_a_preempted_child_is_queued_again_and_nobody_is_asked_or_launched() -> None:
    launches = out(0)
    launches.queued(Queued(0, "gpu"))
    launches.admitted(0, 1.0)
    launches.running(0, 2.0)
    launches.queued(Queued(0, "gpu", "Preempted"))
    assert launches.samples_queued == 1 and launches.problem(12.0) is not None
    assert launches.take_orders() == Orders() and launches.take_questions() == [] and launches.due == {}
    launches.admitted(0, 5000.0)
    launches.running(0, 5001.0)
    assert launches.samples_queued == 0 and launches.problem(9000.0) is None
    launches.ended(Ended(0, End.SUCCEEDED), 9000.0)
    assert launches.take_questions() == [Question(0, (10,), End.SUCCEEDED)]


@pytest.mark.parametrize("how", ["runs", "ends", "is cancelled", "is made anew"])
def test_who_was_queued_is_so_no_more(how: str) -> None:
    launches = out(0)
    launches.queued(Queued(0, "gpu"))
    match how:
        case "runs":
            launches.running(0, 0.0)
        case "ends":
            launches.ended(Ended(0, End.DISRUPTED), 0.0)
        case "is cancelled":
            launches.suspend()
        case _:
            launches.renew_never_started()
            assert launches.take_orders() == Orders(cancel=[0])
    assert launches.samples_queued == 0 and launches.problem(1000.0) is None and launches.next_look(1000.0) is None
    launches.queued(Queued(7, "gpu"))
    assert launches.samples_queued == 0, "events cross each other"


# ---------------------------------------------------------------- changes


def test_a_suspension_ends_what_is_out_and_asks_for_it_when_it_is_over() -> None:
    launches = out(0, 1)
    launches.ended(Ended(1, End.SUCCEEDED), 0.0)
    launches.take_questions()
    launches.suspend()
    assert launches.take_orders() == Orders(cancel=[0]) and launches.take_questions() == []
    assert launches.suspended and launches.samples_out == 0
    launches.resume()
    assert launches.take_questions() == [Question(0, (10,), End.VANISHED)]
    assert not launches.suspended
    launches.resume()
    assert launches.take_questions() == []


def test_what_was_never_created_is_not_created_in_a_suspension() -> None:
    launches = Launches()
    launches.recovered(0, (3,), exists=False)
    launches.suspend()
    launches.take_questions()
    launches.never_created(0)
    assert launches.take_orders() == Orders()
    launches.resume()
    assert launches.take_questions() == [Question(0, (3,), End.VANISHED)]


def test_a_changed_template_gives_a_new_attempt_to_those_that_do_not_run() -> None:
    launches = out(0, 1, 2)
    launches.running(1, 0.0)
    settle(launches, 2, CURE, 0.0)
    launches.renew_never_started()
    assert launches.take_orders() == Orders(cancel=[0])
    assert launches.take_questions() == [Question(0, (10,), End.VANISHED)]
    assert not launches.in_trouble, "the change may have cured it"
    launches.try_again(0.0)
    assert launches.due == {12: Retry(1)}


def test_a_suspension_forgets_a_trouble_but_not_who_waited() -> None:
    launches = out(0)
    settle(launches, 0, CURE, 0.0)
    launches.suspend()
    assert not launches.in_trouble
    launches.resume()
    launches.try_again(0.0)
    assert launches.due == {10: Retry(1)}


def test_messages_are_cut_to_what_a_status_may_hold() -> None:
    launches = out(0)
    settle(launches, 0, AwaitCure(Reason.DATASET_UNAVAILABLE, "x" * 5000, 0), 0.0)
    found = launches.problem(0.0)
    assert found is not None and len(found.message) == 4096


# ---------------------------------------------------------------- children that are made to end


def disrupt(launches: Launches, launch: int, now: float, sample: int = 10) -> None:
    """End a launch as a node does that refuses it, which costs the sample nothing."""
    launches.ended(Ended(launch, End.DISRUPTED, "OutOfcpu: no room (node worker-3)"), now)
    launches.take_questions()
    launches.settled(launch, {sample: Retry(0)}, launch + 1, now)


def test_who_is_disrupted_again_and_again_is_tried_ever_less_often_and_told_with_the_node() -> None:
    launches = out(0)
    now, pauses = 0.0, []
    for launch in range(8):
        disrupt(launches, launch, now)
        problem = launches.problem(now)
        assert (problem is not None) is (launch >= 2)
        later = launches.next_look(now) or now
        launches.try_again(later - 0.01)
        assert (launches.due == {}) is (launch > 0)
        launches.try_again(later)
        assert launches.due == {10: Retry(0)}
        launches.launch(launch + 1, (10,))
        pauses.append(later - now)
        now = later
    assert pauses == [0, 5, 10, 20, 40, 60, 60, 60]
    problem = launches.problem(now)
    assert problem is not None and problem.reason == Reason.CHILDREN_DISRUPTED
    assert problem.message.startswith(
        "children of sample 10 were made to end 8 times in a row: OutOfcpu: no room (node worker-3). Look at that node"
    )


def test_a_sample_that_comes_to_work_is_disrupted_for_the_first_time_again() -> None:
    launches = out(0)
    for launch in range(4):
        disrupt(launches, launch, 0.0)
        launches.try_again(1000.0)
        launches.launch(launch + 1, (10,))
    assert launches.problem(0.0) is not None
    launches.running(4, 1000.0)
    assert launches.problem(1000.0) is None
    disrupt(launches, 4, 1061.0)
    assert launches.due == {10: Retry(0)} and launches.problem(1061.0) is None


def test_while_others_run_a_sample_that_is_disrupted_is_no_problem() -> None:
    launches = out(0, 1)
    launches.running(1, 0.0)
    for launch in (0, 2, 3):
        disrupt(launches, launch, 0.0)
        launches.try_again(1000.0)
        launches.launch(launch + 2 if launch == 0 else launch + 1, (10,))
    assert launches.problem(1000.0) is None
    launches.ended(Ended(1, End.SUCCEEDED), 1000.0)
    assert launches.problem(1000.0) is not None


def test_a_suspension_disrupts_nobody_and_a_changed_template_ends_the_pauses() -> None:
    launches = out(0)
    for launch in range(3):
        disrupt(launches, launch, 0.0)
        launches.try_again(1000.0)
        launches.launch(launch + 1, (10,))
    launches.suspend()
    launches.resume()
    launches.take_questions()
    launches.settled(3, {10: Retry(0)}, 4, 0.0)
    assert launches.due == {10: Retry(0)}
    for launch in (4, 5):
        launches.launch(launch, (10,))
        disrupt(launches, launch, 0.0)
    assert launches.due == {}
    launches.renew_never_started()
    assert launches.due == {10: Retry(0)}


# ---------------------------------------------------------------- results that are late


def test_a_result_that_is_not_there_yet_is_looked_for_some_times() -> None:
    launches = out(0)
    launches.ended(Ended(0, End.SUCCEEDED), 0.0)
    now, pauses = 0.0, []
    while True:
        (question,) = launches.take_questions()
        if not launches.is_late(question, now):
            break
        later = launches.next_look(now)
        assert later is not None
        launches.ask_again(later)
        pauses.append(later - now)
        now = later
    assert pauses == [1.0, 2.0, 4.0, 8.0]


def test_only_of_a_child_that_has_ended_well_a_result_may_be_late() -> None:
    launches = out(0)
    launches.ended(Ended(0, End.FAILED), 0.0)
    (question,) = launches.take_questions()
    assert not launches.is_late(question, 0.0)


def test_a_suspended_search_looks_for_no_pause_of_a_sample_to_end() -> None:
    launches = out(0)
    for launch in (0, 1):
        disrupt(launches, launch, 100.0)
        launches.try_again(1000.0)
        launches.launch(launch + 1, (10,))
    disrupt(launches, 2, 1000.0)
    assert launches.next_look(1000.0) == 1010.0
    launches.suspend()
    assert launches.next_look(1000.0) is None
    launches.resume()
    assert launches.next_look(1000.0) == 1010.0


def test_a_suspended_search_looks_for_no_cure() -> None:
    launches = out(0, 1)
    launches.ended(Ended(0, End.DATASET_UNAVAILABLE), 100.0)
    launches.suspend()
    launches.settled(0, {10: CURE}, 2, 100.0)
    assert launches.next_look(1000.0) is None
