"""scikit-learn's digits, read from its data file."""

import gzip
import importlib.util
import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nas_api.experiment import DigitsDataset
from nas_trainer.files import DatasetUnavailable

_IMAGES = 1797


def read_digits() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return the digits' pixels, float32 (n, 1, 8, 8) from 0 to 16, and their labels, int64 (n,).

    Raises:
        DatasetUnavailable: scikit-learn is not installed, or damaged.
    """
    # Importing scikit-learn costs more than training a small child does; its data file is all we need.
    package = importlib.util.find_spec("sklearn")
    if package is None or not package.submodule_search_locations:
        raise DatasetUnavailable("scikit-learn, which carries the digits, is not installed: use the trainer's image")
    path = Path(package.submodule_search_locations[0]) / "datasets" / "data" / "digits.csv.gz"
    try:
        with gzip.open(path, "rt") as file:
            table = np.loadtxt(file, delimiter=",", dtype=np.float32)
    except (OSError, ValueError) as error:
        raise DatasetUnavailable(f"the digits of scikit-learn cannot be read ({error}): install it again") from error
    shape = (DigitsDataset.channels, DigitsDataset.side, DigitsDataset.side)
    if table.shape != (_IMAGES, math.prod(shape) + 1):
        raise DatasetUnavailable(f"the digits of scikit-learn have the shape {table.shape}: install it again")
    return table[:, :-1].reshape(-1, *shape), table[:, -1].astype(np.int64)
