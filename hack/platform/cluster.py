"""kubectl, helm and manifests on a cluster that hack/cluster has built: what each part is installed with."""

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from hack.cluster import lifecycle
from hack.cluster.errors import ClusterError
from hack.cluster.instance import Instance

READY_SECONDS = 300
_MANIFESTS = Path(__file__).with_name("manifests")


def manifest(name: str, **words: str) -> str:
    """A part's YAML, with each word that it has in double braces replaced by its value: {{VERSION}}."""
    text = (_MANIFESTS / f"{name}.yaml").read_text(encoding="utf-8")
    for word, value in words.items():
        text = text.replace(f"{{{{{word}}}}}", value)
    return text


@dataclass(frozen=True)
class Cluster:
    """A running cluster, as its administrator sees it."""

    instance: Instance

    def run(self, *words: str, stdin: str = "") -> str:
        """Run a command with the cluster's environment and return what it printed.

        Raises: ClusterError with its last words when it fails.
        """
        environment = {**os.environ, **lifecycle.environment(self.instance)}
        done = subprocess.run(words, env=environment, input=stdin, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise ClusterError(f"{' '.join(words[:3])} failed: {done.stderr.strip() or done.stdout.strip()}")
        return done.stdout

    def apply(self, manifest: str) -> None:
        """Create or change objects, given as YAML or JSON."""
        # Server-side, for what it would else keep in an annotation is too large for some definitions.
        self.run("kubectl", "apply", "--server-side", "--force-conflicts", "-f", "-", stdin=manifest)

    def make_namespace(self, name: str) -> None:
        """A namespace that admits what the restricted Pod Security Standard admits."""
        labels = {"pod-security.kubernetes.io/enforce": "restricted"}
        body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}
        self.apply(json.dumps(body))

    def await_deployment(self, namespace: str, name: str) -> None:
        """Raises: ClusterError when it is not available in time."""
        timeout = f"--timeout={READY_SECONDS}s"
        self.run("kubectl", "-n", namespace, "rollout", "status", f"deployment/{name}", timeout)
