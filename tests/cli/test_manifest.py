"""``nas validate``: faults with line, path and cure, and the same verdict as the API server's."""

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from cluster_fixtures import ControlPlane
from experiments import MANIFEST, manifest

from nas_api.crd import openapi_schema
from nas_cli.errors import Refusal
from nas_cli.kubectl_yaml import KubectlLoader
from nas_cli.main import main
from nas_cli.manifest import check, read_documents, read_experiment
from nas_cli.sentences import SHAPES

EXAMPLES = Path(__file__).parents[2] / "examples"
OPTION = "^[A-Za-z0-9_.:/+-]{1,63}$"


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
        "9: spec.searchSpace.convolutional.filterHeigths: there is no such field; did you mean filterHeights?",
        "10: spec.budget.samples: '5' is not valid: it should be a whole number without quotes",
        "11: spec.objective.goal: 'Minimise' is not valid: use 'Maximize' or 'Minimize'",
        '12: spec.searcher.ppo.learningRate: decimals are strings here: write "0.1" in quotes',
        "12: spec.searcher: set at most one of ppo, reinforce, guided, evolution, tpe, random",
        "14: spec.trainer.dataset: set exactly one of digits, cifar10, cifar100, images, text, custom",
        "15: spec.trainer.optimizer.momentum: must be below 1",
        "16: spec.trainer.deadline: 'tomorrow' is not valid: it should be a duration such as 90s, 15m or 1h30m",
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
        ("a: [1\n", "2: this is not YAML"),
        ("a: 1\n  b: 2\n", "2: this is not YAML"),
        ("spec: {}\n---\na: b: c\n", "3: this is not YAML"),
        ("- 1\n", "1: a manifest is a map"),
        ("\0", "1: this is not YAML"),
        ("a: &a [*a]\n", "1: this is not a manifest: it is nested without end"),
        ("a: " + "[" * 3000, "1: this is not a manifest: it is nested without end"),
    ],
)
def test_what_is_no_manifest_is_told_by_line(tmp_path: Path, text: str, line: str) -> None:
    assert any(fault.startswith(line) for fault in faults(tmp_path, text))


def test_a_key_that_is_written_twice_is_a_fault(tmp_path: Path) -> None:
    text = json.dumps(MANIFEST).replace('"samples": 100', '"samples": 100, "samples": 7')
    assert faults(tmp_path, text) == ["1: spec.budget.samples: is written twice in this map"]


WORDS = """\
apiVersion: v1
kind: ConfigMap
metadata: {name: words}
data: [yes, No, on, OFF, y, N, True, false, oN, ~, null, Null, "null", "", 1e3, 1e-3, 1.50, 1., .5, -.5, 1.5e, 007, 09,
  08.5, 0o10, -010, 0x1F, 0b11, 0x_, 0o_,
  1_000, 1__0, 0_7, 1_0.5, _1, 12:30, 1:2:3, 2026-01-31, 2026-01-31T12:00:00Z, -, .,
  =, 1.2.3, ._, .inf2, 1e+3, "y"]
"""


@pytest.mark.cluster
def test_words_without_quotes_mean_what_they_mean_to_kubectl(control_plane: ControlPlane, tmp_path: Path) -> None:
    path = tmp_path / "words.yaml"
    path.write_text(WORDS)
    done = control_plane.kubectl("annotate", "--local", "--dry-run=client", "-o", "json", "-f", str(path), "a=b")
    assert done.returncode == 0, done.stderr
    theirs = json.loads(done.stdout)["data"]
    ours = yaml.load(WORDS, KubectlLoader)["data"]
    assert [(type(word), word) for word in ours] == [(type(word), word) for word in theirs]


def _options(words: str, tmp_path: Path) -> list[str]:
    decisions = f"[{{name: a, options: [{words}]}}]"
    text = json.dumps(manifest(searchSpace={"custom": {"decisions": []}}, trainer={"dataset": {"custom": {}}}))
    return [fault.rpartition("]: ")[2] for fault in faults(tmp_path, text.replace("[]", decisions, 1))]


@pytest.mark.parametrize("word", ["yes", "N", "1.0", "007", "2.50", "1e3", "1e-3", "0x10", "null", "32", ".inf"])
def test_a_word_that_wants_quotes_is_named_as_it_is_written(tmp_path: Path, word: str) -> None:
    (fault,) = _options(word, tmp_path)
    assert fault.startswith("YAML reads this word as ")
    assert fault.endswith(f': write "{word}" in quotes')
    assert _options(f'"{word}", "{word}x"', tmp_path) == []


@pytest.mark.parametrize("word", ["12:30", "2026-01-31", "3x3", "conv-1/2", "1.2.3"])
def test_a_word_that_only_other_readers_of_yaml_take_for_something_else_is_a_word(tmp_path: Path, word: str) -> None:
    assert _options(word, tmp_path) == []


@pytest.mark.parametrize("word", ['""', "ü", "3x3 conv", "x" * 64])
def test_a_word_that_cannot_be_an_option_is_told_what_can(tmp_path: Path, word: str) -> None:
    (fault,) = _options(word, tmp_path)
    assert fault.endswith(f" is not valid: it should be {SHAPES[OPTION]}")


def test_a_field_of_the_wrong_shape_is_told_the_right_one() -> None:
    def told(decision: Any) -> set[str]:
        space = {"custom": {"decisions": [decision]}}
        return {words for _, words in check(manifest(searchSpace=space, trainer={"dataset": {"custom": {}}}))[1]}

    assert told({"name": "a", "range": [1, 2]}) == {"a map is needed here, with from, to, step"}
    assert told({"name": "a", "options": {"a": 1}}) == {"a list is needed here"}
    assert told({"name": "a", "options": "a b"}) == {"a list is needed here: write [a, b]"}
    assert told({"name": "a", "options": ["a", "b", "a"]}) == {"must differ: 'a' occurs twice"}
    assert told({"name": "a"}) == {"set exactly one of options, range"}
    assert told({"name": None, "options": ["a"]}) == {
        "is empty (Its name in architecture.json): give it a value or remove it"
    }
    assert {words.partition(" (")[0] for words in told({"name": "a", "options": []})} == {
        "0 are not allowed: there should be 1 to 64"
    }


def test_every_pattern_of_the_schema_has_its_words() -> None:
    def patterns(node: Any) -> Iterator[str]:
        for key, child in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
            if key == "pattern" and isinstance(child, str):
                yield child
            yield from patterns(child)

    assert set(patterns(openapi_schema()["properties"]["spec"])) <= set(SHAPES)


def test_a_template_that_cannot_be_laid_over_ours_is_a_fault() -> None:
    trainer = {**MANIFEST["spec"]["trainer"], "template": {"spec": {"containers": [{"image": "x"}]}}}
    _, found = check(manifest(trainer=trainer))
    assert found == [(("spec", "trainer", "template"), "containers[0] of the template must be a map with 'name'")]
    tracking = {"mlflow": {"uri": "http://mlflow"}, "template": {"spec": {"containers": [{"image": "x"}]}}}
    _, found = check(manifest(tracking=tracking))
    assert found == [(("spec", "tracking", "template"), "containers[0] of the template must be a map with 'name'")]


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ({"metadata": {"annotations": {"a": "x" * 70_000}}}, "the template has more than 64 KiB as JSON"),
        ({"spec": {"volumes": {"name": "a"}}}, "spec.volumes must be a list of maps"),
    ],
    ids=["large", "misshapen"],
)
def test_a_template_that_the_operator_would_refuse_is_a_fault_here(template: dict[str, Any], words: str) -> None:
    beside: dict[str, dict[str, Any]] = {
        "trainer": MANIFEST["spec"]["trainer"],
        "controller": {},
        "tracking": {"mlflow": {"uri": "http://mlflow"}},
    }
    for field, given in beside.items():
        changed: dict[str, Any] = {field: {**given, "template": template}}
        _, found = check(manifest(**changed))
        (place, said), *_ = found
        assert place == ("spec", field, "template") and said.startswith(words)


def test_what_not_everybody_may_ask_for_is_a_note_and_what_nobody_may_a_fault(tmp_path: Path) -> None:
    path = tmp_path / "experiment.yaml"
    trainer = {**MANIFEST["spec"]["trainer"], "serviceAccountName": "admin", "template": {"spec": {"hostPID": True}}}
    path.write_text(json.dumps(manifest(trainer=trainer), indent=1))
    outcome = CliRunner().invoke(main, ["validate", str(path)])
    assert outcome.exit_code == 0
    template, account = outcome.stderr.splitlines()
    assert "note: spec.trainer.template: spec.hostPID: beyond what a template may ask for" in template
    assert "note: spec.trainer.serviceAccountName: names a ServiceAccount: a cluster takes that from an" in account
    assert path.read_text().splitlines()[int(account.split(":")[1]) - 1].strip().startswith('"serviceAccountName"')
    _, found = check(manifest(trainer={**trainer, "template": {"metadata": {"finalizers": ["a/b"]}}}))
    ((place, words),) = found
    assert place == ("spec", "trainer", "template") and words.startswith("metadata.finalizers must not be set")


def test_several_documents_and_other_kinds(tmp_path: Path) -> None:
    path = tmp_path / "many.yaml"
    other = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s3"}}
    documents = [other, manifest(name="one"), manifest(name="two", budget={"samples": 0})]
    path.write_text("---\n" + "\n---\n".join(map(json.dumps, documents)) + "\n---\n")
    outcome = CliRunner().invoke(main, ["validate", str(path)])
    assert outcome.exit_code == 1
    assert "Secret/s3 is of another kind" in outcome.stdout
    assert "NASExperiment/one is valid" in outcome.stdout
    assert f"{path}:6: spec.budget.samples: 0 is not valid" in outcome.stderr


def test_a_final_training_is_bounded_by_the_product_of_its_axes() -> None:
    grid = {"learningRate": ["1", "2", "3", "4"], "weightDecay": ["0.1"] * 5}
    assert check(manifest(finalTraining={"top": 50, "grid": grid}))[1] == []
    _, ((path, message),) = check(manifest(finalTraining={"top": 50, "grid": {**grid, "decayEpoch": [1, 2]}}))
    assert path == ("spec", "finalTraining")
    assert message.endswith("at most 1,000 training runs: lower top or seeds, or give grid fewer values")


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
        "!has(self.priorityClass)": {"spec.trainer": {"dataset": {"digits": {}}, "priorityClass": "high"}},
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
        "self.top * self.seeds * (size(": {
            "spec.finalTraining": {"top": 42, "grid": {"learningRate": ["1"] * 8, "decayEpoch": [1, 2, 3]}}
        },
        "self.blockOutput": {"spec.searchSpace": {"convolutional": {"blockOutput": "All"}}},
        "has(self.noSkips)": {
            "spec.searchSpace": {"fixed": {"experiment": "another", "allSkips": True, "noSkips": True}}
        },
        "finalTraining.grid.batchNormEpsilon) == 0": {
            "spec.searchSpace": {"recurrentCell": {}},
            "spec.trainer": {"dataset": {"text": {}}},
            "spec.finalTraining": {"grid": {"batchNormEpsilon": ["0.1"]}},
        },
        "finalTraining.grid.initialScale)": {"spec.finalTraining": {"grid": {"dropout": ["0.5"]}}},
        "!has(self.searchSpace.custom)": {
            "spec.searchSpace": {"custom": {"decisions": [{"name": "a", "options": ["x"]}]}}
        },
        "!has(self.searchSpace.recurrentCell)": {"spec.searchSpace": {"recurrentCell": {}}},
        "!has(self.searchSpace.convolutional)": {"spec.trainer": {"dataset": {"text": {}}}},
        "!has(self.searchSpace.convolutionalCell)": {
            "spec.searchSpace": {"convolutionalCell": {}},
            "spec.trainer": {"dataset": {"text": {}}},
        },
        "self.childrenPerPod == 1 || !has": {"spec.trainer": {"dataset": {"custom": {}}, "childrenPerPod": 2}},
        "self.childrenPerPod == 1 || !self.gpu.compile": {
            "spec.trainer": {"dataset": {"digits": {}}, "gpu": {"compile": True}, "childrenPerPod": 2}
        },
        "self.childrenPerPod == 1 || !self.gpu.cudaGraphs": {
            "spec.trainer": {"dataset": {"digits": {}}, "gpu": {"cudaGraphs": True}, "childrenPerPod": 2}
        },
        "!has(self.dataset.text) || !self.gpu": {
            "spec.searchSpace": {"recurrentCell": {}},
            "spec.trainer": {"dataset": {"text": {}}, "gpu": {"compile": True}},
        },
        "self.pods == 1": {"spec.trainer": {"dataset": {"digits": {}}, "pods": 2}},
        "self.finalTraining.pods <=": {
            "spec.finalTraining": {"pods": 3},
            "spec.trainer": {"dataset": {"digits": {}}, "batchSize": 2},
        },
        "!self.trainer.gpu.cudaGraphs": {
            "spec.finalTraining": {"pods": 2},
            "spec.trainer": {"dataset": {"digits": {}}, "gpu": {"cudaGraphs": True}},
        },
        "self.parallelism >=": {"spec.trainer": {"dataset": {"digits": {}}, "childrenPerPod": 16}},
        "double(self) > 0.0": {"spec.objective": {"penalties": [{"metric": "flops", "target": "0"}]}},
        "double(self) >= 1.0": {"spec.trainer": {"dataset": {"text": {}}, "language": {"learningRateDivisor": "0.5"}}},
        "self.earlyStopping.epoch < self.epochs": {
            "spec.trainer": {"dataset": {"digits": {}}, "epochs": 4, "earlyStopping": {"epoch": 4}}
        },
        "!has(self.dataset.text) || (self.optimizer": {
            "spec.searchSpace": {"recurrentCell": {}},
            "spec.trainer": {"dataset": {"text": {}}, "optimizer": {"ema": "0.9"}},
        },
        "self.optimizer.warmupEpochs <": {
            "spec.trainer": {"dataset": {"digits": {}}, "epochs": 4, "optimizer": {"warmupEpochs": 4}}
        },
        "penalty.metric": {
            "spec.objective": {"penalties": [{"metric": "latencySeconds", "target": "1"}]},
            "spec.trainer": {"dataset": {"digits": {}}, "childrenPerPod": 2},
            "spec.parallelism": 2,
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
        body = manifest(**{path.removeprefix("spec."): value for path, value in change.items() if "." in path})
        body |= {path: value for path, value in change.items() if "." not in path}
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


def test_words_that_python_writes_without_quotes_run_here_with_a_warning_of_kubectl(tmp_path: Path) -> None:
    options = ["y", "1e-3", "0o10"]
    custom = {"custom": {"decisions": [{"name": "rate", "options": options}]}}
    text = yaml.safe_dump(manifest(searchSpace=custom, trainer={"dataset": {"custom": {}}}))
    assert "- 1e-3\n" in text
    path = tmp_path / "experiment.yaml"
    path.write_text(text)
    said: list[str] = []
    space = read_experiment(path, said.append).spec.search_space.custom
    assert space is not None and list(space.decisions[0].options or ()) == options
    (words,) = said
    assert words.startswith("kubectl will not accept this manifest") and words.count("options[") == len(options)
    path.write_text(text.replace("- y\n", "- yes\n"))
    with pytest.raises(Refusal, match="true or false"):
        read_experiment(path, said.append)
    assert len(said) == 1
