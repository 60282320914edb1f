"""What docs/gitops.md tells people to type does what it says."""

import re
import subprocess

import pytest
from cluster_fixtures import REPOSITORY, ControlPlane

from nas_kube.resources import CONFIG_MAPS

KEY = "resource.customizations.health.nas-operator.io_NASExperiment"


@pytest.mark.cluster
def test_the_health_script_goes_beside_what_argo_cd_is_told_already(
    control_plane: ControlPlane, namespace: str
) -> None:
    mine = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "argocd-cm"}, "data": {"url": "https://cd"}}
    control_plane.client.create(CONFIG_MAPS, namespace, mine)
    page = (REPOSITORY / "docs/gitops.md").read_text()
    (command,) = [block for block in re.findall(r"```sh\n(.*?)```", page, re.DOTALL) if KEY in block]
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command.replace("--namespace argocd", f"--namespace {namespace}")],
        env=control_plane.environment,
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    script = (REPOSITORY / "examples/gitops/argocd-health.lua").read_text()
    assert control_plane.client.get(CONFIG_MAPS, namespace, "argocd-cm")["data"] == {"url": "https://cd", KEY: script}
