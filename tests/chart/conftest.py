"""`helm template` for the tests of the chart."""

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hack.cluster import binaries

CHART = Path(__file__).resolve().parents[2] / "helm" / "nas-operator"
Objects = list[dict[str, Any]]


def helm(*words: str) -> subprocess.CompletedProcess[str]:
    """Run the helm that hack/cluster builds."""
    return subprocess.run([binaries.BINARIES["helm"].path, *words], capture_output=True, text=True, check=False)


@pytest.fixture(scope="session")
def programs() -> None:
    """Skip where helm and kubeconform have not been built."""
    missing = [name for name in ("helm", "kubeconform") if not binaries.BINARIES[name].path.exists()]
    if missing:
        pytest.skip(f"not built: {', '.join(missing)}; `python3 -m hack.cluster build` makes them")


@pytest.fixture
def render(programs: None) -> Callable[..., Objects]:
    """Return a function that renders the chart with ``--set`` values into objects."""

    def rendered(*values: str, release: str = "nas-operator", namespace: str = "nas-system") -> Objects:
        words = [word for value in values for word in ("--set", value)]
        done = helm("template", release, str(CHART), "--namespace", namespace, *words)
        assert done.returncode == 0, done.stderr
        return [document for document in yaml.safe_load_all(done.stdout) if document]

    return rendered
