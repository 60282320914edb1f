"""Fixtures that tests of several parts share."""

from collections.abc import Iterator

import pytest
import structlog

pytest_plugins = ["cluster_fixtures", "s3_server"]


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """Undo what a program that a test runs in this process does to logging, so that no other test depends on it."""
    before = structlog.get_config()
    yield
    structlog.configure(**before)
