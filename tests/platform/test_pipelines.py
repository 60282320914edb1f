"""The examples of docs/pipelines.md, run as they are with the wheel that a user installs, against a real cluster."""

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from demo.images import image_tag
from demo.places import NAMESPACE
from distribution.test_wheel import light
from e2e.conftest import World, small
from hack.cluster.paths import REPOSITORY
from venvs import python_with

__all__ = ["light"]
pytestmark = [pytest.mark.platform, pytest.mark.node, pytest.mark.slow, pytest.mark.timeout(3600)]

EXAMPLES = REPOSITORY / "examples" / "pipelines"
FINAL = {"top": 1, "epochs": 1, "grid": {"learningRate": ["0.1"]}}
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def write(world: World, tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Return a function that writes a small search's manifest; the search is deleted after the test."""
    written: list[str] = []

    def write(name: str, samples: int, **spec: Any) -> Path:
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(small(name, samples, **spec)))
        written.append(name)
        return path

    yield write
    for name in written:
        world.try_kubectl("delete", "nas", name, "--ignore-not-found")


@pytest.fixture
def run(world: World, light: Path, tmp_path: Path) -> Run:
    """Return a function that runs a command where `nas` is the wheel's and the cluster is the current one."""
    environment = {
        "PATH": f"{light}:/usr/bin:/bin",
        "KUBECONFIG": world.environment["KUBECONFIG"],
        "HOME": str(tmp_path),
    }

    def run(*words: str | Path, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            words, env={**environment, **more}, cwd=tmp_path, capture_output=True, text=True, check=False
        )

    return run


def test_a_ci_job_ends_as_its_search_does(world: World, write: Callable[..., Path], run: Run, tmp_path: Path) -> None:
    manifest, script = write("ci", 3, finalTraining=FINAL), EXAMPLES / "ci.sh"
    early = run("sh", script, manifest, TIMEOUT="1s")
    assert early.returncode == 3, early
    assert early.stderr.endswith("the search goes on: run this job again\n") and early.stdout == ""
    done = run("sh", script, manifest)
    assert done.returncode == 0, done
    document = world.experiment("ci")
    best = document["status"]["best"]
    outcome = json.loads((tmp_path / "outcome.json").read_text())
    assert (outcome["uid"], outcome["outcome"]) == (document["metadata"]["uid"], "Complete")
    model = best["uri"].removesuffix("architecture.json")
    assert done.stdout == f"sample {best['sample']}: accuracy {float(best['metric'])}\nmodel: {model}\n"

    misspelt = run("sh", script, write("ci-misspelt", 3, parallel=3))
    assert misspelt.returncode == 1 and "spec.parallel" in misspelt.stderr, misspelt
    image = f"localhost/nas-trainer:{image_tag('trainer')}"
    trainer = {"dataset": {"custom": {}}, "image": image, "command": ["false"]}
    hopeless = write("ci-failed", 1, trainer=trainer, budget={"samples": 50, "consecutiveFailures": 2})
    failed = run("sh", script, hopeless)
    assert failed.returncode == 1, failed
    assert json.loads((tmp_path / "outcome.json").read_text())["outcome"] == "Failed"


STEP = """
import json, sys
from pathlib import Path
from kfp import compiler, local
manifest, namespace, answer, compiled, examples = sys.argv[1:]
sys.path.insert(0, examples)
import kfp_component
compiler.Compiler().compile(kfp_component.pipeline, compiled)
# What is installed is used: `nas` is on PATH, as in the step's image.
local.init(runner=local.SubprocessRunner(use_venv=False), pipeline_root="kfp")
task = kfp_component.search(manifest=Path(manifest).read_text(), namespace=namespace, timeout="1h")
Path(answer).write_text(json.dumps(task.outputs))
"""


def test_a_component_of_kubeflow_pipelines_searches(
    world: World, write: Callable[..., Path], run: Run, tmp_path: Path
) -> None:
    python = python_with("kfp", (REPOSITORY / "requirements" / "kfp.txt").read_text())
    manifest, answer, compiled = write("kfp", 3), tmp_path / "answer.json", tmp_path / "search.yaml"
    done = run(python, "-c", STEP, manifest, NAMESPACE, answer, compiled, EXAMPLES)
    assert done.returncode == 0, done
    outputs = json.loads(answer.read_text())
    best = world.experiment("kfp")["status"]["best"]
    assert (outputs["metric"], outputs["uri"]) == (float(best["metric"]), best["uri"])
    assert json.loads(outputs["outcome"])["outcome"] == "Complete"
    pipeline = next(yaml.safe_load_all(compiled.read_text()))
    (executor,) = pipeline["deploymentSpec"]["executors"].values()
    assert executor["container"]["image"] == "registry.example/team/nas:latest"
    assert set(pipeline["components"]["comp-search"]["outputDefinitions"]["parameters"]) == {"metric", "uri", "outcome"}
