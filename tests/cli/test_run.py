"""``nas run`` as people use it: to the end, again, after Ctrl-C, after SIGKILL, with another manifest."""

import json
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from patience import HANG_SECONDS, eventually

from nas_api import names
from nas_api.child import StoreLocation
from nas_cli.main import main
from nas_log.log import read_objects
from nas_log.records import Finished, Launched, Observed, Proposed, Started
from nas_store import open_store
from nas_store.folder import FolderStore

Write = Callable[..., Path]
NAS = [sys.executable, "-c", "from nas_cli.main import main; main()"]


def nas(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words], catch_exceptions=False)


def records(folder: Path) -> list[Any]:
    """Return the log's records; reading checks that no object is missing or was changed."""
    store = open_store(StoreLocation(folder=str(folder)))
    return [record for each in read_objects(store, -1, "") for record in each.records]


def trained(folder: Path) -> Counter[int]:
    """Return how often each sample was trained to its end, by the children's own logs."""
    lines = [line for log in (folder / "children").glob("*.log") for line in log.read_text().splitlines()]
    events = [json.loads(line) for line in lines if line.startswith("{")]
    return Counter(event["sample"] for event in events if event["event"] == "result")


def assert_whole(folder: Path, samples: int, *, killed: bool = False) -> None:
    """Check that every sample was proposed, trained and learnt exactly once.

    Where children were killed, one of them may have died between its result and its own word of it; what shows then
    that it was not trained again is that it was launched once only.
    """
    found = records(folder)
    for kind in (Proposed, Observed):
        assert Counter(record.sample for record in found if isinstance(record, kind)) == Counter(range(samples))
    done = trained(folder)
    if killed:
        launches = Counter(sample for record in found if isinstance(record, Launched) for sample in record.samples)
        done += Counter(sample for sample in range(samples) if not done[sample] and launches[sample] == 1)
    assert done == Counter(range(samples))
    assert isinstance(found[-1], Finished)
    keys = FolderStore(folder).list("log/")
    assert keys == [names.log_key(sequence) for sequence in range(len(keys))]


@pytest.mark.slow
def test_children_may_share_a_process(small: Write, tmp_path: Path) -> None:
    trainer = {"dataset": {"digits": {"trainingImages": 100}}, "epochs": 1, "batchSize": 50, "childrenPerPod": 2}
    folder = tmp_path / "run"
    outcome = nas("run", small(samples=5, parallelism=4, trainer=trainer), "--folder", folder, "--parallelism", 4)
    assert outcome.exit_code == 0, outcome.output
    assert_whole(folder, 5)
    launches = [record.samples for record in records(folder) if isinstance(record, Launched)]
    assert launches == [(0, 1), (2, 3), (4,)]
    assert {path.name for path in (folder / "children").glob("*.log")} == {"0.log", "1.log", "2.log"}


@pytest.mark.slow
def test_a_run_ends_with_the_best_network_and_is_not_repeated(small: Write, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    outcome = nas("run", small(samples=6), "--folder", folder)
    assert outcome.exit_code == 0, outcome.output
    assert "6/6 samples" in outcome.output
    assert "Complete: the best network has accuracy" in outcome.output
    assert_whole(folder, 6)

    code = nas("best", folder, "--code").stdout
    assert code == (folder / names.BEST_MODULE).read_text()
    namespace: dict[str, Any] = {}
    exec(code, namespace)
    assert namespace["Network"]()(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    table = nas("best", folder).stdout
    assert re.search(r"accuracy \d\.\d{4} \(sample \d\)", table)
    assert "image" in table and "classifier" in table
    status = nas("status", folder).stdout
    assert "6/6" in status and "Complete" in status

    log = FolderStore(folder).list("log/")
    again = nas("run", small(samples=6), "--folder", folder)
    assert again.exit_code == 0
    assert "Complete: the best network has accuracy" in again.output
    assert FolderStore(folder).list("log/") == log
    assert_whole(folder, 6)

    changed = nas("run", small(samples=6, searcher={"seed": 5}), "--folder", folder)
    assert changed.exit_code == 1
    assert "holds another search than the manifest (different: spec.searcher)" in changed.output
    assert "--folder" in changed.output
    other = nas("run", small(samples=6, name="other"), "--folder", folder)
    assert other.exit_code == 1
    assert "(different: metadata.name)" in other.output
    assert nas("best", folder, "--code").stdout == code


def proposed(folder: Path) -> int:
    """Return how many samples a run has proposed; its budget was one that no machine spends before it is ended."""
    return sum(isinstance(record, Proposed) for record in records(folder))


def begin(manifest: Path, folder: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [*NAS, "run", str(manifest), "--folder", str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )


def wait_for_results(process: "subprocess.Popen[str]", folder: Path, count: int) -> None:
    def there() -> bool:
        assert process.poll() is None, process.communicate()[0]
        return len(list(folder.glob("samples/*/result.json"))) >= count

    eventually(there, message=f"{count} results")


@pytest.mark.slow
def test_sigkill_at_any_moment_loses_nothing_and_repeats_nothing(small: Write, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    for count in (2, 5, 9):
        process = begin(small(samples=1000), folder)
        wait_for_results(process, folder, count)
        process.kill()
        process.communicate()
    samples = proposed(folder) + 2
    process = begin(small(samples=samples), folder)
    output, _ = process.communicate(timeout=HANG_SECONDS)
    assert process.returncode == 0, output
    assert "Complete" in output
    assert_whole(folder, samples, killed=True)
    assert [record.epoch for record in records(folder) if isinstance(record, Started)] == [1, 2, 3, 4]


@pytest.mark.slow
def test_ctrl_c_says_how_to_go_on(small: Write, tmp_path: Path) -> None:
    folder, manifest = tmp_path / "run", small(samples=1000)
    process = begin(manifest, folder)
    wait_for_results(process, folder, 2)
    # As a terminal does: to the whole process group.
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=HANG_SECONDS)
    assert process.returncode == 0, output
    assert f"Resume with: nas run {manifest} --folder {folder}" in output
    assert "Traceback" not in output
    assert not any(isinstance(record, Finished) for record in records(folder))
    assert nas("status", folder).stdout.startswith("Stopped")
    samples = proposed(folder) + 2
    outcome = nas("run", small(samples=samples), "--folder", folder)
    assert outcome.exit_code == 0, outcome.output
    assert_whole(folder, samples)


@pytest.mark.slow
def test_two_runs_of_one_folder_do_not_mix(small: Write, tmp_path: Path) -> None:
    folder, manifest = tmp_path / "run", small(samples=1000)
    process = begin(manifest, folder)
    try:
        wait_for_results(process, folder, 1)
        second = nas("run", manifest, "--folder", folder)
        assert second.exit_code == 1
        assert "another `nas run` is at work" in second.output
        assert nas("status", folder).stdout.startswith("Running")
    finally:
        os.killpg(process.pid, signal.SIGINT)
        process.communicate(timeout=HANG_SECONDS)


@pytest.mark.slow
def test_a_missing_dataset_is_shown_and_its_cure_taken_up(small: Write, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    trainer = {"dataset": {"cifar10": {"uri": str(tmp_path / "cifar")}}, "epochs": 1}
    process = begin(small(samples=4, trainer=trainer), folder)
    assert process.stdout is not None
    seen = ""
    while "waiting: DatasetUnavailable" not in seen:
        seen = process.stdout.readline()
        assert seen, "the run ended"
    os.killpg(process.pid, signal.SIGTERM)
    output, _ = process.communicate(timeout=HANG_SECONDS)
    assert process.returncode == 0, output
    assert f"{tmp_path / 'cifar'} is missing: mount the volume" in seen


def test_a_bad_manifest_is_refused_before_anything_is_loaded(small: Write, tmp_path: Path) -> None:
    outcome = nas("run", small(budget={"samples": 0}), "--folder", tmp_path / "run")
    assert outcome.exit_code == 1
    assert "spec.budget.samples: 0 is not valid" in outcome.output
    assert not (tmp_path / "run").exists()


def test_a_folder_that_cannot_be_made_is_one_line(small: Write) -> None:
    outcome = nas("run", small(), "--folder", "/proc/nowhere")
    assert outcome.exit_code == 1
    assert outcome.output.count("\n") == 1
    assert "choose another with --folder" in outcome.output


def test_a_broken_folder_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "experiment.json").write_text("{")
    for command in ("status", "best"):
        outcome = nas(command, tmp_path)
        assert outcome.exit_code == 1
        assert "is not a readable run" in outcome.output


def test_version_and_help_load_no_torch() -> None:
    program = (
        "import sys; from nas_cli.main import main; main(['--version'], standalone_mode=False);"
        "print(len({'torch', 'kubernetes', 'boto3'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["nas, version 0.1.0", "0"]
