"""The wheel, installed as a user installs it: everything but a search on this machine works without torch."""

import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from experiments import manifest

from nas_api import __version__

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
UV = str(BIN / "uv")
# Without the machine's kubeconfig, and with nothing of this environment's.
ENVIRONMENT = {"PATH": "/usr/bin:/bin", "HOME": "/nonexistent"}
Nas = Callable[..., subprocess.CompletedProcess[str]]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def light(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clean environment in which only the wheel was installed."""
    folder = tmp_path_factory.mktemp("light")
    build = ("build", "-q", "--wheel", "--no-build-isolation", "--python", sys.executable, "--out-dir", folder, ROOT)
    subprocess.run([UV, *build], check=True)
    (wheel,) = folder.glob("*.whl")
    assert wheel.name == f"nas_operator-{__version__}-py3-none-any.whl"
    subprocess.run([UV, "venv", "-q", "--python", sys.executable, folder / "venv"], check=True)
    pins = ROOT / "requirements" / "dev.txt"
    python = folder / "venv" / "bin" / "python"
    subprocess.run([UV, "pip", "install", "-q", "--python", python, "--constraint", pins, wheel], check=True)
    return python.parent


@pytest.fixture(scope="module")
def nas(light: Path) -> Nas:
    """The command, run in that environment."""

    def run(*words: str | Path, program: str = "nas") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [light / program, *words], env=ENVIRONMENT, cwd=light, capture_output=True, text=True, check=False
        )

    return run


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small search that was run where everything is installed."""
    folder = tmp_path_factory.mktemp("searched")
    document = manifest(
        name="small",
        searchSpace={"convolutional": {"layers": {"initial": 2}, "filters": [4, 8]}},
        budget={"samples": 3},
        trainer={"dataset": {"digits": {"trainingImages": 100}}, "epochs": 1, "rewardEpochs": 1, "batchSize": 50},
        finalTraining={"top": 1, "epochs": 1, "grid": {"learningRate": ["0.1"]}},
    )
    (folder / "small.yaml").write_text(yaml.safe_dump(document), encoding="utf-8")
    words = (BIN / "nas", "run", folder / "small.yaml", "--folder", folder / "run")
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder / "run"


def test_nothing_of_a_local_run_is_installed(light: Path) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    modules = {"scikit-learn": "sklearn", "pillow": "PIL"}
    heavy = {requirement.split(">=")[0] for requirement in project["optional-dependencies"]["run"]}
    assert {"torch", "onnx", "pyarrow", "optuna", "scikit-learn"} <= heavy
    names = [modules.get(name, name) for name in heavy]
    code = f"import importlib.util as u, sys; sys.exit(', '.join(filter(u.find_spec, {names})))"
    done = subprocess.run([light / "python", "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr == "\n"


@pytest.mark.parametrize("program", ["nas", "kubectl-nas"])
def test_both_programs_are_installed(nas: Nas, program: str) -> None:
    done = nas("--version", program=program)
    assert (done.stdout, done.stderr) == (f"nas, version {__version__}\n", "")


def test_kubectl_finds_what_completes_its_plugin(nas: Nas) -> None:
    done = nas("stat", program="kubectl_complete-nas")
    assert (done.stdout, done.stderr) == ("status\tShow how an experiment is going.\n:4\n", "")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_are_taught_to_complete(nas: Nas, shell: str) -> None:
    done = nas("completion", shell)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"_NAS_COMPLETE={shell}_complete" in done.stdout


def test_a_manifest_is_validated(nas: Nas) -> None:
    done = nas("validate", ROOT / "examples" / "digits.yaml")
    assert done.stderr == ""
    assert done.stdout.endswith("NASExperiment/digits is valid\n")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("status", "Complete"),
        ("best", "accuracy"),
        ("best -o json", '"architecture"'),
        ("best --code", "class "),
        ("samples", "accuracy"),
        ("samples -o json", '"accuracy"'),
        ("logs --sample 0", "Trained"),
        ("report -o report.html", "report.html"),
        ("export -o network", "network/weights.safetensors"),
    ],
)
def test_a_search_is_read_without_torch(nas: Nas, searched: Path, words: str, expected: str) -> None:
    command, *options = words.split()
    done = nas(command, searched, *options)
    assert (done.returncode, done.stderr) == (0, "")
    assert expected in done.stdout


def test_a_search_on_this_machine_says_what_it_needs(nas: Nas) -> None:
    done = nas("run", ROOT / "examples" / "digits.yaml")
    assert done.returncode == 1
    assert 'pip install "nas-operator[run]"' in done.stderr
    assert "Traceback" not in done.stderr
