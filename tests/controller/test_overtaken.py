"""A controller that was paused and overtaken: what another one has written meanwhile stands."""

from collections.abc import Callable

import pytest
from controller.test_search import Bench
from controller.world import MemoryStore, WorldExecutor, accuracy, make_experiment

from nas_api import names
from nas_api.handover import Provenance
from nas_api.spaces.convolutional import ConvolutionalArchitecture
from nas_controller.search import Exit
from nas_log.records import Proposed

EXPERIMENT = make_experiment(budget={"samples": 30})
FINAL = {"top": 2, "epochs": 2}


def written(bench: Bench) -> tuple[ConvolutionalArchitecture, Provenance]:
    """Return what lies under ``best/``."""
    store = bench.world.store
    return (
        ConvolutionalArchitecture.model_validate_json(store.get(names.BEST_ARCHITECTURE) or b""),
        Provenance.model_validate_json(store.get(names.BEST_PROVENANCE) or b""),
    )


def best_of(bench: Bench) -> ConvolutionalArchitecture:
    best = max((record.architecture for record in bench.of_kind(Proposed)), key=accuracy)
    assert isinstance(best, ConvolutionalArchitecture)
    return best


class Sleepy(MemoryStore):
    """Something happens right before the n-th write to ``best/``, from 1."""

    def __init__(self, number: int, happens: Callable[[], None]) -> None:
        super().__init__()
        self._left, self._happens = number, happens

    def replace(self, key: str, data: bytes, allowed: Callable[[], bool]) -> bool:
        self._left -= 1
        if self._left == 0:
            self._happens()
        return super().replace(key, data, allowed)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_controller_that_wakes_after_the_end_writes_no_older_best(number: int) -> None:
    """It is stopped right before a write to ``best/``; another one begins, searches on and ends meanwhile."""
    paused, other = Bench(), Bench()

    def another_ends() -> None:
        assert other.run(EXPERIMENT) is Exit.FINISHED

    other.world = paused.world
    paused.world.store = Sleepy(number, another_ends)
    assert paused.run(EXPERIMENT) is Exit.FENCED
    architecture, provenance = written(other)
    assert architecture == best_of(other)
    assert provenance.digest == architecture.digest, "all of it is of one network"


def test_at_the_end_everything_is_written_once_more() -> None:
    """Somebody who could not be refused has put an older best over the newest before the search ended."""
    bench = Bench(["result"] * 29)
    progress = bench.world.progress

    def overwrite() -> bool:
        # Longer than the search waits between two writes of its best.
        bench.world.seconds += 60
        for key in (names.BEST_ARCHITECTURE, names.BEST_PROVENANCE):
            if bench.world.store.get(key) is not None:
                bench.world.store.put(key, b"older")
        return progress()

    bench.world.progress = overwrite  # type: ignore[method-assign]
    assert bench.run(EXPERIMENT) is Exit.FINISHED
    architecture, provenance = written(bench)
    assert architecture == best_of(bench) and provenance.digest == architecture.digest


def test_who_hands_over_once_more_keeps_the_images_that_are_known_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench()
    experiment = make_experiment(budget={"samples": 10}, finalTraining=FINAL)
    assert bench.run(experiment) is Exit.FINISHED
    _, before = written(bench)
    assert before.images == {"trainer": f"sha256:image of {before.test_sample}"}
    monkeypatch.setattr(WorldExecutor, "images", lambda *_: {})
    assert bench.run(experiment) is Exit.FINISHED
    assert written(bench)[1] == before
