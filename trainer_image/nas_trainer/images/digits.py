"""scikit-learn's digits, read from its data file."""

import gzip
import importlib.util
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nas_trainer.files import DatasetUnavailable

DIGITS_IMAGES = 1797


def read_digits() -> NDArray[np.float32]:
    """Return the digits, float32 (1797, 65): the 64 pixels of each row by row, from 0 to 16, and its label.

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
    if table.shape != (DIGITS_IMAGES, 65):
        raise DatasetUnavailable(f"the digits of scikit-learn have the shape {table.shape}: install it again")
    return table
