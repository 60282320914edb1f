"""What lies under ``best/`` is believed as far as the log vouches for it: for the follower, as for the command line."""

import itertools
from typing import Any

import pytest
from controller.golden.write import stored
from controller.test_search import Bench
from controller.world import MemoryStore, make_experiment

from nas_api import names
from nas_api.architecture import Architecture
from nas_api.handover import Preprocessing
from nas_api.source import architecture_source
from nas_controller.search import Exit
from nas_followers.errors import FollowerError
from nas_followers.following import follow
from nas_log.best import Best, BestIsReplaced, BestTampered, Evidence, read_best
from nas_log.follower import Follower
from nas_log.reader import Sample

SPEC = make_experiment().spec
BEFORE = Preprocessing(channels=1, height=8, width=8, brightest=16.0, classes=("a", "b"))


def evidence(store: MemoryStore) -> Evidence:
    found, log = Evidence(), Follower(store)
    for sample in log.read():
        found.add(sample)
    found.finished = log.facts is not None and log.facts.finished is not None
    return found


def read(store: MemoryStore) -> Best | None:
    return read_best(store, SPEC.search_space, SPEC.trainer.dataset, lambda: evidence(store))


def with_best(name: str, architecture: Architecture | None = None) -> tuple[MemoryStore, Sample]:
    """Return the store of a golden log whose test's architecture, or another one, is the best, and that test."""
    store = stored(name)
    tested = evidence(store).tested
    assert tested is not None
    store.put(names.BEST_ARCHITECTURE, (architecture or tested.architecture).canonical().encode())
    store.put(names.BEST_MODULE, b"import os; os.system('touch poisoned')")
    return store, tested


def test_the_module_is_made_from_the_architecture_with_what_it_was_trained_with() -> None:
    store, tested = with_best("convolutional-guided")
    best = read(store)
    assert best is not None and best.digests == {} and tested.final is not None
    epsilon = float(tested.final.settings.batch_norm_epsilon)
    module = architecture_source(tested.architecture, in_channels=1, classes=10, epsilon=epsilon)
    assert best.files["network.py"].decode() == module
    unknown = read_best(store, SPEC.search_space, None, lambda: evidence(store))
    assert unknown is not None and "network.py" not in unknown.files, "of images nobody knows how many channels"


def test_a_network_that_is_not_the_winner_is_just_being_replaced() -> None:
    store, tested = with_best("convolutional-guided")
    digests = evidence(store)._searched - {tested.architecture.digest}
    other = next(each.architecture for each in Follower(store).read() if each.architecture.digest in digests)
    store, _ = with_best("convolutional-guided", other)
    with pytest.raises(BestIsReplaced, match="the final training's winner"):
        read(store)


def test_once_the_search_has_ended_only_its_best_is_handed_over() -> None:
    """A store that cannot compare may have let a controller in that was paused for long."""
    bench = Bench()
    assert bench.run(make_experiment(budget={"samples": 30})) is Exit.FINISHED
    store = bench.world.store
    assert isinstance(store, MemoryStore) and read(store) is not None
    ranked = sorted(Follower(store).read(), key=lambda sample: sample.reward or 0.0)
    older, best = ranked[0].architecture, ranked[-1].architecture
    provenance = store.objects[names.BEST_PROVENANCE].replace(best.digest.encode(), older.digest.encode())
    store.put(names.BEST_ARCHITECTURE, older.canonical().encode())
    store.put(names.BEST_PROVENANCE, provenance)
    with pytest.raises(BestIsReplaced, match="is not the best of the search, which has ended"):
        read(store)
    del store.objects[store.list("log/")[-1]]
    assert read(store) is not None, "as long as it goes on, the newest best may be on its way"


def test_all_that_was_tested_must_be_there() -> None:
    store, tested = with_best("convolutional-vouched")
    assert tested.files is not None and set(tested.files) == {
        "network.onnx", "preprocessing.json", "weights.safetensors",
    }  # fmt: skip
    with pytest.raises(BestIsReplaced, match=r"best/preprocessing\.json is missing"):
        read(store)
    store.put(names.BEST_PREPROCESSING, BEFORE.model_dump_json(by_alias=True).encode())
    with pytest.raises(BestTampered, match=r"best/preprocessing\.json is not the file that was tested"):
        read(store)


class Taker:
    """A destination that takes everything."""

    best: Best | None = None

    def look_up(self, *_: Any) -> None: ...

    def hand_over(self, *_: Any) -> None: ...

    def finish(self, _: Any, best: Best | None) -> None:
        self.best = best


class Clock:
    """Time that passes with each look."""

    def __init__(self) -> None:
        self._seconds = itertools.count()

    def now(self) -> float:
        return float(next(self._seconds))

    def wait(self, seconds: float) -> None:
        raise AssertionError("there is nothing to wait for")


def test_a_follower_hands_over_nothing_that_was_not_tested() -> None:
    store, _ = with_best("convolutional-vouched")
    store.put(names.BEST_PREPROCESSING, BEFORE.model_dump_json(by_alias=True).encode())
    taker = Taker()
    with pytest.raises(FollowerError, match=r"is not handed over: best/preprocessing\.json is not the file"):
        follow(store, "mlflow", taker, Clock(), SPEC.trainer.dataset)
    assert taker.best is None


def test_a_follower_hands_over_no_code_of_the_bucket() -> None:
    store, _ = with_best("convolutional-guided")
    taker = Taker()
    follow(store, "mlflow", taker, Clock(), SPEC.trainer.dataset)
    assert taker.best is not None and b"class Network" in taker.best.files["network.py"]
