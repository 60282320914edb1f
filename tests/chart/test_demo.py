"""The demo's choices that need no cluster."""

import os
import shutil
from pathlib import Path

import pytest
from demo import run


def test_an_image_is_tagged_by_what_goes_into_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for place in (
        "Dockerfile",
        "hack",
        "requirements",
        *(place for places in run.SOURCES.values() for place in places),
    ):
        source = run.ROOT / place
        if source.is_dir():
            shutil.copytree(source, tmp_path / place, dirs_exist_ok=True)
        elif source.is_file():
            shutil.copy(source, tmp_path / place)
    monkeypatch.setattr(run, "ROOT", tmp_path)
    run.image_tag.cache_clear()
    before = {component: run.image_tag(component) for component in run.COMPONENTS}
    (tmp_path / "trainer_image/nas_trainer/main.py").write_text("changed")
    (tmp_path / "operator/nas_operator/__pycache__").mkdir(exist_ok=True)
    (tmp_path / "operator/nas_operator/__pycache__/x.pyc").write_text("ignored")
    run.image_tag.cache_clear()
    after = {component: run.image_tag(component) for component in run.COMPONENTS}
    run.image_tag.cache_clear()
    assert [component for component in run.COMPONENTS if before[component] != after[component]] == ["trainer"]


@pytest.mark.parametrize("component", run.COMPONENTS)
def test_every_source_of_an_image_exists(component: str) -> None:
    for place in run.SOURCES[component]:
        assert (run.ROOT / "requirements" / place if place.endswith(".txt") else run.ROOT / place).exists()


def test_without_docker_and_root_the_choices_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(run.DemoError, match=r"CLUSTER=kind.*CLUSTER=built.*CLUSTER=current"):
        run.choose("", "demo")
    assert isinstance(run.choose("current", "demo"), run.Current)


def test_as_root_on_linux_a_cluster_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(run.sys, "platform", "linux")
    assert isinstance(run.choose("", "demo"), run.Built)


def test_a_foreign_cluster_needs_a_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NAS_REGISTRY", raising=False)
    with pytest.raises(run.DemoError, match="NAS_REGISTRY"):
        run.Current().values()
    monkeypatch.setenv("NAS_REGISTRY", "registry.example/team")
    monkeypatch.setenv("NAS_TAG", "7")
    assert run.Current().values() == ["images.registry=registry.example/team", "images.tag=7"]
