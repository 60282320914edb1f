"""Architectures of each space as people see them."""

from pathlib import Path

from rich.console import Console

from nas_api.architecture import Architecture
from nas_api.spaces.custom import CustomArchitecture
from nas_api.spaces.recurrent_cell import RecurrentCellArchitecture
from nas_cli.display import architecture_table
from nas_cli.folders import local_hint


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


def test_choices_are_shown_by_name() -> None:
    assert rows(CustomArchitecture(choices={"op": "conv", "width": 24, "cell": ("x", "y")})) == [
        ["op", "conv"],
        ["width", "24"],
        ["cell", "x, y"],
    ]


def test_a_folder_that_is_no_run_is_told_so(tmp_path: Path) -> None:
    assert local_hint(str(tmp_path)) == f"; the folder {tmp_path} holds no local run (no experiment.json)"
    assert local_hint(str(tmp_path / "nothing")) == ""
