"""``nas validate``: faults with line, path and cure, and the same verdict as the API server's."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from cluster_fixtures import ControlPlane
from experiments import MANIFEST, manifest

from nas_api.crd import openapi_schema
from nas_cli.main import main
from nas_cli.manifest import check, read_documents, read_experiment

EXAMPLES = Path(__file__).parents[2] / "examples"


def faults(tmp_path: Path, text: str) -> list[str]:
    path = tmp_path / "manifest.yaml"
    path.write_text(text)
    return [f"{fault.line}: {fault.text}" for document in read_documents(path) for fault in document.faults]


@pytest.mark.parametrize("file", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.name)
def test_every_example_is_valid(file: Path) -> None:
    outcome = CliRunner().invoke(main, ["validate", str(file)])
    assert outcome.exit_code == 0, outcome.output
    assert "is valid" in outcome.output


BAD = """\
apiVersion: nas-operator.io/v1alpha1
kind: NASExperiment
metadata: {name: a.b}
spec:
  searchSpace:
    convolutional:
      layers: {initial: 9, maximum: 3}
      filters: [6, 6]
      filterHeigths: [1]
  budget: {samples: "5"}
  objective: {goal: Minimise}
  searcher: {ppo: {learningRate: 0.1}, random: {}}
  trainer:
    dataset: {}
    optimizer: {momentum: "1.5"}
    deadline: tomorrow
"""


def test_all_faults_are_told_at_once_with_line_path_and_cure(tmp_path: Path) -> None:
    found = faults(tmp_path, BAD)
    expected = [
        "1: metadata.name must not contain a dot",
        "4: spec.storage: is missing",
        "7: spec.searchSpace.convolutional.layers: initial must not exceed maximum",
        "8: spec.searchSpace.convolutional.filters: options must differ",
        "9: spec.searchSpace.convolutional.filterHeigths: there is no such field; do you mean filterHeights?",
        "10: spec.budget.samples: '5' is not possible: it should be a valid integer",
        "11: spec.objective.goal: 'Minimise' is not possible: use 'Maximize' or 'Minimize'",
        '12: spec.searcher.ppo.learningRate: decimals are strings here: write "0.1" in quotes',
        "12: spec.searcher: set at most one of ppo, reinforce, guided, evolution, tpe, random",
        "14: spec.trainer.dataset: set exactly one of digits, cifar10, cifar100, text, custom",
        "15: spec.trainer.optimizer.momentum: must be below 1",
        "16: spec.trainer.deadline: 'tomorrow' does not fit the pattern",
    ]
    assert [line[: len(start)] for line, start in zip(found, expected, strict=True)] == expected


def test_the_command_prints_them_as_compilers_do_and_ends_with_1(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(BAD)
    outcome = CliRunner().invoke(main, ["validate", str(path)])
    assert outcome.exit_code == 1
    assert f"{path}:8: spec.searchSpace.convolutional.filters: options must differ\n" in outcome.stderr


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a: [1\n", "2: this is no YAML"),
        ("a: 1\n  b: 2\n", "2: this is no YAML"),
        ("spec: {}\n---\na: b: c\n", "3: this is no YAML"),
        ("- 1\n", "1: a manifest is a map"),
        ("\0", "1: this is no YAML"),
    ],
)
def test_what_is_no_manifest_is_told_by_line(tmp_path: Path, text: str, line: str) -> None:
    assert any(fault.startswith(line) for fault in faults(tmp_path, text))


def test_a_key_that_is_written_twice_is_a_fault(tmp_path: Path) -> None:
    text = json.dumps(MANIFEST).replace('"samples": 100', '"samples": 100, "samples": 7')
    assert faults(tmp_path, text) == ["1: spec.budget.samples: is written twice in this map"]


def test_a_template_that_cannot_be_laid_over_ours_is_a_fault() -> None:
    trainer = {**MANIFEST["spec"]["trainer"], "template": {"spec": {"containers": [{"image": "x"}]}}}
    _, found = check(manifest(trainer=trainer))
    assert found == [(("spec", "trainer", "template"), "containers[0] of the template must be a map with 'name'")]


def test_several_documents_and_other_kinds(tmp_path: Path) -> None:
    path = tmp_path / "many.yaml"
    other = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s3"}}
    documents = [other, manifest(name="one"), manifest(name="two", budget={"samples": 0})]
    path.write_text("---\n" + "\n---\n".join(map(json.dumps, documents)) + "\n---\n")
    outcome = CliRunner().invoke(main, ["validate", str(path)])
    assert outcome.exit_code == 1
    assert "Secret/s3 is of another kind" in outcome.stdout
    assert "NASExperiment/one is valid" in outcome.stdout
    assert f"{path}:6: spec.budget.samples: 0 is not possible" in outcome.stderr


def test_a_final_training_is_bounded_by_the_product_of_its_axes() -> None:
    grid = {"learningRate": ["1", "2", "3", "4"], "weightDecay": ["0.1"] * 5}
    assert check(manifest(finalTraining={"top": 50, "grid": grid}))[1] == []
    _, ((path, message),) = check(manifest(finalTraining={"top": 50, "grid": {**grid, "decayEpoch": [1, 2]}}))
    assert path == ("spec", "finalTraining")
    assert message.endswith("at most 1,000 trainings: lower top, or give grid fewer values")


@pytest.mark.parametrize("content", [None, "", "kind: Secret\n"])
def test_a_file_without_an_experiment_is_refused_in_one_line(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "file.yaml"
    if content is not None:
        path.write_text(content)
    outcome = CliRunner().invoke(main, ["validate", str(path)])
    assert outcome.exit_code == 1
    assert outcome.stderr.count("\n") == 1
    assert outcome.stderr.startswith("Error: ")


def test_every_rule_of_the_schema_can_be_evaluated_here() -> None:
    """A rule that this CEL cannot run would be skipped in silence: show that each one runs and is obeyed."""

    def rules(node: Any) -> list[str]:
        if isinstance(node, dict):
            own = [each["rule"] for each in node.get("x-kubernetes-validations", ())]
            return own + [rule for child in node.values() for rule in rules(child)]
        return []

    broken: dict[str, dict[str, Any]] = {
        "size(self.metadata.name)": {"metadata": {"name": "a" * 41}},
        "self.metadata.name.contains": {"metadata": {"name": "a.b"}},
        "self.goal == 'Maximize'": {"spec.objective": {"goal": "Minimize"}},
        "has(self.identity)": {"spec.objective": {"reward": {"identity": {}, "cube": {}}}},
        "self.initial <= self.maximum": {
            "spec.searchSpace": {"convolutional": {"layers": {"initial": 9, "maximum": 3}}}
        },
        "self.all(x": {"spec.searchSpace": {"convolutional": {"strides": [1, 1]}}},
        "has(self.ppo)": {"spec.searcher": {"ppo": {}, "random": {}}},
        "has(self.digits)": {"spec.trainer": {"dataset": {"digits": {}, "cifar10": {"uri": "/x"}}}},
        "!self.allSkips": {"spec.searchSpace": {"convolutional": {"allSkips": True, "skipConnections": False}}},
        "self in [2, 4, 8, 16]": {"spec.searchSpace": {"recurrentCell": {"base": 3}}},
        "[has(self.options)": {"spec.searchSpace": {"custom": {"decisions": [{"name": "a"}]}}},
        "self.from <= self.to": {
            "spec.searchSpace": {"custom": {"decisions": [{"name": "a", "range": {"from": 2, "to": 1}}]}}
        },
        "(self.to - self.from)": {
            "spec.searchSpace": {"custom": {"decisions": [{"name": "a", "range": {"from": 0, "to": 64}}]}}
        },
        "self.decisions.all(d": {
            "spec.searchSpace": {
                "custom": {
                    "decisions": [
                        {"name": "a", "options": ["x"], "when": {"decision": "a", "in": ["x"]}},
                    ]
                }
            }
        },
        "[has(self.convolutional)": {"spec.searchSpace": {}},
        "self.top * (size(": {
            "spec.finalTraining": {"top": 42, "grid": {"learningRate": ["1"] * 8, "decayEpoch": [1, 2, 3]}}
        },
        "!has(self.searchSpace.custom)": {
            "spec.searchSpace": {"custom": {"decisions": [{"name": "a", "options": ["x"]}]}}
        },
        "!has(self.searchSpace.recurrentCell)": {"spec.searchSpace": {"recurrentCell": {}}},
        "!has(self.searchSpace.convolutional)": {"spec.trainer": {"dataset": {"text": {}}}},
        "self.childrenPerPod == 1 || !has": {"spec.trainer": {"dataset": {"custom": {}}, "childrenPerPod": 2}},
        "self.childrenPerPod == 1 || !self.gpu": {
            "spec.trainer": {"dataset": {"digits": {}}, "gpu": {"compile": True}, "childrenPerPod": 2}
        },
        "self.parallelism >=": {"spec.trainer": {"dataset": {"digits": {}}, "childrenPerPod": 16}},
        "double(self) > 0.0": {"spec.objective": {"penalties": [{"metric": "flops", "target": "0"}]}},
        "double(self) >= 1.0": {"spec.trainer": {"dataset": {"text": {}}, "language": {"learningRateDivisor": "0.5"}}},
        "self.earlyStopping.epoch < self.epochs": {
            "spec.trainer": {"dataset": {"digits": {}}, "epochs": 4, "earlyStopping": {"epoch": 4}}
        },
        "!has(self.earlyStopping) || !has": {
            "spec.trainer": {"dataset": {"custom": {}}, "earlyStopping": {"epoch": 4}}
        },
        "double(self) < 1.0": {"spec.searcher": {"reinforce": {"baselineDecay": "1.0"}}},
    }
    for rule in rules(openapi_schema()):
        if "oldSelf" in rule:
            continue
        (change,) = [change for start, change in broken.items() if start in rule]
        ((path, value),) = change.items()
        body = manifest(**{path.removeprefix("spec."): value}) if path.startswith("spec.") else {**manifest(), **change}
        _, found = check(body)
        assert found, f"a manifest that breaks {rule} passes"
    assert check(manifest())[1] == []


def test_a_run_on_this_machine_needs_no_storage(tmp_path: Path) -> None:
    body = manifest()
    del body["spec"]["storage"]
    path = tmp_path / "experiment.yaml"
    path.write_text(json.dumps(body))
    assert read_experiment(path).spec.budget.samples == body["spec"]["budget"]["samples"]
    (document,) = read_documents(path)
    assert [fault.text.partition(" (")[0] for fault in document.faults] == ["spec.storage: is missing"]


def _table() -> list[tuple[dict[str, Any], str]]:
    """Return the manifests, as full documents, that the API server is shown to refuse in its own test."""
    path = Path(__file__).parents[1] / "api" / "test_manifests.py"
    spec = importlib.util.spec_from_file_location("bad_manifests", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return [(module.changed(change), words) for change, words in module.BAD]


@pytest.mark.parametrize(("body", "words"), _table(), ids=[words for _, words in _table()])
def test_what_the_api_server_refuses_is_refused_here(body: dict[str, Any], words: str) -> None:
    experiment, found = check(body)
    assert experiment is None or found, f"passes here; the API server says {words}"


@pytest.mark.cluster
def test_what_is_valid_here_is_accepted_by_the_api_server(control_plane: ControlPlane, namespace: str) -> None:
    for file in sorted(EXAMPLES.glob("*.yaml")):
        done = control_plane.kubectl("apply", "-n", namespace, "--dry-run=server", "-f", str(file))
        assert done.returncode == 0, done.stderr
