"""What a writer of the bucket can do to a search: nothing that its status has seen is changed without being named."""

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from controller.test_search import Bench
from controller.world import CountingPolicy, MemoryStore, make_experiment
from structlog.testing import capture_logs

from nas_api import names
from nas_api.experiment import LogHead
from nas_api.reasons import EXPLANATIONS, Reason
from nas_controller import snapshots
from nas_controller.controller import _anchor, _problem
from nas_controller.recovery import recover
from nas_controller.search import Exit
from nas_log.errors import LogDamaged, LogTampered
from nas_log.follower import Follower
from nas_log.log import Log, encode, read_log, read_objects
from nas_log.records import Observed, Record

EXPERIMENT = make_experiment(budget={"samples": 12})


def begun(snapshot_every: int = 200) -> tuple[Bench, MemoryStore, LogHead]:
    """Return a search that was stopped on its way, and what its status has of its log."""
    bench = Bench()
    progress, steps = bench.world.progress, iter(range(100))

    def stop_at_last() -> bool:
        if next(steps) == 8:
            bench.search.stop()
        return progress()

    bench.world.progress = stop_at_last  # type: ignore[method-assign]
    assert bench.run(EXPERIMENT, snapshot_every=snapshot_every) is Exit.STOPPED
    bench.world.progress = progress  # type: ignore[method-assign]
    store, head = bench.world.store, bench.sink.last.log
    assert isinstance(store, MemoryStore) and head is not None
    return bench, store, head


def forged(store: MemoryStore, change: Callable[[Record], Record]) -> dict[str, bytes]:
    """Return a whole log with other records, each object chained to the one before."""
    out, previous = MemoryStore(), ""
    log = Log(out, -1, previous, writer="forger")
    for each in read_objects(store):
        log.append([change(record) for record in each.records], each.snapshot)
    return out.objects


def better(record: Record) -> Record:
    return record.model_copy(update={"reward": 1e9}) if isinstance(record, Observed) else record


def test_every_status_has_the_head_of_the_log() -> None:
    bench = Bench()
    store = bench.world.store
    heads: list[LogHead | None] = []
    publish = bench.sink.publish

    def compare(status: Any) -> None:
        publish(status)
        *_, last = read_objects(store)
        heads.append(status.log)
        assert status.log == LogHead(sequence=last.sequence, digest=last.digest)

    bench.sink.publish = compare  # type: ignore[method-assign]
    assert bench.run(EXPERIMENT) is Exit.FINISHED
    assert len(heads) > 10


def test_a_log_that_was_rewritten_whole_is_named_and_the_search_goes_on_when_it_is_restored() -> None:
    bench, store, head = begun()
    before = dict(store.objects)
    store.objects.update(forged(store, better))
    assert len(read_log(store)) > 10, "it is well-formed"
    with pytest.raises(LogTampered, match=rf"{names.log_key(head.sequence)} is not the object .*status.log"):
        bench.run(EXPERIMENT, anchor=head)
    store.objects.clear()
    store.objects.update(before)
    assert bench.run(EXPERIMENT, anchor=head) is Exit.FINISHED


@pytest.mark.parametrize("gone", [1, 2, 100])
def test_a_log_that_was_cut_off_is_named(gone: int) -> None:
    bench, store, head = begun()
    for key in store.list("log/")[-gone:]:
        del store.objects[key]
    left = len(store.list("log/"))
    with pytest.raises(LogTampered, match=rf"{names.log_key(left)}.* is missing"):
        bench.run(EXPERIMENT, anchor=head)
    assert len(store.list("log/")) == left, "and nothing was begun in its place"


def test_what_a_snapshot_covers_is_held_against_the_anchor_too() -> None:
    _, store, _ = begun(snapshot_every=3)
    objects = [*read_objects(store)]
    assert recover(store, CountingPolicy).snapshot_records > 0
    anchor = LogHead(sequence=1, digest=objects[1].digest)
    store.objects[names.log_key(1)] = encode("forger", 1, objects[0].digest, objects[1].records)
    with pytest.raises(LogTampered, match=r"log/0000000001\.json"):
        recover(store, CountingPolicy, anchor)


@pytest.mark.parametrize(
    ("expired", "named"), [(1, "log/0000000000.json"), (3, "log/0000000000.json to log/0000000002.json")]
)
def test_old_objects_that_a_lifecycle_rule_has_expired_are_named_although_a_snapshot_covers_them(
    expired: int, named: str
) -> None:
    bench, store, head = begun(snapshot_every=3)
    before = dict(store.objects)
    covered = [int(key[-10:]) for key in store.list("snapshots/")]
    assert max(covered) >= expired, "the controller itself would not need them"
    for key in store.list("log/")[:expired]:
        del store.objects[key]
    with pytest.raises(
        LogDamaged, match=rf"^{named} is missing, the oldest of the log: keep the bucket's lifecycle rules"
    ):
        bench.run(EXPERIMENT, anchor=head)
    store.objects.update(before)
    assert bench.run(EXPERIMENT, anchor=head) is Exit.FINISHED


def test_without_an_anchor_it_is_told_that_the_log_is_taken_as_it_is() -> None:
    bench, _, head = begun()
    with capture_logs() as lines:
        assert bench.run(EXPERIMENT) is Exit.FINISHED
    (begins,) = [line for line in lines if line["event"] == "search begins"]
    assert begins["anchor"] == "none: the log is taken as it is"
    assert LogHead(sequence=3, digest="0" * 64) == _anchor({"status": {"log": {"sequence": 3, "digest": "0" * 64}}})
    without: list[dict[str, Any]] = [{}, {"status": None}, {"status": {}}, {"status": {"log": {"sequence": -1}}}]
    assert [_anchor(status) for status in without] == [None] * 4
    assert head.sequence > 0


def test_a_snapshot_that_nothing_vouches_for_is_not_used() -> None:
    bench, store, head = begun(snapshot_every=3)
    state = recover(store, CountingPolicy).state
    assert state is not None and state.core.best is not None
    state.core.epoch, state.core.best.reward = 10**9, 1e9
    store.objects[names.snapshot_key(head.sequence)] = snapshots.encode(state, head.digest)
    for key in store.list("snapshots/"):
        # Those that were vouched for as well.
        document = snapshots.encode(state, [*read_objects(store)][int(key[-10:])].digest)
        store.objects[key] = document
    again = recover(store, CountingPolicy, head)
    assert again.snapshot_records == 0 and again.state is not None
    assert again.state.core.epoch == 1
    assert bench.run(EXPERIMENT, anchor=head) is Exit.FINISHED
    assert bench.sink.last.epoch == 2


def test_a_snapshot_is_vouched_for_by_the_next_object_and_used() -> None:
    _, store, head = begun(snapshot_every=3)
    vouched = {each.sequence - 1: each.snapshot for each in read_objects(store) if each.snapshot is not None}
    assert vouched and set(map(names.snapshot_key, vouched)) <= set(store.list("snapshots/"))
    recovered = recover(store, CountingPolicy, head)
    assert recovered.snapshot_records > 0
    assert torch.equal(recovered.state.policy.dump()["state"], recover_by_replay(store))  # type: ignore[union-attr]


def recover_by_replay(store: MemoryStore) -> torch.Tensor:
    bare = MemoryStore()
    bare.objects = {key: data for key, data in store.objects.items() if key.startswith("log/")}
    state = recover(bare, CountingPolicy).state
    assert state is not None
    return state.policy.dump()["state"]


def test_a_log_without_snapshots_has_the_bytes_that_it_had() -> None:
    assert "snapshot" not in json.loads(encode("w", 0, "", []))


def test_a_controller_that_skips_epochs_is_damage() -> None:
    _, store, _ = begun()
    *_, last = read_objects(store)
    started = read_log(store)[0]
    Log(store, last.sequence, last.digest).append([started.model_copy(update={"epoch": 10**9})])
    with pytest.raises(LogDamaged, match="cannot follow"):
        recover(store, CountingPolicy)


def test_the_condition_says_what_to_do() -> None:
    problem = _problem(LogTampered("log/0000000003.json is not the object"))
    assert problem.reason == Reason.LOG_TAMPERED
    assert "status.log" in EXPLANATIONS[Reason.LOG_TAMPERED].cure


def test_readers_hold_a_log_against_the_status_as_well() -> None:
    _, store, head = begun()
    log = Follower(store, anchor=head)
    assert [*log.read()]
    store.objects.update(forged(store, better))
    with pytest.raises(LogTampered):
        [*Follower(store, anchor=head).read()]
