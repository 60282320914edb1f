"""What MLflow is told of each kind of sample."""

from dataclasses import replace
from math import nan

from controller.golden.write import stored

from nas_api.handover import Provenance
from nas_followers import mlflow_runs
from nas_log.follower import Follower
from nas_log.reader import Facts, Sample


def read(name: str) -> tuple[list[Sample], Facts]:
    log = Follower(stored(name))
    samples = [*log.read()]
    assert log.facts is not None
    return samples, log.facts


def run(facts: Facts, sample: Sample, *curve: float) -> mlflow_runs.Run:
    return mlflow_runs.sample_run(facts, sample, curve, "u-1")


def test_a_sample_has_its_metrics_and_its_curve_by_epoch() -> None:
    samples, facts = read("convolutional-guided")
    sample = next(each for each in samples if each.state == "Observed" and each.arm == "policy")
    found = run(facts, sample, 0.25, 0.5)
    assert sample.ended is not None
    at = round(sample.ended.timestamp() * 1000)
    assert mlflow_runs.Metric("reward", sample.reward or nan, at, 0) in found.metrics
    assert mlflow_runs.Metric("accuracy", sample.metrics["accuracy"], at, 0) in found.metrics
    curve = [each for each in found.metrics if each.key == "epochs/accuracy"]
    assert [(each.step, each.value) for each in curve] == [(1, 0.25), (2, 0.5)]
    assert found.parameters == {"architecture": sample.architecture.short()}
    assert (found.name, found.status, found.end) == (f"sample {sample.number}", "FINISHED", at)
    assert found.tags["nas.arm"] == "policy" and found.tags["nas.sample"] == str(sample.number)


def test_what_is_particular_to_a_sample_is_a_tag() -> None:
    samples, facts = read("convolutional-early-stopping")
    by_state = {each.state: each for each in samples}
    stopped = next(each for each in samples if each.stopped is not None)
    assert stopped.stopped is not None
    assert run(facts, stopped).tags["nas.stopped"] == str(stopped.stopped.epoch)
    whole = next(each for each in samples if each.stopped is None)
    assert "nas.stopped" not in run(facts, whole).tags
    lost = replace(by_state["Observed"], state="Lost", reason="OutOfMemory", message="its words", reward=None)
    found = run(facts, lost)
    assert (found.status, found.tags["nas.reason"], found.tags[mlflow_runs.NOTE]) == (
        "FAILED",
        "OutOfMemory",
        "OutOfMemory: its words",
    )
    assert not [each for each in found.metrics if each.key == "reward"]


def test_the_random_arm_a_reused_result_and_a_final_training_are_told_apart() -> None:
    samples, facts = read("convolutional-guided")
    assert any(run(facts, each).tags["nas.arm"] == "random" for each in samples)
    reused = replace(samples[0], reused=7)
    assert run(facts, reused).tags["nas.reused"] == "7"
    final = next(each for each in samples if each.final is not None)
    assert final.final is not None
    found = run(facts, final)
    assert found.name == f"final {final.number}" and found.tags["nas.of"] == str(final.final.of)
    assert found.parameters["final.learningRate"] == final.final.optimizer.learning_rate
    assert [each.key for each in mlflow_runs.course(facts, (final,))] == []


def test_a_users_own_decisions_are_parameters_by_name() -> None:
    samples, facts = read("custom-evolution")
    for sample in samples:
        found = run(facts, sample).parameters
        words = dict(word.split("=", 1) for word in sample.architecture.short().split(" "))
        assert found == words


def test_what_is_longer_than_mlflow_takes_is_cut() -> None:
    samples, facts = read("convolutional-guided")
    lost = replace(samples[0], state="Lost", reason="TrainerFailed", message="x" * 10_000)
    text = run(facts, lost).tags[mlflow_runs.NOTE]
    assert len(text) == 5000 and text.endswith("…")


def test_the_end_says_what_was_best() -> None:
    _, facts = read("convolutional-guided")
    provenance = Provenance(
        experiment="digits",
        namespace="team",
        uid="u-1",
        sample=3,
        digest="abc",
        metric_name="accuracy",
        goal="Maximize",
        reward=0.5,
        validation_metric=0.75,
        test_metric=0.25,
        software="1",
    )
    found = mlflow_runs.search_end(facts, provenance)
    assert {each.key: each.value for each in found.metrics} == {
        "best.reward": 0.5,
        "best.accuracy": 0.75,
        "test.accuracy": 0.25,
    }
    assert found.tags["nas.best"] == "3" and found.tags["nas.outcome"] == "SamplesSpent"
    assert found.status == "FINISHED"
    assert mlflow_runs.search_end(facts, None).metrics == ()


def test_a_model_is_called_as_mlflows_experiment() -> None:
    assert mlflow_runs.model_name("/Users/me@x.example/digits:2") == "-Users-me@x.example-digits-2"
