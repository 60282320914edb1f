"""Logs that earlier versions wrote mean today what they meant then."""

import json
from typing import Any

import pytest
from controller.golden.write import FOLDER, stored
from pydantic import TypeAdapter

from nas_controller.policies.factory import make_policy
from nas_controller.recovery import recover
from nas_controller.state import Core, fold
from nas_log.log import read_log
from nas_log.records import RECORDS

GOLDEN = sorted(path.stem for path in FOLDER.glob("*.log"))


def test_every_kind_of_record_is_in_a_golden_log() -> None:
    schema = RECORDS.json_schema()["items"]
    written = {record.type for name in GOLDEN for record in read_log(stored(name))}
    assert written == set(schema["discriminator"]["mapping"])


@pytest.mark.parametrize("name", GOLDEN)
def test_a_log_of_an_earlier_version_gives_the_state_that_it_gave_then(name: str) -> None:
    state = fold(read_log(stored(name)), make_policy)
    assert state is not None
    now = json.loads(TypeAdapter(Core).dump_json(state.core))
    then = json.loads((FOLDER / f"{name}.core.json").read_text())
    _is_in(then, now)


@pytest.mark.parametrize("name", GOLDEN)
def test_a_search_can_be_taken_up_from_a_log_of_an_earlier_version(name: str) -> None:
    recovered = recover(stored(name), make_policy)
    assert recovered.state is not None and recovered.state.core.outcome is not None


def _is_in(then: Any, now: Any, place: str = "core") -> None:
    """Check that everything of the old state is in the new one, which may have more fields."""
    if isinstance(then, dict):
        assert isinstance(now, dict) and then.keys() <= now.keys(), place
        for key, value in then.items():
            _is_in(value, now[key], f"{place}.{key}")
    elif isinstance(then, list):
        assert isinstance(now, list) and len(now) == len(then), place
        for index, value in enumerate(then):
            _is_in(value, now[index], f"{place}[{index}]")
    else:
        # Sums of floating-point numbers may differ in their last bits on another processor.
        assert now == (pytest.approx(then) if isinstance(then, float) else then), place
