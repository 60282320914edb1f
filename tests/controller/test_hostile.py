"""Whatever lies in the bucket or comes from a trainer: it is refused by name, or can be worked with for ever after.

Documents that are right are changed in one place or two, to what is wrong in every way that JSON has.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import pytest
from controller.world import CountingPolicy, InlinePool, MemoryStore, Recorder, World, WorldClock, WorldExecutor
from controller.world import make_experiment as experiment
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from nas_api import names
from nas_api.child import MAX_TRAINING_BYTES, Result, StoreLocation
from nas_api.experiment import NASExperiment
from nas_api.handover import Provenance
from nas_cli.display import status_panel
from nas_controller import best, decisions, snapshots
from nas_controller.executor import End
from nas_controller.policies.factory import make_policy
from nas_controller.search import Exit, Search
from nas_controller.state import SearchState, fold
from nas_controller.status import search_status
from nas_log.errors import LogDamaged
from nas_log.log import Log, decode, encode, read_log
from nas_log.records import Launched, Lost, Observed, Record, Started
from nas_report.history import read
from nas_report.page import render
from nas_store import tensors

NEST: list[Any] = []
for _ in range(500):
    NEST = [NEST]
HOSTILE: list[Any] = [
    *(None, True, "", "x", [], {}, NEST, [0], {"a": 1}),
    *(0, -1, 2**31, 2**63, 10**400, int("9" * 4000), -(10**400)),
    *(0.0, -0.0, 1e-320, 1e15, 1.0000001e15, 5.5e102, 1.7e308, -1.7e308, math.nan, math.inf, -math.inf),
    *(
        "NaN",
        "Infinity",
        "\ud800",
        "\x1b]52;c;aGk=\x07",
        "\N{RIGHT-TO-LEFT OVERRIDE}",
        "a" * 5000,
        "9999-12-31T23:59:59Z",
    ),
]


def places(document: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Yield the path of every value within a document."""
    parts = (
        document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    )
    for key, value in parts:
        yield (*path, key)
        yield from places(value, (*path, key))


@st.composite
def changed(draw: Callable[..., Any], document: Any) -> Any:
    """Return the document with another value in one or two places, or another name for one."""
    ways = [*places(document)]
    document = json.loads(json.dumps(document))
    for *way, last in draw(st.lists(st.sampled_from(ways), min_size=1, max_size=2, unique=True)):
        inner = document
        for step in way:
            inner = inner[step] if _has(inner, step) else None
        if not _has(inner, last):
            continue
        if isinstance(inner, dict) and draw(st.integers(0, 9)) == 0:
            inner[draw(st.sampled_from(["\ud800", "\x1b[31m", "", "unknown"]))] = inner.pop(last)
        else:
            inner[last] = draw(st.sampled_from(HOSTILE))
    return document


def _has(document: Any, key: str | int) -> bool:
    """Return whether a document still has what it had before it was changed in another place."""
    if isinstance(document, dict):
        return key in document
    return isinstance(document, list) and isinstance(key, int) and key < len(document)


def written(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


SPEC = experiment(
    objective={"metric": "accuracy", "penalties": [{"metric": "parameters", "target": "1000"}]},
    searcher={"seed": 7, "random": {}, "control": {"random": "0.5"}},
    trainer={"dataset": {"digits": {}}, "epochs": 4, "earlyStopping": {"epoch": 2, "startup": 2}},
)
STARTED = Started(
    epoch=1,
    moment=datetime(2026, 1, 1, tzinfo=UTC),
    search_space=SPEC.spec.search_space,
    searcher=SPEC.spec.searcher,
    objective=SPEC.spec.objective,
)


def begun(samples: int = 3) -> tuple[list[Record], SearchState]:
    """Return a log whose samples are in flight, and its state."""
    state = SearchState.begin(STARTED, make_policy)
    records: list[Record] = [STARTED]
    for sample in range(samples):
        proposed = state.propose()
        launched = Launched(launch=sample, samples=(sample,), attempt=1, moment=STARTED.moment)
        for record in (proposed, launched):
            state.apply(record)
            records.append(record)
    return records, state


def can_be_shown(records: list[Record], state: SearchState | None = None) -> None:
    """Hold whatever shows a search against these records."""
    state = state or fold(records, make_policy)
    assert state is not None
    status = search_status(state, running=0, best_uri="", problem=None)
    NASExperiment.model_validate({**SPEC.model_dump(by_alias=True), "status": status.model_dump(by_alias=True)})
    status_panel(status, "accuracy")
    history = read(records)
    assert history is not None
    json.dumps(render(history, SPEC, datetime(2026, 1, 2, tzinfo=UTC)))


def result(state: SearchState, sample: int) -> dict[str, Any]:
    digest = state.core.open[sample].architecture.digest
    whole = Result(
        sample=sample, attempt=1, architecture=digest, metrics={"accuracy": 0.5, "other": 2.0}, parameters=1000,
        history=(0.1, 0.2, 0.3), seconds=3.0, look="kubectl logs x", stopped={"epoch": 2, "of": 4},
        gpu={"name": "H200", "capability": "9.0", "precision": "tf32"},
    )  # fmt: skip
    return whole.model_dump(mode="json", by_alias=True)


def judged(state: SearchState, sample: int, data: bytes) -> Observed | Lost:
    verdict = decisions.judge(state.core, sample, End.SUCCEEDED, "", data, 1, SPEC.spec.trainer.early_stopping)
    assert isinstance(verdict, Observed | Lost)
    return verdict


RESULT = result(begun()[1], 0)


@settings(max_examples=100, deadline=None)
@given(changed(RESULT))
@example({**RESULT, "metrics": {"accuracy": 5.5e102}})
@example({**RESULT, "metrics": {"accuracy": 1e15, "parameters": 1e-300}})
@example({**RESULT, "look": "\ud800", "metrics": {"accuracy": 0.5, "parameters": -1.0}})
@example({**RESULT, "status": "Invalid", "message": "\ud800\x1b]52;c;aGk=\x07"})
@example({**RESULT, "parameters": int("9" * 4000)})
@example({**RESULT, "seconds": math.inf})
@example({**RESULT, "metrics": {"\ud800": 1.0}})
@example({**RESULT, "stopped": {"epoch": 1, "of": 10**400}})
def test_what_a_trainer_writes_can_be_logged_read_and_shown(document: Any) -> None:
    records, state = begun()
    for sample in list(state.core.open):
        own = state.core.open[sample].architecture.digest
        if isinstance(document, dict) and document.get("sample") == 0 and document.get("architecture"):
            document = {**document, "sample": sample, "architecture": own}
        verdict = judged(state, sample, written(document))
        state.apply(verdict)
        records.append(verdict)
    data = encode("w", 0, "", records)
    assert "\x1b" not in data.decode() and "\\u001b" not in data.decode()
    read_back = decode(0, data).records
    assert [each.model_dump_json() for each in read_back] == [each.model_dump_json() for each in records]
    can_be_shown(read_back)


@pytest.mark.parametrize("accuracy", [5.5e102, 1.0001e15, -1e300])
def test_a_metric_beyond_use_is_a_divergence(accuracy: float) -> None:
    _, state = begun()
    verdict = judged(state, 0, written({**RESULT, "metrics": {"accuracy": accuracy}}))
    assert isinstance(verdict, Observed) and verdict.diverged and verdict.reward == 0.0


def old_records() -> list[Record]:
    """Return what a version without bounds has let into a log."""
    records, _ = begun(4)
    for sample in range(3):
        records.append(
            Observed(sample=sample, metrics={"accuracy": 5.5e102, "parameters": 1e308}, reward=1.6e308,
                     seconds=math.inf, parameters=int("9" * 4000))
        )  # fmt: skip
    records.append(Observed(sample=3, metrics={"accuracy": -5.5e102}, reward=-1.6e308, seconds=1e300))
    return records


def test_what_older_versions_let_in_is_read_and_shown() -> None:
    records = [each for current in [decode(0, encode("w", 0, "", old_records()))] for each in current.records]
    can_be_shown(records)


@pytest.mark.parametrize("searcher", ["reinforce", "ppo", "guided", "evolution"])
def test_no_reward_ends_the_learning_of_a_policy(searcher: str) -> None:
    spec = experiment(searcher={"seed": 1, searcher: {}}).spec
    state = SearchState.begin(STARTED.model_copy(update={"searcher": spec.searcher}), make_policy)
    batch = getattr(getattr(spec.searcher, searcher), "batch", 2)
    for sample in range(3 * batch):
        proposed = state.propose()
        assert not math.isnan(proposed.log_probability)
        state.policy.proposed(sample, state.policy.propose(sample))
        state.policy.observed(sample, 1e45 if sample % 3 else 0.5)


@settings(max_examples=60, deadline=None)
@given(changed([json.loads(record.model_dump_json(by_alias=True, exclude_none=True)) for record in old_records()]))
def test_an_object_of_the_log_is_damaged_or_can_be_used(records: Any) -> None:
    document = {"version": 1, "writer": "w", "sequence": 0, "previous": "", "records": records}
    checksum = hashlib.sha256(json.dumps(document, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    try:
        found = decode(0, written({**document, "checksum": checksum})).records
    except LogDamaged:
        return
    try:
        state = fold(found, make_policy)
    except LogDamaged:
        state = None
    try:
        history = read(found)
    except LogDamaged:
        history = None
    if state is not None:
        search_status(state, running=0, best_uri="", problem=None)
    if history is not None:
        with suppress(LogDamaged):
            render(history, SPEC, datetime(2026, 1, 2, tzinfo=UTC))


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200) | st.sampled_from([b"[" * 100_000, b'{"version":1,"records":' + b"[" * 100_000]))
def test_bytes_that_are_no_log_object_are_damage(data: bytes) -> None:
    with pytest.raises(LogDamaged):
        decode(0, data)


def snapshot(core: Any) -> bytes:
    metadata = {"version": "4", "digest": "0" * 64, "core": json.dumps(core)}
    return save(dict(begun()[1].policy.dump()), metadata)


CORE = json.loads(tensors.metadata(snapshots.encode(begun()[1], "0" * 64))["core"])


@settings(max_examples=60, deadline=None)
@given(changed(CORE).map(snapshot) | st.binary(max_size=200) | st.sampled_from([b"\x10" + b"\0" * 7 + b"[" * 100_000]))
def test_a_snapshot_is_unreadable_or_a_state(data: bytes) -> None:
    try:
        state, _ = snapshots.decode(data, make_policy)
    except snapshots.SnapshotUnreadable:
        return
    assert state.core.searcher == SPEC.spec.searcher


# ---------------------------------------------------------------- what the last training leaves


def finished(leave: Callable[[World], None]) -> MemoryStore:
    """Return the store of a search with a final training, whose test has left something else than it should."""
    store = MemoryStore()
    spec = experiment(budget={"samples": 3}, finalTraining={"top": 1, "epochs": 1})
    fates = iter(["result"] * 20)
    world = World(store, fates, iter([0] * 100))
    end = world.end

    def ends(number: int, fate: str) -> None:
        asked = world.jobs[number].inputs[0]
        end(number, fate)
        if asked.final is not None and asked.final.test:
            leave(world)

    world.end = ends  # type: ignore[method-assign]
    search = Search(
        spec, store=store, location=StoreLocation(folder="/nowhere"), executor=WorldExecutor(world), sink=Recorder(),
        pool=InlinePool(), make_policy=CountingPolicy, clock=WorldClock(world),
    )  # fmt: skip
    assert search.run() is Exit.FINISHED
    return store


def provenance(store: MemoryStore) -> Provenance:
    return Provenance.model_validate_json(store.objects[names.BEST_PROVENANCE])


@pytest.mark.parametrize(
    "training",
    [
        b" " * (MAX_TRAINING_BYTES + 1), b"[1]", b"{", b"\xff", b'{"a":"\\ud800"}', b'{"a":' + b"9" * 5000 + b"}",
        b'{"a":' + b"[" * 100_000,
    ],
)  # fmt: skip
def test_a_training_json_that_cannot_be_used_is_left_out(training: bytes) -> None:
    store = finished(lambda world: world.store.put(names.training_key(4), training))
    found = provenance(store)
    assert found.training is None and found.test_sample == 4
    assert store.objects[names.BEST_WEIGHTS] == b"weights"


@settings(max_examples=100, deadline=None)
@given(changed({"batchSize": 7, "dataset": {"digits": {}}, "software": {"torch": "2"}}))
def test_a_training_json_is_left_out_or_can_be_read_again(training: Any) -> None:
    store = MemoryStore()
    store.put(names.training_key(4), written(training))
    found = best.BestWriter(store, lambda: True)._training(4)
    document = Provenance(
        experiment="a", namespace="b", uid="c", sample=1, digest="0" * 64, metric_name="m", goal="Maximize", reward=1.0,
        validation_metric=1.0, software="1", training=found,
    )  # fmt: skip
    Provenance.model_validate_json(document.model_dump_json(by_alias=True))


def test_a_file_beyond_the_limit_is_not_handed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(best, "MAX_MODEL_BYTES", 6)
    store = finished(lambda _: None)
    assert names.BEST_WEIGHTS not in store.objects
    assert store.objects[names.BEST_ONNX] == b"onnx"


# ---------------------------------------------------------------- the status


STATUS = json.loads(
    search_status(begun()[1], running=3, best_uri="s3://b/x", problem=None).model_dump_json(by_alias=True)
) | {"conditions": [{"type": "Progressing", "status": "True", "reason": "Searching", "lastTransitionTime": ""}]}


@settings(max_examples=100, deadline=None)
@given(changed(STATUS))
def test_a_status_is_refused_or_can_be_shown(status: Any) -> None:
    from nas_cli import cluster, display
    from nas_cli.errors import Refusal

    document = {**SPEC.model_dump(mode="json", by_alias=True, exclude_none=True), "status": status}
    try:
        found = cluster._read(document).status
    except Refusal:
        return
    assert found is not None
    display.conditions(found)
    status_panel(found, "accuracy")


def test_a_log_that_took_hostile_results_is_taken_up_again() -> None:
    store = MemoryStore()
    records, state = begun()
    log = Log(store)
    log.append(records)
    for sample, document in enumerate(({**RESULT, "metrics": {"\ud800": 1}}, {**RESULT, "look": "\ud800"})):
        own = {**document, "sample": sample, "architecture": state.core.open[sample].architecture.digest}
        verdict = judged(state, sample, written(own))
        state.apply(verdict)
        log.append([verdict])
    again = fold(read_log(store), make_policy)
    assert again is not None and again.core == state.core
