"""Children whose results are looked up: a whole search, log and all, in seconds, for benchmarks and tests."""

from collections.abc import Callable, Mapping

from nas_api import names
from nas_api.architecture import Architecture
from nas_api.child import Result
from nas_controller.executor import End, Ended, Event, Launch
from nas_store import Store

Measure = Callable[[int, Architecture], Mapping[str, float]]
"""From a sample's number, which may decide the noise, and its architecture to its metrics."""


class TableExecutor:
    """See :class:`nas_controller.executor.Executor`. A child ends, its result in the store, as it is launched."""

    def __init__(self, store: Store, measure: Measure) -> None:
        """Prepare.

        Args:
            store: where results are written, the search's own.
            measure: looks a result up.
        """
        self._store = store
        self._measure = measure
        self._post: Callable[[Event], None]

    def start(self, post: Callable[[Event], None]) -> frozenset[int]:
        """See :class:`nas_controller.executor.Executor`. Nothing exists: no child outlives its launch."""
        self._post = post
        return frozenset()

    def launch(self, launch: Launch) -> None:
        """See :class:`nas_controller.executor.Executor`."""
        for asked in launch.inputs:
            result = Result(
                sample=asked.sample,
                attempt=asked.attempt,
                architecture=asked.architecture.digest,
                metrics=dict(self._measure(asked.sample, asked.architecture)),
            )
            self._store.put_if_absent(names.result_key(asked.sample), result.model_dump_json(by_alias=True).encode())
        self._post(Ended(launch.number, End.SUCCEEDED))

    def cancel(self, launch: int) -> None:
        """See :class:`nas_controller.executor.Executor`. There is nothing to end."""

    def images(self, sample: int) -> dict[str, str]:
        """See :class:`nas_controller.executor.Executor`. There are none."""
        return {}

    def close(self) -> None:
        """See :class:`nas_controller.executor.Executor`."""
