"""The demo's choices that need no cluster."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from demo import images
from demo.images import COMPONENTS, CUDA, sources, wanted
from demo.places import Built, Current, choose
from demo.steps import ROOT, DemoError
from hack.cluster import images as archives
from hack.cluster.paths import images_folder

DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")


def test_an_image_holds_what_its_stages_copy() -> None:
    dockerfile = """
        FROM scratch AS base
        FROM base AS build
        COPY one.txt two.txt /build/
        RUN COPY three.txt /build/
        FROM base AS source
        COPY four /src/
        FROM build AS other
        COPY five /src/
        FROM base AS whole
        COPY --from=build /build /build
        COPY --from=source /src /src
    """
    assert sources(dockerfile, "whole") == {"one.txt", "two.txt", "four"}
    assert sources(dockerfile, "other") == {"one.txt", "two.txt", "five"}
    assert sources(dockerfile, "base") == set()


@pytest.mark.parametrize("component", COMPONENTS)
def test_every_source_of_an_image_exists_and_its_own_are_there(component: str) -> None:
    found = sources(DOCKERFILE, component)
    assert all((ROOT / place).exists() for place in found)
    assert {"api", f"requirements/{component}.txt"} < found


def test_the_trainer_for_gpus_is_built_when_it_is_asked_for() -> None:
    assert wanted({}) == wanted({"CUDA": "0"}) == wanted({"CUDA": ""}) == COMPONENTS
    assert wanted({"CUDA": "1"}) == (*COMPONENTS, CUDA)
    assert sources(DOCKERFILE, CUDA) == sources(DOCKERFILE, "trainer")


def test_an_image_is_tagged_by_what_goes_into_it(tmp_path: Path) -> None:
    for place in ("Dockerfile", *(place for component in COMPONENTS for place in sources(DOCKERFILE, component))):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / place).is_dir():
            shutil.copytree(ROOT / place, tmp_path / place, dirs_exist_ok=True)
        else:
            shutil.copy(ROOT / place, tmp_path / place)
    before = {component: images.image_tag(component, tmp_path) for component in COMPONENTS}
    assert before == {component: images.image_tag(component) for component in COMPONENTS}
    (tmp_path / "trainer_image/nas_trainer/main.py").write_text("changed")
    (tmp_path / "operator/nas_operator/__pycache__").mkdir(exist_ok=True)
    (tmp_path / "operator/nas_operator/__pycache__/x.pyc").write_text("ignored")
    images.image_tag.cache_clear()
    after = {component: images.image_tag(component, tmp_path) for component in COMPONENTS}
    images.image_tag.cache_clear()
    assert [component for component in COMPONENTS if before[component] != after[component]] == ["trainer"]


def test_archives_of_other_tags_are_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = images_folder()
    folder.mkdir(parents=True)
    kept = {"localhost_nas-operator_new@2.tar", "localhost_nas-trainer_old@3.tar", "localhost_nas-s3_1.tar"}
    for name in (*kept, "localhost_nas-operator_old@1.tar"):
        (folder / name).touch()
    archives.forget_other_tags("localhost/nas-operator:new")
    assert {file.name for file in folder.iterdir()} == kept
    assert archives.built("localhost/nas-operator:new") == folder / "localhost_nas-operator_new@2.tar"
    assert archives.built("localhost/nas-operator:old") is None


def test_the_demo_needs_nothing_but_the_standard_library() -> None:
    command = [sys.executable, "-S", "-E", "-m", "demo", "--help"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "{demo,paper,down,images}" in result.stdout


def test_without_docker_and_root_the_choices_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(DemoError, match=r"CLUSTER=kind.*CLUSTER=built.*CLUSTER=current"):
        choose("", "demo")
    assert isinstance(choose("current", "demo"), Current)


def test_as_root_on_linux_a_cluster_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(sys, "platform", "linux")
    assert isinstance(choose("", "demo"), Built)


def test_a_foreign_cluster_needs_a_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NAS_REGISTRY", raising=False)
    with pytest.raises(DemoError, match="NAS_REGISTRY"):
        Current().values()
    monkeypatch.setenv("NAS_REGISTRY", "registry.example/team")
    monkeypatch.setenv("NAS_TAG", "7")
    assert Current().values() == ["images.registry=registry.example/team", "images.tag=7"]
