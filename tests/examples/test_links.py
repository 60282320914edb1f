"""Every relative link of the documents leads somewhere: to a file or folder, and to a heading where it names one."""

import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
_HIDDEN = re.compile(r"```.*?```|`[^`\n]*`", re.DOTALL)
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#{1,6}\s+(.+?)\s*$", re.MULTILINE)


def documents() -> list[Path]:
    folders = (".github", "docs", "examples", "hack", "helm", "bench", "tests")
    found = [path for folder in folders for path in (REPOSITORY / folder).rglob("*.md")]
    return sorted([*REPOSITORY.glob("*.md"), *found])


def anchors(text: str) -> set[str]:
    """Return what headings are called in links: lower case, hyphens for spaces, other signs left out."""
    without_code = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    return {
        re.sub(r"[^\w\- ]", "", heading.replace("`", "").lower()).replace(" ", "-")
        for heading in _HEADING.findall(without_code)
    }


def broken_links(document: Path) -> list[str]:
    broken = []
    for target in _LINK.findall(_HIDDEN.sub("", document.read_text())):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        path = document.parent / file if file else document
        if not path.exists() or (anchor and path.suffix == ".md" and anchor not in anchors(path.read_text())):
            broken.append(target)
    return broken


@pytest.mark.parametrize("document", documents(), ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_relative_links_lead_somewhere(document: Path) -> None:
    assert broken_links(document) == []


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    (tmp_path / "other.md").write_text("# The one heading, here\n")
    page = tmp_path / "page.md"
    page.write_text(
        "[a](other.md) [b](other.md#the-one-heading-here) [c](https://example.com/x) `[d](code.md)`\n"
        "[e](missing.md) [f](other.md#another)\n"
    )
    assert broken_links(page) == ["missing.md", "other.md#another"]
