"""What others have written does not reach the terminal as anything but text, whichever command shows it."""

import ast
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from canned_api import Answer
from cli.test_cluster import EXPERIMENT, LOG, PATH, STATUS
from cli.test_export import NETWORK, leave_best, run_folder
from click.testing import CliRunner, Result
from experiments import manifest
from rich.console import Console

from nas_api import names
from nas_api.reasons import LostReason
from nas_cli.cluster import readable
from nas_cli.main import main
from nas_log.log import Log, read_objects
from nas_log.records import Launched, Lost, Proposed

ESCAPES = {
    "clipboard": "\x1b]52;c;cm0gLXJmIH4=\x07",
    "clipboard in C1": "\x9d52;c;cm0gLXJmIH4=\x9c",
    "title": "\x1b]0;root@host\x1b\\",
    "link": "\x1b]8;;http://evil.example\x1b\\click\x1b]8;;\x1b\\",
    "answerback": "\x1b[c\x05\x1b[6n",
    "cursor": "\x1b[2J\x1b[1;1H",
    "cursor in C1": "\x9b2J",
    "colour": "\x1b[31m",
    "device control": "\x1bP$q\x1b\\\x90x\x9c",
    "carriage return": "good\rbad",
    "backspace": "bad\b\b\bgood",
    "bell": "\a",
    "nul": "\0",
    "right to left": "\N{RIGHT-TO-LEFT OVERRIDE}cba",
    "isolate": "\N{LEFT-TO-RIGHT ISOLATE}abc",
    "zero width": "a\N{ZERO WIDTH SPACE}b\N{SOFT HYPHEN}",
    "tag": "\N{LANGUAGE TAG}\N{TAG LATIN SMALL LETTER A}",
    "line separator": "a\N{LINE SEPARATOR}b\x85c",
    "half": "\x1b",
    "half of a link": "\x1b]8;;http://evil",
    "mark-up": "[link=http://evil.example]click[/link][blink]",
}
EVIL = "begin " + " ".join(ESCAPES.values()) + " end"
# What the terminal would obey, and what has no look of its own.
OBEYED = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u206f\u00ad\U000e0000-\U000e007f]")


def nas(*words: str | Path) -> Result:
    outcome = CliRunner().invoke(main, [str(word) for word in words], catch_exceptions=False)
    said = outcome.stdout + outcome.stderr
    assert not (found := OBEYED.findall(said)), f"{found} in {said!a}"
    return outcome


def hostile_status() -> dict[str, Any]:
    """Return a status with escapes wherever the schema has room for text."""
    condition = {**STATUS["conditions"][0], "message": EVIL, "type": "Progressing"}
    return {
        **STATUS,
        "conditions": [condition],
        "problem": {"reason": EVIL[:128], "message": EVIL},
        "outcome": {"type": "Failed", "reason": EVIL[:128], "message": EVIL},
        "best": {**STATUS["best"], "architecture": EVIL, "uri": EVIL},
        "controller": {"pod": EVIL[:253]},
    }


HOSTILE = json.dumps({**EXPERIMENT, "status": hostile_status()})
REFUSAL = json.dumps({"kind": "Status", "status": "Failure", "reason": EVIL, "message": EVIL, "code": 422})


@pytest.fixture
def local(tmp_path: Path) -> Path:
    """A run's folder, with what a hostile trainer has left in its log and beside it."""
    folder = tmp_path / "run"
    store = run_folder(folder)
    leave_best(store, NETWORK)
    *_, last = read_objects(store)
    Log(store, last.sequence, last.digest).append(
        [
            Proposed(sample=1, architecture=NETWORK, log_probability=-1.0, version=0),
            Launched(launch=1, samples=(1,), attempt=1),
            Lost(sample=1, reason=LostReason.INVALID_RESULT, message=EVIL),
        ]
    )
    status = hostile_status()
    status = {"objects": 2, "status": {**status, "best": {**status["best"], "sample": 0}}}
    (folder / "status.json").write_text(json.dumps(status))
    (folder / "children").mkdir()
    (folder / "children" / "1.log").write_text(EVIL)
    return folder


@pytest.mark.parametrize(
    "words",
    [
        ("status", "digits"),
        ("best", "digits"),
        ("best", "digits", "--code"),
        ("best", "digits", "-o", "json"),
        ("logs", "digits", "--sample", "1"),
    ],
    ids=" ".join,
)
def test_a_hostile_status(answer: Answer, words: tuple[str, ...]) -> None:
    answer({PATH: (200, HOSTILE)})
    nas(*words)


@pytest.mark.parametrize("command", ["status", "best", "samples", "report", "logs", "export", "submit"])
def test_a_hostile_server(answer: Answer, command: str, tmp_path: Path) -> None:
    answer({PATH: (422, REFUSAL), PATH.rpartition("/")[0]: (422, REFUSAL)})
    what: list[str | Path] = ["digits"]
    if command == "submit":
        (tmp_path / "digits.yaml").write_text(yaml.safe_dump(manifest()))
        what = [tmp_path / "digits.yaml"]
    if command == "export":
        what += ["-o", tmp_path / "out"]
    assert nas(command, *what).exit_code == 1


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (("status",), "begin"),
        (("samples",), "InvalidResult: begin"),
        (("samples", "-o", "json"), "InvalidResult: begin"),
        (("best",), ""),
        (("best", "--code"), "class Network"),
        (("best", "-o", "json"), ""),
    ],
    ids=str,
)
def test_a_hostile_run(local: Path, words: tuple[str, ...], shown: str) -> None:
    command, *options = words
    assert shown in nas(command, local, *options).stdout


@pytest.mark.parametrize("key", [names.log_key(1), names.BEST_ARCHITECTURE, names.BEST_PROVENANCE])
@pytest.mark.parametrize("command", ["samples", "report", "export"])
def test_a_hostile_object(local: Path, tmp_path: Path, command: str, key: str) -> None:
    (local / key).write_text(json.dumps({"version": EVIL, "space": EVIL, EVIL: EVIL}))
    options: list[str | Path] = [] if command == "samples" else ["-o", tmp_path / "out"]
    outcome = nas(command, local, *options)
    assert outcome.exit_code == 1 or command != "export"


@pytest.mark.parametrize("escape", ESCAPES.values(), ids=ESCAPES)
def test_a_hostile_manifest(tmp_path: Path, escape: str) -> None:
    document = manifest()
    document["spec"]["objective"] = {"metric": escape, escape: escape}
    document["metadata"]["name"] = escape
    (tmp_path / "digits.yaml").write_text(json.dumps(document))
    for command in ("validate", "submit"):
        assert nas(command, tmp_path / "digits.yaml").exit_code == 1


@pytest.mark.parametrize("escape", ESCAPES.values(), ids=ESCAPES)
def test_a_log_is_harmless_on_a_terminal(escape: str) -> None:
    deep = "[" * 100_000
    for line in (escape, json.dumps({"event": escape, escape: [escape], "level": escape}), deep):
        assert not OBEYED.search(readable(line))


def test_a_log_in_a_pipe_is_what_the_pod_has_said(answer: Answer) -> None:
    answer({PATH: (200, json.dumps(EXPERIMENT)), LOG: (200, "\x1b]0;title\x07\n")})
    assert CliRunner().invoke(main, ["logs", "digits"]).stdout == "\x1b]0;title\x07\n"


def test_on_a_terminal_our_own_colours_are_all_that_is_obeyed(
    local: Path, monkeypatch: pytest.MonkeyPatch, answer: Answer
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    answer({PATH: (200, HOSTILE)})
    for words in (("status", "digits"), ("best", local), ("samples", local), ("status", local)):
        said = CliRunner().invoke(main, [str(word) for word in words], catch_exceptions=False).stdout
        assert "\x1b[" in said, "there are colours"
        assert not OBEYED.search(re.sub(r"\x1b\[[0-9;]*m", "", said)), ascii(said)


CLI = Path(__file__).parents[2] / "cli" / "nas_cli"
# The one place; the shells' own protocol, and what a pod has said, in a pipe.
ALLOWED = {"terminal.py": {"echo", "Console"}, "kubectl_completion.py": {"echo"}, "logs.py": {"echo", "Console"},
           "main.py": {"echo"}}  # fmt: skip


@pytest.mark.parametrize("path", sorted(CLI.glob("*.py")), ids=lambda path: path.name)
def test_nothing_prints_past_it(path: Path) -> None:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ("echo", "secho"):
            found.add("echo")
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("Console", "print"):
            found.add(node.func.id)
    assert found <= ALLOWED.get(path.name, set())


def test_mark_up_of_others_is_shown_as_it_is(capsys: pytest.CaptureFixture[str], show: Callable[..., str]) -> None:
    assert show("[bold]a[/bold] :smile:") == "[bold]a[/bold] :smile:\n"


@pytest.fixture
def show() -> Callable[..., str]:
    from nas_cli.terminal import HarmlessConsole

    def render(what: Any) -> str:
        console: Console = HarmlessConsole()
        with console.capture() as capture:
            console.print(what)
        return capture.get()

    return render
