"""What the header of a safetensors file says, and what is said of one that is damaged."""

import pytest
import torch
from safetensors.torch import save

from nas_store.tensors import metadata

SAVED = save({"weight": torch.ones(3)}, {"version": "1", "words": 'quotes " and ü'})


def test_a_header_is_read_as_it_was_written() -> None:
    assert metadata(SAVED) == {"version": "1", "words": 'quotes " and ü'}


@pytest.mark.parametrize(
    "data",
    [b"", b"nonsense", SAVED[:40], save({"weight": torch.ones(3)}), (2).to_bytes(8, "little") + b"[]"],
    ids=["empty", "nonsense", "cut", "without", "list"],
)
def test_a_damaged_header_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError):
        metadata(data)
