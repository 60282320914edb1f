"""The metrics of a controller, declared once, and the port that they are served at: docs/metrics.md explains them.

None has a label for the experiment: there is one in each process, so who scrapes knows it from the pod.
"""

import math

from prometheus_client import (
    Counter,
    Gauge,
    Histogram,
    start_http_server,
)

from nas_controller.executor import End
from nas_kube.metered import ApiMetrics, process_registry

CANCELLED = "Cancelled"
"""How a child ended that the search itself has ended, beside the ends that executors tell."""

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """All of them, in a registry of their own."""

    def __init__(self) -> None:
        """Declare them."""
        self.registry = registry = process_registry()
        self.api = ApiMetrics(registry)

        self.slots = Gauge(
            "nas_slots", "Children that may run at once: parallelism, or 0 if suspended.", registry=registry
        )
        self.children = Gauge(
            "nas_children",
            "Children now: pending, queued by Kueue, running, or blocked for a reason.",
            ["state", "reason"],
            registry=registry,
        )
        for state in ("pending", "queued", "running"):
            self.children.labels(state, "")
        self.launched = Counter("nas_children_launched", "Children launched by this process.", registry=registry)
        self.ended = Counter("nas_children_ended", "Children that ended, by how.", ["end"], registry=registry)
        for end in (*(end.value for end in End), CANCELLED):
            self.ended.labels(end)
        self.queue_seconds = Histogram(
            "nas_children_queue_duration_seconds",
            "From the launch of a child until it runs.",
            registry=registry,
            buckets=(1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600, 14400, 43200),
        )

        self.samples = Gauge(
            "nas_samples", "Samples of the search: open, observed or lost.", ["state"], registry=registry
        )
        self.budget = Gauge("nas_samples_budget", "Samples that the search may have.", registry=registry)
        self.diverged = Gauge("nas_samples_diverged", "Observed samples that diverged.", registry=registry)
        self.stopped = Gauge("nas_samples_stopped", "Observed samples that were stopped early.", registry=registry)
        self.reused = Gauge("nas_samples_reused", "Observed samples that took a known result.", registry=registry)
        self.retried = Gauge("nas_samples_retried", "Launches that repeated a sample.", registry=registry)
        self.problem = Gauge(
            "nas_search_problem", "1 for what keeps the search from going on.", ["reason"], registry=registry
        )
        self.reward_last = Gauge("nas_reward_last", "Reward that the policy learnt from last.", registry=registry)
        self.reward_mean = Gauge("nas_reward_mean", "Mean reward of the policy's last 20 samples.", registry=registry)
        self.best_reward = Gauge("nas_best_reward", "Highest reward so far.", registry=registry)
        self.best_metric = Gauge("nas_best_metric", "The objective's metric of the best sample.", registry=registry)
        self.update_seconds = Histogram(
            "nas_policy_update_duration_seconds",
            "How long the policy took to learn from one reward, replayed ones included.",
            registry=registry,
            buckets=_SECONDS,
        )
        self.entropy = Gauge("nas_policy_entropy_nats", "Mean entropy of a decision of the policy.", registry=registry)
        for unknown in (self.reward_last, self.reward_mean, self.best_reward, self.best_metric, self.entropy):
            # Not 0, which could be one.
            unknown.set(math.nan)

        self.store_seconds = Histogram(
            "nas_store_request_duration_seconds",
            "How long the object store took to answer.",
            ["operation"],
            registry=registry,
            buckets=_SECONDS,
        )
        self.store_requests = Counter(
            "nas_store_requests",
            "Calls of the object store: ok, exists, or the reason of the error.",
            ["operation", "outcome"],
            registry=registry,
        )
        self.store_up = Gauge("nas_store_up", "Whether the store could be used when last asked.", registry=registry)
        self.store_up.set(1)
        self.append_seconds = Histogram(
            "nas_log_append_duration_seconds",
            "How long the store took to take an object of the log.",
            registry=registry,
            buckets=_SECONDS,
        )
        self.log_objects = Gauge("nas_log_objects", "Objects in the log.", registry=registry)
        self.log_bytes = Counter("nas_log_appended_bytes", "Bytes appended by this process.", registry=registry)

    def serve(self, port: int) -> None:
        """Serve them at ``/metrics`` from threads that hold up no end of the process.

        Raises:
            OSError: the port cannot be had.
        """
        start_http_server(port, registry=self.registry)
