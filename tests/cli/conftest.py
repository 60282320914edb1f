"""Small searches for the command line's tests."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from experiments import manifest

Write = Callable[..., Path]


@pytest.fixture
def small(tmp_path: Path) -> Write:
    """Return a function that writes the manifest of a search whose children take a moment."""

    def write(file: str = "small.yaml", *, samples: int = 8, name: str = "small", **spec: Any) -> Path:
        trainer = {
            "dataset": {"digits": {"trainingImages": 100}},
            "epochs": 2,
            "rewardEpochs": 1,
            "batchSize": 50,
        }
        space = {"layers": {"initial": 2}, "filterHeights": [1, 3], "filterWidths": [1, 3], "filters": [4, 8]}
        document = manifest(
            name=name,
            **{
                "searchSpace": {"convolutional": space},
                "budget": {"samples": samples},
                "trainer": trainer,
                "parallelism": 2,
                # Each sample is a child: a space this small would soon repeat itself.
                "searcher": {"duplicates": "Train"},
                **spec,
            },
        )
        path = tmp_path / file
        path.write_text(yaml.safe_dump(document))
        return path

    return write
