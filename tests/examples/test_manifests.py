"""Every manifest of examples/ is valid, says what the paper says, and has a small twin of the same structure."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from cluster_fixtures import ControlPlane

from nas_api.experiment import NASExperiment
from nas_api.search_space import search_space
from nas_api.spaces.convolutional import ConvolutionalSpace
from nas_cli.manifest import read_documents, read_experiment

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
PAPER = EXAMPLES / "paper"
# A user's own Job, Dockerfile and the like may lie beside a manifest.
MANIFESTS = sorted(path for path in EXAMPLES.rglob("*.yaml") if "kind: NASExperiment" in path.read_text())
FULL = sorted(path.stem for path in PAPER.glob("*.yaml") if not path.stem.endswith("-small"))


def experiment(name: str) -> NASExperiment:
    return read_experiment(PAPER / f"{name}.yaml")


def skeleton(value: Any) -> Any:
    """Return the fields of a manifest without their values."""
    if isinstance(value, dict):
        return {key: skeleton(child) for key, child in value.items()}
    return None


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_a_manifest_is_valid(path: Path) -> None:
    documents = [document for document in read_documents(path) if not document.foreign]
    assert [fault.text for document in documents for fault in document.faults] == []
    assert all(document.experiment is not None for document in documents)


@pytest.mark.cluster
@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_the_api_server_accepts_a_manifest(control_plane: ControlPlane, shared_namespace: str, path: Path) -> None:
    """As ``kubectl apply`` would, with every field known and every rule held; nothing is stored."""
    command = ("apply", "--server-side", "--dry-run=server", "--validate=strict", "-n", shared_namespace)
    result = control_plane.kubectl(*command, "-f", str(path))
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("path", sorted(PAPER.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_name_is_its_file_s_and_names_differ(path: Path) -> None:
    assert read_experiment(path).metadata.name == path.stem


@pytest.mark.parametrize("name", FULL)
def test_a_small_twin_has_the_same_structure(name: str) -> None:
    """Same space, objective, searcher and stages; what is smaller is a number, or the data."""
    full, small = (yaml.safe_load((PAPER / f"{stem}.yaml").read_text())["spec"] for stem in (name, f"{name}-small"))
    for part in ("searchSpace", "objective", "searcher"):
        assert skeleton(small.get(part)) == skeleton(full.get(part)), part
    assert set(small) == set(full)


@pytest.mark.parametrize("name", FULL)
def test_a_small_twin_says_what_differs(name: str) -> None:
    text = (PAPER / f"{name}-small.yaml").read_text()
    assert f"nas run examples/paper/{name}-small.yaml" in text
    assert "What differs:" in text.split("apiVersion")[0]


def test_the_table_lists_every_manifest() -> None:
    table = (PAPER / "README.md").read_text()
    missing = [path.name for path in PAPER.glob("*.yaml") if f"({path.name})" not in table]
    assert missing == []


def test_the_search_on_images_is_the_paper_s() -> None:
    """Sections 3.2 and 4.1: what any row has in common, and the depth that v1 reaches."""
    for name in ("cifar-v1", "cifar-v2", "cifar-v3"):
        spec = experiment(name).spec
        reinforce = spec.searcher.reinforce
        assert reinforce is not None
        assert (reinforce.learning_rate, reinforce.replicas, reinforce.batch) == ("0.0006", 100, 8)
        assert reinforce.replicas * reinforce.batch == spec.parallelism == 800
        assert spec.budget.samples == 12_800
        assert spec.searcher.duplicates == "Train"
    for name in FULL:
        if name.startswith("cifar-"):
            spec = experiment(name).spec
            assert (spec.trainer.epochs, spec.trainer.reward_epochs) == (50, 5)
            assert spec.objective.reward.cube is not None
    v1 = search_space(experiment("cifar-v1").spec.search_space)
    assert isinstance(v1, ConvolutionalSpace)
    assert [v1.depth(sample) for sample in (0, 1600, 12_799)] == [6, 8, 20]


def test_the_search_on_text_is_the_paper_s() -> None:
    """Sections 3.2, 3.4 and 4.2: 400 replicas of one child, updates of 10 gradients, cells of base 8, 80 / ppl^2."""
    for name in ("ptb", "ptb-random", "ptb-max-sin"):
        spec = experiment(name).spec
        reinforce = spec.searcher.reinforce
        assert reinforce is not None
        assert (reinforce.learning_rate, reinforce.replicas, reinforce.batch) == ("0.0005", 400, 1)
        assert reinforce.gradients_per_update == 10
        assert spec.searcher.duplicates == "Train"
        assert reinforce.replicas * reinforce.batch == spec.parallelism
        assert (spec.objective.metric, spec.objective.goal) == ("perplexity", "Minimize")
        assert spec.objective.reward.inverse_square is not None
        assert spec.objective.reward.inverse_square.constant == "80"
        assert (spec.trainer.epochs, spec.trainer.language.layers) == (35, 2)
    assert search_space(experiment("ptb").spec.search_space).size(0) == 8**15 * 8 * 15**2
    assert search_space(experiment("ptb-max-sin").spec.search_space).size(0) == 15**16 * 15**2


def test_random_search_has_the_policy_s_budget() -> None:
    spec = experiment("ptb-random").spec
    assert spec.searcher.control is not None
    random = float(spec.searcher.control.random) * spec.budget.samples
    assert random == spec.budget.samples - random == experiment("ptb").spec.budget.samples


@pytest.mark.parametrize(
    ("name", "parameters", "shared"),
    [("ptb-32m", 32_000_000, False), ("ptb-25m", 25_000_000, True), ("ptb-54m", 54_000_000, True)],
)
def test_the_cell_that_was_found_is_trained_at_three_sizes(name: str, parameters: int, shared: bool) -> None:
    spec = experiment(name).spec
    assert spec.search_space.fixed is not None
    assert spec.search_space.fixed.experiment == "ptb"
    language = spec.trainer.language
    assert (language.parameters, language.shared_embeddings) == (parameters, shared)


def test_the_transfer_is_to_characters() -> None:
    for name, source in (("ptb-characters", "ptb"), ("ptb-characters-small", "ptb-small")):
        spec = experiment(name).spec
        assert spec.search_space.fixed is not None
        assert spec.search_space.fixed.experiment == source
        assert spec.trainer.dataset.text is not None
        assert spec.trainer.dataset.text.level == "character"
        assert spec.objective.metric == "bitsPerCharacter"


def test_v3_has_39_layers_and_two_poolings() -> None:
    space = search_space(experiment("cifar-v3").spec.search_space)
    network = space.decode((0,) * len(space.decisions(0)))
    assert len(network.layers) * network.block_layers == 39
    # The blocks that hold layers 13 and 24 of the 39.
    assert [index for index, layer in enumerate(network.layers) if layer.pool] == [4, 7]
    assert network.block_output == "All"


def test_three_rows_are_networks_that_were_found_and_changed() -> None:
    """Section 4.1: nothing is searched for the ablations, nor for the largest network."""
    for name, source, changes in (
        ("cifar-all-skips", "cifar-v1", ("all connections",)),
        ("cifar-no-skips", "cifar-v1", ("no connections",)),
        ("cifar-v3-filters", "cifar-v3", ("40 filters more in each layer",)),
    ):
        fixed = experiment(name).spec.search_space.fixed
        assert fixed is not None
        assert (fixed.experiment, fixed.changes) == (source, changes)


def test_examples_are_json_at_heart() -> None:
    """No anchors, tags or dates that another YAML reader would take for something else."""
    for path in MANIFESTS:
        text = path.read_text()
        json.dumps(yaml.safe_load(text))
        assert "&" not in text.split("apiVersion", 1)[1]
