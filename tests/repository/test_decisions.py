"""The decisions in docs/adr: each says what has become of it, and the index lists all of them as they are."""

import re
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "adr"
_TITLE = re.compile(r"# (?P<title>(?P<number>\d+)\. .+)")
_STATUS = re.compile(
    r"\*\*Status\.\*\* (?P<status>Proposed|Accepted|Superseded by ADR \d+), (?P<date>\d{4}-\d\d-\d\d)\."
)
_ROW = re.compile(r"\| \[(?P<title>.+)\]\((?P<file>\d{4}-[a-z0-9-]+\.md)\) \| (?P<status>[^|]+) \| (?P<date>[^|]+) \|")
_SECTIONS = ("Context", "Decision", "Consequences")


def decisions(folder: Path) -> list[Path]:
    return sorted(folder.glob("[0-9]*.md"))


def faults(folder: Path) -> list[str]:
    """Return what is wrong with the decisions of a folder and their index, one sentence each."""
    found: list[str] = []
    pages: list[tuple[str, str, str, str]] = []
    for number, path in enumerate(decisions(folder), start=1):
        text = path.read_text(encoding="utf-8")
        title, status = _TITLE.match(text), _STATUS.search(text)
        if title is None or int(title["number"]) != number or not path.name.startswith(f"{number:04}-"):
            found.append(f"{path.name} is not number {number} by its name and title")
        if status is None:
            found.append(f"{path.name} has no status with a date")
        found += [f"{path.name} has no {name}" for name in _SECTIONS if f"\n**{name}.** " not in text]
        if title is not None and status is not None:
            pages.append((title["title"], path.name, status["status"], status["date"]))
    index = (folder / "README.md").read_text(encoding="utf-8")
    rows = [(row["title"], row["file"], row["status"], row["date"]) for row in _ROW.finditer(index)]
    if rows != pages:
        different = sorted({file for _, file, *_ in set(rows) ^ set(pages)})
        found.append(f"the index differs from the pages: {', '.join(different) or 'their order'}")
    return found


def test_each_decision_has_a_status_and_its_line_in_the_index() -> None:
    assert len(decisions(FOLDER)) >= 11
    assert faults(FOLDER) == []


def test_a_decision_without_status_or_line_is_found(tmp_path: Path) -> None:
    page = "# 1. One\n\n**Status.** Accepted, 2026-01-31.\n\n**Context.** a\n\n**Decision.** b\n\n**Consequences.** c\n"
    (tmp_path / "0001-one.md").write_text(page)
    (tmp_path / "README.md").write_text("| [1. One](0001-one.md) | Accepted | 2026-01-31 |\n")
    assert faults(tmp_path) == []
    (tmp_path / "0002-two.md").write_text(page.replace("1. One", "2. Two").replace("2026-01-31", "2026-02-28"))
    assert faults(tmp_path) == ["the index differs from the pages: 0002-two.md"]
    (tmp_path / "0002-two.md").write_text("# 3. Two\n\n**Status.** Decided.\n\n**Context.** a\n\n**Decision.** b\n")
    assert faults(tmp_path) == [
        "0002-two.md is not number 2 by its name and title",
        "0002-two.md has no status with a date",
        "0002-two.md has no Consequences",
    ]
