"""The folder of a local run: one reader for all commands, as lenient as that of a cluster's experiments."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from experiments import manifest

from nas_api.experiment import NASExperiment
from nas_cli.errors import Refusal
from nas_cli.folders import locked
from nas_cli.main import main
from nas_cli.run_folder import read_run, write_run


def test_what_is_written_is_read_and_what_a_newer_version_has_added_is_left_out(tmp_path: Path) -> None:
    experiment = NASExperiment.model_validate_json(json.dumps(manifest()))
    write_run(tmp_path, experiment)
    assert read_run(tmp_path) == experiment
    path = tmp_path / "experiment.json"
    document = json.loads(path.read_text())
    document["spec"]["novelty"] = document["novelty"] = 1
    path.write_text(json.dumps(document))
    assert read_run(tmp_path) == experiment


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "Invalid JSON"),
        ("{}", "(apiVersion: Field required)"),
        ('{"apiVersion": 1}', "(apiVersion: Input should be "),
    ],
)
def test_a_run_that_cannot_be_read_is_one_line_with_the_cure(tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / "experiment.json").write_text(content)
    for command in (["status"], ["best"], ["samples"], ["logs", "--sample", "0"], ["report"], ["export", "-o", "x"]):
        outcome = CliRunner().invoke(main, [*command, str(tmp_path)], catch_exceptions=False)
        assert outcome.exit_code == 1
        assert outcome.stderr.count("\n") == 1
        assert f"{tmp_path} is not a readable run" in outcome.stderr
        assert words in outcome.stderr and "use the version of nas that has written it" in outcome.stderr


def test_a_folder_that_cannot_be_written_to_is_refused(tmp_path: Path) -> None:
    (tmp_path / ".lock").mkdir()
    with pytest.raises(Refusal, match=r"cannot be written to .*: choose another with --folder"), locked(tmp_path):
        pass
    (tmp_path / "experiment.json").mkdir()
    with pytest.raises(Refusal, match=f"{tmp_path} cannot be used: "):
        write_run(tmp_path, NASExperiment.model_validate_json(json.dumps(manifest())))
