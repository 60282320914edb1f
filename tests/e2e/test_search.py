"""A search on a real cluster: to its end, through deaths, and to its deletion."""

import json
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pytest
from demo.demo import Demo
from demo.places import NAMESPACE
from demo.steps import Steps
from e2e.conftest import Document, World, small

from nas_api import names
from nas_log.log import read_log
from nas_log.records import Finished, Launched, Lost, Observed, Proposed, Record, Started
from nas_store import Store

pytestmark = [pytest.mark.node, pytest.mark.slow, pytest.mark.timeout(3600)]
# Of the whole search: enough for what each child costs to outweigh what every search costs once.
CHILDREN = 60
Start = Callable[..., Document]


def assert_nothing_twice_nothing_missing(records: Sequence[Record], samples: int) -> None:
    """Each sample is proposed once and decided once, each launch recorded once, and the search is finished."""
    kinds: dict[type, Counter[int]] = {Proposed: Counter(), Observed: Counter(), Lost: Counter()}
    for record in records:
        if isinstance(record, Proposed | Observed | Lost):
            kinds[type(record)][record.sample] += 1
    everything = Counter(range(samples))
    assert kinds[Proposed] == everything
    assert kinds[Observed] + kinds[Lost] == everything
    launches = [record.launch for record in records if isinstance(record, Launched)]
    assert launches == list(range(len(launches)))
    assert [record.epoch for record in records if isinstance(record, Started)] == list(
        range(1, 1 + sum(isinstance(record, Started) for record in records))
    )
    assert isinstance(records[-1], Finished)


def test_the_demo_completes(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """`make demo` with fewer samples: what it prints, and what the search leaves."""
    manifest = tmp_path / "whole.json"
    manifest.write_text(json.dumps(small("whole", CHILDREN)))
    demo = Demo(world.place, Steps(), manifest, "whole")
    began = time.time()
    demo.search()
    seconds = time.time() - began
    demo.show()
    status = world.wait_complete("whole")
    requests = world.requests(began)
    document = world.experiment("whole")
    demo.search(keep=True)
    kept = world.experiment("whole")
    world.kubectl("delete", "nas", "whole")

    assert kept["metadata"]["uid"] == document["metadata"]["uid"]
    printed = capsys.readouterr().out
    for text in ("Complete:", "best architecture", status["best"]["metric"], "policy's progress", "-controller-1"):
        assert text in printed

    samples = status["samples"]
    assert [samples[word] for word in ("budget", "proposed", "observed")] == [CHILDREN] * 3
    assert [samples[word] for word in ("running", "lost", "retried")] == [0] * 3
    assert status["state"] == "Complete"
    assert float(status["best"]["metric"]) > 0.5
    assert "finalizers" not in document["metadata"]
    # kubectl apply's own is there, and nothing else.
    assert set(document["metadata"]["annotations"]) == {"kubectl.kubernetes.io/last-applied-configuration"}

    assert bool(requests) == (world.place.audit_log is not None)
    writes = [request for request in requests if request.split()[0] not in ("get", "list", "watch")]
    with capsys.disabled():
        counts = f"{len(writes) / CHILDREN:.2f} writes and {(len(requests) - len(writes)) / CHILDREN:.2f} reads"
        print(f"\nAPI requests of operator and controller: {counts} for each child")
    assert len(writes) <= 2.2 * CHILDREN, Counter(requests)
    # Children cost no reads; who watches renews the watch, looks after what has long not begun, and lists now and then.
    assert len(requests) - len(writes) <= 20 + seconds / 5, Counter(requests)

    records = world.log(document, monkeypatch)
    assert_nothing_twice_nothing_missing(records, CHILDREN)
    rewards = {record.sample: record.reward for record in records if isinstance(record, Observed)}
    # Of equals, the one that was observed first, which need not be the one that was drawn first.
    assert max(rewards, key=lambda sample: rewards[sample]) == status["best"]["sample"]

    keys = world.objects(document)
    assert names.BEST_ARCHITECTURE in keys
    assert {names.result_key(sample) for sample in range(CHILDREN)} <= set(keys)


def test_every_pod_is_admitted_as_restricted(world: World, experiment: Start) -> None:
    """The namespace enforces the standard, and every pod of ours has run in it: what was refused would be missing."""
    (namespace,) = [
        item for item in world.items("namespaces") if item["metadata"]["name"] == NAMESPACE
    ]  # fmt: skip
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    experiment("listed", 2)
    world.wait_complete("listed")
    roles = Counter(item["metadata"]["labels"]["app.kubernetes.io/component"] for item in world.items("pods"))
    assert roles["operator"] and roles["s3"] and roles["controller"] and roles["trainer"]
    assert not [item for item in world.items("pods") if item["status"]["phase"] == "Failed"]


def test_deletion_leaves_nothing_in_the_cluster_and_the_objects_in_the_bucket(world: World, experiment: Start) -> None:
    experiment("gone", 1000)

    def at_work() -> Document | None:
        found = world.experiment("gone")
        samples = found.get("status", {}).get("samples", {})
        return found if samples.get("running") and samples["observed"] >= 2 else None

    document = world.eventually(at_work, lambda: world.experiment("gone").get("status"))
    uid = document["metadata"]["uid"]
    selector = f"{names.LABEL_EXPERIMENT_UID}={uid}"
    kinds = "pods,jobs,serviceaccounts,rolebindings,roles,secrets,configmaps,nas"
    assert len(world.items("pods", selector)) >= 2
    world.kubectl("delete", "nas", "gone")
    world.eventually(
        lambda: not world.items(kinds, selector) and not _owned_by(world, kinds, uid),
        lambda: [item["metadata"]["name"] for item in world.items(kinds, selector)],
    )
    keys = world.objects(document)
    assert names.log_key(0) in keys
    assert any(key.startswith(names.SAMPLES_PREFIX) for key in keys)


def _owned_by(world: World, kinds: str, uid: str) -> list[Document]:
    return [
        item
        for item in world.items(kinds)
        if uid in [owner["uid"] for owner in item["metadata"].get("ownerReferences", ())]
    ]


def test_controllers_and_operators_may_die_at_any_moment(
    world: World, experiment: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A controller dies as soon as it has written so many records, or as soon as its pod is there."""
    experiment("deaths", 1000)
    store = world.store(world.experiment("deaths"), monkeypatch)
    moments = random.Random(7)
    killed: dict[str, list[str]] = {"controller": [], "operator": []}
    begun = lived = 0

    def show() -> object:
        return killed, world.experiment("deaths").get("status"), [record.type for record in read_log(store)][-20:]

    for death in range(13):
        role = "operator" if death % 4 == 3 else "controller"
        least = moments.choice([0, 1, 4, 8]) if role == "controller" else 0
        if least:
            lived += 1
            world.eventually(partial(has_written, store, begun, least), show)
        pod = world.eventually(partial(living, world, role, killed[role]), show)
        begun = sum(isinstance(record, Started) for record in read_log(store))
        grace = moments.choice(["--grace-period=0 --force", "--grace-period=30"]).split()
        world.kubectl("delete", "pod", pod, "--wait=false", *grace)
        killed[role].append(pod)

    world.propose_no_more("deaths")
    samples = world.wait_complete("deaths")["samples"]
    assert samples["observed"] == samples["proposed"]
    records = read_log(store)
    again = [record for record in records if isinstance(record, Launched) and record.attempt > 1]
    pods = [pod["status"] for each in again for pod in world.items("pods", f"{names.LABEL_SAMPLE}={each.samples[0]}")]
    assert (samples["lost"], samples["retried"]) == (0, 0), f"trained twice, or not at all: {again}, {pods}"
    assert_nothing_twice_nothing_missing(records, samples["proposed"])
    assert sum(isinstance(record, Started) for record in records) > lived


def has_written(store: Store, begun: int, least: int) -> bool:
    """Return whether the first controller after so many others, and what came after it, have written so much."""
    records = read_log(store)
    starts = [index for index, record in enumerate(records) if isinstance(record, Started)]
    return len(starts) > begun and len(records) - starts[begun] >= least


def living(world: World, role: str, killed: Sequence[str]) -> str | None:
    """Return the release's operator, or the experiment's controller, unless it has been killed."""
    selector = f"app.kubernetes.io/component={role}"
    if role == names.ROLE_CONTROLLER:
        selector += f",{names.LABEL_EXPERIMENT}=deaths"
    for item in world.items("pods", selector):
        pod, phase = item["metadata"], item["status"]["phase"]
        if phase in ("Pending", "Running") and "deletionTimestamp" not in pod and pod["name"] not in killed:
            return str(pod["name"])
    return None


def test_suspension_frees_the_nodes_and_ends(world: World, experiment: Start) -> None:
    experiment("paused", 1000)
    selector = f"{names.LABEL_EXPERIMENT}=paused,{names.LABEL_ROLE}={names.ROLE_TRAINER}"

    def show() -> object:
        return world.experiment("paused").get("status"), [item["metadata"]["name"] for item in world.items("pods")]

    def running() -> int:
        status = world.experiment("paused").get("status", {})
        return int(status.get("samples", {}).get("running", 0))

    # Both: a Job is there before the status tells of it, and what is told before a suspension is compared with below.
    world.eventually(lambda: running() and world.items("jobs", selector), show)
    world.patch("paused", {"suspend": True})

    def no_pod_runs() -> bool:
        pods = world.items("pods", f"{names.LABEL_EXPERIMENT}=paused")
        return all(item["status"]["phase"] in ("Succeeded", "Failed") for item in pods)

    world.eventually(lambda: world.conditions("paused").get("Suspended", {}).get("status") == "True", show)
    world.eventually(no_pod_runs, show)
    before = world.experiment("paused")["status"]["samples"]["observed"]
    world.patch("paused", {"suspend": False})
    world.eventually(lambda: world.experiment("paused")["status"]["samples"]["observed"] > before, show)
    world.propose_no_more("paused")
    samples = world.wait_complete("paused")["samples"]
    assert samples["observed"] == samples["proposed"]
