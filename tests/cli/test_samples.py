"""What people and programs read of samples that were stopped early."""

import json
from datetime import UTC, datetime

from rich.console import Console, RenderableType

from nas_api.experiment import NASExperimentStatus, ObjectiveSpec, SampleCounts, SearcherSpec
from nas_api.search_space import SearchSpaceSpec
from nas_api.spaces.convolutional import ConvolutionalArchitecture
from nas_api.stopping import Stopped
from nas_cli.display import Progress, status_panel
from nas_cli.samples import json_lines, samples, table
from nas_controller.status import SearchStatus
from nas_log.records import Observed, Proposed, Record, Started

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


def shown(what: RenderableType) -> str:
    console = Console(width=160, no_color=True)
    with console.capture() as capture:
        console.print(what)
    return capture.get()


def test_a_stopped_sample_is_marked_in_the_table() -> None:
    text = shown(table(samples(RECORDS), "accuracy"))
    assert text.count("stopped after 5 of 50 epochs") == 2
    assert "Observed, as 0, stopped after 5 of 50 epochs" in text


def test_a_stopped_sample_is_marked_for_programs() -> None:
    documents = [json.loads(line) for line in json_lines(samples(RECORDS), "accuracy").splitlines()]
    stopped = {"epoch": 5, "of": 50}
    assert [document["stopped"] for document in documents] == [stopped, None, stopped]


def test_the_status_counts_stopped_samples() -> None:
    assert "2 stopped early, 1 lost" in shown(status_panel(NASExperimentStatus(samples=COUNTS), "accuracy"))
    assert "stopped" not in shown(status_panel(NASExperimentStatus(samples=SampleCounts(budget=10)), "accuracy"))


def test_a_run_off_a_terminal_counts_stopped_samples() -> None:
    console = Console(width=160, force_terminal=False)
    with console.capture() as capture:
        Progress(console, "digits", "accuracy").publish(SearchStatus(samples=COUNTS))
    assert "2 stopped early, 1 lost" in capture.get()
