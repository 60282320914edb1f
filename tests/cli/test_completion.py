"""Completion: what the words may be, and that bash, zsh, fish and kubectl put them on the line."""

import json
import os
import pty
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from canned_api import Answer, failure, kubeconfig
from click.testing import CliRunner
from cluster_fixtures import ControlPlane
from experiments import manifest
from patience import HANG_SECONDS, eventually

from nas_cli import completion
from nas_cli.main import main
from nas_kube.resources import EXPERIMENTS

BIN = Path(sys.executable).parent
COLLECTION = "/apis/nas-operator.io/v1alpha1/namespaces/{}/nasexperiments"
NO_FILES, FILES, FOLDERS = ":4", ":0", ":16"


def experiments(*names: str) -> tuple[int, str]:
    items = [{"metadata": {"name": name}} for name in names]
    return 200, json.dumps({"kind": "List", "metadata": {"resourceVersion": "1"}, "items": items})


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two runs, a folder that is none and a manifest, where no cluster is known."""
    folder = tmp_path / "here"
    for run in ("nas-runs/small", "earlier"):
        (folder / run).mkdir(parents=True)
        (folder / run / "experiment.json").write_text("{}")
    (folder / "plain").mkdir()
    (folder / "digits.yaml").write_text("")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PATH", f"{BIN}:{os.environ['PATH']}")
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    return folder


def completed(*words: str) -> list[str]:
    """Return the lines that kubectl is given for these words behind ``kubectl nas``, without what they are for."""
    done = subprocess.run(["kubectl_complete-nas", *words], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return [line.partition("\t")[0] for line in done.stdout.splitlines()]


# ---------------------------------------------------------------- what is offered


def test_commands_options_and_choices_are_words() -> None:
    assert completed("st") == ["status", NO_FILES]
    assert completed("status", "--n") == ["--namespace", NO_FILES]
    assert completed("samples", "x", "-o", "") == ["table", "json", NO_FILES]
    assert completed("completion", "") == ["bash", "zsh", "fish", NO_FILES]
    assert {*main.commands, NO_FILES} == set(completed("")) == set(completed())
    done = subprocess.run(["kubectl_complete-nas", "sta"], capture_output=True, text=True, check=True)
    assert done.stdout == "status\tShow how an experiment is going.\n:4\n"


def test_files_and_folders_are_for_the_shell() -> None:
    for words in (["validate", ""], ["run", "dig"], ["report", "x", "-o", ""]):
        assert completed(*words) == [FILES]
    for words in (["run", "--folder", ""], ["export", "x", "-o", "pl"]):
        assert completed(*words) == [FOLDERS]


def test_runs_are_offered_as_the_word_begins(here: Path) -> None:
    assert completed("status", "") == ["earlier", "nas-runs/small", NO_FILES]
    assert completed("status", "nas-runs/") == completed("status", "nas") == ["nas-runs/small", NO_FILES]
    assert completed("status", "./") == ["./earlier", NO_FILES]
    assert completed("status", f"{here}/") == [f"{here}/earlier", NO_FILES]
    assert completed("status", "pl") == [NO_FILES]
    # On the way to one.
    assert completed("status", "plain/") == completed("status", "/nowhere/at/all") == [FOLDERS]


def test_experiments_of_the_cluster_are_offered(answer: Answer) -> None:
    answer({COLLECTION.format("default"): experiments("digits", "digits-2"), COLLECTION.format("team"): experiments()})
    for command in ("status", "best", "samples", "logs", "report", "export"):
        assert completed(command, "dig") == ["digits", "digits-2", NO_FILES]
    assert completed("status", "") == ["digits", "digits-2", "earlier", "nas-runs/small", NO_FILES]
    assert completed("status", "-n", "team", "dig") == [NO_FILES]
    assert completed("status", "--context", "other", "dig") == [NO_FILES]


def test_a_cluster_that_refuses_or_is_not_there_says_nothing(
    answer: Answer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer({COLLECTION.format("default"): failure(403, "Forbidden", "no")})
    assert completed("status", "e") == ["earlier", NO_FILES]
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig(tmp_path / "config", "http://127.0.0.1:9")))
    assert completed("status", "e") == ["earlier", NO_FILES]
    for text in ("{", "", "a: 1", "[]", "current-context: {}"):
        (tmp_path / "config").write_text(text)
        assert completed("status", "e") == ["earlier", NO_FILES]


def test_a_cluster_that_does_not_answer_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(completion, "_PATIENCE_SECONDS", 0.01)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv(
            "KUBECONFIG", str(kubeconfig(tmp_path / "config", f"http://127.0.0.1:{silent.getsockname()[1]}"))
        )
        context = main.commands["status"].make_context("status", ["x"])
        items = completion.experiments_and_runs(context, main.commands["status"].params[0], "e")
        assert [item.value for item in items] == ["earlier"]
        # Only now: whoever asks was still waiting for it.
        silent.accept()[0].close()


def test_little_is_loaded_at_a_key(answer: Answer, monkeypatch: pytest.MonkeyPatch) -> None:
    answer({COLLECTION.format("default"): experiments("digits")})
    program = (
        "import sys; from nas_cli.kubectl_completion import complete; complete();"
        "print(*sorted({'torch', 'numpy', 'pydantic', 'boto3', 'rich', 'kubernetes'} & set(sys.modules)))"
    )

    def said(*words: str) -> list[str]:
        done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, check=True)
        return done.stdout.splitlines()

    # The cluster's client brings pydantic.
    assert said("status", "d") == ["digits", NO_FILES, "kubernetes pydantic"]
    assert said("status", "./") == ["./earlier", NO_FILES, ""]
    assert said("status", "--n")[1:] == [NO_FILES, ""]
    monkeypatch.delenv("KUBECONFIG")
    assert said("status", "d") == [NO_FILES, ""]


# ---------------------------------------------------------------- shells


def shell(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} IS NOT INSTALLED: its completion is not tried")
    return path


Typed = Callable[[str], str]
# What a person types before a tab, and what is to stand on the line afterwards.
LINES = [
    ("nas stat", "nas status "),
    ("nas best nas-r", "nas best nas-runs/small "),
    ("nas best ear", "nas best earlier "),
    ("nas logs dig", "nas logs digits-on-the-cluster "),
    ("nas validate dig", "nas validate digits.yaml "),
    ("nas best ./pl", "nas best ./plain/"),
    ("nas export x -o pl", "nas export x -o plain/"),
    ("nas samples x -o j", "nas samples x -o json "),
]
START = {
    "bash": (["--norc", "--noprofile", "-i"], 'bind "set enable-bracketed-paste off"; eval "$(nas completion bash)"'),
    "zsh": (
        ["-f", "-i"],
        'autoload -U compinit; compinit -u -D; zle_highlight=(none); eval "$(nas completion zsh)"',
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", START)
def test_a_tab_completes_the_line_of_a_person(name: str, answer: Answer) -> None:
    answer({COLLECTION.format("default"): experiments("digits-on-the-cluster")})
    options, start = START[name]
    leader, follower = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "PS1": "> ", "HISTFILE": ""}
    process = subprocess.Popen(
        [shell(name), *options],
        stdin=follower,
        stdout=follower,
        stderr=follower,
        env=environment,
        start_new_session=True,
    )
    os.close(follower)
    os.set_blocking(leader, False)
    screen = ""

    def appears(words: str) -> None:
        """Read until the screen shows these words; what it showed before counts no more."""
        nonlocal screen
        screen = ""

        def shown() -> bool:
            nonlocal screen
            try:
                screen += os.read(leader, 65536).decode(errors="replace")
            except BlockingIOError:
                return False
            return words in screen

        eventually(shown, message=lambda: f"{words!r} in {screen!r}")

    try:
        # In two parts, or the command itself on the screen would do for its output.
        os.write(leader, f"{start}; echo rea''dy\n".encode())
        appears("ready")
        for typed, whole in LINES:
            os.write(leader, f"{typed}\t".encode())
            appears(whole.removeprefix(typed))
            # Away with the line.
            os.write(leader, b"\x15")
    finally:
        process.kill()
        process.wait(HANG_SECONDS)
        os.close(leader)


@pytest.mark.slow
def test_fish_completes_the_same_lines(answer: Answer) -> None:
    answer({COLLECTION.format("default"): experiments("digits-on-the-cluster")})
    program = "nas completion fish | source; for line in $argv; complete -C $line; end"
    words = [shell("fish"), "--no-config", "-c", program, *(typed for typed, _ in LINES)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert [line.partition("\t")[0] for line in done.stdout.splitlines()] == [
        whole.split(" ")[-2 if whole.endswith(" ") else -1] for _, whole in LINES
    ]


def test_a_shell_that_is_not_known_is_told_which_are() -> None:
    outcome = CliRunner().invoke(main, ["completion", "csh"])
    assert outcome.exit_code == 2
    assert "'csh' is not one of 'bash', 'zsh', 'fish'" in outcome.stderr


@pytest.mark.cluster
def test_kubectl_completes_experiments(
    control_plane: ControlPlane, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(control_plane.environment, "PATH", f"{BIN}:{control_plane.environment['PATH']}")
    control_plane.client.create(EXPERIMENTS, namespace, manifest(namespace))

    def told(*words: str) -> list[str]:
        done = control_plane.kubectl("__complete", "nas", *words)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    assert told("stat") == ["status\tShow how an experiment is going.", NO_FILES]
    assert told("status", "-n", namespace, "") == ["digits", "earlier", "nas-runs/small", NO_FILES]
    assert told("validate", "") == [FILES]
    assert told("export", "digits", "-o", "") == [FOLDERS]
