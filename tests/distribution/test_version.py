"""The version is written in the package and in the chart, and nowhere else."""

import tomllib
from pathlib import Path

import yaml

import nas_api

ROOT = Path(__file__).parents[2]


def test_the_chart_has_the_version_of_the_package() -> None:
    chart = yaml.safe_load((ROOT / "helm/nas-operator/Chart.yaml").read_text(encoding="utf-8"))
    assert (chart["version"], chart["appVersion"]) == (nas_api.__version__, nas_api.__version__)


def test_the_distribution_takes_its_version_from_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["project"]["dynamic"] == ["version"]
    assert ROOT / project["tool"]["hatch"]["version"]["path"] == Path(nas_api.__file__)
