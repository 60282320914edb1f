"""Puts the controller of one experiment together, from its pod's environment, and runs it.

Environment: NAS_NAMESPACE, NAS_EXPERIMENT, NAS_UID (whose search), NAS_TRAINER_IMAGE (for manifests that name
none), NAS_CONTROLLER_IMAGE (this pod's, for the log), NAS_METRICS_PORT (where metrics are served; nowhere and none if
it is not set), NAS_TEMPLATES_UNRESTRICTED (true where templates may ask for more than stands on the list), and the
store's credentials.
The exit codes are ``nas_controller.controller.ControllerExit``.
"""

import logging
import os
import signal
import sys
from collections.abc import Mapping
from typing import Any

import structlog
import torch

from nas_api import names
from nas_controller.controller import Controller, ControllerExit
from nas_kube.client import KubeClient
from nas_kube.errors import KubeError
from nas_log.records import Platform

_log = structlog.get_logger()

_USER_AGENT = "nas-controller"


def main() -> ControllerExit:
    """Run the controller that the environment describes; return its exit code."""
    signal.signal(signal.SIGTERM, _terminate)
    try:
        namespace, name, uid, image = (
            os.environ[key] for key in ("NAS_NAMESPACE", "NAS_EXPERIMENT", "NAS_UID", "NAS_TRAINER_IMAGE")
        )
    except KeyError as error:
        sys.exit(f"{error.args[0]} is not set: the operator sets it in the controller's pod")
    _configure_logging(experiment=name, namespace=namespace)
    # Replay promises every bit: one thread, and only kernels that repeat themselves.
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    try:
        port = os.environ.get("NAS_METRICS_PORT")
        unrestricted = os.environ.get(names.ENV_UNRESTRICTED) == "true"
        if port is None:
            client = KubeClient.from_environment(user_agent=_USER_AGENT)
            return Controller(
                client, namespace, name, uid, image, unrestricted=unrestricted, platform=_platform()
            ).run()
        return _metered(int(port), namespace, name, uid, image, unrestricted=unrestricted).run()
    except KubeError as error:
        _log.error("no API server to talk to", error=str(error))
        return ControllerExit.REFUSED


def _metered(port: int, namespace: str, name: str, uid: str, image: str, *, unrestricted: bool) -> Controller:
    """Return a controller that counts what it does and serves that at a port."""
    # Whoever does not ask for it need not wait for its libraries.
    from nas_controller.metered import MeteredInstruments
    from nas_controller.metrics import Metrics
    from nas_kube.metered import MeteredClient

    metrics = Metrics()
    try:
        metrics.serve(port)
    except OSError as error:
        # As on a node's own network, where another has it: a search goes on unwatched.
        _log.warning("metrics are not served", port=port, error=str(error))
    client = MeteredClient.from_environment(metrics=metrics.api, user_agent=_USER_AGENT)
    instruments = MeteredInstruments(metrics)
    return Controller(client, namespace, name, uid, image, instruments, unrestricted=unrestricted, platform=_platform())


def _platform() -> Platform:
    """Return what the last bits of a policy's state depend on here."""
    return Platform(
        image=os.environ.get(names.ENV_CONTROLLER_IMAGE, ""),
        torch=str(torch.__version__),
        cpu=torch.backends.cpu.get_cpu_capability(),
    )


def _configure_logging(**bound: str) -> None:
    """Write JSON lines to standard output, each with these values."""

    def bind(_: Any, __: str, event: Mapping[str, Any]) -> Mapping[str, Any]:
        return {**bound, **event}

    structlog.configure(
        processors=[
            bind,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(),
    )


def _terminate(*_: object) -> None:
    # Dying is always safe, and threads may hang in calls for many seconds: no clean-up is worth the wait.
    os._exit(ControllerExit.TERMINATED)
