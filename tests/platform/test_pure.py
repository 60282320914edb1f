"""What of hack/addons needs no cluster: where Kueue's source is looked for, and what is put into the manifests."""

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml
from hack.addons import __main__ as program
from hack.addons import argo, cluster, kueue, mlflow, prometheus
from hack.cluster import binaries
from hack.cluster.errors import ClusterError

REPOSITORY = Path(__file__).resolve().parents[2]
ARCHIVE = f"kueue-{kueue.VERSION}.tar.gz"


@pytest.fixture
def nothing_built(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.usefixtures("nothing_built")
def test_kueue_s_source_is_where_the_variable_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SOURCES", str(tmp_path))
    assert kueue.archive() is None
    assert f"SOURCES=FOLDER names where {ARCHIVE}" in kueue.absent()
    (tmp_path / ARCHIVE).touch()
    assert kueue.archive() == tmp_path / ARCHIVE
    assert kueue.absent() == ""
    monkeypatch.setenv("SOURCES", "")
    assert kueue.archive() is None


@pytest.mark.usefixtures("nothing_built")
def test_without_its_source_kueue_is_left_out_of_all_and_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SOURCES", "")
    assert program._wanted([]) == ["argo", "prometheus", "mlflow"]
    assert "WITHOUT KUEUE: no source of Kueue: SOURCES=FOLDER" in capsys.readouterr().err
    with pytest.raises(ClusterError, match="no source of Kueue"):
        kueue.make()
    with pytest.raises(ClusterError, match="unknown: katib; known: kueue, argo"):
        program._wanted(["katib"])


@pytest.mark.parametrize("around", ["", "kueue-0.17.8/"])
def test_an_archive_may_have_a_folder_around_the_module(tmp_path: Path, around: str) -> None:
    (tmp_path / "go.mod").write_text("module sigs.k8s.io/kueue\n")
    with tarfile.open(tmp_path / ARCHIVE, "w:gz") as tar:
        tar.add(tmp_path / "go.mod", f"{around}go.mod")
    (tmp_path / "out").mkdir()
    assert kueue._unpack(tmp_path / ARCHIVE, tmp_path / "out") == tmp_path / "out" / around


def test_an_archive_of_something_else_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / ARCHIVE, "w:gz"):
        pass
    (tmp_path / "out").mkdir()
    with pytest.raises(ClusterError, match="holds no Go module"):
        kueue._unpack(tmp_path / ARCHIVE, tmp_path / "out")


def test_the_link_that_argo_s_archive_has_not_is_made(tmp_path: Path) -> None:
    folder = f"github.com/argoproj/argo-workflows/v3@v{argo.VERSION}/workflow/executor/os-specific"
    with zipfile.ZipFile(tmp_path / "module.zip", "w") as archive:
        archive.writestr(f"{folder}/signal_darwin.go", "package os_specific")
    module = argo._unpack(tmp_path / "module.zip", tmp_path)
    assert (module / "workflow/executor/os-specific/signal_linux.go").read_text() == "package os_specific"


def test_what_is_built_is_what_the_tools_modules_pin() -> None:
    tools = REPOSITORY / "hack" / "cluster" / "tools"
    assert f"argo-workflows/v3 v{argo.VERSION}\n" in (tools / "argo" / "go.mod").read_text()
    major, minor, patch = prometheus.VERSION.split(".")
    module = f"github.com/prometheus/prometheus v0.{int(major)}{int(minor):02}.{patch} "
    assert module in (tools / "prometheus" / "go.mod").read_text()
    assert "\nmlflow==" in (REPOSITORY / "requirements" / "mlflow.txt").read_text()


@pytest.mark.parametrize(
    ("name", "words", "image"),
    [
        ("argo", {"VERSION": argo.VERSION}, f"localhost/workflow-controller:v{argo.VERSION}"),
        ("prometheus", {"VERSION": prometheus.VERSION}, f"localhost/prometheus:v{prometheus.VERSION}"),
        ("mlflow", {"IMAGE": mlflow.reference(), "VOLUME": "/volume"}, mlflow.reference()),
    ],
)
def test_a_manifest_names_the_image_that_is_built(name: str, words: dict[str, str], image: str) -> None:
    text = cluster.manifest(name, **words)
    assert "{{" not in text
    (deployment,) = [document for document in yaml.safe_load_all(text) if document["kind"] == "Deployment"]
    assert [container["image"] for container in deployment["spec"]["template"]["spec"]["containers"]] == [image]


def test_what_only_a_platform_needs_is_not_built_for_every_test() -> None:
    assert set(binaries.PLATFORM) < set(binaries.BINARIES)
    assert {*binaries.DEFAULT, *binaries.PLATFORM} == set(binaries.BINARIES)
    assert {*binaries.CONTROL_PLANE, *binaries.NODE, *binaries.FOR_PEOPLE} <= set(binaries.DEFAULT)


def test_the_program_needs_nothing_but_the_standard_library() -> None:
    command = [sys.executable, "-S", "-E", "-m", "hack.addons", "--help"]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert "build" in result.stdout
