"""Where an experiment's objects are, for commands that read more than its status: a run's folder, or the bucket."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import click

from nas_api import names
from nas_api.child import StoreLocation
from nas_api.child_job import s3_location
from nas_api.experiment import NASExperiment
from nas_api.harmless import harmless
from nas_cli.cluster import find_experiment
from nas_cli.errors import Refusal
from nas_cli.folders import is_run
from nas_cli.run_folder import read_run
from nas_log.best import Evidence
from nas_log.errors import LogDamaged
from nas_log.follower import Follower
from nas_log.reader import Sample
from nas_store import Store, open_store
from nas_store.errors import StoreError


def open_experiment(
    name: str, namespace: str | None, context: str | None, endpoint: str | None
) -> tuple[NASExperiment, Store]:
    """Return an experiment and its store, which is read with the keys that boto3 finds for whoever is calling.

    Args:
        name: of an experiment on the cluster, or the folder of a local run.
        namespace: the context's when None.
        context: of the kubeconfig; the current one when None.
        endpoint: where the S3 server is seen from here; as the manifest says when None.

    Raises:
        Refusal: there is no such experiment, its manifest cannot be read, or nobody says that its endpoint is to be
            trusted with the caller's keys.
    """
    if is_run(Path(name)):
        return read_run(Path(name)), open_store(StoreLocation(folder=name))
    experiment, _ = find_experiment(name, namespace, context)
    location = s3_location(experiment)
    if endpoint is not None:
        location = location.model_copy(update={"endpoint": endpoint})
    elif location.endpoint is not None:
        _ask(experiment, location.endpoint)
    with reading(experiment):
        return experiment, open_store(StoreLocation(s3=location))


def _ask(experiment: NASExperiment, endpoint: str) -> None:
    """Ask whether an endpoint that whoever wrote the manifest has chosen may have requests signed by the caller.

    Raises:
        Refusal: it may not, or there is nobody to ask.
    """
    # It loads boto3, which reading needs too.
    from nas_store.s3 import is_foreign

    with reading(experiment):
        if not is_foreign(endpoint):
            return
    words = (
        f"the manifest of {experiment.metadata.name} names {endpoint}, which your own configuration of AWS does not,"
        " and requests to it are signed with your own keys"
    )
    cure = f"if you trust it, give it with --endpoint {endpoint}, or set AWS_ENDPOINT_URL_S3"
    if not _somebody_is_there():
        raise Refusal(f"{words}: {cure}")
    if not click.confirm(harmless(f"{words[0].upper()}{words[1:]}. Go on?"), err=True):
        raise Refusal(f"nothing was sent: {cure}")


def _somebody_is_there() -> bool:
    return sys.stdin.isatty()


def follower(experiment: NASExperiment, store: Store) -> Follower:
    """Return what reads an experiment's log, and holds it against the head that the status has."""
    status = experiment.status
    return Follower(store, anchor=None if status is None else status.log)


def read_samples(experiment: NASExperiment, store: Store) -> list[Sample]:
    """Return an experiment's samples and final trainings, open ones too, in the order in which they were drawn.

    Raises:
        Refusal: its log cannot be read, or is damaged.
    """
    log = follower(experiment, store)
    with reading(experiment):
        # Inherited ones belong to the experiment that drew them.
        ended = [sample for sample in log.read() if sample.arm != "inherited"]
    return sorted([*ended, *log.open.values()], key=lambda sample: sample.number)


def read_evidence(experiment: NASExperiment, store: Store) -> Evidence:
    """Return what an experiment's log says of the network that its search hands over.

    Raises:
        Refusal: its log cannot be read, or is damaged.
    """
    evidence = Evidence()
    with reading(experiment):
        log = follower(experiment, store)
        for sample in log.read():
            evidence.add(sample)
        evidence.finished = log.facts is not None and log.facts.finished is not None
    return evidence


@contextmanager
def reading(experiment: NASExperiment) -> Iterator[None]:
    """Turn trouble with a store or a log into a refusal that says what to do on the machine that reads."""
    try:
        yield
    except LogDamaged as error:
        raise Refusal(f"the log of {experiment.metadata.name} cannot be read: {error}") from error
    except StoreError as error:
        # What comes after the last colon is the cure in the manifest, which is right for the pods.
        words = str(error).rpartition(": ")[0]
        raise Refusal(f"the experiment's objects cannot be read from here: {words}. {_cure(experiment)}") from error


def _cure(experiment: NASExperiment) -> str:
    s3, namespace = experiment.spec.storage.s3, experiment.metadata.namespace
    words = f"The bucket is read with your own keys: set {' and '.join(names.CREDENTIAL_KEYS)}"
    if s3.credentials_secret is not None:
        words += f" (the pods' are in Secret {s3.credentials_secret.name} of namespace {namespace})"
    words += ". If the endpoint is a different one from here, give it with --endpoint"
    if s3.endpoint is not None and (host := _service(s3.endpoint)) is not None:
        service, _, rest = host.partition(".")
        port = urlsplit(s3.endpoint).port or 80
        words += (
            f"; {host} looks like a name that only the cluster knows: kubectl port-forward -n"
            f" {rest.partition('.')[0] or namespace} service/{service} {port}, then --endpoint http://127.0.0.1:{port}"
        )
    return words


def _service(endpoint: str) -> str | None:
    """Return the host of an endpoint that looks like a Service's: NAME, NAME.NAMESPACE or NAME.NAMESPACE.svc..."""
    parts = urlsplit(endpoint)
    host = parts.hostname or ""
    likely = ".svc" in host or (parts.scheme == "http" and host.count(".") <= 1 and ":" not in host)
    return host if likely else None
