"""A search as a component of Kubeflow Pipelines (kfp 2): `python kfp_component.py` writes search.yaml.

The image needs `nas`, and pip, with which kfp puts itself there; without a package index, put kfp into the image and
say `install_kfp_package=False`. The step's ServiceAccount must be allowed to create, get and list nasexperiments.
"""

from typing import NamedTuple

from kfp import compiler, dsl

IMAGE = "registry.example/team/nas:latest"


@dsl.component(base_image=IMAGE)
def search(manifest: str, namespace: str, timeout: str) -> NamedTuple(
    "Outcome", [("metric", float), ("uri", str), ("outcome", str)]
):
    """Search, and return the best metric, where its network is, and the whole outcome as JSON."""
    import json
    import subprocess
    import tempfile
    from collections import namedtuple

    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        file.write(manifest)
        file.flush()
        command = ["nas", "submit", file.name, "-n", namespace, "--wait", "--timeout", timeout, "-o", "json"]
        # Progress and refusals are on standard error, which is the step's log.
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found = json.loads(done.stdout)
    uri = found["modelUri"] or found["best"]["uri"]
    return namedtuple("Outcome", ["metric", "uri", "outcome"])(found["best"]["metric"], uri, done.stdout)


@dsl.pipeline(name="nas-search")
def pipeline(manifest: str, namespace: str = "default", timeout: str = "12h") -> None:
    """One search; what comes next takes its outputs."""
    task = search(manifest=manifest, namespace=namespace, timeout=timeout)
    # The same manifest is the same experiment, which is waited for again: a cached outcome would hide a new one.
    task.set_caching_options(False)
    task.set_retry(num_retries=3)


if __name__ == "__main__":
    compiler.Compiler().compile(pipeline, "search.yaml")
