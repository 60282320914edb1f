"""The table of `make paper`, and the order in which its searches run; the cluster's part is tests/e2e's."""

from typing import Any

import pytest
from demo.paper import COLUMNS, in_order, paper, row, table
from demo.places import Current
from demo.steps import DemoError, SearchFailedError, Steps

COMPLETE: dict[str, Any] = {
    "metadata": {"name": "cifar-v1-small", "creationTimestamp": "2026-11-24T20:00:05Z"},
    "spec": {"objective": {"metric": "accuracy"}},
    "status": {
        "conditions": [
            {"type": "Progressing", "lastTransitionTime": "2026-11-24T20:04:00Z"},
            {"type": "Complete", "lastTransitionTime": "2026-11-24T20:03:10Z"},
        ],
        "samples": {"observed": 59, "lost": 1},
        "best": {"metric": "0.977387"},
        "policy": {"firstMeanReward": "0.276543", "meanReward": "0.8"},
        "final": {
            **{"trained": 10, "bestMetric": "0.9975", "testMetric": "0.995"},
            **{"kendallTau": "0.4", "kendallLow": "-0.7012", "kendallHigh": "0.941"},
        },
    },
}


def test_a_row_says_what_the_status_says() -> None:
    assert dict(zip(COLUMNS, row(COMPLETE), strict=True)) == {
        "twin": "cifar-v1-small",
        "samples": "59, 1 lost",
        "first 20, last 20": "0.28, 0.80",
        "best of the search": "accuracy 0.9774",
        "final trainings": "10",
        "validation": "0.9975",
        "test": "0.9950",
        "tau": "0.40 (-0.70 to 0.94)",
        "wall time": "185 s",
    }


def test_a_row_is_empty_where_the_status_says_nothing() -> None:
    """One sample's mean is not that of 20, and three finalists give tau no interval."""
    status = {**COMPLETE["status"], "samples": {"observed": 1}, "final": {"trained": 2, "kendallTau": "1"}}
    found = dict(zip(COLUMNS, row({**COMPLETE, "status": status}), strict=True))
    assert (found["first 20, last 20"], found["validation"], found["test"], found["tau"]) == ("", "", "", "1.0")


def test_a_table_is_markdown() -> None:
    lines = table([row(COMPLETE)]).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert [line.count("|") for line in lines] == [len(COLUMNS) + 1] * 3
    assert set(lines[1]) == {"|", " ", "-"}


def test_what_is_transferred_is_searched_first() -> None:
    sources = {"ptb-25m-small": "ptb-small", "ptb-32m-small": "ptb-small"}
    wanted = ["cifar-v1-small", "ptb-25m-small", "ptb-32m-small", "ptb-small"]
    assert in_order(wanted, sources) == ["ptb-small", "cifar-v1-small", "ptb-25m-small", "ptb-32m-small"]
    assert in_order(["ptb-32m-small"], sources) == ["ptb-small", "ptb-32m-small"]
    assert in_order(["cifar-v1-small"], {}) == ["cifar-v1-small"]


def test_after_a_failed_twin_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What needs the failed one's architecture is not run, and both are named."""
    searched = []

    def search(demo: Any, keep: bool) -> None:
        searched.append(demo.name)
        if demo.name == "ptb-small":
            raise SearchFailedError("ptb-small failed: no child succeeds")

    monkeypatch.setattr("demo.demo.Demo.search", search)
    monkeypatch.setattr("demo.demo.Demo.source", lambda demo: "ptb-small" if demo.name == "ptb-32m-small" else None)
    monkeypatch.setattr("demo.demo.Demo.experiment", lambda demo: COMPLETE)
    with pytest.raises(DemoError) as error:
        paper(Current(), Steps(), ["ptb-32m-small", "cifar-v1-small"])
    assert searched == ["ptb-small", "cifar-v1-small"]
    assert str(error.value).splitlines() == [
        "2 of 3 twins have no result",
        "  ptb-small failed: no child succeeds",
        "  ptb-32m-small was not run: it needs the architecture of ptb-small",
    ]
    assert "| cifar-v1-small" in capsys.readouterr().out
