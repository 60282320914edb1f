"""The page: complete in itself, well formed, true to the log, for every space and any number of samples."""

import json
import re
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from experiments import manifest
from report import logs

from nas_api import names
from nas_api.experiment import NASExperiment
from nas_api.wording import duration
from nas_cli.main import main
from nas_controller.policies.factory import make_policy
from nas_controller.state import fold
from nas_log.records import Finished
from nas_report import analysis, panels, read, render
from nas_report.drawing import Axis, cells, merged, number, percent
from nas_store.folder import FolderStore

MADE = datetime(2026, 3, 4, tzinfo=UTC)
HOSTILE = "<script>alert('&')</script>"
CUSTOM: dict[str, Any] = {
    "custom": {
        "decisions": [
            {"name": f"decision{index}", "options": ["one", "two", "three"][: 2 + index % 2]} for index in range(35)
        ]
        + [{"name": "row", "range": {"from": 1, "to": 30}, "repeat": 40}]
    }
}
PERPLEXITY = {"metric": "perplexity", "goal": "Minimize", "reward": {"inverseSquare": {}}}
_VOID = {"meta", "br", "i-none"}


def experiment(**spec: Any) -> NASExperiment:
    return NASExperiment.model_validate(manifest(**spec))


def page(space: Any, samples: int, **changes: Any) -> str:
    history = read(record for each in logs.records(space, samples, **changes) for record in each)
    assert history is not None
    return render(history, experiment(), MADE)


class Structure(HTMLParser):
    """Checks nesting, and collects what a page would load and which pictures say nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []
        self.silent: list[str] = []
        self.tags: set[str] = set()
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.tags.add(tag)
        self.loads += [str(values[key]) for key in ("src", "href", "xlink:href", "srcset", "action") if key in values]
        if tag == "svg" and not values.get("aria-label") and values.get("aria-hidden") != "true":
            self.silent.append(self.get_starttag_text() or "")
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes something else, at {self.getpos()}"

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text.append(data)


def structure(html: str) -> Structure:
    found = Structure()
    found.feed(html)
    found.close()
    assert found.open == []
    return found


@pytest.mark.parametrize("samples", [1, 2, 10, 61, 400])
@pytest.mark.parametrize(
    "space",
    [logs.CONVOLUTIONAL, logs.CELL, logs.DENSE, logs.PAIRS, CUSTOM],
    ids=["layers", "cell", "dense", "pairs", "custom"],
)
def test_a_page_is_whole_at_any_size(space: Any, samples: int) -> None:
    html = page(space, samples, finished=samples > 1)
    found = structure(html)
    assert found.loads == [] and "url(" not in html and "@import" not in html
    assert "script" not in found.tags
    assert found.silent == []
    assert "nan" not in re.sub(r"<style>.*?</style>", "", html, flags=re.DOTALL).lower()
    assert "inf" not in re.findall(r'd="([^"]*)"', html)


@pytest.mark.parametrize("losses", [0.5, 0.0])
def test_a_search_of_nothing_but_failures_has_a_page(losses: float) -> None:
    objects = list(logs.records(logs.CONVOLUTIONAL, 12, losses=losses))
    history = read(record for each in objects[:2] for record in each) if losses == 0 else None
    html = render(history, experiment(), MADE) if history else page(logs.CONVOLUTIONAL, 12, losses=losses)
    text = " ".join(structure(html).text)
    assert "No sample has a result yet." in text or "trained" in text


def test_the_page_tells_the_numbers_of_the_log() -> None:
    records = [record for each in logs.records(logs.CONVOLUTIONAL, 300, losses=0.03) for record in each]
    history = read(records)
    assert history is not None
    text = " ".join(structure(render(history, experiment(), MADE)).text)
    best = max(history.trained(), key=lambda sample: sample.reward)
    assert number(best.metric) in text and f"sample {best.number}" in text.lower()
    assert f"{len(history.trained())} trained" in text
    assert duration(sum(sample.seconds for sample in history.samples)) in text
    assert history.architecture(best).short() in text
    assert "as of" not in text.lower()


def test_a_hopeless_network_among_few_does_not_flatten_figure_6(monkeypatch: pytest.MonkeyPatch) -> None:
    history = read(record for each in logs.records(logs.CONVOLUTIONAL, 20) for record in each)
    assert history is not None
    differences = {1: [1.0] * 20, 5: [2.0] * 20, 15: [-400.0, *[0.5] * 19]}
    found = analysis.Comparison(True, [*range(15, 35)], differences, 34)
    monkeypatch.setattr(analysis, "compare", lambda _: found)
    panel = panels.arms(history)
    assert "1 of 60 points lie outside the frame" in panel.lead
    # The first of each is the line, the second its sample in the key.
    top1, top5 = (
        re.findall(rf'<path class="[^"]*{look}[^"]*" d="M0 ([\d.]+)', panel.body)[0] for look in ("top1", "top5")
    )
    assert float(top1) - float(top5) > 200
    differences[15][0] = 0.5
    assert "outside" not in panels.arms(history).lead


def test_early_stopping_is_told_with_what_it_spared_and_what_it_cost() -> None:
    found = [record for each in logs.records(logs.CONVOLUTIONAL, 300, losses=0.02, control="0.3") for record in each]
    whole = read(found)
    assert whole is not None
    bound = float(np.quantile([sample.metric for sample in whole.trained()], 0.3)) / 2
    history = read(logs.stopped_early(found, bound))
    assert history is not None
    text = " ".join(" ".join(structure(render(history, experiment(), MADE)).text).split())
    stopped = [sample for sample in history.samples if sample.stopped is not None]
    arm = [sample for sample in whole.trained() if sample.random]
    refused = [sample for sample in arm if sample.metric / 2 < bound]
    assert len(stopped) > 10 and len(refused) > 10
    assert f"{len(stopped)} stopped early" in text
    assert f"{len(stopped)} samples were stopped early: their rewards are what they had then" in text
    assert f"Early stopping ended {len(stopped)} training runs and saved {45 * len(stopped):,} epochs" in text
    best, best_refused = max(each.metric for each in arm), max(each.metric for each in refused)
    assert f"would have ended {len(refused)} of {len(arm)} samples of the random arm" in text
    assert f"ended with accuracy {number(best_refused)}, the arm’s best with {number(best)}." in text


def test_a_search_whose_only_results_are_stopped_ones_has_a_page() -> None:
    found = [record for each in logs.records(logs.CONVOLUTIONAL, 20, losses=0.0) for record in each]
    history = read(logs.stopped_early(found, bound=9.0))
    assert history is not None
    assert "No sample has a result yet." in " ".join(structure(render(history, experiment(), MADE)).text)


def test_the_final_training_is_told_with_its_winner_and_its_agreement() -> None:
    final = {"top": 6, "epochs": 300, "grid": {"learningRate": ["0.1", "0.05"], "decayEpoch": [150]}}
    records = [record for each in logs.records(logs.CONVOLUTIONAL, 60, final=final) for record in each]
    history = read(records)
    assert history is not None
    html = render(history, experiment(), MADE)
    section = re.search(r'<section[^>]*id="final".*?</section>', html, re.DOTALL)
    assert section is not None
    assert section[0].count("<tr><td") == 12
    assert "12 of 12 training runs of 6 networks" in section[0] and "150" in section[0]
    state = fold(records, make_policy)
    assert state is not None and state.core.final is not None and state.core.final.agreement is not None
    stage, agreement = state.core.final, state.core.final.agreement
    assert stage.test_metric is not None and section[0].count(number(stage.test_metric, 5)) == 2
    assert f"<b>{agreement.tau:.2f}</b> (95 % interval {agreement.low:.2f} to {agreement.high:.2f})" in section[0]


def test_trainings_that_differ_in_their_seed_are_one_row_with_its_mean_and_spread() -> None:
    final = {"top": 6, "seeds": 3, "grid": {"learningRate": ["0.1", "0.05"]}}
    records = [record for each in logs.records(logs.CONVOLUTIONAL, 60, final=final) for record in each]
    history, state = read(records), fold(records, make_policy)
    assert history is not None and state is not None and state.core.final is not None
    section = re.search(r'<section[^>]*id="final".*?</section>', render(history, experiment(), MADE), re.DOTALL)
    assert section is not None
    assert section[0].count("<tr><td") == 12 and "36 of 36 training runs of 6 networks" in section[0]
    # As the fold of the log has it, which decides who wins.
    winning = state.core.final.winning
    assert winning is not None and winning.spread is not None
    assert f"{number(winning.metric, 5)} ± {number(winning.spread, 2)}</td>" in section[0]


def test_words_from_outside_are_text_and_nothing_else() -> None:
    records = [record for each in logs.records(logs.CONVOLUTIONAL, 10) for record in each]
    assert isinstance(records[-1], Finished)
    history = read([*records[:-1], records[-1].model_copy(update={"message": HOSTILE})])
    assert history is not None
    named = experiment()
    named = named.model_copy(update={"metadata": named.metadata.model_copy(update={"name": HOSTILE, "uid": HOSTILE})})
    found = structure(render(history, named, MADE))
    assert "script" not in found.tags
    assert "".join(found.text).count(HOSTILE) >= 3


def test_ten_and_three_hundred_samples_say_what_they_do_not_show() -> None:
    few, more = page(logs.CONVOLUTIONAL, 10), page(logs.CONVOLUTIONAL, 300, losses=0.0)
    assert "there are 10" in few and 'id="arms"' not in few
    assert "No sample was lost, and no training run diverged." in more and 'id="failures"' not in more


@pytest.mark.slow
def test_12800_samples_are_drawn_in_two_megabytes() -> None:
    history = read(record for each in logs.records(logs.CONVOLUTIONAL, 12_800) for record in each)
    assert history is not None
    html = render(history, experiment(), MADE)
    assert len(html.encode()) < 2_000_000
    structure(html)


# ---------------------------------------------------------------- the pieces


@pytest.mark.parametrize("ends", [(0.0, 1.0), (0.7012, 0.7013), (-3e-9, 2e-9), (5.0, 12_800.0), (1e6, 9e9)])
def test_ticks_are_round_inside_and_a_few(ends: tuple[float, float]) -> None:
    axis = Axis.around(ends)
    ticks = axis.ticks()
    assert 2 <= len(ticks) <= 12
    assert all(axis.low <= tick <= axis.high for tick in ticks)
    assert axis.at(axis.low) == 0 and axis.at(axis.high) == pytest.approx(1000)


def test_an_axis_of_one_value_or_none_has_room() -> None:
    for values in ([0.5], [0.0], [], [float("nan")]):
        axis = Axis.around(values)
        assert axis.low < axis.high and axis.ticks()


@pytest.mark.parametrize("ends", [(1.0, 1e6), (30.0, 400.0), (2.0, 17.0)])
def test_a_logarithmic_axis_has_ticks(ends: tuple[float, float]) -> None:
    axis = Axis.around(ends, log=True)
    assert len(axis.ticks()) >= 3
    assert axis.at((axis.low * axis.high) ** 0.5) == pytest.approx(500)


def test_cells_are_drawn_once_each_in_their_shade() -> None:
    import numpy as np

    matrix = np.array([[0.0, 0.04, 0.99, np.nan], [1.0, 1.0, 0.5, 0.5]])
    drawn = {}
    for level, path in re.findall(r'class="l(\d)" d="([^"]+)"', cells(matrix)):
        for x, y, width in re.findall(r"M(\d+) (\d+)h(\d+)v1H\d+z", path):
            for column in range(int(x), int(x) + int(width)):
                assert (int(y), column) not in drawn
                drawn[int(y), column] = int(level)
    assert drawn == {(0, 0): 0, (0, 1): 0, (0, 2): 9, (1, 0): 9, (1, 1): 9, (1, 2): 5, (1, 3): 5}


def test_rows_are_merged_into_their_mean() -> None:
    import numpy as np

    matrix = np.array([[0.0], [1.0], [np.nan], [0.5], [np.nan], [np.nan]])
    rows, labels = merged(matrix, [str(index) for index in range(6)], 3)
    assert labels == ["0 to 1", "2 to 3", "4 to 5"]
    np.testing.assert_array_equal(rows, [[0.5], [0.5], [np.nan]])


def test_numbers_are_for_people() -> None:
    assert [number(value) for value in (12800, 0.94123, 123.456, 1e-7, 0.0, -0.5)] == [
        "12,800", "0.9412", "123.5", "1.000e-07", "0", "-0.5000"
    ]  # fmt: skip
    assert [duration(seconds) for seconds in (0.42, 59, 200, 7500, 1e6)] == [
        "0.4 s", "59 s", "3 min 20 s", "2 h 05 min", "11 d 13 h"
    ]  # fmt: skip
    assert [percent(share) for share in (0, 0.004, 0.5, 1)] == ["0 %", "0.4 %", "50 %", "100 %"]


# ---------------------------------------------------------------- the command


def nas(*words: object) -> Any:
    return CliRunner().invoke(main, [str(word) for word in words])


@pytest.fixture
def run(tmp_path: Path) -> Path:
    store = FolderStore(tmp_path / "run")
    logs.write(store, logs.records(logs.CONVOLUTIONAL, 12))
    document = experiment().model_dump(mode="json", by_alias=True)
    (tmp_path / "run" / "experiment.json").write_text(json.dumps(document))
    return tmp_path / "run"


def test_nas_report_writes_the_page_of_a_local_run(run: Path, tmp_path: Path) -> None:
    output = tmp_path / "page.html"
    result = nas("report", run, "-o", output)
    assert result.exit_code == 0, result.output
    assert result.output.strip() == str(output)
    structure(output.read_text())


def test_nas_report_says_what_is_wrong(run: Path, tmp_path: Path) -> None:
    assert "cannot be written" in nas("report", run, "-o", tmp_path / "none" / "page.html").output
    (run / names.log_key(3)).write_text("{}")
    result = nas("report", run, "-o", tmp_path / "page.html")
    assert result.exit_code == 1 and names.log_key(3) in result.output
    for each in (run / "log").iterdir():
        each.unlink()
    assert "has no record yet" in nas("report", run, "-o", tmp_path / "page.html").output
    assert not (tmp_path / "page.html").exists()
