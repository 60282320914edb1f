"""Fixtures that tests of several parts share, and what holds for all tests."""

import os
from collections.abc import Iterator

import pytest
import structlog
from hypothesis import HealthCheck, settings
from workers import Together
from xdist.remote import Producer

pytest_plugins = ["canned_api", "cluster_fixtures", "judges", "s3_server"]

# Before anything imports torch: two workers with as many threads each as the machine has cores wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Hypothesis by itself fails an example that takes 200 ms, and data that are slow to make.
settings.register_profile("any pace", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any pace")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what needs a real node, if there are other workers for the rest: nothing takes as long."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=lambda item: item.get_closest_marker("node") is None)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Together | None:
    """Keep together on one worker what must be (``--dist loadfile``)."""
    return Together(config, log) if config.getoption("dist") == "loadfile" else None


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """Undo what a program that a test runs in this process does to logging, so that no other test depends on it.

    To the defaults, not to what was before: a module's fixture may have run a program first.
    """
    yield
    structlog.reset_defaults()
