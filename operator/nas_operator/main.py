"""Puts the operator together and runs it."""

import asyncio
import socket
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import kopf
import structlog

from nas_kube.client import KubeClient
from nas_kube.errors import ApiError, KubeConfigError, KubeError
from nas_kube.resources import EXPERIMENTS
from nas_operator import logs
from nas_operator.cache import Cache, Key
from nas_operator.connection import connection
from nas_operator.handlers import Inbox, registry
from nas_operator.health import health_server
from nas_operator.intake import Intake
from nas_operator.reconciler import Reconciler
from nas_operator.resync import PODS_SELECTOR, Resync
from nas_operator.settings import Settings, SettingsError
from nas_operator.workqueue import WorkQueue

if TYPE_CHECKING:
    from nas_operator.metrics import Metrics

_log = structlog.get_logger()

_EXIT_USAGE = 2


def main() -> int:
    """Run until SIGTERM; return the exit code."""
    logs.configure()
    try:
        settings = Settings.from_environment()
        logs.configure(level=settings.log_level)
        client, metrics = _connect(settings)
    except (SettingsError, KubeConfigError) as error:
        _log.error("cannot start", error=str(error))
        return _EXIT_USAGE
    asyncio.run(run(settings, client, metrics))
    return 0


def _connect(settings: Settings) -> tuple[KubeClient, "Metrics | None"]:
    """Return a client, and the metrics that it counts in where somebody wants any.

    Raises:
        SettingsError: the metrics' port cannot be had.
        KubeConfigError: there is no API server to talk to.
    """
    options: dict[str, Any] = {"user_agent": "nas-operator", "pool_size": settings.workers + 4}
    if settings.metrics_port is None:
        return KubeClient.from_environment(**options), None
    # Whoever does not ask for them need not have their library loaded.
    from nas_kube.metered import MeteredClient
    from nas_operator.metrics import Metrics

    metrics = Metrics()
    try:
        metrics.serve(settings.metrics_port)
    except OSError as error:
        raise SettingsError(f"NAS_METRICS_PORT: {settings.metrics_port} cannot be had: {error}") from error
    return MeteredClient.from_environment(metrics=metrics.api, **options), metrics


async def run(settings: Settings, client: KubeClient, metrics: "Metrics | None") -> None:
    """Run until kopf ends, as it does on SIGTERM and when a watch breaks beyond repair."""
    cache = Cache()
    queue: WorkQueue[Key] = WorkQueue()
    intake = Intake() if metrics is None else Intake(metrics.unreadable)
    reconciler = Reconciler(client, cache, settings, reporter=socket.gethostname(), unreadable=intake.tell)
    resync = Resync(client, cache, settings.watch_namespaces, queue.add, intake)

    reconcile: Callable[[Key], timedelta | None] = reconciler.reconcile
    if metrics is not None:
        metrics.observe(cache, queue.depth, resync.list_age, resync.lagging)
        reconcile = metrics.reconcile(reconcile)

    async def handle(key: Key) -> float | None:
        with structlog.contextvars.bound_contextvars(namespace=key[0], experiment=key[1]):
            again = await asyncio.to_thread(reconcile, key)
        return None if again is None else again.total_seconds()

    async with health_server(settings.health_port, resync.trouble):
        await _resource_is_served(settings, client)
        await resync.first()
        _log.info("operator started", experiments=len(cache.keys()), namespaces=settings.watch_namespaces or "all")
        inbox = Inbox(cache, queue.add, reconciler.forget, lambda: connection(client, intake))
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(queue.work(handle, _failed)) for _ in range(settings.workers)]
            tasks.append(group.create_task(resync.run()))
            await kopf.operator(
                registry=registry,
                settings=_kopf_settings(),
                standalone=True,
                clusterwide=not settings.watch_namespaces,
                namespaces=settings.watch_namespaces,
                memo=inbox,
            )
            for task in tasks:
                task.cancel()


async def _resource_is_served(settings: Settings, client: KubeClient) -> None:
    """Wait for the CustomResourceDefinition: kopf would take a missing one for the end."""
    namespace = settings.watch_namespaces[0] if settings.watch_namespaces else None
    while True:
        try:
            await asyncio.to_thread(client.list, EXPERIMENTS, namespace, keep=lambda _: None)
        except ApiError as error:
            _log.warning("experiments cannot be listed yet: is the CRD applied, and RBAC?", error=error.message)
        except KubeError as error:
            _log.warning("the API server does not answer yet", error=str(error))
        else:
            return
        await asyncio.sleep(2.0)


def _failed(key: Key, error: Exception, pause_seconds: float) -> None:
    with structlog.contextvars.bound_contextvars(namespace=key[0], experiment=key[1]):
        if isinstance(error, KubeError):
            _log.warning("will try again", error=str(error), pause_seconds=round(pause_seconds, 1))
        else:
            _log.error("will try again", pause_seconds=round(pause_seconds, 1), exc_info=error)


def _kopf_settings() -> kopf.OperatorSettings:
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False
    settings.scanning.disabled = True
    # The server ends a watch after this, and a silent connection is given up soon after the next bookmark is due.
    settings.watching.server_timeout = 240
    settings.watching.inactivity_timeout = 90.0
    settings.watching.connect_timeout = 5.0
    # kopf decodes a page of its lists as a whole, and an object may be 1.5 MB of text and twenty times that decoded.
    settings.watching.chunk_size = 2
    settings.networking.request_timeout = 30.0
    settings.watching.label_selectors["", "v1", "pods"] = PODS_SELECTOR
    settings.process.ultimate_exiting_timeout = 20.0
    return settings
