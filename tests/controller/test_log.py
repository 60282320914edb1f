"""The log's objects: what is written once is read back, and any damage is named."""

import hashlib
import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, get_args

import pytest
from controller.world import CountingPolicy, MemoryStore, make_experiment
from pydantic import BaseModel

from nas_api import names
from nas_api.reasons import LostReason, Reason
from nas_api.spaces.convolutional import ConvolutionalArchitecture, ConvolutionalLayer
from nas_controller.state import fold
from nas_log.errors import Fenced, LogDamaged
from nas_log.log import Log, decode, encode, read_log, read_objects
from nas_log.records import Finished, Launched, Lost, Observed, Proposed, Reconfigured, Record, Started
from nas_store.errors import StoreUnreachable

SPEC = make_experiment().spec
ARCHITECTURE = ConvolutionalArchitecture(layers=(ConvolutionalLayer(filter_height=1, filter_width=3, filters=4),))
STARTED = Started(
    epoch=1,
    moment=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
    search_space=SPEC.search_space,
    searcher=SPEC.searcher,
    objective=SPEC.objective,
)
ALL_KINDS: list[Record] = [
    STARTED,
    Reconfigured(parallelism=2, budget=SPEC.budget),
    Proposed(sample=0, architecture=ARCHITECTURE, log_probability=-0.1 - 0.2, version=3),
    Launched(launch=0, samples=(0,), attempt=1),
    Observed(sample=0, metrics={"accuracy": 1 / 3, "other": float("nan"), "third": float("inf")}, reward=1 / 27),
    Lost(sample=1, reason=LostReason.TRAINER_FAILED, message='words "in quotes"'),
    Finished(outcome="Complete", reason=Reason.SAMPLES_SPENT, message="done"),
]


def written(count: int = 4) -> MemoryStore:
    store = MemoryStore()
    log = Log(store, writer="one")
    log.append([STARTED])
    for number in range(count - 1):
        log.append([Reconfigured(parallelism=number + 1, budget=SPEC.budget)])
    return store


def test_every_kind_of_record_survives_bit_for_bit() -> None:
    store = MemoryStore()
    Log(store).append(ALL_KINDS)
    back = read_log(store)
    assert [record.model_dump_json() for record in back] == [record.model_dump_json() for record in ALL_KINDS]
    assert {record.type for record in back} == {kind.__name__ for kind in map(type, ALL_KINDS)}


def test_an_object_is_strict_json() -> None:
    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    json.loads(encode("w", 0, "", ALL_KINDS), parse_constant=refuse)


def test_an_empty_place_has_an_empty_log() -> None:
    assert read_log(MemoryStore()) == []
    assert fold([], CountingPolicy) is None


def test_a_long_log_is_read_in_order() -> None:
    store = written(300)
    assert [each.sequence for each in read_objects(store)] == list(range(300))
    objects = list(read_objects(store))
    assert [each.sequence for each in read_objects(store, 250, objects[250].digest)] == list(range(251, 300))


def test_a_second_writer_fences_the_first() -> None:
    store = written(2)
    objects = list(read_objects(store))
    one, two = (Log(store, 1, objects[1].digest) for _ in range(2))
    two.append([Reconfigured(parallelism=7, budget=SPEC.budget)])
    with pytest.raises(Fenced, match=r"log/0000000002\.json"):
        one.append([Reconfigured(parallelism=7, budget=SPEC.budget)])
    assert len(list(read_objects(store))) == 3


def test_a_lost_answer_is_no_fencing() -> None:
    class Forgetful(MemoryStore):
        forget = True

        def put_if_absent(self, key: str, data: bytes) -> bool:
            stored = super().put_if_absent(key, data)
            if Forgetful.forget:
                Forgetful.forget = False
                raise StoreUnreachable("no answer")
            return stored

    store = Forgetful()
    log = Log(store)
    with pytest.raises(StoreUnreachable):
        log.append([STARTED])
    log.append([STARTED])
    log.append([Reconfigured(parallelism=1, budget=SPEC.budget)])
    assert len(list(read_objects(store))) == 2


def _truncate(data: bytes) -> bytes:
    return data[:-5]


def _change(data: bytes) -> bytes:
    return data.replace(b'"parallelism":2', b'"parallelism":3')


def _newer(data: bytes) -> bytes:
    return data.replace(b'"version":1', b'"version":2')


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_truncate, "is not a log object"),
        (lambda _: b"[]", "is not a log object"),
        (lambda _: b"\xff\xfe", "is not a log object"),
        (_change, "its checksum is wrong"),
        (_newer, "has format version 2"),
        (lambda _: encode("w", 9, "", []), "is a copy of object 9"),
        (lambda _: encode("w", 2, "0" * 64, []), "does not follow"),
    ],
)
def test_damage_is_named(damage: Callable[[bytes], bytes], words: str) -> None:
    store = written()
    key = names.log_key(2)
    store.objects[key] = damage(store.objects[key])
    with pytest.raises(LogDamaged, match=words) as caught:
        read_log(store)
    assert key in str(caught.value)


def test_a_gap_is_named() -> None:
    store = written()
    del store.objects[names.log_key(1)]
    with pytest.raises(LogDamaged, match=r"log/0000000001\.json is missing"):
        read_log(store)


def test_a_snapshot_without_its_log_is_a_gap() -> None:
    with pytest.raises(LogDamaged, match=r"log/0000000004\.json is missing"):
        list(read_objects(written(4), 7, "0" * 64))


def rewritten(change: Callable[[dict[str, Any]], None]) -> bytes:
    """Return an object as another version may write it, with a checksum that fits."""
    document = json.loads(encode("w", 0, "", [STARTED]))
    del document["checksum"]
    change(document["records"][0])
    text = json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
    return json.dumps({**document, "checksum": hashlib.sha256(text).hexdigest()}).encode()


def test_a_record_of_a_newer_version_is_named() -> None:
    with pytest.raises(LogDamaged, match="does not know"):
        decode(0, rewritten(lambda record: record.update(type="Divined")))


def test_what_a_newer_version_adds_to_a_record_is_ignored() -> None:
    assert decode(0, rewritten(lambda record: record.update(novelty=1))).records == [STARTED]


@pytest.mark.parametrize(
    "records",
    [
        [ALL_KINDS[1]],
        [STARTED, ALL_KINDS[3]],
        [STARTED, ALL_KINDS[4]],
        [STARTED, Proposed(sample=1, architecture=ARCHITECTURE, log_probability=0, version=0)],
        [STARTED, ALL_KINDS[6], ALL_KINDS[1]],
    ],
)
def test_records_that_do_not_fit_each_other_are_damage(records: list[Record]) -> None:
    with pytest.raises(LogDamaged):
        fold(records, CountingPolicy)


def _models(kind: Any) -> set[type[BaseModel]]:
    """Return the models of which a value of this type is made."""
    if not (isinstance(kind, type) and issubclass(kind, BaseModel)):
        return set().union(*(_models(part) for part in get_args(kind)))
    fields = [field.annotation for field in kind.model_fields.values()]
    return {kind}.union(*(_models(field) for field in fields))


def test_what_is_none_is_left_out_of_the_log_and_is_none_when_read_back() -> None:
    for model in _models(Record):
        for name, field in model.model_fields.items():
            if type(None) in get_args(field.annotation):
                assert field.get_default() is None, f"{model.__name__}.{name}"
