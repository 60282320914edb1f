"""The log's reader: each sample once and whole, whatever the history, however the log grows and wherever one begins."""

import gc
import hashlib
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from controller.golden.write import FOLDER, stored
from controller.world import MemoryStore
from hypothesis import event, given, settings
from hypothesis import strategies as st
from log.histories import histories, proposed
from report import logs

from nas_api import names
from nas_api.child import MAX_RESULT_BYTES, Result
from nas_controller.policies.random import RandomPolicy
from nas_controller.state import fold
from nas_log.errors import LogDamaged
from nas_log.follower import BEGINNING, Follower, Position, end_of_log, learning_curve
from nas_log.log import Log, encode, read_log, read_objects
from nas_log.reader import Reader, Sample
from nas_log.records import FinalProposed, Inherited, Launched, Lost, Observed, Proposed, Record, Started
from nas_store.errors import StoreUnreachable

GOLDEN = sorted(path.stem for path in FOLDER.glob("*.log"))
PACKS, EARLY, GUIDED, WARM = (f"convolutional-{each}" for each in ("packs", "early-stopping", "guided", "warm-start"))


def whole(store: MemoryStore) -> list[Sample]:
    return [*Follower(store).read()]


def growing(name: str) -> Iterator[tuple[MemoryStore, int]]:
    """Yield a store to which a golden log's objects come one after the other, with the number of the newest."""
    full, store = stored(name), MemoryStore()
    for sequence, key in enumerate(full.list(names.LOG_PREFIX)):
        store.put(key, full.objects[key])
        yield store, sequence


# ---------------------------------------------------------------- samples


@pytest.mark.parametrize("name", GOLDEN)
def test_each_sample_comes_once_and_with_the_record_that_ends_it(name: str) -> None:
    reader, numbers = Reader(), []
    for record in read_log(stored(name)):
        before = {*reader.open}
        ended = [sample.number for sample in reader.take([record])]
        assert ended == ([record.sample] if isinstance(record, Observed | Lost | Inherited) else [])
        begun = {record.sample} if isinstance(record, Proposed | FinalProposed) else set()
        assert {*reader.open} == (before | begun) - {*ended}
        numbers += ended
    assert len({*numbers}) == len(numbers) and not reader.open


def test_a_sample_has_all_that_was_said_of_it() -> None:
    records = read_log(stored(GUIDED))
    samples = {sample.number: sample for sample in whole(stored(GUIDED))}
    launches = [record for record in records if isinstance(record, Launched)]
    assert max(len(sample.launches) for sample in samples.values()) > 2
    drawings = {record.sample: record for record in records if isinstance(record, Proposed | FinalProposed)}
    for sample in samples.values():
        assert sample.launches == [each for each in launches if sample.number in each.samples]
        drawn = drawings[sample.number]
        assert sample.architecture == drawn.architecture
        if isinstance(drawn, FinalProposed):
            assert (sample.arm, sample.final) == ("final", drawn.run)
        else:
            assert (sample.arm, sample.final, sample.log_probability) == (drawn.arm, None, drawn.log_probability)
    assert {sample.arm for sample in samples.values()} == {"policy", "random", "final"}
    lost = {record.sample: record for record in records if isinstance(record, Lost)}
    assert {number for number, sample in samples.items() if sample.state == "Lost"} == {*lost}
    for number, record in lost.items():
        sample = samples[number]
        assert (sample.reason, sample.message, sample.ended) == (record.reason, record.message, record.moment)
        assert (sample.reward, sample.seconds, sample.parameters, sample.metrics) == (None, None, None, {})


def test_a_reused_result_is_its_originals() -> None:
    samples = {sample.number: sample for sample in whole(stored(PACKS))}
    reused = [(sample, samples[sample.reused]) for sample in samples.values() if sample.reused is not None]
    assert any(original.state == "Observed" for _, original in reused)
    for sample, original in reused:
        assert (sample.metrics, sample.parameters) == (original.metrics, original.parameters)
        assert (sample.launches, sample.seconds, sample.state) == ([], 0, original.state)
        assert sample.reported.keys() <= {"accuracy"}
        assert original.parameters == 0 or original.metrics["parameters"] == original.parameters


def test_what_was_inherited_is_told_apart_and_the_numbers_go_on() -> None:
    follower = Follower(stored(WARM))
    samples = [*follower.read()]
    inherited = [sample for sample in samples if sample.arm == "inherited"]
    facts = follower.facts
    assert facts is not None and facts.warm_start is not None
    assert len(inherited) == facts.inherited == facts.warm_start.samples > 0
    own = [sample.number for sample in samples if sample.arm != "inherited"]
    assert sorted(own) == list(range(facts.warm_start.first_sample, facts.next_sample))
    assert facts.drawn == len(own)


def test_only_open_samples_are_held() -> None:
    def held() -> int:
        gc.collect()
        return sum(type(each) is Sample for each in gc.get_objects())

    store = MemoryStore()
    logs.write(store, logs.records(logs.CONVOLUTIONAL, 200, losses=0.1))
    before, follower = held(), Follower(store)
    for count, _ in enumerate(follower.read()):
        if count % 20 == 0:
            # The one in hand, and those that its object has ended with it: here no more.
            assert held() - before <= len(follower.open) + 1
    assert follower.open == {}


def test_metrics_are_kept_only_where_they_may_be_reused() -> None:
    for duplicates, kept in (("Reuse", 30), ("Train", 0)):
        records = [record for each in logs.records(logs.CONVOLUTIONAL, 30, losses=0.0) for record in each]
        assert isinstance(records[0], Started)
        searcher = records[0].searcher.model_copy(update={"duplicates": duplicates})
        reader = Reader()
        assert len([*reader.take([records[0].model_copy(update={"searcher": searcher}), *records[1:]])]) == 30
        assert len(reader._trained) == kept


# ---------------------------------------------------------------- the fold and the reader


def assert_agreement(records: list[Record]) -> None:
    """Compare what the two that know what records mean make of the same ones."""
    state, reader = fold(records, RandomPolicy), Reader()
    samples = [*reader.take(records)]
    assert state is not None and reader.facts is not None
    core, facts = state.core, reader.facts
    search = [sample for sample in samples if sample.arm in ("policy", "random")]
    observed = [sample for sample in search if sample.state != "Lost"]
    assert len(observed) == core.observed
    assert len(search) - len(observed) == core.lost
    assert sum(sample.state == "Diverged" for sample in observed) == core.diverged
    assert sum(sample.reused is not None for sample in observed) == core.reused
    assert {sample.number: sample.stopped for sample in observed if sample.stopped is not None} == core.stopped
    assert [sample.rung for sample in observed if sample.rung is not None][-100:] == core.rungs
    drawn = [*search, *(sample for sample in reader.open.values() if sample.final is None)]
    assert sum(max(0, len(sample.launches) - 1) for sample in drawn) == core.retried
    assert (facts.drawn, len(drawn), facts.inherited) == (core.proposed, core.proposed, core.inherited)
    assert (facts.parallelism, facts.budget, facts.controllers) == (core.parallelism, core.budget, core.epoch)
    assert (facts.warm_start, facts.finished is None) == (core.warm_start, core.outcome is None)

    assert reader.open.keys() == core.open.keys()
    for number, current in core.open.items():
        sample = reader.open[number]
        assert (sample.final, sample.state) == (current.final, "Open")
        assert sample.arm == ("final" if current.final is not None else current.arm)
        assert (sample.launches[-1].launch if sample.launches else None) == current.launch
        assert (sample.launches[-1].failures if sample.launches else 0) == current.failures

    finals = [sample for sample in samples if sample.final is not None]
    assert (facts.search_ended is None) == (core.final is None)
    assert core.final is not None or not finals
    if core.final is not None:
        tried = [sample for sample in finals if not sample.final.settings.test]  # type: ignore[union-attr]
        assert sum(sample.state != "Lost" for sample in tried) == core.final.trained
        assert sum(sample.state == "Lost" for sample in tried) == core.final.lost
        assert len(finals) + sum(each.final is not None for each in reader.open.values()) == core.final.begun
    else:
        assert facts.next_sample == core.next_sample


@pytest.mark.parametrize("name", GOLDEN)
def test_fold_and_reader_agree_on_every_part_of_a_log_of_an_earlier_version(name: str) -> None:
    records = read_log(stored(name))
    for count in range(1, len(records) + 1):
        assert_agreement(records[:count])


@given(histories())
@settings(deadline=None, max_examples=100)
def test_fold_and_reader_agree_whatever_the_history(records: list[Record]) -> None:
    for kind in sorted({record.type for record in records}):
        event(kind)
    assert_agreement(records)
    reader = Reader()
    numbers = [sample.number for sample in reader.take(records) if sample.arm != "inherited"]
    assert sorted([*numbers, *reader.open]) == sorted(proposed(records))


# ---------------------------------------------------------------- a log that grows


@pytest.mark.parametrize("name", GOLDEN)
def test_each_read_gives_what_is_new_and_fetches_nothing_twice(name: str) -> None:
    fetched: list[str] = []

    class Counting(MemoryStore):
        def get(self, key: str, *, limit: int | None = None) -> bytes | None:
            fetched.append(key)
            return super().get(key, limit=limit)

    full, store = stored(name), Counting()
    follower, samples = Follower(store), []
    assert [*follower.read()] == [] and follower.facts is None
    for sequence, key in enumerate(full.list(names.LOG_PREFIX)):
        store.put(key, full.objects[key])
        expected = [
            record.sample
            for record in [*read_objects(store)][-1].records
            if isinstance(record, Observed | Lost | Inherited)
        ]
        fetched.clear()
        new = [*follower.read()]
        assert [sample.number for sample in new] == expected
        assert fetched == [key] and follower.position.sequence == sequence
        assert [*follower.read()] == [] and fetched == [key]
        samples += new
    assert samples == whole(full)


def test_a_read_that_is_broken_off_goes_on() -> None:
    store = stored(WARM)
    follower, samples = Follower(store), []
    # One sample a read, the others of its object with the next ones.
    while (sample := next(follower.read(), None)) is not None:
        samples.append(sample)
    assert samples == whole(store)


def test_a_position_has_all_its_samples_handed_over() -> None:
    store = stored(WARM)
    follower = Follower(store)
    for seen, _ in enumerate(follower.read(), 1):
        left = [*Follower(store, follower.position).read()]
        # At least once: those of the object at hand come again, and none is left out.
        assert left[-1:] == whole(store)[-1:] and len(left) >= len(whole(store)) - seen
    assert [*Follower(store, follower.position).read()] == []


def test_a_store_in_trouble_loses_nothing() -> None:
    troubled = True

    class Failing(MemoryStore):
        def get(self, key: str, *, limit: int | None = None) -> bytes | None:
            if troubled and key == names.log_key(7):
                raise StoreUnreachable("no answer")
            return super().get(key, limit=limit)

    store = Failing()
    store.objects.update(stored(PACKS).objects)
    follower, samples = Follower(store), []
    for _ in range(2):
        with pytest.raises(StoreUnreachable):
            for sample in follower.read():
                samples.append(sample)
    assert samples and follower.position.sequence == 6
    troubled = False
    assert [*samples, *follower.read()] == whole(stored(PACKS))


# ---------------------------------------------------------------- a position


@pytest.mark.parametrize("name", GOLDEN)
def test_another_follower_goes_on_after_any_object_with_whole_samples(name: str) -> None:
    store = stored(name)
    everything = whole(store)
    handed_over, reader = 0, Reader()
    for each in read_objects(store):
        handed_over += len([*reader.take(each.records)])
        follower = Follower(store, Position(each.sequence, each.digest))
        assert [*follower.read()] == everything[handed_over:]
        assert follower.facts is not None and follower.facts.finished is not None


def test_a_position_of_another_log_is_refused_again_and_again() -> None:
    store = stored(PACKS)
    follower = Follower(store, Position(5, "0" * 64))
    for _ in range(2):
        with pytest.raises(LogDamaged, match=r"log/0000000005\.json is not the object that was read here before"):
            [*follower.read()]
    assert follower.position == Position(5, "0" * 64)


def test_a_log_that_is_shorter_than_it_was_is_refused() -> None:
    last = [*read_objects(stored(PACKS))][-1]
    store = next(store for store, sequence in growing(PACKS) if sequence == last.sequence - 1)
    follower = Follower(store, Position(last.sequence, last.digest))
    with pytest.raises(LogDamaged, match=rf"{names.log_key(last.sequence)} was read here before and is missing"):
        [*follower.read()]
    assert [*Follower(MemoryStore(), BEGINNING).read()] == []


def test_a_log_that_was_replaced_behind_a_follower_is_refused() -> None:
    store = MemoryStore()
    follower = Follower(store)
    objects = [*logs.records(logs.CONVOLUTIONAL, 6)]
    logs.write(store, iter(objects[:3]))
    assert [*follower.read()]
    store.objects.clear()
    logs.write(store, iter([*objects[:2], objects[3], *objects[3:5]]))
    with pytest.raises(LogDamaged, match=r"log/0000000003\.json does not follow"):
        [*follower.read()]


# ---------------------------------------------------------------- damage


def changed(change: Callable[[dict[str, Any]], None]) -> tuple[MemoryStore, str]:
    """Return a log whose last object is as another version may write it, and that object's key."""
    store = MemoryStore()
    logs.write(store, logs.records(logs.CONVOLUTIONAL, 2, finished=False))
    key = store.list(names.LOG_PREFIX)[-1]
    document = json.loads(store.objects[key])
    del document["checksum"]
    change(document["records"][0])
    text = json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
    store.put(key, json.dumps({**document, "checksum": hashlib.sha256(text).hexdigest()}).encode())
    return store, key


@pytest.mark.parametrize("change", [{"type": "Divined"}, {"format": 2}, {"metrics": "many"}])
def test_a_record_that_is_not_known_here_is_named(change: dict[str, Any]) -> None:
    store, key = changed(lambda record: record.update(change))
    follower, samples = Follower(store), []
    with pytest.raises(LogDamaged, match=f"{key} has a record that this controller does not know"):
        for sample in follower.read():
            samples.append(sample)
    assert len(samples) == 1, "what was written before it is told"


def test_what_a_newer_version_adds_to_a_record_is_ignored() -> None:
    store, _ = changed(lambda record: record.update(novelty=1))
    assert len(whole(store)) == 2


@pytest.mark.parametrize(
    "record",
    [
        Launched(launch=9, samples=(0, 77), attempt=1),
        Observed(sample=0, metrics={}, reward=0.0),
        Observed(sample=1, metrics={}, reward=0.0, reused=77),
        Lost(sample=77, reason="TrainerFailed"),
    ],
)
def test_a_record_of_a_sample_that_is_not_there_is_named(record: Record) -> None:
    store = MemoryStore()
    objects = [*logs.records(logs.CONVOLUTIONAL, 2, losses=0.0, finished=False)]
    log = Log(store)
    for each in [*objects[:-1], [record]]:
        log.append(each)
    with pytest.raises(LogDamaged, match=rf"{names.log_key(log.sequence)}: a record cannot follow .*{record.type}"):
        whole(store)


def test_a_log_begins_with_started() -> None:
    store = MemoryStore()
    store.put(names.log_key(0), encode("w", 0, "", [Lost(sample=0, reason="TrainerFailed")]))
    with pytest.raises(LogDamaged, match=r"log/0000000000\.json: the log begins with Lost, not with Started"):
        whole(store)


# ---------------------------------------------------------------- beside it


@pytest.mark.parametrize("name", GOLDEN)
def test_the_end_is_in_the_newest_object(name: str) -> None:
    last = [*read_objects(stored(name))][-1].sequence
    for store, sequence in growing(name):
        assert (end_of_log(store) is not None) == (sequence == last)
    assert end_of_log(MemoryStore()) is None


@given(st.lists(st.floats(0, 1), max_size=5))
@settings(deadline=None, max_examples=20)
def test_a_learning_curve_is_in_the_result(history: list[float]) -> None:
    store = stored(PACKS)
    follower = Follower(store)
    samples = {sample.number: sample for sample in follower.read()}
    assert follower.facts is not None
    objective = follower.facts.objective
    sample = next(each for each in samples.values() if each.reused is not None)
    assert sample.reused is not None
    assert learning_curve(store, sample, objective) == ()
    result = Result(
        sample=sample.reused,
        attempt=1,
        architecture=sample.architecture.digest,
        metrics={objective.metric: 0.5},
        history=tuple(history),
    )
    store.put(names.result_key(sample.reused), result.model_dump_json(by_alias=True).encode())
    assert learning_curve(store, sample, objective) == tuple(history)
    assert learning_curve(store, samples[sample.reused], objective) == tuple(history)


@pytest.mark.parametrize("data", [b"no JSON", b"{}", b"[" * 100_000, b" " * (MAX_RESULT_BYTES + 1)])
def test_a_result_that_the_search_refused_has_no_curve(data: bytes) -> None:
    store = stored(PACKS)
    follower = Follower(store)
    sample = next(follower.read())
    assert follower.facts is not None
    store.put(names.result_key(sample.number), data)
    assert learning_curve(store, sample, follower.facts.objective) == ()
