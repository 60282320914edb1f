"""What a trainer is told, byte for byte, and the launch that takes the most words."""

import random
from typing import Any

import pytest
from experiments import manifest

from nas_api.architecture import Architecture
from nas_api.child import FinalSettings, StoreLocation, trainer_document
from nas_api.child_job import s3_location
from nas_api.decisions import Anchor, Categorical, When, answer, longest
from nas_api.experiment import NASExperiment, OptimizerSpec, TrainingSpec
from nas_api.search_space import search_space
from nas_api.spaces.convolutional import ConvolutionalArchitecture, ConvolutionalLayer
from nas_api.stopping import StopRule
from nas_api.trainer_input import largest_launches, trainer_input
from nas_log.records import FinalRun

NETWORK = ConvolutionalArchitecture(layers=(ConvolutionalLayer(filter_height=1, filter_width=1, filters=6),))
EVERYTHING = {
    "dataset": {"cifar10": {"uri": "s3://data/cifar"}},
    "epochs": 9,
    "rewardEpochs": 2,
    "batchSize": 32,
    "optimizer": {"learningRate": "0.2"},
    "threads": 3,
    "language": {"layers": 1},
    "gpu": {"compile": True},
    "datasetCache": "/cache",
}
RUN = FinalRun(
    of=1,
    settings=FinalSettings(decay_epoch=4, test=True),
    optimizer=OptimizerSpec(learning_rate="0.4"),
    epochs=300,
)
HEAD = (
    '{"version":1,"experiment":"digits","sample":3,"attempt":2,"seed":2127895949,"metric":"accuracy","architecture":{'
    '"version":1,"space":"convolutional","layers":[{"filterHeight":1,"filterWidth":1,"filters":6,"strideHeight":1,'
    '"strideWidth":1,"inputs":[]}]},"dataset":{"digits":null,"cifar10":{"uri":"s3://data/cifar","validationImages":'
    '5000},"cifar100":null,"text":null,"custom":null},'
)
MIDDLE = (
    '"threads":3,"language":{"layers":1,"parameters":20000000,"sharedEmbeddings":false,"steps":35,"dropout":"0.5",'
    '"gradientClip":"5","steadyEpochs":6,"learningRateDivisor":"1.2"},"gpu":{"autocast":true,"compile":true,'
    '"cudaGraphs":false},"datasetCache":"/cache",'
)
STORE = (
    '"store":{"folder":null,"s3":{"bucket":"nas","prefix":"nas/lab/digits/12345678-aaaa/","endpoint":'
    '"http://s3.example:9000","region":null,"pathStyle":true}}}'
)


def experiment(**spec: Any) -> NASExperiment:
    raw = manifest("lab", **spec)
    raw["metadata"]["uid"] = "12345678-aaaa"
    return NASExperiment.model_validate(raw)


def location(of: NASExperiment) -> StoreLocation:
    return StoreLocation(s3=s3_location(of))


def test_a_childs_document_is_the_same_byte_for_byte() -> None:
    """Jobs that run while the operator is upgraded, and trainers of another version, read it too."""
    of = experiment(trainer=EVERYTHING, searcher={"seed": 7})
    assert trainer_document((trainer_input(of, location(of), 3, 2, NETWORK),)) == (
        f'{HEAD}"epochs":9,"rewardEpochs":2,"batchSize":32,"optimizer":{{"learningRate":"0.2","momentum":"0.9",'
        f'"weightDecay":"0.0001"}},{MIDDLE}"final":null,"stop":null,{STORE}'
    )


def test_a_final_training_has_its_own_epochs_and_optimiser() -> None:
    of = experiment(trainer=EVERYTHING, searcher={"seed": 7})
    rule = StopRule(epoch=5, bound=0.5, goal="Maximize")
    assert trainer_document((trainer_input(of, location(of), 3, 2, NETWORK, RUN, rule),)) == (
        f'{HEAD}"epochs":300,"rewardEpochs":2,"batchSize":32,"optimizer":{{"learningRate":"0.4","momentum":"0.9",'
        f'"weightDecay":"0.0001"}},{MIDDLE}"final":{{"batchNormEpsilon":"0.00001","decayEpoch":4,"test":true}},'
        f'"stop":{{"epoch":5,"bound":0.5,"goal":"Maximize"}},{STORE}'
    )


def test_whatever_manifest_and_trainer_both_know_is_handed_on() -> None:
    of = experiment(trainer=EVERYTHING)
    asked = trainer_input(of, location(of), 0, 1, NETWORK)
    for name in TrainingSpec.model_fields:
        assert getattr(asked, name) == getattr(of.spec.trainer, name) != TrainingSpec.model_fields[name].default


# ---------------------------------------------------------------- the largest launch

CUSTOM = {
    "custom": {
        "decisions": [
            {"name": "kind", "options": ["a-long-word-alone", "mlp", "rnn"]},
            {
                "name": "width",
                "range": {"from": 8, "to": 1024, "step": 127},
                "when": {"decision": "kind", "in": ["mlp"]},
            },
            {"name": "cell", "options": ["lstm", "gated-recurrent-unit"], "when": {"decision": "kind", "in": ["rnn"]}},
            {"name": "activation", "options": ["relu", "sigmoid"], "repeat": 3},
        ]
    }
}
SPACES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "growing": ({"convolutional": {"layers": {"initial": 2, "increment": 3, "everySamples": 10}}}, {"digits": {}}),
    "all skips": ({"convolutional": {"allSkips": True, "strides": [1, 2]}}, {"digits": {}}),
    "cell": ({"recurrentCell": {}}, {"text": {}}),
    "custom": (CUSTOM, {"custom": {}}),
}


@pytest.mark.parametrize("name", SPACES)
def test_no_child_is_told_more_than_the_largest_launch_says(name: str) -> None:
    """Every sample of the budget, drawn at random, with numbers as they come."""
    space_spec, dataset = SPACES[name]
    trainer = {"dataset": dataset, "epochs": 20}
    if "custom" not in dataset:
        trainer["earlyStopping"] = {"epoch": 5}
    of = experiment(searchSpace=space_spec, trainer=trainer, budget={"samples": 60})
    space, draw = search_space(of.spec.search_space), random.Random(0)

    def choose(_: int, decision: Categorical | Anchor) -> int:
        options = len(decision.options) if isinstance(decision, Categorical) else 2**decision.index
        return draw.randrange(options)

    def told(sample: int) -> int:
        architecture: Architecture = space.decode(answer(space.decisions(sample), choose))
        rule = StopRule(epoch=5, bound=-draw.random() / 1e9, goal="Maximize") if "custom" not in dataset else None
        return len(trainer_document((trainer_input(of, location(of), sample, 12, architecture, stop=rule),)))

    (children,) = largest_launches(of, location(of))
    largest = len(trainer_document(children))
    assert max(told(sample) for sample in range(60)) <= largest


def test_the_largest_launch_is_a_full_pod_at_the_depth_that_the_budget_comes_to() -> None:
    layers = {"initial": 2, "increment": 3, "everySamples": 10, "maximum": 40}
    trainer = {"dataset": {"digits": {}}, "childrenPerPod": 4}
    of = experiment(searchSpace={"convolutional": {"layers": layers}}, trainer=trainer, budget={"samples": 31})
    (inputs,) = largest_launches(of, location(of))
    assert len(inputs) == 4
    architecture = inputs[0].architecture
    assert isinstance(architecture, ConvolutionalArchitecture)
    assert [layer.inputs for layer in architecture.layers] == [tuple(range(index)) for index in range(11)]
    assert {layer.filters for layer in architecture.layers} <= {24, 36, 48, 64}


def test_a_final_training_is_tried_beside_the_search_s_children() -> None:
    grid = {"learningRate": ["0.1", "0.0125"], "decayEpoch": [5, 150]}
    final = {"epochs": 600, "grid": grid, "checkpointEvery": "1h", "trainOnValidation": False}
    of = experiment(finalTraining=final, trainer={"dataset": {"digits": {}}, "childrenPerPod": 2})
    children, (alone,) = largest_launches(of, location(of))
    assert [child.final for child in children] == [None, None]
    assert alone.final == FinalSettings(decay_epoch=150, on_validation=False, repeats=9_999_999)
    assert (alone.epochs, alone.optimizer.learning_rate, alone.checkpoint_every) == (600, "0.0125", "1h")


def test_an_architecture_that_another_experiment_has_found_is_not_known_yet() -> None:
    of = experiment(searchSpace={"fixed": {"experiment": "other"}})
    ((_,),) = largest_launches(of, location(of))


def test_the_longest_choice_counts_what_hangs_on_it() -> None:
    decisions = (
        Categorical("kind", ("a-long-word", "b", "c")),
        Categorical("width", ("1", "1024"), When(0, frozenset({1, 2}))),
        Categorical("depth", ("7", "100"), When(1, frozenset({1}))),
        Categorical("cell", ("lstm",), When(0, frozenset({2}))),
        Anchor(0),
        Anchor(3),
    )
    assert longest(decisions) == (2, 1, 1, 0, 0, 7)
    assert longest(decisions[:1]) == (0,)
