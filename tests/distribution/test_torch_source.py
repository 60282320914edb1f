"""Where torch is taken from on a machine, and that each of its sources and every other library is pinned by hash."""

import re
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from hack import torch_source
from hack.torch_source import CPU, HASHED, PYPI, choose

REQUIREMENTS = CPU.parent
FOLDER = Path("wheels")
PAGE = "https://index.example/cpu/torch/"


@pytest.mark.parametrize(
    ("machine", "folder", "index", "problem", "words", "why"),
    [
        (HASHED, FOLDER, "https://index.example/cpu", "", ("wheels", CPU), "wheels, which has the wheel"),
        (HASHED, FOLDER, "", "", ("wheels", CPU), "wheels, which has the wheel"),
        (HASHED, None, "https://index.example/cpu/", "", (PAGE, CPU), f"{PAGE}, which answers"),
        (HASHED, None, "https://index.example/cpu", "is down", (PYPI,), f"{PAGE} is down"),
        (HASHED, None, "", "", (PYPI,), "no index was named"),
        ("cp312 on Linux x86_64", FOLDER, "https://index.example/cpu", "", (PYPI,), "not for cp312 on Linux x86_64"),
    ],
)
def test_the_first_place_that_serves_is_taken(
    machine: str, folder: Path | None, index: str, problem: str, words: tuple[object, ...], why: str
) -> None:
    asked = []

    def complaint(url: str) -> str:
        asked.append(url)
        return problem

    source = choose(machine, folder, index, complaint)
    assert [word for word in source.words if not word.startswith("--")] == list(map(str, words))
    assert why in source.why
    assert asked == ([PAGE] if machine == HASHED and folder is None and index else [])


def test_a_folder_serves_that_has_the_pinned_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WHEELS", raising=False)
    monkeypatch.setattr(torch_source, "ROOT", tmp_path / "clone")
    version = torch_source.wheel().split("-")[1]
    for folder in ("clone/wheels", "before/wheels", "beside/wheels"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "before/wheels/torch-1.0+cpu-cp311-cp311-linux_x86_64.whl").touch()
    assert torch_source.wheels_folder() is None
    for folder in ("beside/wheels", "clone/wheels"):
        (tmp_path / folder / f"torch-{version}-cp311-cp311-manylinux_2_28_x86_64.whl").touch()
        assert torch_source.wheels_folder() == tmp_path / folder
    monkeypatch.setenv("WHEELS", str(tmp_path / "beside/wheels"))
    assert torch_source.wheels_folder() == tmp_path / "beside/wheels"
    monkeypatch.setenv("WHEELS", "")
    assert torch_source.wheels_folder() is None


class _Page(BaseHTTPRequestHandler):
    """Answers at /torch/, and nowhere else."""

    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/torch/" else 404)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def site() -> Iterator[str]:
    """The address of a web server on this machine."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Page) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_an_index_answers_or_it_is_said_why_not(site: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert torch_source.complaint(f"{site}/torch/") == ""
    assert torch_source.complaint(f"{site}/other/") == "does not answer (Not Found)"
    assert "does not answer (" in torch_source.complaint("http://127.0.0.1:1/torch/")


def test_the_command_is_run_with_the_chosen_words() -> None:
    words = [sys.executable, "-S", "-E", str(torch_source.ROOT / "hack/torch_source.py"), "echo", "install"]
    environment = {"PATH": "/bin:/usr/bin", "WHEELS": "", "TORCH_INDEX": ""}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == f"install --requirements {PYPI}\n"
    assert re.fullmatch(r"torch: PyPI's build, since .*\n", done.stderr)


def _pins(file: Path) -> dict[str, str]:
    """Return the versions in a file of requirements by name."""
    return dict(re.findall(r"^([\w.-]+)==([^ ;]+)", file.read_text(encoding="utf-8"), re.MULTILINE))


def test_both_builds_of_torch_are_of_one_version_and_need_the_same() -> None:
    cpu, pypi = _pins(CPU), _pins(PYPI)
    assert cpu == {name: pypi[name] for name in cpu} | {"torch": f"{pypi['torch']}+cpu"}


@pytest.mark.parametrize("file", sorted(REQUIREMENTS.glob("*.txt")), ids=lambda file: file.stem)
def test_every_requirement_is_pinned_as_for_development_and_has_a_hash(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    assert "://" not in text, "where packages come from is the machine's affair"
    requirements = re.split(r"^(?=[^ #])", text, flags=re.MULTILINE)[1:]
    assert requirements
    for requirement in requirements:
        assert re.match(r"[\w.-]+==\S+ [^\n]*\\\n +--hash=sha256:[0-9a-f]{64}", requirement), requirement
    if file.stem in ("kfp", "mlflow", "sbom", "triton"):
        # Environments of their own: nothing of ours runs there.
        return
    pinned = _pins(PYPI) | _pins(CPU) | _pins(REQUIREMENTS / "dev.txt") | _pins(REQUIREMENTS / "uv.txt")
    expected = _pins(PYPI) if file == PYPI else pinned
    assert _pins(file) == {name: expected[name] for name in _pins(file)}
