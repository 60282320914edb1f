"""What is generated from the models is checked in as they say it, and the pages miss nothing."""

from pathlib import Path

import pytest
from docs import generate

from nas_api.child import ExitCode
from nas_api.experiment import NASExperimentSpec
from nas_api.reasons import LostReason, Reason


def test_generated_files_are_current() -> None:
    assert generate.stale() == [], "run `make generate`"


def test_a_changed_file_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path, build in generate.GENERATED.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(build(), encoding="utf-8")
    changed = tmp_path / "docs/reference.md"
    changed.write_text(changed.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    monkeypatch.setattr(generate, "ROOT", tmp_path)
    assert generate.stale() == ["docs/reference.md"]


def test_every_reason_and_exit_code_has_its_line() -> None:
    page = generate.troubleshooting()
    for word in (*Reason, *LostReason):
        assert f"| `{word}` |" in page
    for code in ExitCode:
        assert f"| {int(code)} | `{code.name}` |" in page


def test_every_field_has_a_line_and_a_meaning() -> None:
    page = generate.reference()
    for field in NASExperimentSpec.model_fields.values():
        assert f"| `spec.{field.alias}` |" in page
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    assert len(rows) > 60
    assert all(row.split(" | ")[-1].strip(" |") for row in rows)
