"""The cell's tree: who combines whom, and the order of the weights' columns."""

from hypothesis import given
from hypothesis import strategies as st

from nas_api.spaces.recurrent_cell import RecurrentCellArchitecture, RecurrentCellSpace, RecurrentCellSpec

SPACE = RecurrentCellSpace(RecurrentCellSpec(base=8, combinations=("add", "elem_mult", "max")))
CHOICES = st.tuples(*(st.integers(0, len(each.options) - 1) for each in SPACE.decisions(0)))


def test_every_node_but_the_root_is_combined_once() -> None:
    cell = SPACE.decode((0,) * len(SPACE.decisions(0)))
    combined = [child for index in range(8, 15) for child in cell.children(index)]
    assert combined == list(range(14))


@given(CHOICES)
def test_columns_are_all_leaves_with_each_operation_in_one_piece(choices: tuple[int, ...]) -> None:
    cell = SPACE.decode(choices)
    order = cell.columns()
    assert sorted(order) == list(range(8))
    for operations in (
        [cell.nodes[leaf].combination for leaf in order],
        [(cell.nodes[leaf].combination, cell.nodes[leaf].activation) for leaf in order],
    ):
        pieces = [one for one, before in zip(operations, [None, *operations], strict=False) if one != before]
        assert len(pieces) == len(set(operations))


def test_the_paper_s_order_of_the_indices_is_kept() -> None:
    """Section 3.4: the first cell index selects c_t, the second what is injected."""
    space = RecurrentCellSpace(RecurrentCellSpec(base=2))
    kinds = [each.kind for each in space.decisions(0)]
    assert kinds == ["combination", "activation"] * 4 + ["cellOutput", "injected"]
    # The worked example: tree add/tanh, elem_mult/relu, elem_mult/sigmoid, inject add/relu, indices 1 and 0.
    example = space.decode((0, 1, 1, 3, 1, 2, 0, 3, 1, 0))
    assert example == RecurrentCellArchitecture.parse_short(
        "add/tanh elem_mult/relu elem_mult/sigmoid; inject add/relu at 0; c=1"
    )
