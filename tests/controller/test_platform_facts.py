"""What a controller ran on stands in its log; another state of the policy on another CPU is told, and does no harm."""

import json
import subprocess
import sys

import pytest
import torch
from controller.golden.write import stored
from controller.test_search import Bench
from controller.world import CountingPolicy, InlinePool, MemoryStore, WorldClock, WorldExecutor, make_experiment
from structlog.testing import capture_logs

from nas_api import names
from nas_api.child import StoreLocation
from nas_controller import snapshots
from nas_controller.recovery import recover
from nas_controller.search import Exit, Search
from nas_controller.state import MakePolicy
from nas_log.log import read_log
from nas_log.records import Platform, Started
from nas_store import tensors

AVX2 = Platform(image="controller:1", torch="2.0", cpu="AVX2")
AVX512 = Platform(image="controller:1", torch="2.0", cpu="AVX512")
EXPERIMENT = make_experiment(budget={"samples": 20})
DIFFERS = "the policy's state differs in bits"


class Elsewhere(CountingPolicy):
    """The same policy on another kind of CPU: sums have other last bits."""

    def observed(self, sample: int, reward: float) -> None:
        super().observed(sample, reward)
        self._state[0] += 1e-12


def run(
    bench: Bench, platform: Platform | None, policy: MakePolicy = CountingPolicy, *, stop_after: int | None = None
) -> Exit:
    """Search on, on a platform, as far as wanted."""
    progress, left = bench.world.progress, iter(range(100))

    def stop() -> bool:
        if next(left) == stop_after:
            bench.search.stop()
        return progress()

    bench.world.progress = stop  # type: ignore[method-assign]
    bench.search = Search(
        EXPERIMENT,
        store=bench.world.store,
        location=StoreLocation(folder="/store"),
        executor=WorldExecutor(bench.world),
        sink=bench.sink,
        pool=InlinePool(),
        make_policy=policy,
        clock=WorldClock(bench.world),
        snapshot_every=5,
        platform=platform,
    )
    try:
        return bench.search.run()
    finally:
        bench.world.progress = progress  # type: ignore[method-assign]


def test_each_controller_says_what_it_runs_on_and_where_its_policy_stands() -> None:
    bench = Bench()
    assert run(bench, AVX2, stop_after=9) is Exit.STOPPED
    with capture_logs() as lines:
        assert run(bench, AVX2) is Exit.FINISHED
    first, second = bench.of_kind(Started)
    assert first.platform == second.platform == AVX2
    assert first.policy and second.policy and first.policy != second.policy
    assert not [line for line in lines if DIFFERS in line["event"]], "here it is the same to the last bit"
    store = bench.world.store
    assert isinstance(store, MemoryStore)
    for key in store.list(names.SNAPSHOT_PREFIX):
        written = tensors.metadata(store.objects[key])
        assert json.loads(written["platform"]) == AVX2.model_dump() and len(written["policy"]) == 64


def test_on_another_kind_of_cpu_it_is_told_and_the_search_goes_on() -> None:
    bench = Bench()
    assert run(bench, AVX2, stop_after=5) is Exit.STOPPED
    assert run(bench, AVX2, stop_after=3) is Exit.STOPPED
    store = bench.world.store
    assert isinstance(store, MemoryStore)
    for key in store.list(names.SNAPSHOT_PREFIX):
        # So that all of it is computed anew.
        del store.objects[key]
    with capture_logs() as lines:
        assert run(bench, AVX512, Elsewhere) is Exit.FINISHED
    (told,) = [line for line in lines if DIFFERS in line["event"]]
    assert (told["theirs"]["cpu"], told["ours"]["cpu"], told["epoch"]) == ("AVX2", "AVX512", 2)
    assert [record.platform for record in bench.of_kind(Started)] == [AVX2, AVX2, AVX512]
    assert bench.sink.last.progress == "20/20"


def test_a_snapshot_of_another_platform_is_used_and_told() -> None:
    bench = Bench()
    assert run(bench, AVX2, stop_after=9) is Exit.STOPPED
    with capture_logs() as lines:
        recovered = recover(bench.world.store, CountingPolicy, platform=AVX512)
    assert recovered.snapshot_records > 0
    assert [line["theirs"]["cpu"] for line in lines if line["event"] == "snapshot of another platform"] == ["AVX2"]


def test_what_nobody_has_said_is_nowhere() -> None:
    """Logs and snapshots are byte for byte what they were before there were such facts."""
    bench = Bench()
    assert run(bench, None) is Exit.FINISHED
    store = bench.world.store
    assert isinstance(store, MemoryStore)
    assert not [key for key, data in store.objects.items() if b'"platform"' in data or b'"policy":' in data]
    assert snapshots.platform_of(store.objects[store.list(names.SNAPSHOT_PREFIX)[-1]]) is None


def test_the_facts_of_a_golden_log_are_read() -> None:
    first = next(record for record in read_log(stored("convolutional-platform")) if isinstance(record, Started))
    assert first.platform == Platform(image="controller:golden", torch="2.0", cpu="DEFAULT")


@pytest.mark.parametrize("wanted", ["default", ""])
def test_who_asks_for_it_has_the_kernels_of_every_cpu(wanted: str) -> None:
    """As spec.controller.template's env does."""
    code = "from nas_controller.main import _platform; print(_platform().model_dump_json())"
    environment = {"PATH": "", "NAS_CONTROLLER_IMAGE": "controller:1"} | (
        {"ATEN_CPU_CAPABILITY": wanted} if wanted else {}
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True, text=True)
    found = Platform.model_validate_json(done.stdout)
    assert (found.image, found.torch) == ("controller:1", str(torch.__version__))
    assert found.cpu == ("DEFAULT" if wanted else torch.backends.cpu.get_cpu_capability())
