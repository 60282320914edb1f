"""A whole search of many samples: does it slow down as it goes, what does it write, and how long is its report drawn?

    .venv/bin/python bench/long_search.py --samples 12800 --in-flight 100

The real search (log, policy, results, snapshots) with children whose accuracy is computed at once from their
architecture, in the convolutional space of --layers layers with skips. Prints, for each tenth of the search,
milliseconds a sample, all of them the controller's own, and at the end the ratio of the last tenth to the second: the
first has few samples to learn from. The report's seconds are of the processor, once its log is read.
"""

import argparse
import json
import logging
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import structlog

from nas_api import names
from nas_api.architecture import Architecture
from nas_api.child import StoreLocation
from nas_api.experiment import NASExperiment
from nas_api.spaces.convolutional import ConvolutionalArchitecture
from nas_controller.executors.table import TableExecutor
from nas_controller.policies.draws import Purpose, uniforms
from nas_controller.search import Exit, Search
from nas_controller.status import SearchStatus
from nas_log.log import read_log
from nas_report import read, render
from nas_store.folder import FolderStore


def accuracy(sample: int, architecture: Architecture) -> dict[str, float]:
    """Return an accuracy that likes large filters late, skips over one layer, and has noise."""
    assert isinstance(architecture, ConvolutionalArchitecture)
    count = len(architecture.layers)
    good = 0.0
    for index, layer in enumerate(architecture.layers):
        wanted = 3 if index < count / 2 else 5
        good += (layer.filter_height == wanted) + (layer.filter_width == wanted) + layer.filters / 64
        good += len(layer.inputs) > 0 and layer.inputs[-1] == index - 1
    noise = uniforms(0, sample, Purpose.PROPOSE, 0, 1)[0] - 0.5
    return {"accuracy": 0.5 + 0.45 * good / (4 * count) + 0.02 * noise}


class Pace:
    """Notes when each tenth of the samples was observed."""

    def __init__(self, samples: int) -> None:
        self._tenth = samples // 10
        self._since = time.monotonic()
        self._done = 0
        self.milliseconds: list[float] = []

    def publish(self, status: SearchStatus) -> None:
        """Take a status, as the cluster would."""
        observed = 0 if status.samples is None else status.samples.observed
        if observed >= self._tenth * (len(self.milliseconds) + 1):
            now = time.monotonic()
            self.milliseconds.append((now - self._since) * 1000 / (observed - self._done))
            self._since, self._done = now, observed
            print(f"{observed:6} samples: {self.milliseconds[-1]:6.1f} ms a sample", flush=True)


def main() -> int:
    """Run the search and print its pace."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=3200)
    parser.add_argument("--in-flight", type=int, default=100)
    parser.add_argument("--layers", type=int, default=15)
    parser.add_argument("--searcher", default="guided")
    arguments = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    experiment = NASExperiment.model_validate(
        {
            "apiVersion": names.API_VERSION,
            "kind": names.KIND,
            "metadata": {"name": "long", "uid": "long"},
            "spec": {
                "searchSpace": {"convolutional": {"layers": {"initial": arguments.layers}}},
                "searcher": {arguments.searcher: {}},
                "parallelism": arguments.in_flight,
                "budget": {"samples": arguments.samples},
                "trainer": {"dataset": {"digits": {}}},
                "storage": {"s3": {"bucket": "none"}},
            },
        }
    )
    with tempfile.TemporaryDirectory() as folder:
        store = FolderStore(folder)
        pace = Pace(arguments.samples)
        search = Search(
            experiment,
            store=store,
            location=StoreLocation(folder=folder),
            executor=TableExecutor(store, accuracy),
            sink=pace,
            pool=ThreadPoolExecutor(8),
        )
        began = time.monotonic()
        why = search.run()
        took = time.monotonic() - began
        if why is not Exit.FINISHED:
            raise SystemExit(f"the search ended as {why}")
        history = read(read_log(store))
        assert history is not None
        began = time.process_time()
        page = render(history, experiment, datetime.now(UTC))
        drawn = time.process_time() - began
        sizes = [path.stat().st_size for path in sorted(Path(folder, "snapshots").iterdir())]
    print(
        json.dumps(
            {
                "seconds": round(took, 1),
                "ms_a_sample": round(took * 1000 / arguments.samples, 1),
                "last_tenth_to_second": round(pace.milliseconds[-1] / pace.milliseconds[1], 2),
                "last_snapshot_bytes": sizes[-1] if sizes else 0,
                "report_seconds": round(drawn, 2),
                "report_bytes": len(page.encode()),
            }
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
