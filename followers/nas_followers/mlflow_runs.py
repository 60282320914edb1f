"""What MLflow is told of a search: runs as plain values. Pure, and without MLflow.

The experiment is one run and each of its samples a run below that. A value never depends on when it is written, so that
writing it again changes nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from nas_api.handover import Provenance
from nas_api.spaces.custom import CustomArchitecture, word
from nas_log.reader import Facts, Sample

UID, SAMPLE = "nas.uid", "nas.sample"
"""Tags by which a run is found again: the experiment's uid; the sample's number, which the experiment's own has not."""
PARENT = "mlflow.parentRunId"
NOTE = "mlflow.note.content"

# MLflow's own bounds.
_LONGEST_PARAMETER = 6000
_LONGEST_TAG = 5000


@dataclass(frozen=True)
class Metric:
    """One value of one metric."""

    key: str
    value: float
    milliseconds: int
    step: int


@dataclass(frozen=True)
class Run:
    """A run from its creation to its end."""

    name: str
    begin: int
    """In milliseconds since 1970, as ``end``."""
    tags: Mapping[str, str]
    parameters: Mapping[str, str] = field(default_factory=dict)
    metrics: tuple[Metric, ...] = ()
    end: int | None = None
    """None as long as it has none."""
    status: Literal["RUNNING", "FINISHED", "FAILED"] = "RUNNING"


def search_run(facts: Facts, namespace: str, experiment: str, uid: str) -> Run:
    """Return the run of an experiment, as it begins."""
    return Run(
        name=experiment,
        begin=_milliseconds(facts.begin),
        tags={UID: uid, "nas.namespace": namespace, "nas.experiment": experiment},
        parameters={
            "space": next(iter(facts.space_spec.model_fields_set), ""),
            "searcher": facts.searcher.kind,
            "seed": str(facts.searcher.seed),
            "metric": facts.objective.metric,
            "goal": facts.objective.goal,
        },
    )


def search_end(facts: Facts, provenance: Provenance | None) -> Run:
    """Return what is added to the run of an experiment that has ended.

    Args:
        facts: of a log that has its last record.
        provenance: of the best network; None where there is none.
    """
    finished = facts.finished
    assert finished is not None
    end = _milliseconds(facts.end)
    metrics: dict[str, float] = {}
    tags = {"nas.outcome": finished.reason.value, NOTE: _cut(finished.message, _LONGEST_TAG)}
    if provenance is not None:
        metrics = {"best.reward": provenance.reward, f"best.{provenance.metric_name}": provenance.validation_metric}
        if provenance.test_metric is not None:
            metrics[f"test.{provenance.metric_name}"] = provenance.test_metric
        tags |= {"nas.best": str(provenance.sample), "nas.digest": provenance.digest}
    return Run(
        name="",
        begin=_milliseconds(facts.begin),
        tags=tags,
        metrics=tuple(Metric(key, value, end, 0) for key, value in metrics.items()),
        end=end,
        status="FINISHED" if finished.outcome == "Complete" else "FAILED",
    )


def sample_run(facts: Facts, sample: Sample, curve: tuple[float, ...], uid: str) -> Run:
    """Return the run of a sample that has ended; what it belongs to is for whoever makes it.

    Args:
        facts: of its search.
        sample: observed or lost.
        curve: the objective's metric after each epoch.
        uid: the experiment's.
    """
    # Older logs do not say when things happened.
    ended = sample.ended or facts.begin
    at = _milliseconds(ended)
    metrics = [Metric(key, value, at, 0) for key, value in sample.metrics.items()]
    if sample.reward is not None:
        metrics.append(Metric("reward", sample.reward, at, 0))
    if sample.seconds:
        metrics.append(Metric("seconds", sample.seconds, at, 0))
    key = f"epochs/{facts.objective.metric}"
    metrics += [Metric(key, value, at, epoch) for epoch, value in enumerate(curve, start=1)]
    return Run(
        name=f"final {sample.number}" if sample.final is not None else f"sample {sample.number}",
        begin=_milliseconds(min(ended, sample.launches[0].moment or ended)) if sample.launches else at,
        tags=_tags(sample, uid),
        parameters=_parameters(sample),
        metrics=tuple(metrics),
        end=at,
        status="FAILED" if sample.state == "Lost" else "FINISHED",
    )


def course(facts: Facts, samples: tuple[Sample, ...]) -> tuple[Metric, ...]:
    """Return what samples of the search add to the curves of its own run: reward and metric by the sample's number."""
    out = []
    for sample in samples:
        if sample.final is not None or sample.state != "Observed":
            continue
        at = _milliseconds(sample.ended or facts.begin)
        if sample.reward is not None:
            out.append(Metric("reward", sample.reward, at, sample.number))
        if (value := sample.metrics.get(facts.objective.metric)) is not None:
            out.append(Metric(facts.objective.metric, value, at, sample.number))
    return tuple(out)


def model_name(experiment: str) -> str:
    """Return the name of the registered model: MLflow's experiment, but for what MLflow takes for a path there."""
    return experiment.replace("/", "-").replace(":", "-")


def _tags(sample: Sample, uid: str) -> dict[str, str]:
    tags = {
        UID: uid,
        SAMPLE: str(sample.number),
        "nas.arm": sample.arm,
        "nas.state": sample.state,
        "nas.digest": sample.architecture.digest,
        "nas.attempts": str(len(sample.launches)),
    }
    if sample.stopped is not None:
        tags["nas.stopped"] = str(sample.stopped.epoch)
    if sample.reused is not None:
        tags["nas.reused"] = str(sample.reused)
    if sample.final is not None:
        tags["nas.of"] = str(sample.final.of)
        tags["nas.test"] = str(sample.final.settings.test).lower()
    if sample.state == "Lost":
        tags["nas.reason"] = sample.reason
        tags[NOTE] = _cut(f"{sample.reason}: {sample.message}" if sample.message else sample.reason, _LONGEST_TAG)
    return tags


def _parameters(sample: Sample) -> dict[str, str]:
    architecture = sample.architecture
    if isinstance(architecture, CustomArchitecture):
        parameters = {name: _cut(word(value), _LONGEST_PARAMETER) for name, value in architecture.choices.items()}
    else:
        parameters = {"architecture": _cut(architecture.short(), _LONGEST_PARAMETER)}
    if sample.final is not None:
        final = sample.final
        parameters |= {
            "final.epochs": str(final.epochs),
            "final.learningRate": final.optimizer.learning_rate,
            "final.momentum": final.optimizer.momentum,
            "final.weightDecay": final.optimizer.weight_decay,
            "final.batchNormEpsilon": final.settings.batch_norm_epsilon,
        }
        if final.settings.decay_epoch is not None:
            parameters["final.decayEpoch"] = str(final.settings.decay_epoch)
    return parameters


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def _milliseconds(moment: datetime) -> int:
    return round(moment.timestamp() * 1000)
