"""A search on a real cluster: to its end, through deaths, and to its deletion."""

import json
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from demo.demo import Demo
from demo.places import NAMESPACE
from demo.steps import Steps
from e2e.conftest import Document, World, small

from nas_api import names
from nas_log.records import Finished, Launched, Lost, Observed, Proposed, Record, Started

pytestmark = [pytest.mark.node, pytest.mark.slow, pytest.mark.timeout(900)]
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
    demo.show()
    status = world.wait_complete("whole", 1)
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
    per_child = len(requests) / CHILDREN
    with capsys.disabled():
        print(f"\nAPI requests of operator and controller: {per_child:.2f} for each child")
    assert per_child <= 2.2, Counter(requests)

    records = world.log(document, monkeypatch)
    assert_nothing_twice_nothing_missing(records, CHILDREN)
    rewards = {record.sample: record.reward for record in records if isinstance(record, Observed)}
    assert max(rewards, key=lambda sample: (rewards[sample], -sample)) == status["best"]["sample"]

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
    world.wait_complete("listed", 180)
    roles = Counter(item["metadata"]["labels"]["app.kubernetes.io/component"] for item in world.items("pods"))
    assert roles["operator"] and roles["s3"] and roles["controller"] and roles["trainer"]
    assert not [item for item in world.items("pods") if item["status"]["phase"] == "Failed"]


def test_deletion_leaves_nothing_in_the_cluster_and_the_objects_in_the_bucket(world: World, experiment: Start) -> None:
    experiment("gone", 100)
    world.eventually(
        lambda: (
            world.experiment("gone").get("status", {}).get("samples", {}).get("running") == 2
            and world.experiment("gone")["status"]["samples"]["observed"] >= 2
        ),
        120,
        lambda: world.experiment("gone").get("status"),
    )
    document = world.experiment("gone")
    uid = document["metadata"]["uid"]
    selector = f"{names.LABEL_EXPERIMENT_UID}={uid}"
    kinds = "pods,jobs,serviceaccounts,rolebindings,roles,secrets,configmaps,nas"
    assert len(world.items("pods", selector)) >= 2
    world.kubectl("delete", "nas", "gone", "--timeout=20s")

    began = time.monotonic()
    world.eventually(
        lambda: not world.items(kinds, selector) and not _owned_by(world, kinds, uid),
        30,
        lambda: [item["metadata"]["name"] for item in world.items(kinds, selector)],
    )
    print(f"nothing left {time.monotonic() - began:.1f} s after the deletion")
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
    experiment("deaths", 40)
    random_moments = random.Random(7)
    killed = Counter[str]()
    while killed.total() < 13:
        time.sleep(random_moments.uniform(1.0, 6.0))
        if world.conditions("deaths").get("Complete", {}).get("status") == "True":
            break
        if killed.total() % 4 == 3:
            role, selector = "operator", "app.kubernetes.io/component=operator"
        else:
            role, selector = "controller", f"{names.LABEL_EXPERIMENT}=deaths,{names.LABEL_ROLE}={names.ROLE_CONTROLLER}"
        grace = random_moments.choice(["--grace-period=0 --force", "--grace-period=30"]).split()
        done = world.try_kubectl("delete", "pods", "-l", selector, "--wait=false", *grace)
        killed[role] += "deleted" in done.stdout
    assert killed == {"controller": 10, "operator": 3}, "the search ended before all had died"

    status = world.wait_complete("deaths", 420)
    assert status["samples"]["observed"] == 40
    assert (status["samples"]["lost"], status["samples"]["retried"]) == (0, 0), "trained twice, or not at all"
    records = world.log(world.experiment("deaths"), monkeypatch)
    assert_nothing_twice_nothing_missing(records, 40)
    epochs = sum(isinstance(record, Started) for record in records)
    print(f"killed {dict(killed)}; {epochs} controllers wrote the log")
    assert epochs > 2


def test_suspension_frees_the_nodes_and_ends(world: World, experiment: Start) -> None:
    experiment("paused", 6)
    selector = f"{names.LABEL_EXPERIMENT}=paused,{names.LABEL_ROLE}={names.ROLE_TRAINER}"
    world.eventually(lambda: world.items("jobs", selector), 120, lambda: world.experiment("paused").get("status"))
    world.kubectl("patch", "nas", "paused", "--type=merge", "-p", '{"spec": {"suspend": true}}')

    def no_pod_runs() -> bool:
        pods = world.items("pods", f"{names.LABEL_EXPERIMENT}=paused")
        return all(item["status"]["phase"] in ("Succeeded", "Failed") for item in pods)

    world.eventually(no_pod_runs, 60, lambda: [item["metadata"]["name"] for item in world.items("pods")])
    assert world.conditions("paused")["Suspended"]["status"] == "True"
    world.kubectl("patch", "nas", "paused", "--type=merge", "-p", '{"spec": {"suspend": false}}')
    assert world.wait_complete("paused", 180)["samples"]["observed"] == 6
