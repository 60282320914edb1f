"""No process of ours writes the values of variables into its log: among them are users' templates, and keys."""

import logging
import os
import sys
from collections.abc import Callable, Iterator

import pytest
import structlog

from nas_cli.local_run import silence_logs
from nas_controller.main import _configure_logging
from nas_followers import main as follower
from nas_operator import logs
from nas_trainer.process import configure_logging


def _follower() -> None:
    # It has configured its log before it ends, for want of an environment.
    assert follower.main({}) != 0


def _for_people(configure: Callable[[], None]) -> Callable[[], None]:
    def on_a_terminal() -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys.stderr, "isatty", lambda: True)
            configure()

    return on_a_terminal


@pytest.fixture
def restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.mark.parametrize(
    "configure",
    [
        lambda: logs.configure(terminal=False),
        lambda: logs.configure(terminal=True),
        lambda: _configure_logging(experiment="digits"),
        lambda: configure_logging({}),
        _for_people(lambda: configure_logging({})),
        _follower,
        lambda: silence_logs(verbose=True),
    ],
    ids=["operator", "operator-tty", "controller", "trainer", "trainer-tty", "follower", "cli"],
)
def test_tracebacks_tell_no_values(
    configure: Callable[[], None], restored: None, capfd: pytest.CaptureFixture[str]
) -> None:
    configure()
    capfd.readouterr()
    secret = "hunter" + str(os.getpid())
    try:
        raise KeyError("missing")
    except KeyError:
        structlog.get_logger("test").exception("it failed")
    out, err = capfd.readouterr()
    assert "it failed" in out + err and "KeyError" in out + err
    assert secret not in out + err
