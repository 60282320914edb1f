"""Writes logs of today's format beside the old ones; see README.md. What exists already is never written again."""

import itertools
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from controller.world import InlinePool, MemoryStore, Recorder, World, WorldClock, WorldExecutor, make_experiment
from pydantic import TypeAdapter

from nas_api import names
from nas_api.child import StoreLocation, TrainerInput
from nas_controller.earlier import Earlier
from nas_controller.policies.factory import make_policy
from nas_controller.search import Exit, Search
from nas_controller.state import Core, fold
from nas_log.log import read_log
from nas_log.records import Platform

FOLDER = Path(__file__).parent
FATES = [
    "result", "result", "Disrupted", "diverged", "result", "Failed", "malformed", "OutOfMemory", "Vanished", "result",
    "result-then-killed", "InvalidInput", "DatasetUnavailable", "result", "DeadlineExceeded",
]  # fmt: skip
FINAL_TRAINING = {"top": 2, "epochs": 3, "grid": {"learningRate": ["0.1", "0.05"], "decayEpoch": [2]}}
PLATFORM = Platform(image="controller:golden", torch="2.0", cpu="DEFAULT")
DECISIONS = [
    {"name": "depth", "range": {"from": 1, "to": 3}},
    {"name": "kind", "options": ["plain", "wide"]},
    {"name": "width", "options": ["16", "32"], "repeat": 2, "when": {"decision": "kind", "in": ["wide"]}},
]
SEARCHES: Mapping[str, Mapping[str, Any]] = {
    "convolutional-guided": {
        "searcher": {"seed": 1, "guided": {}, "duplicates": "Reuse", "control": {"random": "0.2"}},
        "finalTraining": FINAL_TRAINING,
    },
    "convolutional-reinforce": {
        "searchSpace": {"convolutional": {"layers": {"initial": 2, "increment": 1, "everySamples": 8, "maximum": 4}}},
        "searcher": {"seed": 2, "reinforce": {"replicas": 2, "batch": 2}},
    },
    "convolutional-warm-start": {
        "searcher": {"seed": 3, "ppo": {}, "warmStart": {"experiment": "convolutional-guided"}},
    },
    "cell-ppo": {
        "searchSpace": {"recurrentCell": {"base": 2}},
        "searcher": {"seed": 4, "ppo": {}},
        "trainer": {"dataset": {"text": {}}, "epochs": 1},
        "objective": {"metric": "perplexity", "goal": "Minimize", "reward": {"inverseSquare": {}}},
    },
    "convolutional-early-stopping": {
        "searcher": {"seed": 6, "guided": {}, "control": {"random": "0.2"}},
        "trainer": {
            "dataset": {"digits": {}},
            "epochs": 3,
            "earlyStopping": {"epoch": 2, "worst": "0.5", "startup": 4},
        },
    },
    "convolutional-packs": {
        # The space is small, so that samples wait for equal ones in flight.
        "searchSpace": {"convolutional": {"layers": {"initial": 1}, "filterHeights": [1, 3], "filters": [4, 8]}},
        "searcher": {"seed": 7, "random": {}},
        "parallelism": 6,
        "trainer": {"dataset": {"digits": {}}, "epochs": 1, "childrenPerPod": 3},
    },
    # Written with snapshots, whose digests the log has, as it has those of what the test leaves.
    "convolutional-vouched": {"searcher": {"seed": 8, "evolution": {}}, "finalTraining": FINAL_TRAINING},
    # Written by a controller that was told what it runs on.
    "convolutional-platform": {"searcher": {"seed": 9, "random": {}}},
    "custom-evolution": {
        "searchSpace": {"custom": {"decisions": DECISIONS}},
        "searcher": {"seed": 5, "evolution": {"population": 8, "tournament": 3}},
        "trainer": {"dataset": {"custom": {}}},
    },
}


def luck(asked: TrainerInput) -> tuple[float, ...]:
    """Return the metric after each epoch: it grows to one that depends on nothing but the architecture."""
    worth = 0.1 + 0.8 * int(asked.architecture.digest[:8], 16) / 16**8
    return tuple(worth * epoch / asked.epochs for epoch in range(1, asked.epochs + 1))


def log_of(name: str, find: Callable[[str], MemoryStore]) -> MemoryStore:
    """Run a search to its end and return its store."""
    store = MemoryStore()
    world = World(store, itertools.chain(FATES, itertools.repeat("result")), itertools.cycle([0, 2, 1]), curve=luck)
    search = Search(
        make_experiment(budget={"samples": 24}, **SEARCHES[name]),
        store=store,
        location=StoreLocation(folder="/store"),
        executor=WorldExecutor(world),
        sink=Recorder(),
        pool=InlinePool(),
        find_earlier=lambda _, earlier, uid: Earlier(earlier, uid, find(earlier)),
        clock=WorldClock(world),
        snapshot_every=20 if name == "convolutional-vouched" else 200,
        platform=PLATFORM if name == "convolutional-platform" else None,
    )
    assert search.run() is Exit.FINISHED
    return store


def stored(name: str) -> MemoryStore:
    """Return a store with a golden log in it."""
    store = MemoryStore()
    for sequence, line in enumerate((FOLDER / f"{name}.log").read_bytes().splitlines()):
        store.put(names.log_key(sequence), line)
    return store


def main(wanted: list[str]) -> None:
    """Write what does not exist yet."""
    for name in wanted or SEARCHES:
        path = FOLDER / f"{name}.log"
        if path.exists():
            raise SystemExit(f"{path.name} exists: logs that were written once stay as they are")
        store = log_of(name, stored)
        path.write_bytes(b"".join(store.objects[key] + b"\n" for key in store.list(names.LOG_PREFIX)))
        state = fold(read_log(store), make_policy)
        assert state is not None
        path.with_suffix(".core.json").write_bytes(TypeAdapter(Core).dump_json(state.core, indent=1) + b"\n")


if __name__ == "__main__":
    main(sys.argv[1:])
