"""A user's own trainer under ``nas run``: programs in sh that know nothing of us, and how each end is told."""

import itertools
import json
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from experiments import manifest
from patience import HANG_SECONDS, eventually

from nas_api import names
from nas_api.child import StoreLocation
from nas_cli import local_run
from nas_cli.local_executor import LocalExecutor
from nas_cli.main import main
from nas_kube.clock import SystemClock
from nas_log.log import read_log
from nas_log.records import Finished, Launched, Lost, Observed, Record
from nas_store import open_store

NAS = [sys.executable, "-c", "from nas_cli.main import main; main()"]
SPACE = {
    "custom": {
        "decisions": [
            {"name": "op", "options": ["a", "b", "c"]},
            {"name": "width", "range": {"from": 8, "to": 32, "step": 8}},
            {"name": "depth", "range": {"from": 1, "to": 3}, "when": {"decision": "op", "in": ["a", "b"]}},
            {"name": "cell", "options": ["x", "y"], "repeat": 2},
        ]
    }
}
GOOD = 'echo \'{"metrics": {"accuracy": 0.5}}\' > "$NAS_DIR/result.json"'
# Looks a value up by one decision, as a table would.
LOOKUP = """
case "$(cat "$NAS_DIR/architecture.json")" in *'"op":"b"'*) value=0.9;; *) value=0.5;; esac
echo "{\\"metrics\\": {\\"accuracy\\": $value}}" > "$NAS_DIR/result.json"
"""


@pytest.fixture
def own(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes a trainer in sh and its manifest, and returns the manifest's path."""

    def write(script: str, *, samples: int = 4, trainer: dict[str, Any] | None = None, **spec: Any) -> Path:
        program = tmp_path / "train.sh"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        document = manifest(
            name="mine",
            **{
                "searchSpace": SPACE,
                "searcher": {"random": {}, "duplicates": "Train"},
                "budget": {"samples": samples},
                "trainer": {"dataset": {"custom": {}}, "command": ["./train.sh"], **(trainer or {})},
                "parallelism": 2,
                **spec,
            },
        )
        path = tmp_path / "mine.yaml"
        # JSON is YAML in which every word is in quotes.
        path.write_text(json.dumps(document))
        return path

    return write


Own = Callable[..., Path]


def nas(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words], catch_exceptions=False)


def records(folder: Path) -> list[Record]:
    return read_log(open_store(StoreLocation(folder=str(folder))))


def lost(folder: Path) -> list[Lost]:
    return [record for record in records(folder) if isinstance(record, Lost)]


def test_a_search_of_a_table_ends_with_its_best_row_for_programs_to_read(own: Own, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    outcome = nas("run", own(LOOKUP, samples=30), "--folder", folder)
    assert outcome.exit_code == 0, outcome.output
    assert "Complete" in outcome.output and "nas best" in outcome.output

    best = json.loads(nas("best", folder, "-o", "json").stdout)
    assert (best["metric"], best["metricName"]) == (0.9, "accuracy")
    assert best["architecture"]["choices"]["op"] == "b"
    assert json.loads((folder / names.BEST_ARCHITECTURE).read_text()) == best["architecture"]

    lines = [json.loads(line) for line in nas("samples", folder, "-o", "json").stdout.splitlines()]
    assert [line["sample"] for line in lines] == list(range(30))
    for line in lines:
        choices = line["architecture"]["choices"]
        assert line["state"] == "Observed"
        assert line["metric"] == (0.9 if choices["op"] == "b" else 0.5)
        assert ("depth" in choices) == (choices["op"] != "c"), "a decision that was not taken is not there"
        assert len(choices["cell"]) == 2
    table = nas("samples", folder).stdout
    assert len(table.splitlines()) == 32 and "op=b" in table

    # The manifest's order, which the log's sorted JSON has lost.
    order = ["op", "width", "depth", "cell"]
    assert list(best["architecture"]["choices"]) == order
    assert all(re.search(r"op=\w width=\d+ (depth=\d )?cell=", line) for line in table.splitlines()[2:])
    for words in (outcome.output, nas("best", folder).stdout):
        assert [name for line in words.splitlines() if (name := line.strip().partition(" ")[0]) in order] == order
    for words in (nas("status", folder).stdout, (folder / names.REPORT).read_text()):
        assert re.search(r"op=b width=\d+ depth=\d cell=", words)


def test_a_trainer_sees_its_folder_the_users_environment_and_the_manifests_place(
    own: Own, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINE", "kept")
    script = 'env > "$NAS_DIR/env"; pwd > "$NAS_DIR/pwd"; ls "$NAS_DIR" > "$NAS_DIR/ls"; ' + GOOD
    folder = tmp_path / "run"
    assert nas("run", own(script, samples=1, trainer={"epochs": 3}), "--folder", folder).exit_code == 0
    child = folder / "children" / "0"
    env = dict(line.split("=", 1) for line in (child / "env").read_text().splitlines())
    assert env["NAS_DIR"] == str(child)
    assert (env["NAS_SAMPLE"], env["NAS_EPOCHS"], env["MINE"]) == ("0", "3", "kept")
    assert env["NAS_SEED"].isdigit()
    assert (child / "pwd").read_text().strip() == str(tmp_path)
    assert {"architecture.json", "settings.json"} <= set((child / "ls").read_text().split())


def test_a_failure_shows_the_trainers_words_and_where_all_of_them_are(own: Own, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    manifest = own("echo no licence >&2; exit 3", samples=2, trainer={"attempts": 2})
    outcome = nas("run", manifest, "--folder", folder)
    assert outcome.exit_code == 1
    log = folder / "children" / "0.log"
    assert f"attempt 1: exit code 3: no licence; its output is {log}" in outcome.output
    assert log.read_text() == "no licence\n"
    assert [record.reason for record in lost(folder)] == ["TrainerFailed"] * 2
    assert "exit code 3: no licence" in lost(folder)[0].message


def test_what_a_trainer_says_cannot_move_the_cursor(own: Own, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    script = r"printf '\033[31mred\033[0m\r 50%%\r100%%\n\033]0;title\007\033[2J\a\n'; exit 3"
    outcome = nas("run", own(script, samples=1, trainer={"attempts": 1}), "--folder", folder)
    words = "exit code 3: red  50% 100% | \N{REPLACEMENT CHARACTER}"
    assert f"{words}; its output is" in outcome.output
    assert words in lost(folder)[0].message


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("echo hello", "result.json: the trainer ended with exit code 0 and did not write it"),
        ('echo hello; echo 0.9 > "$NAS_DIR/result.json"', "result.json: an object is needed, such as"),
        ('echo hello; echo "{" > "$NAS_DIR/result.json"', "result.json: this is not JSON"),
        ('echo hello; echo \'{"metrics": {"accuracy": true}}\' > "$NAS_DIR/result.json"', "true is not a number"),
        ('echo hello; echo \'{"metrics": {"loss": 1}}\' > "$NAS_DIR/result.json"', "metrics has no 'accuracy'"),
    ],
)
def test_a_bad_result_is_lost_at_once_with_the_fault(own: Own, tmp_path: Path, script: str, words: str) -> None:
    folder = tmp_path / "run"
    outcome = nas("run", own(script, samples=2), "--folder", folder)
    assert outcome.exit_code == 1
    assert words in outcome.output
    assert [record.reason for record in lost(folder)] == ["InvalidResult"] * 2
    for record in lost(folder):
        assert record.message.endswith(f"Its output: {folder / 'children' / f'{record.sample}.log'}")
    assert not (folder / "children" / "2.log").exists(), "it was not tried again"


def test_a_samples_log_is_found_by_its_newest_launch(own: Own, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    # Sample 0 fails once: from then on, launches and samples have different numbers.
    once = f'[ $NAS_SAMPLE = 0 ] && mkdir "{tmp_path}/failed" 2> "$NAS_DIR/words" && exit 1'
    script = f'echo "this is $NAS_SAMPLE"; echo done\n{once}\n{GOOD}'
    manifest = own(script, samples=3, parallelism=1, trainer={"attempts": 2})
    assert nas("run", manifest, "--folder", folder).exit_code == 0
    for sample in range(3):
        assert nas("logs", folder, "--sample", sample).stdout == f"this is {sample}\ndone\n"
    assert nas("logs", folder, "--sample", 2, "--tail", 1).stdout == "done\n"
    assert nas("logs", folder, "--sample", 2, "--tail", 0).stdout == ""
    earlier = f"An earlier attempt of sample 0: {folder / 'children' / '0.log'}\n"
    assert nas("logs", folder, "--sample", 0).stderr == earlier
    assert nas("logs", folder, "--sample", 1).stderr == ""
    assert f"tail -f {folder / 'children' / '3.log'}" in nas("logs", folder, "--sample", 2, "-f").output
    assert "drawn 3 samples so far" in nas("logs", folder, "--sample", 7).output
    assert f"nas logs {folder} --sample N" in nas("logs", folder).output
    (folder / "children" / "3.log").unlink()
    assert "3.log cannot be read: No such file" in nas("logs", folder, "--sample", 2).output


def test_a_reused_samples_log_is_the_others(own: Own, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    space = {"custom": {"decisions": [{"name": "op", "options": ["a"]}]}}
    searcher = {"random": {}, "duplicates": "Reuse"}
    manifest = own(GOOD, samples=2, parallelism=1, searchSpace=space, searcher=searcher)
    assert nas("run", manifest, "--folder", folder).exit_code == 0
    assert f"nas logs {folder} --sample 0" in nas("logs", folder, "--sample", 1).output


def test_a_number_that_a_penalty_lacks_says_where_the_trainers_output_is(own: Own, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    penalties = [{"metric": "latency", "target": "5", "exponent": "1"}]
    assert nas("run", own(GOOD, samples=1, objective={"penalties": penalties}), "--folder", folder).exit_code == 1
    (record,) = lost(folder)
    assert record.reason == "InvalidResult" and "objective.penalties names 'latency'" in record.message
    assert record.message.endswith(f". The trainer's output: {folder / 'children' / '0.log'}")


@pytest.mark.parametrize(
    ("code", "reason"), [(10, "InvalidArchitecture"), (11, "OutOfMemory"), (1, "TrainerFailed"), (127, "TrainerFailed")]
)
def test_exit_codes_mean_what_they_do_in_a_pod(own: Own, tmp_path: Path, code: int, reason: str) -> None:
    folder = tmp_path / "run"
    nas("run", own(f"exit {code}", samples=1, trainer={"attempts": 1}), "--folder", folder)
    assert [record.reason for record in lost(folder)] == [reason]


def test_a_divergence_is_observed(own: Own, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    nas("run", own('echo \'{"metrics": {"accuracy": NaN}}\' > "$NAS_DIR/result.json"', samples=2), "--folder", folder)
    (first, _) = [record for record in records(folder) if isinstance(record, Observed)]
    assert first.diverged
    (line, _) = nas("samples", folder, "-o", "json").stdout.splitlines()
    assert json.loads(line)["state"] == "Diverged" and json.loads(line)["metric"] is None


def test_a_deadline_ends_all_that_the_command_has_started(
    own: Own, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    pid = folder / "children" / "0" / "pid"
    times = itertools.count(step=2.0)

    class Clock(SystemClock):
        """Time passes only when the command has started what it starts."""

        def monotonic(self) -> float:
            return next(times) if written(pid) else 0.0

    monkeypatch.setattr(local_run, "LocalExecutor", partial(LocalExecutor, clock=Clock()))
    script = 'sleep 7777 & echo $! > "$NAS_DIR/pid"; wait'
    nas("run", own(script, samples=1, trainer={"deadline": "1s"}), "--folder", folder)
    assert [record.reason for record in lost(folder)] == ["DeadlineExceeded"]
    eventually(lambda: gone(int(pid.read_text())))


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (None, "spec.trainer.command is missing"),
        (["./nothing.sh"], "there is no executable program ./nothing.sh in"),
        (["no-such-program"], "there is no executable program no-such-program on the PATH"),
    ],
)
def test_a_command_that_cannot_run_is_refused_in_one_line(
    own: Own, tmp_path: Path, command: list[str] | None, words: str
) -> None:
    outcome = nas("run", own(GOOD, trainer={"command": command}), "--folder", tmp_path / "run")
    assert outcome.exit_code == 1
    assert outcome.output.splitlines()[-1].startswith("Error: ") and words in outcome.output


def test_the_templates_command_is_run_where_the_trainer_has_none(own: Own, tmp_path: Path) -> None:
    template = {"spec": {"containers": [{"name": "trainer", "command": ["sh"], "args": ["./train.sh"]}]}}
    outcome = nas("run", own(GOOD, trainer={"command": None, "template": template}), "--folder", tmp_path / "run")
    assert outcome.exit_code == 0, outcome.output


def test_parallelism_is_the_manifests(own: Own, tmp_path: Path) -> None:
    # Each child waits until as many as there should be have begun.
    script = f'mkdir -p "{tmp_path}/begun"; : > "{tmp_path}/begun/$NAS_SAMPLE"\n'
    script += f'while [ "$(ls "{tmp_path}/begun" | wc -l)" -lt 6 ]; do sleep 0.05; done\n{GOOD}'
    spec = {"parallelism": 6, "budget": {"samples": 6}}
    folder = tmp_path / "run"
    nas("run", own(script, trainer={"deadline": "5m"}, **spec), "--folder", folder)
    assert lost(folder) == []


def begin(manifest: Path, folder: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [*NAS, "run", str(manifest), "--folder", str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def gone(process: int) -> bool:
    """Return whether a process has ended."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def written(path: Path) -> bool:
    """Return whether a file has its line."""
    return path.exists() and path.read_text().endswith("\n")


def wait_for(path: Path, process: "subprocess.Popen[str]") -> int:
    """Return the number in a file once it is there."""

    def there() -> bool:
        assert process.poll() is None, process.communicate()[0]
        return written(path)

    eventually(there, message=str(path))
    return int(path.read_text())


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_nothing_outlives_a_run_that_ends_and_nothing_is_lost(own: Own, tmp_path: Path, number: signal.Signals) -> None:
    folder = tmp_path / "run"
    manifest = own(f'[ -e "{tmp_path}/go" ] || {{ sleep 7777 & echo $! > "$NAS_DIR/pid"; wait; }}\n{GOOD}', samples=3)
    process = begin(manifest, folder)
    sleeping = [wait_for(folder / "children" / str(launch) / "pid", process) for launch in (0, 1)]
    os.kill(process.pid, number)
    output, _ = process.communicate(timeout=HANG_SECONDS)
    eventually(lambda: all(gone(each) for each in sleeping))
    if number == signal.SIGINT:
        assert process.returncode == 0 and "Resume with: nas run" in output
    (tmp_path / "go").touch()
    outcome = nas("run", manifest, "--folder", folder)
    assert outcome.exit_code == 0, outcome.output
    found = records(folder)
    assert Counter(record.sample for record in found if isinstance(record, Observed)) == Counter(range(3))
    assert isinstance(found[-1], Finished)


@pytest.mark.slow
def test_many_cheap_children_beside_each_other_are_all_observed(own: Own, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert nas("run", own(LOOKUP, samples=200, parallelism=8), "--folder", folder).exit_code == 0
    found = records(folder)
    assert Counter(record.sample for record in found if isinstance(record, Observed)) == Counter(range(200))
    assert sum(isinstance(record, Launched) for record in found) == 200


def test_faults_of_decisions_come_with_line_and_cure(tmp_path: Path) -> None:
    """What no schema can say is said here, all of it at once."""
    path = tmp_path / "bad.yaml"
    head = "apiVersion: nas-operator.io/v1alpha1\nkind: NASExperiment\nmetadata: {name: bad}\nspec:\n"
    tail = "  budget: {samples: 5}\n  trainer: {dataset: {custom: {}}}\n  storage: {s3: {bucket: nas}}\n"
    decisions = """\
  searchSpace:
    custom:
      decisions:
        - {name: depth, range: {from: 1, to: 4}, when: {decision: op, in: [a]}}
        - {name: op, options: [a, b], repeat: 2}
        - {name: kind, options: [a, b]}
        - name: size
          options: [s]
          when:
            decision: kind
            in: [a, z]
        - {name: kind, options: [c], when: {decision: op, in: [a]}}
"""
    path.write_text(head + decisions + tail)
    outcome = nas("validate", path)
    assert outcome.exit_code == 1
    place = "spec.searchSpace.custom.decisions"
    assert [line.removeprefix(f"{path}:") for line in outcome.stderr.splitlines()] == [
        f"8: {place}[0].when.decision: 'op' is not an earlier decision; name one that comes before this one"
        " (there is none), or move it up",
        f"15: {place}[3].when.in: kind has no option 'z', only a, b",
        f"16: {place}[4].name: an earlier decision is already called 'kind'",
        f"16: {place}[4].when.decision: op is repeated, so it has no single value; name a decision without repeat",
    ]
    path.write_text(head + decisions.replace("options: [s]", "options: [1, yes]") + tail)
    path.write_text(path.read_text().replace("custom: {}}", "custom: {}}, command: python3 x.py"))
    words = nas("validate", path).stderr
    assert "spec.trainer.command: a list is needed here: write [python3, x.py]" in words
    assert f'12: {place}[3].options[0]: YAML reads this word as a number: write "1" in quotes' in words
    assert f'12: {place}[3].options[1]: YAML reads this word as true or false: write "yes" in quotes' in words
    assert "at least 1 item" not in words
