"""A client that counts and times its calls, for the metrics of operator and controllers. Nothing else is different."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    Info,
    ProcessCollector,
    disable_created_metrics,
)

from nas_api import __version__
from nas_kube.client import KubeClient, Listing, Object, Stream
from nas_kube.errors import ApiError, ApiUnavailable
from nas_kube.resources import Resource


def process_registry() -> CollectorRegistry:
    """Return a registry with what each process of ours says of itself."""
    # A second series for each counter and histogram, which says when it was made: the process's start does.
    disable_created_metrics()  # type: ignore[no-untyped-call]
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    Info("nas_build", "The version that runs.", registry=registry).info({"version": __version__})
    return registry


@contextmanager
def counted(count: Callable[[str], None]) -> Iterator[None]:
    """Count how a block that asks the API ends: ok, the status of a refusal, unavailable, or error for all else."""
    outcome = "error"
    try:
        yield
        outcome = "ok"
    except ApiError as error:
        outcome = str(error.status)
        raise
    except ApiUnavailable:
        outcome = "unavailable"
        raise
    finally:
        count(outcome)


class ApiMetrics:
    """What is known of calls. A list counts once, however many pages it has; a watch until it is open."""

    def __init__(self, registry: CollectorRegistry) -> None:
        """Declare them, once in a registry."""
        self._seconds = Histogram(
            "nas_api_request_duration_seconds",
            "How long the API server took to answer.",
            ["operation", "resource"],
            registry=registry,
            buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
        )
        self._requests = Counter(
            "nas_api_requests",
            "Calls of the API server: ok, the HTTP status of its refusal, unavailable, or error.",
            ["operation", "resource", "outcome"],
            registry=registry,
        )

    @contextmanager
    def request(self, operation: str, resource: str) -> Iterator[None]:
        """Time a call and count how it ends."""
        with (
            counted(lambda outcome: self._requests.labels(operation, resource, outcome).inc()),
            self._seconds.labels(operation, resource).time(),
        ):
            yield


class MeteredClient(KubeClient):
    """See :class:`nas_kube.client.KubeClient`."""

    def __init__(self, configuration: Any, *, metrics: ApiMetrics, **options: Any) -> None:
        """Use a ``kubernetes.client.Configuration`` and count in ``metrics``; ``options`` are KubeClient's."""
        super().__init__(configuration, **options)
        self._metrics = metrics

    def get(self, resource: Resource, namespace: str | None, name: str) -> Object:
        """See :class:`nas_kube.client.KubeClient`."""
        with self._metrics.request("get", resource.plural):
            return super().get(resource, namespace, name)

    def list(self, resource: Resource, namespace: str | None = None, **options: Any) -> Listing:
        """See :class:`nas_kube.client.KubeClient`."""
        with self._metrics.request("list", resource.plural):
            return super().list(resource, namespace, **options)

    def create(self, resource: Resource, namespace: str | None, body: Object, **options: Any) -> Object:
        """See :class:`nas_kube.client.KubeClient`."""
        with self._metrics.request("create", resource.plural):
            return super().create(resource, namespace, body, **options)

    def apply(self, resource: Resource, namespace: str | None, name: str, body: Object, **options: Any) -> Object:
        """See :class:`nas_kube.client.KubeClient`."""
        with self._metrics.request("apply", resource.plural):
            return super().apply(resource, namespace, name, body, **options)

    def patch(self, resource: Resource, namespace: str | None, name: str, body: Object, **options: Any) -> Object:
        """See :class:`nas_kube.client.KubeClient`."""
        with self._metrics.request("patch", resource.plural):
            return super().patch(resource, namespace, name, body, **options)

    def delete(self, resource: Resource, namespace: str | None, name: str, **options: Any) -> bool:
        """See :class:`nas_kube.client.KubeClient`."""
        with self._metrics.request("delete", resource.plural):
            return super().delete(resource, namespace, name, **options)

    def stream(self, path: str, query: Mapping[str, str | None], *, silence_seconds: float) -> Stream:
        """See :class:`nas_kube.client.KubeClient`."""
        # Collections are watched: the path ends in what they hold.
        with self._metrics.request("watch", path.rpartition("/")[2]):
            return super().stream(path, query, silence_seconds=silence_seconds)
