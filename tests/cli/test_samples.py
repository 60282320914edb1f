"""What people and programs read of samples: those that were stopped early, open, lost, reused or inherited."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from controller.world import MemoryStore
from experiments import manifest
from rich.console import Console, RenderableType

from nas_api.experiment import NASExperiment, NASExperimentStatus, ObjectiveSpec, SampleCounts, SearcherSpec
from nas_api.reasons import LostReason
from nas_api.search_space import SearchSpaceSpec
from nas_api.spaces.convolutional import ConvolutionalArchitecture
from nas_api.stopping import Stopped
from nas_cli.display import Progress, status_panel
from nas_cli.experiment_store import read_samples
from nas_cli.samples import json_lines, table
from nas_controller.status import SearchStatus
from nas_log.log import Log
from nas_log.reader import Sample
from nas_log.records import (
    Inherited,
    Launched,
    Lost,
    Observed,
    Proposed,
    Record,
    Started,
    WarmStarted,
)

NETWORK = ConvolutionalArchitecture.parse_short("3x3:8")
SPACE = {"convolutional": {"layers": {"initial": 1}, "filterHeights": [3], "filterWidths": [3], "filters": [8]}}
RECORDS: list[Record] = [
    Started(
        epoch=1,
        moment=datetime(2026, 1, 1, tzinfo=UTC),
        search_space=SearchSpaceSpec.model_validate(SPACE),
        searcher=SearcherSpec(),
        objective=ObjectiveSpec(),
    ),
    Proposed(sample=0, architecture=NETWORK, log_probability=-1.0, version=0),
    Proposed(sample=1, architecture=NETWORK, log_probability=-1.0, version=0),
    Proposed(sample=2, architecture=NETWORK, log_probability=-1.0, version=0),
    Observed(sample=0, metrics={"accuracy": 0.5}, reward=0.125, stopped=Stopped(epoch=5, of=50)),
    Observed(sample=1, metrics={"accuracy": 0.9}, reward=0.729),
    Observed(sample=2, metrics={"accuracy": 0.5}, reward=0.125, reused=0, stopped=Stopped(epoch=5, of=50)),
]
COUNTS = SampleCounts(budget=10, observed=6, stopped=2, lost=1)


def samples(records: Sequence[Record] = RECORDS) -> list[Sample]:
    store = MemoryStore()
    Log(store).append(records)
    return read_samples(NASExperiment.model_validate(manifest()), store)


def shown_to_programs(records: Sequence[Record] = RECORDS) -> list[dict[str, Any]]:
    return [json.loads(line) for line in json_lines(samples(records), "accuracy").splitlines()]


def shown(what: RenderableType) -> str:
    console = Console(width=160, no_color=True)
    with console.capture() as capture:
        console.print(what)
    return capture.get()


def test_a_stopped_sample_is_marked_in_the_table() -> None:
    text = shown(table(samples(), "accuracy"))
    assert text.count("stopped after 5 of 50 epochs") == 2
    assert "Observed, as 0, stopped after 5 of 50 epochs" in text


def test_a_stopped_sample_is_marked_for_programs() -> None:
    documents = shown_to_programs()
    stopped = {"epoch": 5, "of": 50}
    assert [document["stopped"] for document in documents] == [stopped, None, stopped]


def test_open_samples_are_listed_where_they_were_drawn() -> None:
    documents = shown_to_programs(RECORDS[:-1])
    assert [(each["sample"], each["state"]) for each in documents] == [(0, "Observed"), (1, "Observed"), (2, "Open")]
    assert documents[2]["reward"] is documents[2]["parameters"] is None and documents[2]["attempts"] == 0
    early = shown_to_programs([*RECORDS[:4], RECORDS[5]])
    assert [each["state"] for each in early] == ["Open", "Observed", "Open"]


def test_a_document_says_what_the_record_says() -> None:
    first = RECORDS[4].model_copy(update={"metrics": {"accuracy": 0.5, "flops": 7.0}, "parameters": 12})
    documents = shown_to_programs([*RECORDS[:4], first, RECORDS[6]])
    assert (documents[0]["metrics"], documents[0]["parameters"]) == ({"accuracy": 0.5, "flops": 7.0}, 12)
    assert (documents[2]["metrics"], documents[2]["parameters"]) == ({"accuracy": 0.5}, 0)


def test_a_lost_sample_says_why_and_how_often_it_was_tried() -> None:
    launches = [Launched(launch=0, samples=(1,), attempt=1), Launched(launch=1, samples=(1,), attempt=2)]
    lost = Lost(sample=1, reason=LostReason.OUT_OF_MEMORY, message="9 GiB")
    (_, document, _) = shown_to_programs([*RECORDS[:4], *launches, lost])
    assert (document["state"], document["message"], document["attempts"]) == ("Lost", "OutOfMemory: 9 GiB", 2)


def test_samples_of_an_earlier_experiment_are_not_listed() -> None:
    warm = WarmStarted(experiment="earlier", uri="s3://b/log", samples=1, first_sample=7)
    inherited = Inherited(sample=6, architecture=NETWORK, log_probability=-1.0, metrics={"accuracy": 0.5}, reward=0.1)
    proposed = Proposed(sample=7, architecture=NETWORK, log_probability=-1.0, version=0)
    assert [each.number for each in samples([RECORDS[0], warm, inherited, proposed])] == [7]


def test_the_status_counts_stopped_samples() -> None:
    assert "2 stopped early, 1 lost" in shown(status_panel(NASExperimentStatus(samples=COUNTS), "accuracy"))
    assert "stopped" not in shown(status_panel(NASExperimentStatus(samples=SampleCounts(budget=10)), "accuracy"))


def test_a_run_off_a_terminal_counts_stopped_samples() -> None:
    console = Console(width=160, force_terminal=False)
    with console.capture() as capture:
        Progress(console, "digits", "accuracy").publish(SearchStatus(samples=COUNTS))
    assert "2 stopped early, 1 lost" in capture.get()
