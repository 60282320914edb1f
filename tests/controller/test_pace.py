"""How often the status is written, counted in virtual time: by what changes, and by a budget that children bring."""

from collections.abc import Callable
from itertools import pairwise

import kubernetes.client
import pytest
from experiments import manifest
from virtual_clock import VirtualClock

from nas_api.experiment import FinalStatus, NASExperiment, Outcome, Problem, SampleCounts
from nas_controller.kubernetes_status import KubernetesSink, Loss
from nas_controller.pace import Pace
from nas_controller.status import SearchStatus
from nas_kube.client import KubeClient, Object
from nas_kube.errors import ApiError, ApiUnavailable, KubeError
from nas_kube.resources import Resource

CHILDREN = 100
DONE = Outcome(type="Complete", reason="SamplesSpent", message="")
PROBLEM = Problem(reason="StoreUnreachable", message="")


def status(*, observed: int = 0, running: int = 2, reused: int = 0, retried: int = 0) -> SearchStatus:
    samples = SampleCounts(budget=CHILDREN, observed=observed, running=running, reused=reused, retried=retried)
    return SearchStatus(epoch=1, progress=f"{observed}/{CHILDREN}", samples=samples)


class Api(KubeClient):
    """An API server that keeps one experiment's status, and when it was written."""

    def __init__(self, clock: VirtualClock) -> None:
        super().__init__(kubernetes.client.Configuration(host="http://127.0.0.1:1"))
        self.clock = clock
        self.fault: Callable[[int], KubeError | None] = lambda _: None
        """The error that the so manyth write ends with, if any."""
        self.tries: list[float] = []
        self.written: list[tuple[float, Object]] = []

    def get(self, resource: Resource, namespace: str | None, name: str) -> Object:
        return {"metadata": {"uid": "u", "resourceVersion": "1"}}

    def apply(self, resource: Resource, namespace: str | None, name: str, body: Object, **options: object) -> Object:
        self.tries.append(self.clock.now)
        if (error := self.fault(len(self.tries))) is not None:
            raise error
        self.written.append((self.clock.now, body["status"]))
        return {"metadata": {"resourceVersion": "1"}}

    @property
    def moments(self) -> list[float]:
        return [at for at, _ in self.written]


class Show:
    """A sink on a virtual clock, and what it has written."""

    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.api = Api(self.clock)
        self.lost: list[Loss] = []
        raw = manifest("lab")
        raw["metadata"]["uid"] = "u"
        self.sink = KubernetesSink(self.api, NASExperiment.model_validate(raw), self.lost.append, clock=self.clock)

    def at(self, seconds: float, wanted: SearchStatus) -> None:
        self.clock.at(seconds, lambda: self.sink.publish(wanted))

    def run(self, until: float) -> list[float]:
        """Return when it has written, up to a time."""
        self.clock.at(until, self.sink.close)
        self.clock.run()
        return self.api.moments


def search(show: Show, every: float, fetch: float) -> float:
    """Have a search publish what it does while a child ends every so many seconds; return when it ends.

    First a child is gone, and so much later its result is there and the next is launched: two changes a child.
    """
    show.at(0.0, status(running=0))
    show.at(0.1, status())
    for child in range(1, CHILDREN + 1):
        show.at(child * every, status(observed=child - 1, running=1))
        show.at(child * every + fetch, status(observed=child, running=2 if child < CHILDREN else 1))
    end = CHILDREN * every + fetch + 0.1
    show.at(end, status(observed=CHILDREN, running=0).model_copy(update={"outcome": DONE}))
    return end


@pytest.mark.parametrize("fetch", [0.01, 0.9, 4.0])
@pytest.mark.parametrize("every", [0.05, 0.5, 1.0, 3.0, 4.4, 5.0, 6.0, 10.0, 30.0, 59.0, 61.0, 600.0, 7200.0])
def test_writes_are_bounded_by_the_children_however_slow_they_are(every: float, fetch: float) -> None:
    if fetch > every:
        fetch = every / 2
    show = Show()
    end = search(show, every, fetch)
    writes = show.run(end + 100)
    # A new controller and the outcome need no saving.
    assert len(writes) <= 2 + 6 + CHILDREN / 4 + end / 60
    # And never more than one for each end.
    assert len(writes) <= CHILDREN + 4
    assert writes[-1] == end, "an outcome is written at once"
    assert show.api.written[-1][1]["outcome"]["type"] == "Complete"
    assert all(later - earlier > 4.999 for earlier, later in pairwise(writes[:-1]))


@pytest.mark.parametrize("every", [0.5, 3.0, 10.0, 30.0, 61.0, 600.0])
def test_nobody_sees_progress_that_is_older_than_a_minute(every: float) -> None:
    show = Show()
    end = search(show, every, 0.2)
    show.run(end + 100)
    for moment in range(10, int(end), 7):
        shown = max((at, body) for at, body in show.api.written if at <= moment)[1]["samples"]["observed"]
        assert shown >= int((moment - 0.2 - 60) / every)


def test_the_beginning_shows_at_once() -> None:
    show = Show()
    search(show, 20.0, 0.2)
    assert show.run(60) == [1.0, 21.0, 41.0]
    counts = [(body["samples"]["running"], body["samples"]["observed"]) for _, body in show.api.written]
    assert counts[0] == (2, 0), "the first launches came within the second"
    assert counts[1] == (2, 1)


def test_a_status_that_does_not_change_is_not_written() -> None:
    show = Show()
    for second in range(0, 1000, 10):
        show.at(second, status())
    assert show.run(2000) == [1.0]


def test_what_is_as_it_was_before_it_is_written_needs_no_write() -> None:
    show = Show()
    show.at(0, status())
    show.at(100, status(running=1))
    show.at(102, status())
    assert show.run(1000) == [1.0]


def test_the_end_of_all_children_shows_soon_even_when_nothing_is_saved() -> None:
    """What a suspension waits for."""
    show = Show()
    for child in range(1, 101):
        show.at(child * 5.0, status(observed=child))
    show.at(502.0, status(observed=100, running=0))
    writes = show.run(600)
    assert writes[-2] < 497 and writes[-1] == 502.0
    assert show.api.written[-1][1]["samples"]["running"] == 0


def test_a_problem_shows_soon_even_when_nothing_is_saved() -> None:
    show = Show()
    for child in range(1, 101):
        show.at(child * 5.0, status(observed=child))
    show.at(502.0, status(observed=100).model_copy(update={"problem": PROBLEM}))
    show.at(504.5, status(observed=100))
    writes = show.run(600)
    assert writes[-2:] == [502.0, 507.0]
    assert "problem" in show.api.written[-2][1] and "problem" not in show.api.written[-1][1]


def test_samples_without_a_child_bring_no_writes() -> None:
    show = Show()
    for sample in range(1, 1001):
        show.at(float(sample), status(observed=sample, reused=sample))
    assert len(show.run(1000)) <= 1 + 6 + 1000 / 60


def test_children_that_are_tried_again_and_final_trainings_count_as_children() -> None:
    pace = Pace(status())
    spent = 0
    now = 0.0
    for change in range(1, 9):
        pace.want(status(running=change), now)
        due = pace.due()
        assert due is not None
        if due - now > 10:
            break
        now = due
        pace.wrote(pace.wanted, now)
        spent += 1
    assert spent == 4, "two are kept"
    pace.want(status(running=9, retried=2), now)
    assert pace.due() == now + 60
    final = FinalStatus(trained=1, lost=1, total=20)
    pace.want(status(running=9, retried=2).model_copy(update={"final": final}), now)
    assert pace.due() == now + 5, "four children have paid for one more"


def test_a_write_that_fails_is_tried_again_after_growing_pauses_with_the_newest_status() -> None:
    show = Show()
    show.api.fault = lambda number: ApiUnavailable("away") if number <= 8 else None
    show.at(0, status())
    show.at(9, status(observed=1))
    assert show.run(1000) == [122.0]
    assert [later - earlier for earlier, later in pairwise(show.api.tries)] == [1, 2, 4, 8, 16, 30, 30, 30]
    assert show.api.written[0][1]["samples"]["observed"] == 1


@pytest.mark.parametrize(
    ("error", "loss"),
    [
        (ApiError(404, "NotFound", "no such experiment"), Loss.GONE),
        (ApiError(422, "Invalid", "status: a lower epoch is refused"), Loss.SUPERSEDED),
    ],
)
def test_a_status_that_is_not_ours_is_given_up(error: KubeError, loss: Loss) -> None:
    show = Show()
    show.api.fault = lambda _: error
    show.at(0, status())
    show.at(100, status(observed=1))
    assert show.run(1000) == []
    assert show.lost == [loss] and len(show.api.tries) == 1
    assert not show.sink.flush(1.0)
