"""`helm template` for the tests of the chart."""

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hack.cluster import binaries

CHART = Path(__file__).resolve().parents[2] / "helm" / "nas-operator"
CI = ("default", "everything", "air-gapped")
"""The files of values in the chart's ci/ folder, as helm's chart-testing looks for them."""
Objects = list[dict[str, Any]]


def helm(*words: str) -> subprocess.CompletedProcess[str]:
    """Run the helm that hack/cluster builds."""
    return subprocess.run([binaries.BINARIES["helm"].path, *words], capture_output=True, text=True, check=False)


def values_file(name: str) -> Path:
    """Return one of the files that CI names."""
    return CHART / "ci" / f"{name}-values.yaml"


@pytest.fixture(scope="session")
def programs() -> None:
    """Skip where helm and kubeconform have not been built."""
    missing = [name for name in ("helm", "kubeconform") if not binaries.BINARIES[name].path.exists()]
    if missing:
        pytest.skip(f"not built: {', '.join(missing)}; `python3 -m hack.cluster build` makes them")


@pytest.fixture(scope="session")
def render(programs: None) -> Callable[..., Objects]:
    """Return a function that renders the chart with ``--set`` values over a file of values into objects."""

    def rendered(
        *values: str, file: str | Path = "default", release: str = "nas-operator", namespace: str = "nas-system"
    ) -> Objects:
        path = values_file(file) if isinstance(file, str) else file
        words = ["--values", str(path), *(word for value in values for word in ("--set", value))]
        done = helm("template", release, str(CHART), "--namespace", namespace, *words)
        assert done.returncode == 0, done.stderr
        # libyaml's: the definition alone takes the other one a tenth of a second.
        return [document for document in yaml.load_all(done.stdout, yaml.CSafeLoader) if document]

    return rendered
