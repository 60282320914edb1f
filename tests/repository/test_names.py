"""No folder that Python looks into has a module or package under the name of one of Python's own.

A script has its own folder first on its path: with a package ``hack/platform`` every script in ``hack`` lost Python's
``platform``, and ``operator/__init__.py`` would take ``operator`` from every program.
"""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LOOKED_INTO = (
    *(".", "api", "bench", "cli", "controller_image", "demo", "docs", "hack", "hack/addons", "hack/cluster"),
    *("followers", "kube", "log", "operator", "report", "store", "tests", "trainer_image"),
)


@pytest.mark.parametrize("folder", LOOKED_INTO)
def test_nothing_takes_the_name_of_one_of_pythons_own(folder: str) -> None:
    place = ROOT / folder
    modules = {path.stem for path in place.glob("*.py")} | {path.parent.name for path in place.glob("*/__init__.py")}
    assert modules, f"{folder} has no module: it is no place that Python looks into"
    assert not modules & sys.stdlib_module_names
