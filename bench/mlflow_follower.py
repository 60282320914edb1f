"""What a search costs an MLflow server, and how quickly a follower catches up with one that has ended.

    .venv/bin/python bench/mlflow_follower.py http://127.0.0.1:5000 --samples 1000

Follows a made-up search in a temporary folder, twice: the second time everything is there, and is only compared. Prints
samples per second and requests per sample of both, and what the second costs of the first.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from uuid import uuid4

import requests
import structlog

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from report import logs

from nas_api.child import StoreLocation
from nas_api.experiment import MlflowSpec
from nas_api.follower import FollowerInput
from nas_followers.following import follow
from nas_followers.main import CLIENT_DEFAULTS
from nas_store.folder import FolderStore


class Clock:
    """The machine's own."""

    def now(self) -> float:
        """See :class:`nas_followers.following.Clock`."""
        return time.monotonic()

    def wait(self, seconds: float) -> None:
        """See :class:`nas_followers.following.Clock`."""
        time.sleep(seconds)


def main() -> None:
    """Print a line for each pass."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("uri", help="of the server")
    parser.add_argument("--samples", type=int, default=1000)
    arguments = parser.parse_args()
    os.environ |= CLIENT_DEFAULTS
    from nas_followers.mlflow import Mlflow  # Its client reads the variables.

    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger("warning"))
    sent = [0]
    send = requests.Session.send

    def counted(*words: Any, **options: Any) -> Any:
        sent[0] += 1
        return send(*words, **options)

    session: Any = requests.Session
    session.send = counted
    with tempfile.TemporaryDirectory() as folder:
        store = FolderStore(folder)
        logs.write(store, logs.records(logs.CONVOLUTIONAL, arguments.samples, control="0.2"))
        asked = FollowerInput(
            experiment="bench",
            namespace="bench",
            uid=uuid4().hex,
            store=StoreLocation(folder=folder),
            mlflow=MlflowSpec(uri=arguments.uri),
        )
        took = []
        for what in ("handed over", "compared"):
            sent[0], began = 0, time.monotonic()
            samples = follow(store, "mlflow", Mlflow(asked), Clock())
            took.append(time.monotonic() - began)
            print(
                f"{samples} samples {what}: {took[-1]:.1f} s, {samples / took[-1]:.1f} samples/s,"
                f" {sent[0] / samples:.3f} requests per sample"
            )
        print(f"comparing costs {took[1] / took[0]:.3f} of handing over")


if __name__ == "__main__":
    main()
