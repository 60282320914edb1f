"""Fixtures that tests of several parts share, and what holds for all tests."""

from collections.abc import Iterator

import pytest
import structlog
from hypothesis import HealthCheck, settings

pytest_plugins = ["cluster_fixtures", "s3_server"]

# Hypothesis by itself fails an example that takes 200 ms, and data that are slow to make.
settings.register_profile("any pace", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any pace")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Say what must stay on one worker where pytest has several (``--dist loadgroup``).

    The real nodes, because a machine can have one at a time; the control plane, because it is worth bringing up once;
    else a file, because of what its fixtures make for all of it.
    """
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            shared = next((name for name in ("node", "cluster") if item.get_closest_marker(name)), None)
            item.add_marker(pytest.mark.xdist_group(shared or item.nodeid.partition("::")[0]))


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """Undo what a program that a test runs in this process does to logging, so that no other test depends on it."""
    before = structlog.get_config()
    yield
    structlog.configure(**before)
