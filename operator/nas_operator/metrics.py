"""The metrics of the operator, declared once, and the port that they are served at: docs/metrics.md explains them.

None has a label for the experiment: how many experiments there are must not decide how many series there are.
"""

from collections import Counter as Tally
from collections.abc import Callable, Iterable
from datetime import timedelta

from prometheus_client import (
    Counter,
    Gauge,
    Histogram,
    start_http_server,
)
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from nas_api import names
from nas_api.reasons import ConditionType, Reason
from nas_kube.metered import ApiMetrics, counted, process_registry
from nas_kube.reading import conditions, status
from nas_operator.cache import Cache, Key

Reconcile = Callable[[Key], timedelta | None]

_REASONS = frozenset(reason.value for reason in Reason)


class Experiments(Collector):
    """Counts the experiments in a cache when it is asked."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache

    def describe(self) -> Iterable[Metric]:
        """Return the metric without its values."""
        return [self._family()]

    def collect(self) -> Iterable[Metric]:
        """Return the metric: a value for each state and reason that there is."""
        family = self._family()
        tally = Tally(_standing(raw) for raw in self._cache.experiments())
        for (state, reason), count in sorted(tally.items()):
            family.add_metric([state, reason], count)
        return [family]

    def _family(self) -> GaugeMetricFamily:
        return GaugeMetricFamily(
            "nas_experiments",
            "Experiments by state and reason of their condition Progressing.",
            None,
            ["state", "reason"],
        )


class Metrics:
    """All of them, in a registry of their own; ``observe`` names what some are read from."""

    def __init__(self) -> None:
        """Declare them."""
        self.registry = registry = process_registry()
        self.api = ApiMetrics(registry)
        self._seconds = Histogram(
            "nas_reconcile_duration_seconds",
            "How long one look at one experiment took.",
            registry=registry,
            buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
        )
        self._reconciles = Counter(
            "nas_reconciles",
            "Looks at experiments: ok, the HTTP status of a refusal, unavailable, or error.",
            ["outcome"],
            registry=registry,
        )
        for outcome in ("ok", "unavailable", "error"):
            self._reconciles.labels(outcome)
        self._depth = Gauge("nas_reconcile_queue_depth", "Experiments that wait for a look.", registry=registry)
        self._list_age = Gauge(
            "nas_list_age_seconds",
            "Since the API server last answered a list, which is due each minute.",
            registry=registry,
        )
        self._lagging = Gauge(
            "nas_watch_lagging_experiments",
            "Experiments that a list found newer than the watch did.",
            registry=registry,
        )

        self._unreadable = Counter(
            "nas_unreadable_objects",
            "Versions of experiments and pods that the operator could not make anything of; its log names them.",
            ["kind"],
            registry=registry,
        )
        for kind in (names.KIND, "Pod"):
            self._unreadable.labels(kind)

    def unreadable(self, kind: str) -> None:
        """Count an object that cannot be read."""
        self._unreadable.labels(kind).inc()

    def observe(
        self, cache: Cache, depth: Callable[[], int], list_age: Callable[[], float], lagging: Callable[[], int]
    ) -> None:
        """Read what these say whenever the metrics are asked for; they are called from other threads."""
        self.registry.register(Experiments(cache))
        self._depth.set_function(depth)
        self._list_age.set_function(list_age)
        self._lagging.set_function(lagging)

    def reconcile(self, reconcile: Reconcile) -> Reconcile:
        """Return the same, timed and counted."""

        def metered(key: Key) -> timedelta | None:
            with counted(lambda outcome: self._reconciles.labels(outcome).inc()), self._seconds.time():
                return reconcile(key)

        return metered

    def serve(self, port: int) -> None:
        """Serve them at ``/metrics`` from threads that hold up no end of the process.

        Raises:
            OSError: the port cannot be had.
        """
        start_http_server(port, registry=self.registry)


def _standing(raw: dict[str, object]) -> tuple[str, str]:
    """Return an experiment's state and reason; a reason that is none of ours, as anybody may write one, is Other."""
    state = str(status(raw).get("state", "Pending"))
    reason = str(conditions(raw).get(ConditionType.PROGRESSING, {}).get("reason", ""))
    return state, reason if reason in _REASONS or not reason else "Other"
