"""A search as people see it: architectures of each space, lines of progress, the list of commands."""

from io import StringIO
from pathlib import Path

from click.testing import CliRunner
from rich.console import Console

from nas_api.architecture import Architecture
from nas_api.experiment import Best, SampleCounts
from nas_api.spaces.convolutional_cell import ConvolutionalCellArchitecture
from nas_api.spaces.custom import CustomArchitecture
from nas_api.spaces.recurrent_cell import RecurrentCellArchitecture
from nas_cli.display import Progress, architecture_table, status_panel
from nas_cli.folders import local_hint
from nas_cli.main import main
from nas_controller.status import SearchStatus


def rows(architecture: Architecture) -> list[list[str]]:
    """Return the cells of an architecture's table, without its head."""
    console = Console(width=120, no_color=True)
    with console.capture() as capture:
        console.print(architecture_table(architecture, 1))
    return [[cell.strip() for cell in line.split("│")] for line in capture.get().splitlines()[2:]]


def test_a_cell_says_what_each_node_takes_and_where_its_state_comes_from() -> None:
    cell = RecurrentCellArchitecture.parse_short("add/tanh elem_mult/sigmoid add/relu; inject add/tanh at 1; c=2")
    assert rows(cell) == [
        ["0", "x[t], h[t-1]", "add", "tanh", ""],
        ["1", "x[t], h[t-1]", "elem_mult", "sigmoid", "takes c[t-1] by add/tanh"],
        ["2", "0, 1", "add", "relu", "gives c[t]"],
    ]


def test_a_convolutional_cell_says_what_each_node_adds_up() -> None:
    text = "pairs 2x1:8 |skip~0|conv_3x3~1|+|none~2|skip~0| reduce |skip~1|skip~1|+|none~0|skip~0|"
    assert rows(ConvolutionalCellArchitecture.parse_short(text)) == [
        ["normal", "2", "skip(0) + conv_3x3(1)", ""],
        ["normal", "3", "none(2) + skip(0)", "yes"],
        ["reduction", "2", "skip(1) + skip(1)", "yes"],
        ["reduction", "3", "none(0) + skip(0)", "yes"],
    ]


def test_choices_are_shown_by_name() -> None:
    assert rows(CustomArchitecture(choices={"op": "conv", "width": 24, "cell": ("x", "y")})) == [
        ["op", "conv"],
        ["width", "24"],
        ["cell", "x, y"],
    ]


def test_lines_say_nothing_of_a_best_or_a_time_that_there_is_not() -> None:
    out = StringIO()
    progress = Progress(Console(file=out), "mine", "accuracy")
    best = Best(sample=1, reward="0.5", metric="0.5", architecture="x", digest="0" * 64, uri="file:///x")
    for observed in (0, *range(4, 9)):
        counts = SampleCounts(budget=8, running=1, observed=observed)
        progress.publish(SearchStatus(samples=counts, best=best if observed else None))
    lines = out.getvalue().splitlines()
    assert lines[0] == "0/8 samples, 1 running, no result yet"
    assert lines[-1] == "8/8 samples, 1 running, best accuracy 0.5000 (sample 1)"


def test_every_command_is_told_in_one_line_of_help() -> None:
    words = CliRunner().invoke(main, ["--help"], terminal_width=80).output.partition("Commands:\n")[2]
    assert len(words.splitlines()) == len(main.commands) and "..." not in words


def test_a_folder_that_is_no_run_is_told_so(tmp_path: Path) -> None:
    assert local_hint(str(tmp_path)) == f"; the folder {tmp_path} holds no local run (no experiment.json)"
    assert local_hint(str(tmp_path / "nothing")) == ""


def test_children_in_a_queue_are_counted_apart_from_those_that_run() -> None:
    console = Console(width=120, no_color=True)
    with console.capture() as capture:
        console.print(status_panel(SearchStatus(samples=SampleCounts(budget=8, running=3, queued=2)), "accuracy"))
    assert "1 running, 2 queued" in capture.get()
